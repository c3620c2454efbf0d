"""What BBR believes of the path: how fast it delivers, and how long a round trip takes.

``update`` takes in one ACK frame.  The modes then read the estimates, and say when a round, a cycle
or a search for the full pipe begins.

Follows draft-ietf-ccwg-bbr, section "Updating Network Path Model Parameters".  Departures:
- A round trip within ``MIN_RTT_SLACK`` of the smallest refreshes it: the queue is empty, so there
  is no need to stop for ProbeRTT.  A transfer that is alone on its path never pauses.
- The search for the full pipe looks at the best rate of a round, where the draft looks at the
  sample that ends it, so that one acknowledgement held back does not look like a full pipe.
- The budget for batches is added to the bandwidth-delay product, where the draft takes the larger
  of the two; and it includes what a late timer sends at once.
"""

from __future__ import annotations

import math

from ..controller import Update, initial_window, quantum
from ..pacer import LATE_S
from . import params

__all__ = ["Model"]


class Round:
    """What one round trip, as counted by acknowledged data, has brought."""

    __slots__ = (
        "acked_bytes",
        "app_limited",
        "best_bytes_per_s",
        "lost_bytes",
        "lost_in_queue_bytes",
        "lost_runs",
        "most_delivered",
        "rtt_s",
    )

    def __init__(self) -> None:
        self.best_bytes_per_s = 0.0  # bw_latest
        self.most_delivered = 0  # inflight_latest
        self.acked_bytes = 0
        self.lost_bytes = 0
        self.lost_in_queue_bytes = 0  # of these, what was lost while a queue showed
        self.lost_runs = 0
        self.rtt_s = math.inf  # the least
        self.app_limited = False


