"""Whose call a callee is handed next: what strangers may take up of one peer, and of each other.

One Turns for each callee that is being called.  A call is handed over at once, which is the usual
case, or held until its turn has come; meanwhile it costs the callee nothing.  Sans-IO.

- Of one address, or one account, a callee has so many unanswered calls at once.
- Each call costs the callee something before the caller must have done anything but ask: sockets, a
  connection to the relay.  So only a few calls of strangers (callers without a login) are handed
  over *on trust*; others are when their caller has shown that it is there, or when one of the few
  is over.
- All strangers together have so many unanswered calls with a callee.  When there is no room, the
  address that has the most of them loses its newest.
"""

from __future__ import annotations

from collections import Counter
from typing import Generic, Protocol, TypeVar

from .settings import Limits

__all__ = ["Turns"]


class Call(Protocol):
    """What is asked of one."""

    share: str  # the address or the account whose call it is
    is_stranger: bool
    shown: bool  # its caller was at the relay


C = TypeVar("C", bound=Call)


class Turns(Generic[C]):
    """``loser_to``, then ``enter`` a call; ``hand`` it when it is the ``next``; then ``leave``."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._handed: dict[str, dict[C, None]] = {}  # unanswered, by share; the oldest first
        self._held: dict[str, dict[C, None]] = {}
        self._strangers: Counter[str] = Counter()  # their unanswered calls, by share
        self._on_trust: set[C] = set()  # answered ones, too, until they are over

    def __bool__(self) -> bool:
        return bool(self._handed or self._held or self._on_trust)

    def loser_to(self, call: C) -> C | None:
        """The call that must go if this one is to enter: perhaps itself; None: there is room."""
        if not call.is_stranger or self._strangers.total() < self._limits.strangers_to_a_peer:
            return None
        most, count = max(self._strangers.items(), key=lambda item: item[1])
        if self._strangers[call.share] >= count:
            return call
        return next(reversed(self._held.get(most) or self._handed[most]))

    def enter(self, call: C) -> None:
        """It is held from now on."""
        self._held.setdefault(call.share, {})[call] = None
        self._strangers[call.share] += call.is_stranger

    def next(self) -> C | None:
        """The one whose turn it is: of those that have the fewest with the callee already."""
        best: C | None = None
        for share, calls in self._held.items():
            if best is not None and self._count(share) >= self._count(best.share):
                continue
            best = next((call for call in calls if self.may_be_handed(call)), best)
        return best

    def may_be_handed(self, call: C) -> bool:
        if self._count(call.share) >= self._limits.calls_to_a_peer:
            return False
        trusted = call.shown or not call.is_stranger
        return trusted or len(self._on_trust) < self._limits.unshown_to_a_peer

    def hand(self, call: C) -> None:
        """The callee gets to see it."""
        _discard(self._held, call)
        self._handed.setdefault(call.share, {})[call] = None
        if call.is_stranger and not call.shown:
            self._on_trust.add(call)

    def show(self, call: C) -> None:
        """Its caller was at the relay."""
        call.shown = True
        self._on_trust.discard(call)

    def answer(self, call: C) -> None:
        """What was handed over on trust goes on costing the callee something until it is over."""
        if _discard(self._handed, call) or _discard(self._held, call):
            self._strangers[call.share] -= call.is_stranger
            if not self._strangers[call.share]:
                del self._strangers[call.share]

    def leave(self, call: C) -> None:
        """It is over."""
        self.answer(call)
        self._on_trust.discard(call)

    def _count(self, share: str) -> int:
        return len(self._handed.get(share, ()))


def _discard(table: dict[str, dict[C, None]], call: C) -> bool:
    calls = table.get(call.share, {})
    if call not in calls:
        return False
    del calls[call]
    if not calls:
        del table[call.share]
    return True
