"""Calls between peers of two nodes, and what the two nodes tell each other of their peers.

The callee's node carries the call (calls.py); the caller's passes on what its caller says, and
tells the caller what it hears.  Neither waits for the other: what is lost is made up for by time.
Who is where the directory knows.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from typing import Any

import gevent

from .._address import is_ip
from .._errors import BadPacket
from .._peer_id import is_peer_id
from ..control.wire import MAX_SEEN, MAX_TRICKLES, Message, encode, encode_message, number_untrusted
from .calls import Calls
from .correspondents import MAX_CALLS
from .directory import AccountLimits, Directory, DirectoryAway
from .guests import Guests, Key
from .limits import Gatekeeper, SparingLog
from .members import Call, Member
from .messages import MAX_CALL_NUMBER, Asked, nat_text_untrusted, peer_id_untrusted, text_untrusted
from .nodes import Nodes
from .outcomes import Outcomes
from .presences import Presences
from .relays import round_trips_untrusted
from .remote_member import Carrier

__all__ = ["Abroad"]

log = logging.getLogger(__name__)

# Our choices.
UNHEARD_S = 3.0  # for the first word of a node about a call that it is to carry
MAX_CALL_ID_CHARS = 64
MAX_QUOTA = 2**62

_TO_A_CALLER = ("answer", "calling", "declined", "trickle")
_OF_A_CALLER = ("cancel", "here", "over", "trickle")


class Abroad:
    def __init__(
        self,
        nodes: Nodes,
        directory: Directory,
        calls: Calls,
        presences: Presences,
        gate: Gatekeeper,
    ) -> None:
        self._nodes = nodes
        self._directory = directory
        self._calls = calls
        self._outcomes = Outcomes(gate)
        self._limits = gate.limits
        self._presences = presences
        self._carriers: dict[str, Carrier] = {}
        self._callers: dict[int, Member] = {}  # of ours, whom other nodes know, by number
        self._guests = Guests(nodes, gate)
        self._unheard: dict[Call, float] = {}  # calls that no node has said a word of: since when
        self._silences = SparingLog(logging.WARNING, "calls that it has said no word of")
        calls.elsewhere = self._call
        calls.pass_on = _pass_on
        calls.give_up = self._give_up
        calls.correspondents.elsewhere = self._tell_correspondents
        presences.hand_over = self.hand_over
        nodes.on_gone = self.node_gone
        nodes.handlers |= {
            "call": self._on_call,
            "gone": self._on_gone,
            "left": self._on_left,
            "met": self._on_met,
            "pass": self._on_pass,
            "tell": self._on_tell,
        }

    @property
    def carried_elsewhere(self) -> int:
        """Calls of ours that other nodes carry."""
        return sum(len(carrier.incoming) for carrier in self._carriers.values())

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        while self._unheard:
            call, since = next(iter(self._unheard.items()))
            if now - since < UNHEARD_S:
                break
            del self._unheard[call]
            what = "%s: no word of a call to %s from its node"
            self._silences.tell(str(call.callee), what, call.caller, call.to)
            self._fail(call, "unavailable")
        self._silences.sweep(now)
        for key in self._guests.sweep(now, self._calls.correspondents.has):
            self._forget_guest(key)

    def _fail(self, call: Call, reason: str) -> None:
        if call.caller.made(call.number) is call:
            # Its node may only be slow, or unseen for a while: nobody is to be called any more.
            _pass_on(call, {"op": "cancel", "reason": reason})
            self._calls.forget(call)
            self._outcomes.failed(call.caller, call.to, reason)
            again = reason == "unavailable" or None
            call.caller.send(encode("declined", call=call.number, reason=reason, again=again))

    # Our callers.

    def _call(self, caller: Member, asked: Asked) -> None:
        """The callee is not at this node."""
        caller.connection.wait_for(
            functools.partial(self._where, asked.to), functools.partial(self._carry, caller, asked)
        )

    def _where(self, peer_id: str) -> tuple[str, str]:
        """At which node, and if at none, why a call cannot be made."""
        try:
            presence = self._directory.where(peer_id)
        except DirectoryAway:
            return "", "unavailable"
        if presence is not None:
            return presence.node, ""
        # A directory that takes nothing does not know where peers are that have come meanwhile.
        return "", "offline" if self._directory.away_since is None else "unavailable"

    def _carry(self, caller: Member, asked: Asked, found: tuple[str, str]) -> None:
        node_id, reason = found
        if reason:
            self._calls.is_away(caller, asked, reason)
            return
        if node_id == self._nodes.id:  # it has just come, or left
            self._find(caller, asked)
            return
        carrier = self._carriers.get(node_id)
        if carrier is None:
            carrier = self._carriers[node_id] = Carrier(self._nodes, node_id, self._limits)
        self._callers[caller.number] = caller
        self._unheard[self._calls.carry(caller, carrier, asked)] = time.monotonic()
        inner = encode(
            "call",
            call=asked.number,
            to=asked.to,
            ms=asked.budget_ms,
            offer=asked.offer,
            shows=asked.may_show or None,
        )
        self._nodes.send(
            node_id, "call", inner=inner, connection=caller.number, **_description(caller)
        )

    def gone(self, member: Member) -> None:
        """A connection of ours is over; its calls have been forgotten already."""
        self._give_up_all(member)
        if self._callers.pop(member.number, None) is not None:
            for node_id in self._carriers:
                self._nodes.send(node_id, "left", connection=member.number)

    def _on_tell(self, node_id: str, message: Message) -> None:
        caller = self._callers.get(_connection_untrusted(message))
        inner = _inner_untrusted(message)
        if caller is None:
            return
        if inner["op"] == "gone":
            caller.send(encode("gone", peer=peer_id_untrusted(inner, "peer")))
            return
        if inner["op"] not in _TO_A_CALLER:
            raise BadPacket("not for a caller")
        call = caller.made(number_untrusted(inner, "call", 0, MAX_CALL_NUMBER))
        if call is not None and call.callee is self._carriers.get(node_id):
            self._unheard.pop(call, None)
            self._handle_untrusted(call, inner)

    def _handle_untrusted(self, call: Call, message: Message) -> None:
        """What the node that carries a call tells its caller."""
        op, caller, calls = message["op"], call.caller, self._calls
        try:
            line = encode_message(message)
        except ValueError as error:
            raise BadPacket("not a line for a caller") from error
        if op == "trickle" and call.to_caller < MAX_TRICKLES:
            call.to_caller += 1
            calls.send_if_room(caller, caller, line)
        elif op == "answer" and not call.answered:
            calls.settle(call, line)
        elif op == "declined" and not call.answered:
            calls.forget(call)
            caller.send(line)
        elif op == "calling" and not call.answered:
            caller.send(line)

    # Callers of other nodes.

    def _on_call(self, node_id: str, message: Message) -> None:
        asked = Asked.parse_untrusted(_inner_untrusted(message))
        key, host = (node_id, _connection_untrusted(message)), str(message.get("host"))
        if not is_ip(host):
            raise BadPacket("a caller without an address")
        if not self._guests.find_room(key):
            declined = encode("declined", call=asked.number, reason="limit", again=True)
            self._nodes.send(node_id, "tell", inner=declined, connection=key[1])
            return
        caller = self._guests.get_or_make(key, host)
        _describe_untrusted(caller, message)
        before = caller.made(asked.number)
        if before is not None:
            self._calls.forget(before)
        self._give_up(caller, asked.number)
        self._find(caller, asked)

    def _find(self, caller: Member, asked: Asked) -> None:
        """Bring a call, once the login of its callee is complete, if it is still wanted then."""
        caller.waiting[asked.number] = asked
        self._presences.find(asked.to, functools.partial(self._bring, caller, asked))

    def _bring(self, caller: Member, asked: Asked, callee: Member | None) -> None:
        if caller.waiting.get(asked.number) is not asked:
            return
        del caller.waiting[asked.number]
        if callee is None:
            self._calls.is_away(caller, asked)
        else:
            self._calls.bring(caller, callee, asked)

    def _give_up(self, caller: Member, number: int) -> None:
        asked = caller.waiting.pop(number, None)
        if asked is not None:
            self._outcomes.failed(caller, asked.to, "cancelled")

    def _give_up_all(self, caller: Member) -> None:
        for number in [*caller.waiting]:
            self._give_up(caller, number)

    def _on_pass(self, node_id: str, message: Message) -> None:
        inner = _inner_untrusted(message)
        if inner["op"] not in _OF_A_CALLER:
            raise BadPacket("not of a caller")
        guest = self._guests.get((node_id, _connection_untrusted(message)))
        if guest is None:
            return
        if inner["op"] == "cancel" and "reason" in inner:
            self._withdraw(guest, number_untrusted(inner, "call", 0, MAX_CALL_NUMBER))
        else:
            self._calls.handlers[inner["op"]](guest, inner)

    def _withdraw(self, caller: Member, number: int) -> None:
        """Its own node has told it that this call came to nothing, and has counted that."""
        caller.waiting.pop(number, None)
        call = caller.made(number)
        if call is not None:
            self._calls.cancel(call)

    def _on_left(self, node_id: str, message: Message) -> None:
        self._forget_guest((node_id, _connection_untrusted(message)))

    def _forget_guest(self, key: Key) -> None:
        guest = self._guests.pop(key)
        if guest is not None:
            self._calls.correspondents.gone(guest, was_online=False)
            self._calls.gone(guest)
            self._give_up_all(guest)

    # Nodes and peers that are gone.

    def node_gone(self, node_id: str) -> None:
        for key in self._guests.of(node_id):
            self._forget_guest(key)
        carrier = self._carriers.pop(node_id, None)
        for call in [*carrier.incoming.values()] if carrier is not None else ():
            if call.answered:
                self._calls.forget(call)
            else:
                self._fail(call, "left")

    def _tell_correspondents(self, peer_id: str, others: list[str], back: bool) -> None:
        gevent.spawn(self._tell_each, peer_id, others, back)

    def _tell_each(self, peer_id: str, others: list[str], back: bool) -> None:
        try:
            for other in others:
                presence = self._directory.where(other)
                if presence is not None and presence.node != self._nodes.id:
                    self._nodes.send(
                        presence.node, "gone", peer=peer_id, to=other, back=back or None
                    )
        except DirectoryAway as error:
            log.info("%s: who is to hear that it is gone does not: %s", peer_id, error)

    def _on_gone(self, node_id: str, message: Message) -> None:
        peer_id, other = peer_id_untrusted(message, "peer"), peer_id_untrusted(message, "to")
        self._calls.correspondents.tell_one(peer_id, other, message.get("back") is True)

    def hand_over(self, peer_id: str, node_id: str) -> None:
        """A peer has moved to another node."""
        for caller, callee, calls in self._calls.correspondents.hand_over(peer_id):
            self._nodes.send(node_id, "met", caller=caller, callee=callee, calls=calls)

    def _on_met(self, node_id: str, message: Message) -> None:
        caller, callee = peer_id_untrusted(message, "caller"), peer_id_untrusted(message, "callee")
        calls = message.get("calls")
        if not isinstance(calls, list) or len(calls) > MAX_CALLS:
            raise BadPacket("not the calls of two peers")
        names = [text_untrusted({"call": each}, "call", MAX_CALL_ID_CHARS) for each in calls]
        self._calls.correspondents.take_over(caller, callee, names)


def _pass_on(call: Call, message: Message) -> None:
    if isinstance(call.callee, Carrier):
        call.callee.pass_on(call, message)


def _description(caller: Member) -> dict[str, Any]:
    """What the callee's node is to know of a caller."""
    return {
        "host": caller.host,
        "peer": caller.peer_id,
        "online": (caller.presence is not None) or None,
        "seen": caller.seen,
        "nat": caller.nat and json.loads(caller.nat),
        "rtt": dict(caller.round_trips) or None,
        "quota": caller.limits.relay_bytes_per_day,
    }


