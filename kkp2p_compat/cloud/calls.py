"""The calls of a track: offers and answers, and what the two sides tell each other besides.

State lives in memory (members.py).  Before the answer the callee is told how a call ended.  After
it the two may have met already, and only what the caller says in words (``cancel``) ends anything:
a control connection that breaks must not end a direct one.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable

from .._errors import BadPacket
from .._peer_id import is_peer_id
from ..control.wire import (
    MAX_BUDGET_MS,
    MAX_NAT_CHARS,
    MAX_OFFER_CHARS,
    MAX_TRICKLE_CHARS,
    MAX_TRICKLES,
    Message,
    encode,
    number_untrusted,
)
from ..transport import relay_wire
from .correspondents import Correspondents
from .counting import address_keys
from .limits import Gatekeeper
from .members import Call, CallTable, Member
from .outcomes import Outcomes
from .outside import same_network, seen_by_stun_untrusted
from .relays import Relays, round_trips_untrusted
from .turn_credentials import TurnCredentials
from .turns import Turns

__all__ = ["Calls", "peer_id_untrusted"]

# Our choices.
MAX_HELD_BYTES = 8192  # of an offer that has to wait: ours have 3,000 at most
MAX_CALL_NUMBER = 2**53  # what every JSON library carries exactly
MAX_REASON_CHARS = 64


class Calls:
    """``online``: the peers that can be called; ``relays``: of which each call is given some;
    ``turn``: of a server that both sides are told.
    """

    def __init__(
        self,
        gate: Gatekeeper,
        online: dict[str, Member],
        relays: Relays,
        relay_key: bytes,
        turn: TurnCredentials | None = None,
    ) -> None:
        self.handlers: dict[str, Callable[[Member, Message], None]] = {
            "answer": self._on_answer,
            "call": self._on_call,
            "cancel": self._on_cancel,
            "decline": self._on_decline,
            "here": self._on_here,
            "nat": self._on_nat,
            "over": self._on_over,
            "trickle": self._on_trickle,
        }
        self.correspondents = Correspondents(online)
        self._gate = gate
        self._outcomes = Outcomes(gate)
        self._limits = gate.limits
        self._online = online
        self._relays = relays
        self._relay_key = relay_key
        self._turn = turn
        self._calls = CallTable(gate, time.monotonic())
        # By callee; of those only that are being called.
        self._turns: dict[Member, Turns[Call]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def sweep(self, now: float) -> None:
        """To be called about once a second: calls whose time is up."""
        for call in self._calls.late(now):
            self._end_quietly(call, "no-answer")
        for callee in list(self._turns):  # some may have read what was in the way
            self._hand_over(callee, now)

    def gone(self, member: Member) -> None:
        """The connection is over, and with it all calls from and to it."""
        for call in (*member.outgoing.values(), *member.kept.values()):
            self._end_quietly(call, "cancelled")
        self._turns.pop(member, None)
        for call in list(member.incoming.values()):
            self._forget(call)
            if not call.answered:
                self._outcomes.failed(call.caller, str(member.peer_id), "left")
                call.caller.send(encode("declined", call=call.number, reason="left"))

    # Making a call.

    def _on_call(self, caller: Member, message: Message) -> None:
        number = number_untrusted(message, "call", 0, MAX_CALL_NUMBER)
        callee_id = peer_id_untrusted(message, "to")
        budget_ms = number_untrusted(message, "ms", 1, MAX_BUDGET_MS)
        offer = _text_untrusted(message, "offer", MAX_OFFER_CHARS)
        caller.welcome(self._limits.idle_s)
        before = caller.made(number)
        if before is not None and not before.answered:
            raise BadPacket("a call number that is in use")
        if before is not None:
            self._forget(before)
        refusal = self._limit_reached(caller, callee_id)
        if refusal:
            why = f"call of {caller.peer_id or 'a caller'}: {refusal}"
            self._outcomes.refused(caller.host, "limit", why)
            caller.send(encode("declined", call=number, reason="limit"))
            return
        callee = self._online.get(callee_id)
        if callee is None:
            self._outcomes.failed(caller, callee_id, "offline")
            caller.send(encode("declined", call=number, reason="offline"))
            return
        if not callee.callers.allow(caller.peer_id):
            who = caller.peer_id or "a stranger"
            why = f"{who} may not call {callee_id}"
            self._outcomes.refused(caller.host, "not-allowed", why)
            caller.send(encode("declined", call=number, reason="not-allowed"))
            return
        now = time.monotonic()
        session = self._relays.new_session(caller, callee)
        call = Call(session, caller, number, callee, budget_ms, self._share(caller), now)
        self._open(call, offer, message.get("shows") is True, now)

    def _share(self, caller: Member) -> str:
        """What has a share of a callee of its own: an account, or an address of strangers."""
        if caller.peer_id is not None:
            return f"account {caller.peer_id}"
        keys = address_keys(caller.host)
        return keys[0] if self._limits.hold_for(keys) else f"{keys[0]} {id(caller)}"

    def _open(self, call: Call, offer: str, may_show: bool, now: float) -> None:
        caller, callee = call.caller, call.callee
        known = self._turns.get(callee)
        if known is not None and known.loser_to(call) is call:  # before anything is spent on it
            self._lose(call)
            return
        places = self._relays.places(call)
        try:
            call.offer = encode(
                "offer",
                call=call.id,
                ms=call.budget_ms,
                offer=offer,
                relay=places.of_callee,
                turn=self._turn_for(f"account {callee.peer_id}"),
                **places.fields,
                nat_text=caller.nat,
                seen=caller.seen,
                same_network=same_network(caller.seen, callee.seen) or None,
                **({"from": caller.peer_id} if caller.peer_id else {}),
            )
        except ValueError as error:  # characters that JSON writes as six
            raise BadPacket("an offer that is too long") from error
        reason = self._make_room(call, call.offer)
        if reason:
            self._outcomes.failed(caller, str(callee.peer_id), reason)
            caller.send(encode("declined", call=call.number, reason=reason))
            self._hand_over(callee, now)
            return
        turns = self._turns_of(callee)
        must_show = may_show and call.is_stranger and not turns.may_be_handed(call)
        self._calls.enter(call)
        turns.enter(call)
        show = must_show or None
        turn, place = self._turn_for(call.share), places.of_caller
        caller.send(
            encode("calling", call=call.number, relay=place, turn=turn, show=show, **places.fields)
        )
        if not place:
            self._gate.refused(caller.host, f"relays of a call of {callee.peer_id}: {places.why}")
        self._hand_over(callee, now)

    def _turns_of(self, callee: Member) -> Turns[Call]:
        turns = self._turns.get(callee)
        if turns is None:
            turns = self._turns[callee] = Turns(self._limits)
        return turns

    def _turn_for(self, share: str) -> list[str | int] | None:
        return None if self._turn is None else self._turn.field(share, time.time())

    def _make_room(self, call: Call, line: bytes) -> str:
        """Room for one call more of this callee; the reason to decline it if there is none."""
        turns = self._turns_of(call.callee)
        loser = turns.loser_to(call)
        if loser is not None:
            self._cancel(loser)
            self._lose(loser)
        if not turns.may_be_handed(call):
            return "limit" if len(line) > MAX_HELD_BYTES else ""
        return "" if call.callee.has_room(line) else "busy"

    def _lose(self, call: Call) -> None:
        """Its place goes to another stranger, for a moment: most calls are answered at once."""
        reason = f"over {self._limits.strangers_to_a_peer} calls of {call.callee.peer_id}"
        why = self._gate.over("strangers_to_a_peer", f"{reason} by strangers")
        self._outcomes.refused(call.caller.host, "limit", why)
        call.caller.send(encode("declined", call=call.number, reason="limit", again=True))

    def _hand_over(self, callee: Member, now: float) -> None:
        """The offers whose turn has come; to a callee that reads too slowly, later."""
        turns = self._turns.get(callee)
        if turns is None:
            return
        while (call := turns.next()) is not None and call.offer is not None:
            line, waited_ms = call.offer, int(1000 * (now - call.made_at))
            if waited_ms or call.shown:
                left_ms = max(1, call.budget_ms - waited_ms)
                message = {**json.loads(line), "ms": left_ms, "shown": call.shown or None}
                line = encode(**message)
            if not callee.has_room(line):
                break
            turns.hand(call)
            call.offer = None
            callee.send(line)
        if not turns:
            del self._turns[callee]

    def _on_here(self, caller: Member, message: Message) -> None:
        """The relay's receipt: the caller of a call was there."""
        call = _made_untrusted(caller, message)
        receipt = relay_wire.receipt_from_text_untrusted(message.get("receipt"))
        if call is None:
            return
        genuine = relay_wire.make_receipt(self._relay_key, call.session)
        if not hmac.compare_digest(receipt, genuine):
            raise BadPacket("a receipt of another call")
        turns = self._turns.get(call.callee)
        if turns is not None:
            turns.show(call)
            self._hand_over(call.callee, time.monotonic())

    def _limit_reached(self, caller: Member, callee_id: str) -> str:
        """Why this caller may not call now; empty if it may."""
        limits = self._limits
        over = self._gate.over
        if not caller.call_tokens.take(time.monotonic()):
            return over("calls_per_s", f"over {limits.calls_per_s:g} calls a second")
        if caller.peer_id is None and not self._gate.stranger_may_call(caller.host):
            why = f"over {limits.stranger_calls_per_s:g} calls a second by strangers from there"
            return over("stranger_calls_per_s", why)
        if len(caller.outgoing) >= limits.open_calls:
            return over("open_calls", f"over {limits.open_calls} open calls")
        most = limits.open_calls_per_address
        of_it = self._gate.full(self._gate.open_calls, caller.host, most)
        if of_it:
            return over("open_calls_per_address", f"over {of_it}: open calls")
        if not self._gate.may_name(caller.host, caller.peer_id, callee_id):
            limit = "account_peers" if caller.peer_id else "stranger_peers"
            return over(limit, "too many different peers in a minute")
        return ""

    # Answering it.

    def _on_answer(self, callee: Member, message: Message) -> None:
        answer = _text_untrusted(message, "answer", MAX_OFFER_CHARS)
        call = self._incoming_untrusted(callee, message)
        if call is None or call.answered:
            return
        try:
            line = encode(
                "answer",
                call=call.number,
                answer=answer,
                seen=callee.seen,
                nat_text=callee.nat,
            )
        except ValueError as error:
            raise BadPacket("an answer that is too long") from error
        self._calls.take_out(call)
        has_room = call.caller.has_room(line)
        kept = has_room and self._keep(call)
        turns = self._turns.get(callee)
        if turns is not None:
            (turns.answer if kept else turns.leave)(call)
        if has_room:
            self._outcomes.answered()
            self.correspondents.met(call.caller, callee, call.id)
        else:
            self._outcomes.failed(call.caller, str(callee.peer_id), "limit")
            line = encode("declined", call=call.number, reason="limit")
        call.caller.send(line)
        self._hand_over(callee, time.monotonic())

    def _keep(self, call: Call) -> bool:
        """Whether it is kept, for what the two still have to tell each other.

        Where too many are kept the oldest goes: so a caller that never says that a call is over can
        go on calling.
        """
        limits, caller = self._limits, call.caller
        full = self._gate.full(self._gate.kept_calls, caller.host, limits.kept_calls_per_address)
        if caller.kept and (full or len(caller.kept) >= limits.kept_calls):
            self._forget(next(iter(caller.kept.values())))
        elif full:
            return False
        call.answered = True
        self._calls.enter(call)
        return True

    def _on_decline(self, callee: Member, message: Message) -> None:
        reason = _text_untrusted(message, "reason", MAX_REASON_CHARS)
        call = self._incoming_untrusted(callee, message)
        if call is not None and not call.answered:
            self._outcomes.failed(call.caller, str(callee.peer_id), "declined", reason)
            self._forget(call)
            call.caller.send(encode("declined", call=call.number, reason=reason))

    # Telling more.

    def _on_trickle(self, sender: Member, message: Message) -> None:
        text = _text_untrusted(message, "text", MAX_TRICKLE_CHARS)
        if isinstance(message.get("call"), str):
            call = self._incoming_untrusted(sender, message)
            if call is not None and self._may_trickle(sender, call.to_caller):
                call.to_caller += 1
                line = encode("trickle", call=call.number, text=text)
                self._send_if_room(sender, call.caller, line)
        else:
            call = _made_untrusted(sender, message)
            if (
                call is not None
                and call.offer is None
                and self._may_trickle(sender, call.to_callee)
            ):
                call.to_callee += 1
                line = encode("trickle", call=call.id, text=text)
                self._send_if_room(sender, call.callee, line)

    def _may_trickle(self, sender: Member, count: int) -> bool:
        if count < MAX_TRICKLES:
            return True
        self._gate.refused(sender.host, f"over {MAX_TRICKLES} trickles in a call")
        return False

    def _send_if_room(self, sender: Member, receiver: Member, line: bytes) -> None:
        if receiver.has_room(line):
            receiver.send(line)
        else:
            self._gate.refused(sender.host, "a trickle to somebody who reads too slowly")

    def _on_nat(self, member: Member, message: Message) -> None:
        nat = message.get("nat")
        try:
            text = json.dumps(nat, separators=(",", ":"), allow_nan=False)
        except (ValueError, RecursionError) as error:
            raise BadPacket("nat is too deep, or has an infinite number") from error
        if not isinstance(nat, dict) or len(text) > MAX_NAT_CHARS:
            raise BadPacket(f"nat is not an object of at most {MAX_NAT_CHARS} characters")
        by_stun = seen_by_stun_untrusted(self._relay_key, message.get("seen", []), time.time())
        member.locate(text, by_stun, round_trips_untrusted(message.get("rtt")))

    # The end of a call.

    def _on_over(self, caller: Member, message: Message) -> None:
        call = _made_untrusted(caller, message)
        if call is not None:
            self._outcomes.met_untrusted(call, message)
            self._forget(call)

    def _on_cancel(self, caller: Member, message: Message) -> None:
        call = _made_untrusted(caller, message)
        if call is not None:
            if call.answered:
                self._outcomes.not_met(call)
            self._cancel(call, "cancelled")

    def _incoming_untrusted(self, callee: Member, message: Message) -> Call | None:
        """The call that the callee speaks of; None if it is over: the two messages crossed."""
        return callee.incoming.get(_text_untrusted(message, "call", MAX_REASON_CHARS))

    def _end_quietly(self, call: Call, outcome: str) -> None:
        """The caller did not ask for it: what was answered goes on without us."""
        if call.answered:
            self._forget(call)
        else:
            self._cancel(call, outcome)

    def _cancel(self, call: Call, outcome: str = "") -> None:
        """The caller has given up; a callee that reads too slowly to be told finds out itself."""
        if outcome and not call.answered:
            self._outcomes.failed(call.caller, str(call.callee.peer_id), outcome)
        line = encode("cancel", call=call.id)
        if call.offer is None and call.callee.has_room(line):  # it has been handed over
            call.callee.send(line)
        self._forget(call)

    def _forget(self, call: Call) -> None:
        self._calls.take_out(call)
        turns = self._turns.get(call.callee)
        if turns is not None:
            turns.leave(call)
            self._hand_over(call.callee, time.monotonic())


def _made_untrusted(caller: Member, message: Message) -> Call | None:
    """The call that the caller speaks of; None if it is over."""
    return caller.made(number_untrusted(message, "call", 0, MAX_CALL_NUMBER))


def _text_untrusted(message: Message, name: str, most: int) -> str:
    value = message.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise BadPacket(f"{name} is not a text of at most {most} characters")
    return value


def peer_id_untrusted(message: Message, name: str) -> str:
    value = message.get(name)
    if not is_peer_id(value):
        raise BadPacket(f"{name} is not a peer id")
    return str(value)
