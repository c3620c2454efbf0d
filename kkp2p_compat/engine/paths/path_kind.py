"""The kinds of paths that a connection with a peer may take."""

from __future__ import annotations

import enum

from ...control.wire import CALL_PATHS

__all__ = ["PathKind"]


class PathKind(enum.Enum):
    """The best first.  The value is for people: in the log, and in ``channel_stats``."""

    __hash__ = object.__hash__  # in C; each member is there once
    DIRECT = "p2p"
    TCP = "p2p over TCP"
    LANE = "relay"
    TURN = "relay by TURN"
    FRAMED = "relay over TCP"

    @property
    def word(self) -> str:
        """For the track."""
        return _WORDS[self]

    @property
    def is_relay(self) -> bool:
        return self not in _DIRECT

    @property
    def is_tcp(self) -> bool:
        return self in _TCP

    @property
    def rank(self) -> int:
        """0: none is better."""
        return _RANKS[self]


_DIRECT = (PathKind.DIRECT, PathKind.TCP)
_TCP = (PathKind.TCP, PathKind.FRAMED)
_RANKS = {kind: place for place, kind in enumerate(PathKind)}
_WORDS = dict(zip(PathKind, CALL_PATHS, strict=True))
