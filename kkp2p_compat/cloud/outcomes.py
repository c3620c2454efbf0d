"""How calls come out, for the counts: answered or why not, and over which path of which NATs.

Each call has one outcome.  One that was answered may have a path besides, which its caller tells
with ``over``; what strangers tell is bounded, and else left out.
"""

from __future__ import annotations

import json
from typing import Any

from .._errors import BadPacket
from ..control.wire import CALL_PATHS, MAX_SET_UP_MS, Message
from ..traversal.nat import UNKNOWN, NatBehaviour
from .limits import Gatekeeper
from .members import Call, Member
from .usage import USED_UP

__all__ = ["Outcomes"]


class Outcomes:
    def __init__(self, gate: Gatekeeper) -> None:
        self._gate = gate
        self._counts = gate.counts

    def refused(self, host: str, outcome: str, reason: str) -> None:
        """A caller hears that it may not call."""
        if self._gate.audit is not None:
            self._gate.audit.refuse("call-refused", address=host, outcome=outcome, reason=reason)
        self._counts.call(outcome)
        self._gate.refused(host, reason)

    def failed(self, caller: Member, callee_id: str, outcome: str, detail: str = "") -> None:
        """Nothing is wrong with this call, but it came to nothing."""
        self._counts.call(outcome)
        why = f"{outcome}: {detail}" if detail else outcome
        self._counts.trouble(caller.host, f"call of {_name(caller)} to {callee_id}: {why}")

    def no_relay(self, call: Call, reason: str) -> None:
        """The two of a call may meet directly only."""
        host, payer = call.caller.host, call.caller.peer_id or call.to
        if reason == USED_UP:
            reason = self._gate.over("relay_bytes_per_day", reason)
            if self._gate.audit is not None:
                self._gate.audit.refuse("relay-refused", account=payer, address=host, reason=reason)
        self._gate.refused(host, f"relays of a call of {_name(call.caller)} to {call.to}: {reason}")

    def answered(self) -> None:
        self._counts.call("answered")

    def met_untrusted(self, call: Call, told: Message) -> None:
        """The caller needs the track no longer: it has a connection, or it gives up."""
        path: object = told.get("path")
        ms: Any = told.get("ms")
        if not call.answered:
            self.failed(call.caller, str(call.callee.peer_id), "cancelled")
        if not call.answered or path not in CALL_PATHS:
            return
        set_up_s = None
        if type(ms) is int and 0 <= ms <= MAX_SET_UP_MS:
            set_up_s = ms / 1000
        self._counts.path(str(path), _nats(call), set_up_s)

    def not_met(self, call: Call) -> None:
        """It was answered, and the two have found no path."""
        self._counts.path("none", _nats(call), None)
        who = call.caller.peer_id or "a stranger"
        self._counts.trouble(call.caller.host, f"call of {who} to {call.callee.peer_id}: no path")


def _nats(call: Call) -> str:
    """The mappings of both, the same whoever calls."""
    return " + ".join(sorted(_mapping_untrusted(side.nat) for side in (call.caller, call.callee)))


def _mapping_untrusted(told: str | None) -> str:
    """What a peer has told of its NAT, as a word."""
    try:
        nat = NatBehaviour.parse_untrusted(None if told is None else json.loads(told))
    except (BadPacket, ValueError, RecursionError):
        nat = UNKNOWN
    return "symmetric" if nat.symmetric else nat.mapping


def _name(caller: Member) -> str:
    return caller.peer_id or "a stranger"
