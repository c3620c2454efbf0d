"""Who has met whom: so that each is told when the other's control connection has ended.

Two peers that have met need the cloud no more, and a direct connection cannot tell a program that
was killed from a path that is cut.  The track sees the difference at once: a dead program's
connections are closed by its kernel.  So the other side is told, and asks for itself
(docs/protocol.rst, "Gone").

A peer is known by its id, over all its connections; a caller that has not logged in, by the one
connection that it has.  Of two peers at different nodes both nodes know, and each tells the other
of the peer that it has; a peer that moves to another node takes what is known of it along.
"""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
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
    """``online``: the peers that can be called, by id.  ``elsewhere``: is told of a peer that is
    gone or back, and of those that are to hear it and are not online here.
    """

    def __init__(self, online: dict[str, Member]) -> None:
        self._online = online
        self.elsewhere: Callable[[str, list[str], bool], None] = lambda peer_id, others, back: None
        # The time of the last call, and the names of the last ones; the oldest pair first.
        self._calls: OrderedDict[_Pair, tuple[float, deque[str]]] = OrderedDict()
        self._pairs_of: defaultdict[_Party, dict[_Pair, None]] = defaultdict(dict)
        self._left: OrderedDict[str, tuple[float, str]] = OrderedDict()  # when, the session

    def __len__(self) -> int:
        return len(self._calls)

    def met(self, caller: Member, callee_id: str, call_id: str) -> None:
        """A call was answered."""
        peer_id = caller.peer_id
        known = peer_id and (caller.is_online_elsewhere or self._online.get(peer_id) is caller)
        self._enter((peer_id if peer_id and known else caller, callee_id), [call_id])

    def _enter(self, pair: _Pair, new_calls: list[str]) -> None:
        _, calls = self._calls.pop(pair, (0.0, deque(maxlen=MAX_CALLS)))
        calls.extend(new_calls)
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

    def replaced(self, peer_id: str) -> None:
        """Another program has logged in under this id, at another node."""
        self._tell(peer_id)

    def tell_one(self, peer_id: str, other: str, back: bool) -> None:
        """As another node says: ``peer_id`` is gone, or back, and ``other`` is to hear it."""
        for pair in ((other, peer_id), (peer_id, other)):
            if pair in self._calls:
                self._tell_other(pair, peer_id, back)

    def hand_over(self, peer_id: str) -> list[list[Any]]:
        """What is known of a peer that is at another node now: caller, callee and calls of each."""
        pairs = [pair for pair in self._pairs_of.get(peer_id, ()) if isinstance(pair[0], str)]
        return [[*pair, [*self._calls[pair][1]]] for pair in pairs]

    def take_over(self, caller: str, callee: str, calls: list[str]) -> None:
        """What another node has handed over."""
        self._enter((caller, callee), calls)

    def has(self, member: Member) -> bool:
        return member in self._pairs_of

    def _tell(self, party: _Party, back: bool = False) -> None:
        others = [
            other
            for pair in list(self._pairs_of.get(party, ()))
            if not self._tell_other(pair, party, back)
            and isinstance(other := _other(pair, party), str)
        ]
        if others and isinstance(party, str):
            self.elsewhere(party, others, back)

    def _tell_other(self, pair: _Pair, party: _Party, back: bool) -> bool:
        """Whether the other one of a pair is here."""
        other = _other(pair, party)
        member = self._online.get(other) if isinstance(other, str) else other
        if member is None:
            return False
        name: dict[str, Any] = {"calls": [*self._calls[pair][1]]}
        if party == pair[1]:
            name = {"peer": party}
        line = encode("gone", **name, back=back or None)
        if member.has_room(line):
            member.send(line)
        return True

    def _forget(self, pair: _Pair) -> None:
        del self._calls[pair]
        for party in pair:
            pairs = self._pairs_of[party]
            pairs.pop(pair, None)
            if not pairs:
                del self._pairs_of[party]


def _other(pair: _Pair, party: _Party) -> _Party:
    return pair[0] if party == pair[1] else pair[1]