def _describe_untrusted(caller: Member, message: Message) -> None:
    peer_id, seen, nat = message.get("peer"), message.get("seen"), message.get("nat")
    if peer_id is not None and not is_peer_id(peer_id):
        raise BadPacket("a caller that has no peer id")
    if not isinstance(seen, list) or not 0 < len(seen) <= MAX_SEEN or not all(map(_is_ip, seen)):
        raise BadPacket("a caller that was seen nowhere")
    quota = message.get("quota")
    if quota is not None:
        quota = number_untrusted(message, "quota", 0, MAX_QUOTA)
    caller.round_trips = round_trips_untrusted(message.get("rtt"))
    caller.limits = AccountLimits(relay_bytes_per_day=quota)
    caller.nat = None if nat is None else nat_text_untrusted(nat)
    caller.peer_id = caller.connection.peer_id = peer_id
    caller.is_online_elsewhere = message.get("online") is True
    caller.seen = seen


def _is_ip(value: object) -> bool:
    return isinstance(value, str) and is_ip(value)


def _connection_untrusted(message: Message) -> int:
    return number_untrusted(message, "connection", 0, MAX_CALL_NUMBER)


def _inner_untrusted(message: Message) -> Message:
    inner = message.get("message")
    if not isinstance(inner, dict) or not isinstance(inner.get("op"), str):
        raise BadPacket("nothing for anybody")
    return inner
