"""Spread what is sent over time, so that a burst does not fill the bottleneck's queue.

A bucket of credit in bytes: time adds to it at the pacing rate, sending takes from it.  It holds a
quantum, and may be used up.  A timer waits until it is full again; whoever is awake for another
reason, mostly an acknowledgement, may send from half a quantum on, and the timer need not fire.

The event loop wakes us up to a timer tick late.  The credit goes on growing meanwhile, so a late
wake-up sends more and the average rate is kept; but never for more than ``LATE_S``, and only while
nothing but the pacer is waited for: a connection that is idle, or whose window is used up, does not
save up a burst.  On a fast path it does: the largest quantum is less than what a tick is worth, so
acknowledgements set the pace, and without that credit each would let go a fraction of what it may.
"""

from __future__ import annotations

from .controller import MAX_QUANTUM_BYTES, QUANTUM_S

__all__ = ["Pacer"]

LATE_S = 0.002  # our choice: two ticks of the event loop's 1 ms timer
FAST_BYTES_PER_S = MAX_QUANTUM_BYTES / QUANTUM_S


class Pacer:
    """Rates are in bytes per second, times in seconds on one clock, sizes in bytes."""

    def __init__(self, now: float) -> None:
        self._credit_bytes = 0.0  # what may go beyond a quantum; negative: what a quantum lacks
        self._at = now
        self._awaited = False

    def budget(self, now: float, rate_bytes_per_s: float, quantum_bytes: int) -> int:
        """How many bytes may go now: 0, or from half a quantum to a whole and what was late."""
        self._refill(now, rate_bytes_per_s)
        budget_bytes = quantum_bytes + self._credit_bytes
        return int(budget_bytes) if 2 * budget_bytes >= quantum_bytes else 0

    def sent(self, size: int, now: float, rate_bytes_per_s: float) -> None:
        """``size`` bytes have gone."""
        self._refill(now, rate_bytes_per_s)
        self._credit_bytes -= size
        self._awaited = False

    def next_send(self, now: float, rate_bytes_per_s: float) -> float:
        """When ``budget`` will allow a whole quantum: ``now`` or later."""
        self._refill(now, rate_bytes_per_s)
        self._awaited = True
        return now + max(-self._credit_bytes, 0.0) / rate_bytes_per_s

    def _refill(self, now: float, rate_bytes_per_s: float) -> None:
        is_late = self._awaited or rate_bytes_per_s > FAST_BYTES_PER_S
        most_bytes = LATE_S * rate_bytes_per_s if is_late else max(self._credit_bytes, 0.0)
        credit_bytes = self._credit_bytes + (now - self._at) * rate_bytes_per_s
        self._credit_bytes = min(credit_bytes, most_bytes)
        self._at = now
