"""The calls of a track: offers and answers, and what the two sides tell each other besides.

State lives in memory.  A call is known from ``call`` until it is declined, over, cancelled, late,
or one of the two connections is gone.  It is always in all of its places (``_calls``, ``_due``, its
caller's ``outgoing`` or ``kept``, its callee's ``incoming``, a counter) or in none: ``_enter`` is
the only way in and ``_forget`` the only way out.

Before the answer the callee is told how a call ended.  After it the two may have met already, and
only what the caller says in words (``cancel``) ends anything: a control connection that breaks
must not end a direct one.
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from .._errors import BadPacket
from ..control.wire import Message, encode, number_untrusted
from ..transport import relay_wire
from .accounts import valid_peer_id
from .connection import Connection
from .correspondents import Correspondents
from .counting import address_key
from .limits import Gatekeeper
from .outside import same_network, seen_by_stun_untrusted
from .prober import Prober
from .turns import Turns

__all__ = ["Calls", "peer_id_untrusted"]

RelayPlace = tuple[str | None, int | None]  # None: where the control connection goes to

# docs/protocol.rst
MAX_CALL_MS = 60_000
MAX_OFFER_CHARS = 32_768
MAX_TRICKLE_CHARS = 4096
MAX_TRICKLES = 64  # of a call and direction
MAX_NAT_CHARS = 512  # of JSON

# Our choices.
MAX_HELD_BYTES = 8192  # of an offer that has to wait: ours have 3,000 at most
MAX_CALL_NUMBER = 2**53  # what every JSON library carries exactly
MAX_REASON_CHARS = 64
MAX_RELAYS = 3  # of a call
TOKEN_MARGIN_S = 10  # a token outlives its call by this: the clocks of track and relay differ

_random = secrets.SystemRandom()


class _Call:
    __slots__ = (
        "answered", "budget_ms", "callee", "caller", "due", "id", "is_stranger",
        "made_at", "number", "offer", "session", "share", "shown", "to_callee", "to_caller",
    )  # fmt: skip

    def __init__(
        self, caller: Connection, number: int, callee: Connection, budget_ms: int, share: str,
        now: float,
    ) -> None:  # fmt: skip
        self.session = secrets.token_bytes(relay_wire.SESSION_BYTES)
        self.id = self.session.hex()
        self.caller = caller
        self.number = number
        self.callee = callee
        self.made_at = now
        self.budget_ms = budget_ms
        self.due = int(now + budget_ms / 1000) + 1  # the second of the clock after which it is late
        self.is_stranger = caller.peer_id is None
        self.share = share  # whose call it is, see Turns
        self.shown = False  # the caller was at the relay
        self.offer: bytes | None = None  # the line for the callee, until it is handed over
        self.answered = False
        self.to_callee = self.to_caller = 0  # trickles carried


class Calls:
    """``online``: the connection of each peer; ``relays``: some are drawn for each call; None: the
    relay is where the control connection goes to."""

    def __init__(
        self, gate: Gatekeeper, online: dict[str, Connection], relays: Prober | None,
        relay_key: bytes,
    ) -> None:  # fmt: skip
        self.handlers: dict[str, Callable[[Connection, Message], None]] = {
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
        self._limits = gate.limits
        self._online = online
        self._relays = relays
        self._relay_key = relay_key
        self._calls: dict[str, _Call] = {}
        self._due: defaultdict[int, set[_Call]] = defaultdict(set)  # by second
        # By callee, of those that are being called.
        self._turns: dict[Connection, Turns[_Call]] = {}
        self._swept_s = int(time.monotonic())

    def __len__(self) -> int:
        return len(self._calls)

    def sweep(self, now: float) -> None:
        """To be called about once a second: calls whose time is up."""
        while self._swept_s < int(now):
            for call in list(self._due.pop(self._swept_s, ())):
                self._end_quietly(call)
            self._swept_s += 1
        for callee in list(self._turns):  # some may have read what was in the way
            self._hand_over(callee, now)

    def gone(self, connection: Connection) -> None:
        """The connection is over, and with it all calls from and to it."""
        made = [*(connection.outgoing or {}).values(), *(connection.kept or {}).values()]
        for call in made:
            self._end_quietly(call)
        self._turns.pop(connection, None)
        for call in list(connection.incoming or ()):
            self._forget(call)
            if not call.answered:
                call.caller.send(encode("declined", call=call.number, reason="left"))

    # Making a call.

    def _on_call(self, caller: Connection, message: Message) -> None:
        number = number_untrusted(message, "call", 0, MAX_CALL_NUMBER)
        callee_id = peer_id_untrusted(message, "to")
        budget_ms = number_untrusted(message, "ms", 1, MAX_CALL_MS)
        offer = _text_untrusted(message, "offer", MAX_OFFER_CHARS)
        caller.welcome_caller(self._limits.idle_s)
        before = _made_by(caller, number)
        if before is not None and not before.answered:
            raise BadPacket("a call number that is in use")
        if before is not None:
            self._forget(before)
        refusal = self._limit_reached(caller, callee_id)
        if refusal:
            self._gate.refused(caller.host, f"call of {caller.peer_id or 'a caller'}: {refusal}")
            caller.send(encode("declined", call=number, reason="limit"))
            return
        callee = self._online.get(callee_id)
        if callee is None:
            caller.send(encode("declined", call=number, reason="offline"))
            return
        if not callee.callers.allow(caller.peer_id):
            who = caller.peer_id or "a stranger"
            self._gate.refused(caller.host, f"{who} may not call {callee_id}")
            caller.send(encode("declined", call=number, reason="not-allowed"))
            return
        now = time.monotonic()
        call = _Call(caller, number, callee, budget_ms, self._share(caller), now)
        self._open(call, offer, message.get("shows") is True, now)

    def _share(self, caller: Connection) -> str:
        """Who has his own share of a callee: an account, or an address of strangers."""
        if caller.peer_id is not None:
            return f"account {caller.peer_id}"
        key = address_key(caller.host)
        return key if self._gate.limited(key) else f"{key} {id(caller)}"

    def _open(self, call: _Call, offer: str, may_show: bool, now: float) -> None:
        caller, callee = call.caller, call.callee
        known = self._turns.get(callee)
        if known is not None and known.loser_to(call) is call:  # before anything is spent on it
            self._lose(call)
            return
        (host, port), *others = self._draw_relays()
        more = others or None
        expiry = math.ceil(time.time() + call.budget_ms / 1000) + TOKEN_MARGIN_S
        places = []
        for side in (relay_wire.CALLER, relay_wire.CALLEE):
            token = relay_wire.make_token(self._relay_key, call.session, side, expiry)
            places.append([host, port, relay_wire.token_to_text(token)])
        try:
            call.offer = encode(
                "offer",
                call=call.id,
                ms=call.budget_ms,
                offer=offer,
                relay=places[1],
                relays=more,
                nat=_nat_of(caller),
                seen=caller.seen,
                same_network=same_network(caller.seen, callee.seen) or None,
                **({"from": caller.peer_id} if caller.peer_id else {}),
            )
        except ValueError as error:  # characters that JSON writes as six
            raise BadPacket("an offer that is too long") from error
        reason = self._make_room(call, call.offer)
        if reason:
            caller.send(encode("declined", call=call.number, reason=reason))
            return
        turns = self._turns.setdefault(callee, Turns(self._limits))
        must_show = may_show and call.is_stranger and not turns.may_be_handed(call)
        self._enter(call)
        turns.enter(call)
        show = must_show or None
        line = encode("calling", call=call.number, relay=places[0], relays=more, show=show)
        caller.send(line)
        self._hand_over(callee, now)

    def _draw_relays(self) -> list[RelayPlace]:
        """The first one, and those to go to when one of the two sides cannot reach it."""
        if self._relays is None:
            return [(None, None)]
        alive = self._relays.alive
        return [*_random.sample(alive, min(MAX_RELAYS, len(alive)))]

    def _make_room(self, call: _Call, line: bytes) -> str:
        """For one call more of this callee; the reason to decline it if there is none."""
        turns: Turns[_Call] = self._turns.get(call.callee) or Turns(self._limits)
        loser = turns.loser_to(call)
        if loser is not None:
            self._cancel(loser)
            self._lose(loser)
        if not turns.may_be_handed(call):
            return "limit" if len(line) > MAX_HELD_BYTES else ""
        return "" if call.callee.has_room(line) else "busy"

    def _lose(self, call: _Call) -> None:
        """Its place is another stranger's."""
        reason = f"over {self._limits.strangers_to_a_peer} calls of {call.callee.peer_id}"
        self._gate.refused(call.caller.host, f"{reason} by strangers")
        call.caller.send(encode("declined", call=call.number, reason="limit"))

    def _hand_over(self, callee: Connection, now: float) -> None:
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

    def _on_here(self, caller: Connection, message: Message) -> None:
        """The relay's receipt: the caller of a call was there."""
        call = _made_by(caller, number_untrusted(message, "call", 0, MAX_CALL_NUMBER))
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

    def _limit_reached(self, caller: Connection, callee_id: str) -> str:
        """Why this caller may not call now; empty if it may."""
        limits = self._limits
        if not caller.call_tokens.take(time.monotonic()):
            return f"over {limits.calls_per_s:g} calls a second"
        if caller.peer_id is None and not self._gate.stranger_may_call(caller.host):
            return f"over {limits.stranger_calls_per_s:g} calls a second by strangers from there"
        if caller.outgoing is not None and len(caller.outgoing) >= limits.open_calls:
            return f"over {limits.open_calls} open calls"
        most = limits.open_calls_per_address
        of_it = self._gate.full(self._gate.open_calls, caller.host, most)
        if of_it:
            return f"over {of_it}: open calls"
        if not self._gate.may_name(caller.host, caller.peer_id, callee_id):
            return "too many different peers in a minute"
        return ""

    # Answering it.

    def _on_answer(self, callee: Connection, message: Message) -> None:
        answer = _text_untrusted(message, "answer", MAX_OFFER_CHARS)
        call = self._incoming_untrusted(callee, message)
        if call is None or call.answered:
            return
        try:
            nat, seen = _nat_of(callee), callee.seen
            line = encode("answer", call=call.number, answer=answer, nat=nat, seen=seen)
        except ValueError as error:
            raise BadPacket("an answer that is too long") from error
        self._take_out(call)
        has_room = call.caller.has_room(line)
        kept = has_room and self._keep(call)
        turns = self._turns.get(callee)
        if turns is not None:
            (turns.answer if kept else turns.leave)(call)
        if has_room:
            self.correspondents.met(call.caller, callee, call.id)
        else:
            line = encode("declined", call=call.number, reason="limit")
        call.caller.send(line)
        self._hand_over(callee, time.monotonic())

    def _keep(self, call: _Call) -> bool:
        """For what the two have to tell each other yet.  Where too many are kept, the oldest goes:
        a caller that never says that a call is over may call all the same.
        """
        limits, caller = self._limits, call.caller
        full = self._gate.full(self._gate.kept_calls, caller.host, limits.kept_calls_per_address)
        if caller.kept is not None and (full or len(caller.kept) >= limits.kept_calls):
            self._forget(next(iter(caller.kept.values())))
        elif full:
            return False
        call.answered = True
        self._enter(call)
        return True

    def _on_decline(self, callee: Connection, message: Message) -> None:
        reason = _text_untrusted(message, "reason", MAX_REASON_CHARS)
        call = self._incoming_untrusted(callee, message)
        if call is not None and not call.answered:
            self._forget(call)
            call.caller.send(encode("declined", call=call.number, reason=reason))

    # Telling more.

    def _on_trickle(self, sender: Connection, message: Message) -> None:
        text = _text_untrusted(message, "text", MAX_TRICKLE_CHARS)
        if isinstance(message.get("call"), str):
            call = self._incoming_untrusted(sender, message)
            if call is not None and self._may_trickle(sender, call.to_caller):
                call.to_caller += 1
                line = encode("trickle", call=call.number, text=text)
                self._send_if_room(sender, call.caller, line)
        else:
            call = _made_by(sender, number_untrusted(message, "call", 0, MAX_CALL_NUMBER))
            if (
                call is not None
                and call.offer is None
                and self._may_trickle(sender, call.to_callee)
            ):
                call.to_callee += 1
                line = encode("trickle", call=call.id, text=text)
                self._send_if_room(sender, call.callee, line)

    def _may_trickle(self, sender: Connection, count: int) -> bool:
        if count < MAX_TRICKLES:
            return True
        self._gate.refused(sender.host, f"over {MAX_TRICKLES} trickles in a call")
        return False

    def _send_if_room(self, sender: Connection, receiver: Connection, line: bytes) -> None:
        if receiver.has_room(line):
            receiver.send(line)
        else:
            self._gate.refused(sender.host, "a trickle to somebody who reads too slowly")

    def _on_nat(self, connection: Connection, message: Message) -> None:
        nat = message.get("nat")
        try:
            # Kept as text: 500 characters of brackets would be fifteen times that as objects.
            text = json.dumps(nat, separators=(",", ":"), allow_nan=False)
        except (ValueError, RecursionError) as error:
            raise BadPacket("nat is too deep, or has an infinite number") from error
        if not isinstance(nat, dict) or len(text) > MAX_NAT_CHARS:
            raise BadPacket(f"nat is not an object of at most {MAX_NAT_CHARS} characters")
        by_stun = seen_by_stun_untrusted(self._relay_key, message.get("seen", []), time.time())
        connection.nat = text
        connection.seen = [connection.seen[0], *by_stun]

    # The end of a call.

    def _on_over(self, caller: Connection, message: Message) -> None:
        call = _made_by(caller, number_untrusted(message, "call", 0, MAX_CALL_NUMBER))
        if call is not None:
            self._forget(call)

    def _on_cancel(self, caller: Connection, message: Message) -> None:
        call = _made_by(caller, number_untrusted(message, "call", 0, MAX_CALL_NUMBER))
        if call is not None:
            self._cancel(call)

    def _incoming_untrusted(self, callee: Connection, message: Message) -> _Call | None:
        """The call that the callee speaks of; None if it is over: the two messages crossed."""
        call = self._calls.get(_text_untrusted(message, "call", MAX_REASON_CHARS))
        return call if call is not None and call.callee is callee else None

    def _end_quietly(self, call: _Call) -> None:
        """Without a word of the caller: what is answered goes on without us."""
        if call.answered:
            self._forget(call)
        else:
            self._cancel(call)

    def _cancel(self, call: _Call) -> None:
        """The caller has given up; a callee that reads too slowly to be told finds out itself."""
        line = encode("cancel", call=call.id)
        if call.offer is None and call.callee.has_room(line):  # it has been handed over
            call.callee.send(line)
        self._forget(call)

    def _enter(self, call: _Call) -> None:
        caller, callee = call.caller, call.callee
        self._calls[call.id] = call
        self._due[call.due].add(call)
        if callee.incoming is None:
            callee.incoming = set()
        callee.incoming.add(call)
        if call.answered:
            caller.kept = caller.kept or {}
            caller.kept[call.number] = call
            self._gate.kept_calls.add(caller.host)
        else:
            caller.outgoing = caller.outgoing or {}
            caller.outgoing[call.number] = call
            self._gate.open_calls.add(caller.host)

    def _forget(self, call: _Call) -> None:
        self._take_out(call)
        turns = self._turns.get(call.callee)
        if turns is not None:
            turns.leave(call)
            self._hand_over(call.callee, time.monotonic())

    def _take_out(self, call: _Call) -> None:
        if self._calls.pop(call.id, None) is None:
            return
        caller, callee = call.caller, call.callee
        due = self._due.get(call.due)
        if due is not None:
            due.discard(call)
            if not due:
                del self._due[call.due]
        if callee.incoming is not None:
            callee.incoming.discard(call)
            callee.incoming = callee.incoming or None
        if call.answered and caller.kept is not None:
            caller.kept.pop(call.number, None)
            caller.kept = caller.kept or None
        elif caller.outgoing is not None:
            caller.outgoing.pop(call.number, None)
            caller.outgoing = caller.outgoing or None
        gate = self._gate
        (gate.kept_calls if call.answered else gate.open_calls).remove(caller.host)


def _made_by(caller: Connection, number: int) -> _Call | None:
    for calls in (caller.outgoing, caller.kept):
        if calls is not None and number in calls:
            call: _Call = calls[number]
            return call
    return None


def _nat_of(connection: Connection) -> Any:
    return None if connection.nat is None else json.loads(connection.nat)


def _text_untrusted(message: Message, name: str, most: int) -> str:
    value = message.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise BadPacket(f"{name} is not a text of at most {most} characters")
    return value


def peer_id_untrusted(message: Message, name: str) -> str:
    value = message.get(name)
    if not valid_peer_id(value):
        raise BadPacket(f"{name} is not a peer id")
    return str(value)
