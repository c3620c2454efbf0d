"""A token bucket, which limits every rate here."""

from __future__ import annotations

import math

__all__ = ["Bucket"]


class Bucket:
    """``rate`` tokens a second, ``burst`` of them at once; full at first.

    Time is in seconds of a monotonic clock; a clock that goes back adds no tokens.
    """

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = now

    def level(self, now: float) -> float:
        """How many tokens there are; under 0 when more were spent than there were."""
        if now > self._at:
            left = self._left + (now - self._at) * self._rate
            self._left = left if left < self._burst else self._burst
            self._at = now
        return self._left

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        if self.level(now) < 1:
            return False
        self._left -= 1
        return True

    def spend(self, now: float, count: float) -> None:
        """Take tokens for a cost that is known only afterwards, even if the level falls below 0.

        A negative count gives tokens back.
        """
        self._left = self.level(now) - count

    def wait_s(self, now: float, count: float = 0.0) -> float:
        """How long until there are ``count`` tokens."""
        if self._left >= count:  # there were, and they do not get fewer by themselves
            return 0.0
        missing = count - self.level(now)
        if missing <= 0:
            return 0.0
        return missing / self._rate if self._rate > 0 else math.inf
