"""Spread what is sent over time, so that a burst does not fill the bottleneck's queue.

A bucket of credit in bytes: time adds to it at the pacing rate, sending takes from it.  While the
credit is not negative, a quantum may go, which may leave it negative; then it is waited for.

The event loop wakes us up to a timer tick late.  The credit goes on growing meanwhile, so a late
wake-up sends more and the average rate is kept; but never for more than ``LATE_S``, so that an
idle connection does not save up a burst.
"""

from __future__ import annotations

__all__ = ["Pacer"]

LATE_S = 0.002  # our choice: two ticks of the event loop's 1 ms timer


class Pacer:
    """Rates are in bytes per second, times in seconds on one clock, sizes in bytes."""

    def __init__(self, now: float) -> None:
        self._credit_bytes = 0.0
        self._at = now

    def budget(self, now: float, rate_bytes_per_s: float, quantum_bytes: int) -> int:
        """How many bytes may go now: 0, or a quantum and what late wake-ups left over."""
        self._refill(now, rate_bytes_per_s)
        if self._credit_bytes <= -1:  # less than a byte is rounding
            return 0
        return quantum_bytes + int(self._credit_bytes)

    def sent(self, size: int, now: float, rate_bytes_per_s: float) -> None:
        """``size`` bytes have gone."""
        self._refill(now, rate_bytes_per_s)
        self._credit_bytes -= size

    def next_send(self, now: float, rate_bytes_per_s: float) -> float:
        """When ``budget`` will allow a quantum: ``now`` or later."""
        self._refill(now, rate_bytes_per_s)
        return now + max(-self._credit_bytes, 0.0) / rate_bytes_per_s

    def _refill(self, now: float, rate_bytes_per_s: float) -> None:
        credit = self._credit_bytes + (now - self._at) * rate_bytes_per_s
        self._credit_bytes = min(credit, LATE_S * rate_bytes_per_s)
        self._at = now