class Model:
    """Rates are in bytes per second.  ``now`` is that of the last update."""

    def __init__(self, datagram_bytes: int, now: float) -> None:
        self.datagram_bytes = datagram_bytes
        self.now = now
        self.delivered_bytes = 0
        self.in_flight = 0
        # Rounds.
        self.round = Round()
        self.round_ended: Round | None = None  # the one that this update ended
        self.round_count = 0
        self._round_ends_at = 0  # delivered bytes
        # Rate.
        self.sample_bytes_per_s = 0.0  # of this update
        self.is_app_limited = False
        self.max_bytes_per_s = 0.0  # the best of this cycle and the one before
        self._cycle_best_bytes_per_s = 0.0
        self.short_term_bytes_per_s = math.inf  # bw_shortterm
        # The full pipe.
        self.full_bw_reached = False
        self.full_bw_now = False
        self._full_bytes_per_s = 0.0
        self._full_rounds = 0
        # Round trip.
        self.min_rtt_s = math.inf
        self._min_rtt_at = now
        self.recent_min_rtt_s = math.inf  # probe_rtt_min_delay
        self.recent_min_rtt_at = now
        self.recent_min_rtt_expired = False
        self.queue_shows = False
        # Aggregation.
        self._extra_acked: list[tuple[int, float]] = []  # (round, bytes), ever smaller
        self._burst_bytes = 0
        self._burst_began_at = now
        self._ignored_until = 0  # delivered bytes

    @property
    def bytes_per_s(self) -> float:
        return min(self.max_bytes_per_s, self.short_term_bytes_per_s)

    @property
    def min_window_bytes(self) -> int:
        return params.MIN_WINDOW_PACKETS * self.datagram_bytes

    def bdp_bytes(self, bytes_per_s: float) -> float:
        """What fills the path at this rate; the initial window while nothing is known."""
        if math.isinf(self.min_rtt_s):
            return initial_window(self.datagram_bytes)
        return bytes_per_s * self.min_rtt_s

    def drained_bytes(self, bytes_per_s: float) -> float:
        """In flight when there is no queue: the product, and the batch that is on its way."""
        product = self.bdp_bytes(bytes_per_s) + quantum(bytes_per_s, self.datagram_bytes)
        return max(product, self.min_window_bytes)

    def most_in_flight(self, gain: float) -> float:
        """max_inflight: what keeps the path busy, with everything that comes in batches."""
        rate = self.bytes_per_s
        budget = params.OFFLOAD_QUANTA * quantum(rate, self.datagram_bytes) + LATE_S * rate
        extra = self._extra_acked[0][1] if self._extra_acked else 0.0
        return max(gain * self.bdp_bytes(rate) + extra + budget, self.min_window_bytes)

    def shows_queue(self, rtt_s: float) -> bool:
        queue_s = max(params.QUEUE_RTT * self.min_rtt_s, params.QUEUE_S)
        return rtt_s > self.min_rtt_s + queue_s

    # From the modes.

    def begin_round(self) -> None:
        self._round_ends_at = self.delivered_bytes

    def forget_round(self) -> None:
        """What was measured so far in this round belongs to another mode."""
        self.round = Round()

    def begin_cycle(self) -> None:
        """A probe for bandwidth is over; forget the one before the last."""
        if not self._cycle_best_bytes_per_s:
            return  # no sample of this cycle could be used
        self.max_bytes_per_s, self._cycle_best_bytes_per_s = self._cycle_best_bytes_per_s, 0.0

    def seek_full_pipe(self) -> None:
        self._full_bytes_per_s = 0.0
        self._full_rounds = 0
        self.full_bw_now = False

    def seek_more_than(self, bytes_per_s: float) -> None:
        self.seek_full_pipe()
        self._full_bytes_per_s = bytes_per_s

    def ignore_in_flight(self) -> None:
        """What is on its way is slow on purpose: it says nothing of the bandwidth."""
        self._ignored_until = self.delivered_bytes + self.in_flight

    def restart_from_idle(self, now: float) -> None:
        self.now = now
        self._burst_began_at = now
        self._burst_bytes = 0

    # What is measured.

    def update(self, update: Update, window_bytes: int) -> None:
        self.now = update.now
        self.in_flight = update.in_flight
        self.recent_min_rtt_expired = False
        if update.rtt_s is not None:
            self._measure_rtt(update.rtt_s)
            self.round.rtt_s = min(self.round.rtt_s, update.rtt_s)
        self.round_ended = ended = self._measure_round(update)
        if update.sample is not None:
            self._measure_aggregation(update.acked_bytes, window_bytes)
        if ended is not None:
            self._look_for_full_pipe(ended)

    def _measure_round(self, update: Update) -> Round | None:
        """The round that ends with this update, if it does."""
        current = self.round
        current.acked_bytes += update.acked_bytes
        current.lost_runs += len(update.lost)
        if update.lost:
            lost_bytes = sum(size for _, size in update.lost)
            current.lost_bytes += lost_bytes
            if self.queue_shows:
                current.lost_in_queue_bytes += lost_bytes
        sample = update.sample
        if sample is None:
            return None
        self.delivered_bytes = sample.total_delivered
        rate = self.sample_bytes_per_s = sample.bytes_per_s
        ignored = sample.prior_delivered <= self._ignored_until and self._ignored_until > 0
        self.is_app_limited = sample.is_app_limited or ignored
        if rate > current.best_bytes_per_s:
            current.best_bytes_per_s = rate
        if sample.delivered > current.most_delivered:
            current.most_delivered = sample.delivered
        current.app_limited |= self.is_app_limited
        if rate > self._cycle_best_bytes_per_s and (
            rate >= self.max_bytes_per_s or not self.is_app_limited
        ):
            self._cycle_best_bytes_per_s = rate
            self.max_bytes_per_s = max(self.max_bytes_per_s, rate)
        if sample.prior_delivered < self._round_ends_at:
            return None
        self.begin_round()
        self.round_count += 1
        self.round = Round()
        return current

    def _look_for_full_pipe(self, ended: Round) -> None:
        if self.full_bw_now or ended.app_limited or not ended.best_bytes_per_s:
            return
        if ended.best_bytes_per_s >= self._full_bytes_per_s * params.FULL_BW_GROWTH:
            self.seek_more_than(ended.best_bytes_per_s)
            return
        self._full_rounds += 1
        if self._full_rounds >= params.FULL_BW_ROUNDS:
            self.full_bw_now = self.full_bw_reached = True

    def _measure_rtt(self, rtt_s: float) -> None:
        now = self.now
        self.recent_min_rtt_expired = now > self.recent_min_rtt_at + params.PROBE_RTT_INTERVAL_S
        if rtt_s < self.recent_min_rtt_s or self.recent_min_rtt_expired:
            self.recent_min_rtt_s = rtt_s
            self.recent_min_rtt_at = now
        elif rtt_s <= self.recent_min_rtt_s * (1 + params.MIN_RTT_SLACK):
            self.recent_min_rtt_at = now
        expired = now > self._min_rtt_at + params.MIN_RTT_WINDOW_S
        if self.recent_min_rtt_s < self.min_rtt_s or expired:
            self.min_rtt_s = self.recent_min_rtt_s
            self._min_rtt_at = self.recent_min_rtt_at
        self.queue_shows = self.shows_queue(rtt_s)

    def _measure_aggregation(self, acked_bytes: int, window_bytes: int) -> None:
        rate = self.bytes_per_s
        expected = rate * (self.now - self._burst_began_at)
        if self._burst_bytes <= expected:
            self._burst_bytes = 0
            self._burst_began_at = self.now
            expected = 0.0
        self._burst_bytes += acked_bytes
        extra = min(self._burst_bytes - expected, window_bytes)
        samples = self._extra_acked
        while samples and samples[-1][1] <= extra:
            samples.pop()
        samples.append((self.round_count, extra))
        rounds = params.EXTRA_ACKED_ROUNDS if self.full_bw_reached else 1
        while samples[0][0] <= self.round_count - rounds:
            del samples[0]
