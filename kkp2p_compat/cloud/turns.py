"""Whose call a callee is handed next: what strangers may take up of one peer, and of each other.

There is one Turns for each callee that is being called.  A call is handed over at once, which is
the usual case, or held until its turn has come; meanwhile it costs the callee nothing.  Sans-IO.

- Of one address, or one account, a callee has a bounded number of unanswered calls at once.
- A call costs its callee something (sockets, a connection to the relay) before the caller must have
  done anything but ask.  So only a few calls of strangers (callers without a login) are handed over
  *on trust*.  Others are when their caller has shown that it is there, or when one of the few is
  over.
- All strangers together have a bounded number of unanswered calls with a callee.  When there is no
  room, the address that has the most of them loses its newest to one that has none, or fewer.
"""

from __future__ import annotations

from collections import defaultdict
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
        # By share, the oldest first: unanswered ones that the callee has, those that wait for their
        # turn only, and those whose caller has to show itself, or to be trusted.
        self._handed: dict[str, dict[C, None]] = {}
        self._ready: dict[str, dict[C, None]] = {}
        self._held: dict[str, dict[C, None]] = {}
        # By share: the strangers' unanswered calls, and those whose caller was not at the relay.
        self._strangers: defaultdict[str, int] = defaultdict(int)
        self._unshown: defaultdict[str, int] = defaultdict(int)
        self._total = 0  # of the strangers
        self._on_trust: set[C] = set()  # until they are over, also if they are answered

    def __bool__(self) -> bool:
        return bool(self._handed or self._ready or self._held or self._on_trust)

    def loser_to(self, call: C) -> C | None:
        """The call that must go if this one is to enter: perhaps itself; None: there is room.

        Who has none gets in; else the shares must be less equal without it.  Callers that were at
        the relay lose nothing while others were not.
        """
        if not call.is_stranger or self._total < self._limits.strangers_to_a_peer:
            return None
        candidates = self._unshown or self._strangers
        most = max(candidates, key=candidates.__getitem__)
        own = self._strangers.get(call.share, 0)
        if own and own + 1 >= candidates[most]:
            return call
        for table in (self._held, self._handed, self._ready):
            for each in reversed(table.get(most, {})):
                if each.is_stranger and (not each.shown or not self._unshown):
                    return each
        return call

    def enter(self, call: C) -> None:
        """It is held from now on."""
        trusted = call.shown or not call.is_stranger
        (self._ready if trusted else self._held).setdefault(call.share, {})[call] = None
        if call.is_stranger:
            self._total += 1
            self._strangers[call.share] += 1
            if not call.shown:
                self._unshown[call.share] += 1

    def next(self) -> C | None:
        """The one whose turn it is: of those that have the fewest with the callee already."""
        if self._ready and (call := self._fewest(self._ready)) is not None:
            return call
        return self._fewest(self._held) if self._held and self._trusts else None

    def may_be_handed(self, call: C) -> bool:
        if self._count(call.share) >= self._limits.calls_to_a_peer:
            return False
        return call.shown or not call.is_stranger or self._trusts

    def hand(self, call: C) -> None:
        """The callee gets to see it."""
        _ = _discard(self._held, call) or _discard(self._ready, call)
        self._handed.setdefault(call.share, {})[call] = None
        if call.is_stranger and not call.shown:
            self._on_trust.add(call)

    def show(self, call: C) -> None:
        """Its caller was at the relay."""
        if call.shown:
            return
        if _discard(self._held, call):
            self._ready.setdefault(call.share, {})[call] = None
        if call in self._handed.get(call.share, {}) or call in self._ready.get(call.share, {}):
            _uncount(self._unshown, call.share)
        call.shown = True
        self._on_trust.discard(call)

    def answer(self, call: C) -> None:
        """What was handed over on trust goes on costing the callee something until it is over."""
        if not any(_discard(table, call) for table in (self._handed, self._ready, self._held)):
            return
        if call.is_stranger:
            self._total -= 1
            _uncount(self._strangers, call.share)
            if not call.shown:
                _uncount(self._unshown, call.share)

    def leave(self, call: C) -> None:
        """It is over."""
        self.answer(call)
        self._on_trust.discard(call)

    @property
    def _trusts(self) -> bool:
        return len(self._on_trust) < self._limits.unshown_to_a_peer

    def _fewest(self, table: dict[str, dict[C, None]]) -> C | None:
        share = min(table, key=self._count)
        is_full = self._count(share) >= self._limits.calls_to_a_peer
        return None if is_full else next(iter(table[share]))

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


def _uncount(counter: dict[str, int], share: str) -> None:
    """Take one off, and forget a share that has none."""
    counter[share] -= 1
    if counter[share] <= 0:
        del counter[share]
