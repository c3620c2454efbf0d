"""Peers that are online hear of relays that have come, and need no new login for it.

Nodes come and go when a cloud is upgraded: so a set of relays counts when it has stayed as it is
for SETTLED_S, and peers are told in the course of SPREAD_S, for each of them measures.  That a
relay is gone they need not know: it is given to nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..control.wire import encode
from .members import Member
from .relays import Relays

__all__ = ["RelayNews"]

# Our choices.
SETTLED_S = 30.0
SPREAD_S = 300.0


class RelayNews:
    """``online``: the peers, by id."""

    def __init__(self, relays: Relays, online: Mapping[str, Member]) -> None:
        self._relays = relays
        self._online = online
        self._known: frozenset[tuple[str, int]] | None = None  # None: we have just begun
        self._since = 0.0  # that they are those
        self._told: frozenset[tuple[str, int]] = frozenset()  # at a login, or by us
        self._to_tell: list[str] = []
        self._a_turn = 0

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        living = self._relays.living_places()
        if self._known is None:
            self._told = living
        if living != self._known:
            self._known, self._since = living, now
        elif living != self._told and now - self._since >= SETTLED_S:
            if living - self._told:
                self._to_tell = list(self._online)
                self._a_turn = math.ceil(len(self._to_tell) / SPREAD_S)
            self._told = living
        turn, self._to_tell = self._to_tell[: self._a_turn], self._to_tell[self._a_turn :]
        for peer_id in turn:
            self._tell(self._online.get(peer_id))

    def _tell(self, member: Member | None) -> None:
        told = self._relays.told()
        if member is not None and member.hears_relays and told is not None:
            line = encode("relays", relays=told)
            if member.has_room(line):
                member.send(line)
