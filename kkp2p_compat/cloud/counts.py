"""What a cloud process has done, in plain numbers: for its metrics and its status page.

The parts of a cloud count here as they go, which costs them an addition.  Every key is a word of
ours, so no stranger can make these tables grow.
"""

from __future__ import annotations

import bisect
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..control.wire import CALL_PATHS

__all__ = ["LAST_MINUTES", "Counts", "Spread", "Trouble"]

# Our choices.
LAST_MINUTES = 30
MAX_TROUBLES = 100
MAX_TROUBLE_CHARS = 200
SET_UP_S = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)  # bounds of a Spread


class Trouble(NamedTuple):
    """Something that failed, or was refused.  ``reason`` may have a stranger's words in it."""

    unix_s: float
    who: str  # an address
    reason: str


class Spread:
    """How many values were up to each of ``bounds``, and beyond: what a histogram is drawn of."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value


class Counts:
    """``unix_time``: a clock."""

    def __init__(self, unix_time: Callable[[], float] = time.time) -> None:
        self.logins: Counter[str] = Counter()  # by outcome
        self.calls: Counter[str] = Counter()  # by outcome
        self.paths: Counter[tuple[str, str]] = Counter()  # by path and pair of NATs
        self.limits: Counter[str] = Counter()  # by the limit's name: how often it was hit
        self.set_up = {path: Spread(SET_UP_S) for path in CALL_PATHS}
        self.troubles: deque[Trouble] = deque(maxlen=MAX_TROUBLES)
        self._minutes: dict[int, Counter[str]] = {}
        self._unix_time = unix_time

    def login(self, outcome: str) -> None:
        self.logins[outcome] += 1

    def call(self, outcome: str) -> None:
        """One call, once: how it came out."""
        self.calls[outcome] += 1
        if outcome != "answered":
            self._count_minute("failed")

    def path(self, path: str, nats: str, set_up_s: float | None) -> None:
        """An answered call has found a path; ``none``: it has not."""
        self.paths[path, nats] += 1
        if path == "none":
            self._count_minute("failed")
            return
        self._count_minute("p2p" if path.startswith("p2p") else "relay")
        if set_up_s is not None:
            self.set_up[path].add(set_up_s)

    def trouble(self, who: str, reason: str) -> None:
        self.troubles.append(Trouble(self._unix_time(), who, reason[:MAX_TROUBLE_CHARS]))

    def minutes(self) -> tuple[int, dict[str, list[int]]]:
        """Which minute (of Unix time) is now; calls in each of the last ones, this one at the end.

        By "p2p", "relay" and "failed".
        """
        now = self._minute()
        each = [
            self._minutes.get(minute, Counter())
            for minute in range(now - LAST_MINUTES + 1, now + 1)
        ]
        return now, {what: [minute[what] for minute in each] for what in ("p2p", "relay", "failed")}

    def _minute(self) -> int:
        return int(self._unix_time() // 60)

    def _count_minute(self, what: str) -> None:
        now = self._minute()
        if now not in self._minutes:
            self._minutes = {
                minute: counts
                for minute, counts in self._minutes.items()
                if minute > now - LAST_MINUTES
            }
            self._minutes[now] = Counter()
        self._minutes[now][what] += 1
