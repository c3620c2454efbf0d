"""Who has met whom: so that each is told when the other's control connection has ended.

Two peers that have met need the cloud no more, and a direct connection cannot tell a program that
was killed from a path that is cut.  The track sees the difference at once: a dead program's
connections are closed by its kernel.  So the other side is told, and asks for itself
(docs/protocol.rst, "Gone").

A peer is known by its id, over all its connections; a caller that has not logged in, by the one
connection that it has.
"""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict, deque
from typing import Any

from ..control.wire import encode
from .members import Member

__all__ = ["Correspondents"]

# Our choices.
MAX_PAIRS = 50_000  # in all; about 1 KB each
MAX_PAIRS_OF_ONE = 64  # the oldest is forgotten
MAX_CALLS = 8  # by whose names a callee is told of one caller
MET_S = 24 * 3600.0  # since the last call
COMES_BACK_S = 30.0  # a program that lost its connection is back by then
MAX_LEFT = 10_000  # that may come back

_Party = str | Member  # a peer's id, or a caller without one
_Pair = tuple[_Party, _Party]  # caller, callee


class Correspondents:
    """``online``: the peers that can be called, by id."""

    def __init__(self, online: dict[str, Member]) -> None:
        self._online = online
        # The time of the last call, and the names of the last ones; the oldest pair first.
        self._calls: OrderedDict[_Pair, tuple[float, deque[str]]] = OrderedDict()
        self._pairs_of: defaultdict[_Party, dict[_Pair, None]] = defaultdict(dict)
        self._left: OrderedDict[str, tuple[float, str]] = OrderedDict()  # when, the session

    def __len__(self) -> int:
        return len(self._calls)

    def met(self, caller: Member, callee: Member, call_id: str) -> None:
        """A call was answered."""
        if callee.peer_id is None:
            return
        known = caller.peer_id is not None and self._online.get(caller.peer_id) is caller
        pair: _Pair = (caller.peer_id if caller.peer_id and known else caller, callee.peer_id)
        _, calls = self._calls.pop(pair, (0.0, deque(maxlen=MAX_CALLS)))
        calls.append(call_id)
        self._calls[pair] = time.monotonic(), calls
        for party in pair:
            pairs = self._pairs_of[party]
            pairs.pop(pair, None)
            pairs[pair] = None
            if len(pairs) > MAX_PAIRS_OF_ONE:
                self._forget(next(iter(pairs)))
        if len(self._calls) > MAX_PAIRS:
            self._forget(next(iter(self._calls)))

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        while self._calls and next(iter(self._calls.values()))[0] < now - MET_S:
            self._forget(next(iter(self._calls)))
        while self._left and next(iter(self._left.values()))[0] < now - COMES_BACK_S:
            self._left.popitem(last=False)

    def gone(self, member: Member, was_online: bool) -> None:
        """Its connection is over; ``was_online``: its peer's login with it."""
        self._tell(member)
        for pair in list(self._pairs_of.get(member, ())):
            self._forget(pair)
        if not was_online or member.peer_id is None:
            return
        self._tell(member.peer_id)
        self._left.pop(member.peer_id, None)
        self._left[member.peer_id] = time.monotonic(), member.session
        if len(self._left) > MAX_LEFT:
            self._left.popitem(last=False)

    def came(self, member: Member, old: Member | None) -> None:
        """It has logged in, in place of ``old``; sessions tell whether it is a new program."""
        peer_id, session = member.peer_id or "", member.session
        _, left = self._left.pop(peer_id, (0.0, ""))
        if old is not None:
            if not session or session != old.session:
                self._tell(peer_id)
        elif session and session == left:
            self._tell(peer_id, back=True)

    def _tell(self, party: _Party, **fields: Any) -> None:
        for pair in list(self._pairs_of.get(party, ())):
            caller, callee = pair
            if party == callee:
                self._send(caller, encode("gone", peer=callee, **fields))
            else:
                self._send(callee, encode("gone", calls=list(self._calls[pair][1]), **fields))

    def _send(self, party: _Party, line: bytes) -> None:
        member = self._online.get(party) if isinstance(party, str) else party
        if member is not None and member.has_room(line):
            member.send(line)

    def _forget(self, pair: _Pair) -> None:
        del self._calls[pair]
        for party in pair:
            pairs = self._pairs_of[party]
            pairs.pop(pair, None)
            if not pairs:
                del self._pairs_of[party]
