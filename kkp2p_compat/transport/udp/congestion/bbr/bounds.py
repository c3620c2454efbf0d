"""What loss says: how much may be in flight, in the short term and in the long term.

Follows draft-ietf-ccwg-bbr, section "Updating the Model Upon Packet Loss", but for the question
whether a loss means anything.  The draft asks whether more than 2 % of what was in flight is lost.
On a path that loses 3 % whatever we do, that is always so, and the rate sinks by 3 % in each round
until nothing is left of it.  Slowing down helps only where a queue overflows.  So:

- A queue that overflows was full, and a full queue shows in the round trip.  The 2 % count only in
  a round in which every round trip is longer than the smallest.  Where no queue shows, 10 % count:
  a policer or a very short queue loses that much when it is overrun.
- Both count on top of the *ambient* loss: the rate at which packets are lost while we cannot be the
  cause, that is in rounds that show no queue, or with less in flight than fills the path.  Random
  loss varies, so the ambient rate is taken two standard deviations high.

A loss that is not congestion by these rules changes nothing: the bandwidth is measured by what is
delivered, so it accounts for it.

Another departure: nothing is undone when a loss turns out to be a late packet.  The transport
raises its reordering threshold instead.
"""

from __future__ import annotations

import math

from ..controller import Update
from ..delivery_rate import Snapshot
from . import params
from .model import Model, Round

__all__ = ["Bounds"]


class Bounds:
    """Volumes are in bytes; infinite: no bound is known."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.long_term_bytes = math.inf  # inflight_longterm
        self.short_term_bytes = math.inf  # inflight_shortterm
        self.probing = False  # what is lost now was sent to probe (is_bw_probe_sample)
        self.probe_was_too_high = False  # prev_probe_too_high
        self._lost_bytes = 0  # since the connection began
        self._ambient_lost_bytes = 0.0
        self._ambient_bytes = 0.0
        self._ambient_rounds = 0

    @property
    def ambient_loss(self) -> float:
        """The share of packets that is lost whatever we do."""
        return self._ambient_lost_bytes / self._ambient_bytes if self._ambient_bytes else 0.0

    def with_headroom(self) -> float:
        """The long-term bound, less what is left to others (InflightWithHeadroom)."""
        headroom = max(self._model.datagram_bytes, params.HEADROOM * self.long_term_bytes)
        if math.isinf(headroom):
            return math.inf
        return max(self.long_term_bytes - headroom, self._model.min_window_bytes)

    def forget_short_term(self) -> None:
        self.short_term_bytes = self._model.short_term_bytes_per_s = math.inf

    def is_excessive(self, lost_bytes: int, of_bytes: float, threshold: float) -> bool:
        """Whether so much loss is more than the ambient loss and a share of ``threshold``."""
        expected = self.ambient_loss * of_bytes / self._model.datagram_bytes
        deviation = params.AMBIENT_DEVIATIONS * math.sqrt(expected)
        explained = (expected + deviation) * self._model.datagram_bytes
        return lost_bytes > explained + threshold * of_bytes

    def notice_probe_loss(self, update: Update, window_bytes: int) -> bool:
        """Whether the probe that is under way lost too much; then the long-term bound is set."""
        threshold = self._threshold(self._model.round)
        too_high = False
        for snapshot, size in update.lost:
            self._lost_bytes += size
            lost_bytes = max(self._lost_bytes - snapshot.lost_bytes, size)
            if self.probing and self.is_excessive(lost_bytes, snapshot.in_flight, threshold):
                self.probing = False  # once for a probe
                self.probe_was_too_high = too_high = True
                if not snapshot.is_app_limited:
                    safe = self._in_flight_at_loss(snapshot, size, lost_bytes, threshold)
                    self.long_term_bytes = max(safe, params.BETA * self._target(window_bytes))
        return too_high

    def raise_long_term(self, update: Update) -> None:
        """What went through without excessive loss is safe (AdaptLongTermModel)."""
        sample = update.sample
        if sample is None or sample.in_flight <= self.long_term_bytes:
            return
        if not self.is_excessive(sample.lost, sample.in_flight, self._threshold(self._model.round)):
            self.long_term_bytes = sample.in_flight

    def end_round(self, ended: Round, probing: bool, window_bytes: int) -> None:
        """Learn the ambient loss, or yield to the loss of a round that was not a probe."""
        model = self._model
        total = ended.acked_bytes + ended.lost_bytes
        queue = model.shows_queue(ended.rtt_s)
        full = model.bdp_bytes(model.max_bytes_per_s)
        if not queue or ended.in_flight <= (1 - params.HEADROOM) * full:
            self._learn_ambient(ended.lost_bytes, total)
        if probing or not self.is_excessive(
            ended.lost_bytes, total, 0.0 if queue else params.BLIND_LOSS_THRESHOLD
        ):
            return
        rate = min(model.short_term_bytes_per_s, model.max_bytes_per_s)
        volume = min(self.short_term_bytes, window_bytes)
        model.short_term_bytes_per_s = max(ended.best_bytes_per_s, params.BETA * rate)
        self.short_term_bytes = max(ended.most_delivered, params.BETA * volume)

    def startup_lost_too_much(self, ended: Round) -> bool:
        """CheckStartupHighLoss: a whole round of overflowing, rather than one burst."""
        model = self._model
        total = ended.acked_bytes + ended.lost_bytes
        if ended.lost_runs < params.STARTUP_LOSS_RUNS or not self.is_excessive(
            ended.lost_bytes, total, self._threshold(ended)
        ):
            return False
        self.long_term_bytes = max(model.bdp_bytes(model.bytes_per_s), ended.most_delivered)
        return True

    def _threshold(self, of: Round) -> float:
        if self._model.shows_queue(of.rtt_s):
            return params.LOSS_THRESHOLD
        return params.BLIND_LOSS_THRESHOLD

    def _target(self, window_bytes: int) -> float:
        """TargetInflight."""
        return min(self._model.bdp_bytes(self._model.bytes_per_s), window_bytes)

    def _in_flight_at_loss(
        self, snapshot: Snapshot, size: int, lost_bytes: int, threshold: float
    ) -> float:
        """How much was in flight when too much began to be lost (InflightAtLoss)."""
        share = threshold + self.ambient_loss
        before = snapshot.in_flight - size
        lost_before = lost_bytes - size
        return before + max((share * before - lost_before) / (1 - share), 0.0)

    def _learn_ambient(self, lost_bytes: int, total_bytes: int) -> None:
        self._ambient_lost_bytes += lost_bytes
        self._ambient_bytes += total_bytes
        self._ambient_rounds += 1
        enough = 2 * params.AMBIENT_PACKETS * self._model.datagram_bytes
        if self._ambient_bytes > enough and self._ambient_rounds > 2 * params.AMBIENT_ROUNDS:
            self._ambient_lost_bytes /= 2
            self._ambient_bytes /= 2
            self._ambient_rounds //= 2
