"""A trial: another path is used for some seconds, to measure what it carries.

Which path is worth one, and what it has shown.  The moves are made by PathChoice.

``now`` is in seconds on any clock that does not go back; sizes are in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from .path_meter import Measured
from .path_option import PathOption

__all__ = ["Trial", "Worth"]

# Our choices.
BETTER = 1.5  # times as much has to be carried by another path, to be kept
FAR_BETTER = 2.0  # times as much as the path in use was carried by another: it is tried
FALLEN = 0.25  # of what the path has carried itself: another is tried
# Where nothing is known of others, they are tried after SLOW_S at a rate that is slow: the first,
# or the second with so many of the packets lost.
SLOW_BYTES_PER_S, SLOW_IF_LOSSY_BYTES_PER_S = 250_000, 1_000_000
LOSSY = 0.02
SLOW_S = 3.0
LEAST_S = 1.0  # a rate is one of so long at least


class Worth:
    """Which path is worth a trial; ``restart`` when the path in use is another one."""

    def __init__(self) -> None:
        self._slow_since = math.inf

    def restart(self) -> None:
        self._slow_since = math.inf

    def find(
        self, current: PathOption, others: Iterable[PathOption], measured: Measured, now: float
    ) -> PathOption | None:
        """One of ``others``, as ``current`` carries no more than what was measured.

        What answers comes first, or else whatever has not answered for longest: many may be dead.
        """
        rate = measured.bytes_per_s
        slow = SLOW_IF_LOSSY_BYTES_PER_S if measured.loss > LOSSY else SLOW_BYTES_PER_S
        self._slow_since = min(self._slow_since, now) if rate < slow else math.inf
        is_rotten = rate < FALLEN * current.carried(now) or now - self._slow_since >= SLOW_S

        def is_worth(option: PathOption) -> bool:
            carried = option.carried(now)
            return carried > FAR_BETTER * rate if carried else is_rotten

        return min(
            (option for option in others if option.may_be_tried(now) and is_worth(option)),
            key=lambda option: (option.unproved_at, -option.carried(now), option.kind.rank),
            default=None,
        )


class Trial:
    """``home`` was left to measure another path; it carried ``home_bytes_per_s``."""

    def __init__(
        self, home: PathOption, home_bytes_per_s: float, begin: float, until: float
    ) -> None:
        self.home = home
        self.home_bytes_per_s = home_bytes_per_s
        self.until = until
        self._begin = begin
        self._delivered_bytes = -1  # by the path that is tried, at the beginning

    def rate(self, delivered_bytes: int, now: float) -> float | None:
        """What the path has carried; None: the trial is not over.

        That counts whether or not anything is held up now: it may take all.
        """
        if self._delivered_bytes < 0:
            self._begin, self._delivered_bytes = now, delivered_bytes
        if now < self.until:
            return None
        return (delivered_bytes - self._delivered_bytes) / max(now - self._begin, LEAST_S)

    def is_won(self, rate: float) -> bool:
        return rate > BETTER * self.home_bytes_per_s
