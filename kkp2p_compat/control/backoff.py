"""How long to wait before something that has failed is tried again."""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """Pauses between attempts: "decorrelated jitter", so that many peers spread out.

    Each pause is drawn between ``first_s`` and three times the one before, ``most_s`` at most; the
    first between ``first_s`` and ``spread_s``.
    """

    def __init__(self, rng: random.Random, first_s: float, most_s: float, spread_s: float) -> None:
        self._rng = rng
        self._first_s = first_s
        self._most_s = most_s
        self._spread_s = spread_s
        self._last_s = spread_s / 3

    def next(self) -> float:
        self._last_s = min(self._most_s, self._rng.uniform(self._first_s, self._last_s * 3))
        return self._last_s

    def reset(self) -> None:
        self._last_s = self._spread_s / 3
