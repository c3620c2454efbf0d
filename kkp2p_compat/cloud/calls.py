"""The calls of a track: offers and answers, and what the two sides tell each other besides.

State lives in memory (members.py).  Before the answer the callee is told how a call ended.  After
it the two may have met already, and only what the caller says in words (``cancel``) ends anything:
a control connection that breaks must not end a direct one.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import Callable

from .._errors import BadPacket
from ..control.wire import (
    MAX_OFFER_CHARS,
    MAX_TRICKLE_CHARS,
    MAX_TRICKLES,
    Message,
    encode,
    encode_message,
    number_untrusted,
)
from ..transport import relay_wire
from ..transport.relay_wire import SESSION_BYTES
from .correspondents import Correspondents
from .counting import address_keys
from .directory import NO_LIMITS
from .limits import Gatekeeper
from .members import Call, CallTable, Member
from .messages import MAX_CALL_NUMBER, Asked, nat_text_untrusted, text_untrusted
from .outcomes import Outcomes
from .outside import same_network, seen_by_stun_untrusted
from .relays import Places, Relays, round_trips_untrusted
from .turn_credentials import TurnCredentials
from .turns import Turns
from .usage import USED_UP

__all__ = ["Calls"]

# Our choices.
MAX_HELD_BYTES = 8192  # of an offer that has to wait: ours have 3,000 at most
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
        # The callee is not here; what the caller says of a call that another node carries; and that
        # it gives up one that is none yet.
        self.elsewhere: Callable[[Member, Asked], None] = self.is_away
        self.pass_on: Callable[[Call, Message], None] = lambda call, message: None
        self.give_up: Callable[[Member, int], None] = lambda caller, number: None
        self.on_made: Callable[[Member], object] = lambda caller: None  # one within its limits
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
            self.forget(call)
            if not call.answered:
                self._outcomes.failed(call.caller, str(member.peer_id), "left")
                call.caller.send(encode("declined", call=call.number, reason="left"))

    # Making a call.

    def _on_call(self, caller: Member, message: Message) -> None:
        asked = Asked.parse_untrusted(message)
        caller.welcome(self._limits.idle_s)
        before = caller.made(asked.number)
        if asked.number in caller.waiting or (before is not None and not before.answered):
            raise BadPacket("a call number that is in use")
        if before is not None:
            self.forget(before)
        refusal = self._limit_reached(caller, asked.to)
        if refusal:
            why = f"call of {caller.peer_id or 'a caller'}: {refusal}"
            self._outcomes.refused(caller.host, "limit", why)
            self.decline(caller, asked, "limit")
            return
        self.on_made(caller)
        callee = self._online.get(asked.to)
        if callee is None:
            self.elsewhere(caller, asked)
        else:
            self.bring(caller, callee, asked)

    def is_away(self, caller: Member, asked: Asked, reason: str = "offline") -> None:
        """The callee is not to be had."""
        self._outcomes.failed(caller, asked.to, reason)
        self.decline(caller, asked, reason, again=reason == "unavailable")

    def decline(self, caller: Member, asked: Asked, reason: str, again: bool = False) -> None:
        caller.send(encode("declined", call=asked.number, reason=reason, again=again or None))

    def bring(self, caller: Member, callee: Member, asked: Asked) -> None:
        """Begin a call of a caller that is within its limits."""
        if not callee.callers.allow(caller.peer_id):
            who = caller.peer_id or "a stranger"
            self._outcomes.refused(caller.host, "not-allowed", f"{who} may not call {asked.to}")
            self.decline(caller, asked, "not-allowed")
            return
        call = self._new_call(self._relays.new_session(caller, callee), caller, callee, asked)
        self._open(call, asked.offer, asked.may_show, call.made_at)

    def carry(self, caller: Member, carrier: Member, asked: Asked) -> Call:
        """A call that another node carries: it is known here, too, with its time and limits."""
        call = self._new_call(secrets.token_bytes(SESSION_BYTES), caller, carrier, asked)
        call.to, call.is_carried = asked.to, True
        self._calls.enter(call)
        return call

    def _new_call(self, session: bytes, caller: Member, callee: Member, asked: Asked) -> Call:
        now, share = time.monotonic(), self._share(caller)
        return Call(session, caller, asked.number, callee, asked.budget_ms, share, now)

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
                turn=self._turn_for(f"account {callee.peer_id}", places),
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
        turn, place = self._turn_for(call.share, places), places.of_caller
        caller.send(
            encode("calling", call=call.number, relay=place, turn=turn, show=show, **places.fields)
        )
        if not place:
            self._outcomes.no_relay(call, places.why)
        self._hand_over(callee, now)

    def _turns_of(self, callee: Member) -> Turns[Call]:
        turns = self._turns.get(callee)
        if turns is None:
            turns = self._turns[callee] = Turns(self._limits)
        return turns

    def _turn_for(self, share: str, places: Places) -> list[str | int] | None:
        """A TURN server is a relay, too: it is not for who has used up what relays may carry."""
        if self._turn is None or places.why == USED_UP:
            return None
        return self._turn.field(share, time.time())

    def _make_room(self, call: Call, line: bytes) -> str:
        """Room for one call more of this callee; the reason to decline it if there is none."""
        turns = self._turns_of(call.callee)
        loser = turns.loser_to(call)
        if loser is not None:
            self.cancel(loser)
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
                line = encode_message(message)
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
        if call.is_carried:
            self.pass_on(call, message)
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
        if caller.limits is not NO_LIMITS:
            now, share = time.monotonic(), self._share(caller)
            why = self._calls.use.refusal(share, caller.limits, now)
            if why:
                return over("account_limits", why)
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
        answer = text_untrusted(message, "answer", MAX_OFFER_CHARS)
        call = self._incoming_untrusted(callee, message)
        if call is None or call.answered:
            return
        try:
            line = encode(
                "answer", call=call.number, answer=answer, seen=callee.seen, nat_text=callee.nat
            )
        except ValueError as error:
            raise BadPacket("an answer that is too long") from error
        if self.settle(call, line):
            self._outcomes.answered()
        else:
            self._outcomes.failed(call.caller, call.to, "limit")

    def settle(self, call: Call, line: bytes) -> bool:
        """It is answered; whether the caller has room for that."""
        callee = call.callee
        self._calls.take_out(call)
        has_room = call.caller.has_room(line)
        kept = has_room and self._keep(call)
        turns = self._turns.get(callee)
        if turns is not None:
            (turns.answer if kept else turns.leave)(call)
        if has_room:
            self.correspondents.met(call.caller, call.to, call.id)
        else:
            line = encode("declined", call=call.number, reason="limit")
        call.caller.send(line)
        self._hand_over(callee, time.monotonic())
        return has_room

    def _keep(self, call: Call) -> bool:
        """Whether it is kept, for what the two still have to tell each other.

        Where too many are kept the oldest goes: so a caller that never says that a call is over can
        go on calling.
        """
        limits, caller = self._limits, call.caller
        full = self._gate.full(self._gate.kept_calls, caller.host, limits.kept_calls_per_address)
        if caller.kept and (full or len(caller.kept) >= limits.kept_calls):
            self.forget(next(iter(caller.kept.values())))
        elif full:
            return False
        call.answered = True
        self._calls.enter(call)
        return True

    def _on_decline(self, callee: Member, message: Message) -> None:
        reason = text_untrusted(message, "reason", MAX_REASON_CHARS)
        call = self._incoming_untrusted(callee, message)
        if call is not None and not call.answered:
            self._outcomes.failed(call.caller, str(callee.peer_id), "declined", reason)
            self.forget(call)
            call.caller.send(encode("declined", call=call.number, reason=reason))

    # Telling more.

    def _on_trickle(self, sender: Member, message: Message) -> None:
        text = text_untrusted(message, "text", MAX_TRICKLE_CHARS)
        if isinstance(message.get("call"), str):
            call = self._incoming_untrusted(sender, message)
            if call is not None and self._may_trickle(sender, call.to_caller):
                call.to_caller += 1
                line = encode("trickle", call=call.number, text=text)
                self.send_if_room(sender, call.caller, line)
        else:
            call = _made_untrusted(sender, message)
            if (
                call is not None
                and call.offer is None
                and self._may_trickle(sender, call.to_callee)
            ):
                call.to_callee += 1
                line = encode("trickle", call=call.id, text=text)
                self.send_if_room(sender, call.callee, line)

    def _may_trickle(self, sender: Member, count: int) -> bool:
        if count < MAX_TRICKLES:
            return True
        self._gate.refused(sender.host, f"over {MAX_TRICKLES} trickles in a call")
        return False

    def send_if_room(self, sender: Member, receiver: Member, line: bytes) -> None:
        if receiver.has_room(line):
            receiver.send(line)
        else:
            self._gate.refused(sender.host, "a trickle to somebody who reads too slowly")

    def _on_nat(self, member: Member, message: Message) -> None:
        text = nat_text_untrusted(message.get("nat"))
        by_stun = seen_by_stun_untrusted(self._relay_key, message.get("seen", []), time.time())
        member.locate(text, by_stun, round_trips_untrusted(message.get("rtt")))

    # The end of a call.

    def _on_over(self, caller: Member, message: Message) -> None:
        call = _made_untrusted(caller, message)
        if call is not None:
            if call.is_carried:
                self.pass_on(call, message)
            else:
                self._outcomes.met_untrusted(call, message)
            self.forget(call)

    def _on_cancel(self, caller: Member, message: Message) -> None:
        call = _made_untrusted(caller, message)
        if call is None:
            self.give_up(caller, message["call"])
        else:
            if call.answered and not call.is_carried:
                self._outcomes.not_met(call)
            self.cancel(call, "cancelled")

    def _incoming_untrusted(self, callee: Member, message: Message) -> Call | None:
        """The call that the callee speaks of; None if it is over: the two messages crossed."""
        return callee.incoming.get(text_untrusted(message, "call", MAX_REASON_CHARS))

    def _end_quietly(self, call: Call, outcome: str) -> None:
        """The caller did not ask for it: what was answered goes on without us."""
        if call.answered:
            self.forget(call)
        else:
            self.cancel(call, outcome)

    def cancel(self, call: Call, outcome: str = "") -> None:
        """End it for its caller; a callee that reads too slowly to be told finds out itself."""
        if outcome and not (call.answered or call.is_carried):
            self._outcomes.failed(call.caller, str(call.callee.peer_id), outcome)
        line = encode("cancel", call=call.id)
        if call.offer is None and call.callee.has_room(line):  # it has been handed over
            call.callee.send(line)
        self.forget(call)

    def forget(self, call: Call) -> None:
        self._calls.take_out(call)
        turns = self._turns.get(call.callee)
        if turns is not None:
            turns.leave(call)
            self._hand_over(call.callee, time.monotonic())


def _made_untrusted(caller: Member, message: Message) -> Call | None:
    """The call that the caller speaks of; None if it is over."""
    return caller.made(number_untrusted(message, "call", 0, MAX_CALL_NUMBER))
