"""What loss and queues say: how much may be in flight, in the short term and in the long term.

Follows draft-ietf-ccwg-bbr, section "Updating the Model Upon Packet Loss", but for the question
whether a loss means anything.  The draft asks whether more than 2 % of what was in flight is lost.
On a path that loses 3 % whatever we do, that is always so, and the rate sinks by 3 % in each round
until nothing is left of it.  Slowing down helps only where a queue overflows.  So:

- A queue that overflows was full, and a full queue shows in the round trip of the packets that came
  through just after the lost one.  The 2 % count for those losses only.  Where no queue shows, 10 %
  count: a policer or a very short queue loses that much when it is overrun.
- Both count on top of the *ambient* loss: the rate at which packets are lost while no queue shows.
  Random loss varies, so the ambient rate is taken two standard deviations high.

A loss that is not congestion by these rules changes nothing: the bandwidth is measured by what is
delivered, so it accounts for it.

Two more departures:

A queue that stands for a whole round shows that those who share it send faster, together, than it
is emptied.  Each BBR believes the most it ever got, so their sum is too high, and then only the
windows decide who gets how much.  Outside probes the pace is therefore bounded by what the round
delivered, until a round trip shows an empty queue.  It takes about a third off the queue of two
BBRs, and lets a late one have its share sooner.  The window is not bounded, so that CUBIC's
queue does not push BBR aside.

Nothing is undone when a loss turns out to be a late packet.  The transport raises its reordering
threshold instead.
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
        self.pacing_bytes_per_s = math.inf
        self.probing = False  # what is lost now was sent to probe (is_bw_probe_sample)
        self.probe_was_too_high = False  # prev_probe_too_high
        self._lost_bytes = 0  # since the connection began
        self._ambient_lost_bytes = 0.0
        self._ambient_bytes = 0.0
        self._ambient_since_round = 0
        self._startup_lost_before = False

    @property
    def ambient_loss(self) -> float:
        """The share of packets that is lost whatever we do."""
        if not self._ambient_bytes:
            return 0.0
        return min(self._ambient_lost_bytes / self._ambient_bytes, params.MAX_AMBIENT_LOSS)

    def with_headroom(self) -> float:
        """The long-term bound, less what is left to others (InflightWithHeadroom)."""
        headroom = max(self._model.datagram_bytes, params.HEADROOM * self.long_term_bytes)
        if math.isinf(headroom):
            return math.inf
        return max(self.long_term_bytes - headroom, self._model.min_window_bytes)

    def forget_short_term(self) -> None:
        self.short_term_bytes = self._model.short_term_bytes_per_s = math.inf
        self.pacing_bytes_per_s = math.inf

    def notice_probe_loss(self, update: Update, window_bytes: int) -> bool:
        """Whether the probe that is under way lost too much; then the long-term bound is set."""
        if not update.lost:
            return False
        threshold = self._threshold()
        too_high = False
        for snapshot, size in update.lost:
            self._lost_bytes += size
            lost_bytes = max(self._lost_bytes - snapshot.lost_bytes, size)
            if self.probing and self._is_excessive(lost_bytes, snapshot.in_flight, threshold):
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
        if not self._is_excessive(sample.lost, sample.in_flight, self._threshold()):
            self.long_term_bytes = sample.in_flight

    def learn_ambient(self, update: Update) -> None:
        """Count what is lost, of what, while we are not the cause."""
        model = self._model
        if update.rtt_s is None or model.queue_shows:
            return
        lost_bytes = sum(size for _, size in update.lost) if update.lost else 0
        self._ambient_lost_bytes += lost_bytes
        self._ambient_bytes += update.acked_bytes + lost_bytes
        rounds = model.round_count - self._ambient_since_round
        enough = 2 * params.AMBIENT_PACKETS * model.datagram_bytes
        if rounds > 2 * params.AMBIENT_ROUNDS and self._ambient_bytes > enough:
            self._ambient_lost_bytes /= 2
            self._ambient_bytes /= 2
            self._ambient_since_round += rounds // 2

    def yield_to_loss(self, ended: Round, window_bytes: int) -> None:
        """A round that was not a probe is over: slow down if a queue overflowed in it."""
        model = self._model
        if not self._is_congested(ended, 0.0):
            return
        rate = min(model.short_term_bytes_per_s, model.max_bytes_per_s)
        volume = min(self.short_term_bytes, window_bytes)
        model.short_term_bytes_per_s = max(ended.best_bytes_per_s, params.BETA * rate)
        self.short_term_bytes = max(ended.most_delivered, params.BETA * volume)

    def yield_to_queue(self, ended: Round) -> None:
        """A round that was not a probe is over: slow down if the queue was never empty in it."""
        model = self._model
        if ended.app_limited or math.isinf(ended.rtt_s):
            return
        if model.shows_queue(ended.rtt_s):
            before = min(self.pacing_bytes_per_s, model.max_bytes_per_s)
            self.pacing_bytes_per_s = max(ended.best_bytes_per_s, params.BETA * before)
        else:
            self.pacing_bytes_per_s = math.inf

    def startup_lost_too_much(self, ended: Round) -> bool:
        """CheckStartupHighLoss: a whole round of overflowing, rather than one burst."""
        model = self._model
        lost_before, self._startup_lost_before = self._startup_lost_before, ended.lost_bytes > 0
        if not lost_before or ended.lost_runs < params.STARTUP_LOSS_RUNS:
            return False
        if not self._is_congested(ended, params.LOSS_THRESHOLD):
            return False
        self.long_term_bytes = max(model.bdp_bytes(model.bytes_per_s), ended.most_delivered)
        return True

    def _is_congested(self, ended: Round, threshold: float) -> bool:
        total = ended.acked_bytes + ended.lost_bytes
        return self._is_excessive(
            ended.lost_in_queue_bytes, total, threshold
        ) or self._is_excessive(ended.lost_bytes, total, params.BLIND_LOSS_THRESHOLD)

    def _is_excessive(self, lost_bytes: int, of_bytes: float, threshold: float) -> bool:
        """Whether so much loss is more than the ambient loss and a share of ``threshold``."""
        expected = self.ambient_loss * of_bytes / self._model.datagram_bytes
        deviation = params.AMBIENT_DEVIATIONS * math.sqrt(expected)
        explained = (expected + deviation) * self._model.datagram_bytes
        return lost_bytes > explained + threshold * of_bytes

    def _threshold(self) -> float:
        return params.LOSS_THRESHOLD if self._model.queue_shows else params.BLIND_LOSS_THRESHOLD

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
