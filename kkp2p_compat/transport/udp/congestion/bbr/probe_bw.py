"""ProbeBW: use the bandwidth that was found, and look from time to time whether there is more.

A cycle is DOWN (make room), CRUISE (keep the rate), REFILL (fill the pipe), UP (send more than was
delivered).  UP is left when more is not delivered, or too much is lost.

Follows draft-ietf-ccwg-bbr, section "ProbeBW".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..controller import Update
from . import params
from .bounds import Bounds
from .model import Model
from .modes import Mode

if TYPE_CHECKING:
    from random import Random

__all__ = ["ProbeBw"]


class ProbeBw:
    def __init__(self, model: Model, bounds: Bounds, random: Random) -> None:
        self._model = model
        self._bounds = bounds
        self._random = random
        self._cycle_began_at = 0.0
        self._wait_s = 0.0
        self._counts_from_round = 0  # rounds_since_probe_up is counted from it
        self._awaits_verdict = False  # the last acknowledgements of a probe are still to come
        self._was_cautious = False  # prev_probe_precautionary
        self._up_rounds = 0
        self._up_acked_bytes = 0
        self._up_bytes_per_packet = math.inf  # acknowledged, for one more packet in flight
        self._full_window_in_round = -1  # the last round in which the window was used up

    def enter(self, mode: Mode, before: Mode) -> None:
        model = self._model
        if mode is Mode.DOWN or before is Mode.PROBE_RTT:
            self._begin_cycle()
        elif mode is Mode.REFILL:
            self._bounds.forget_short_term()
            self._up_rounds = self._up_acked_bytes = 0
            self._was_cautious = False
            self._awaits_verdict = False
            model.begin_round()
        elif mode is Mode.UP:
            self._bounds.probing = True
            model.begin_round()
            model.seek_more_than(model.sample_bytes_per_s)
            self._raise_faster(model.in_flight)

    def interrupt(self, mode: Mode) -> None:
        """ProbeRTT begins.  If it cuts a probe short, the cycle ends at once.

        The draft goes on with the cycle.  On a path that has become slower, every probe may be cut
        short in turn, and the old bandwidth is never forgotten.
        """
        if mode is Mode.UP or self._awaits_verdict:
            self._model.begin_cycle()
        self._stop_probing()

    def update(self, mode: Mode, update: Update, lost_too_much: bool, window_bytes: int) -> Mode:
        model = self._model
        if update.in_flight_before + model.datagram_bytes > window_bytes:
            self._full_window_in_round = model.round_count
        if lost_too_much and mode is Mode.UP:
            return Mode.DOWN
        if self._take_verdict():
            return Mode.REFILL
        if not lost_too_much:
            self._bounds.raise_long_term(update)
            if mode is Mode.UP:
                self._raise_long_term_further(update.acked_bytes, window_bytes)
        if mode is Mode.UP:
            return Mode.DOWN if self._has_probed_enough(window_bytes) else mode
        if mode is Mode.REFILL:
            return Mode.UP if model.round_ended is not None else mode
        if self._is_time_to_probe(window_bytes):
            return Mode.REFILL
        return Mode.CRUISE if mode is Mode.CRUISE or self._has_made_room() else mode

    def end_probe(self) -> None:
        """As ``update`` does, for the modes outside ProbeBW: the probe's last round is over."""
        if self._awaits_verdict and self._model.round_ended is not None:
            self._awaits_verdict = self._bounds.probing = False

    def _take_verdict(self) -> bool:
        """Whether a probe that was cut short out of caution did no harm: then go on with it."""
        if not self._awaits_verdict or self._model.round_ended is None:
            return False
        self.end_probe()
        if not self._model.is_app_limited:
            self._model.begin_cycle()
        return self._was_cautious and not self._bounds.probe_was_too_high

    def _begin_cycle(self) -> None:
        model = self._model
        low, high = params.PROBE_WAIT_S
        self._wait_s = low + self._random.random() * (high - low)
        self._counts_from_round = model.round_count - int(self._random.random() * 2)
        self._cycle_began_at = model.now
        self._up_bytes_per_packet = math.inf
        model.forget_round()
        self._stop_probing()

    def _stop_probing(self) -> None:
        """No more probing packets are sent; those on their way have a round to come back."""
        self._awaits_verdict = True
        self._model.begin_round()

    def _is_time_to_probe(self, window_bytes: int) -> bool:
        """As often as Reno would need to come back to this window, but at least every 3 s."""
        model = self._model
        if model.now > self._cycle_began_at + self._wait_s:
            return True
        if model.round_ended is None:
            return False
        target = min(model.bdp_bytes(model.bytes_per_s), window_bytes)
        rounds = min(target / model.datagram_bytes, params.RENO_ROUNDS)
        return model.round_count - self._counts_from_round >= rounds

    def _has_made_room(self) -> bool:
        model = self._model
        return model.in_flight <= min(
            self._bounds.with_headroom(), model.drained_bytes(model.max_bytes_per_s)
        )

    def _has_probed_enough(self, window_bytes: int) -> bool:
        model, bounds = self._model, self._bounds
        if bounds.probe_was_too_high and model.in_flight >= bounds.long_term_bytes:
            self._was_cautious = True
        elif (
            self._is_window_limited()
            and window_bytes >= bounds.long_term_bytes
            and not model.queue_shows
        ):
            model.seek_more_than(model.sample_bytes_per_s)  # the bound, not the path, is full
            return False
        elif not model.full_bw_now:
            return False
        bounds.probe_was_too_high = False
        return True

    def _is_window_limited(self) -> bool:
        return self._model.round_count - self._full_window_in_round <= 1

    def _raise_long_term_further(self, acked_bytes: int, window_bytes: int) -> None:
        """One packet in the first round, then 2, 4, ... (ProbeInflightLongtermUpward)."""
        bounds, model = self._bounds, self._model
        if not self._is_window_limited() or window_bytes < bounds.long_term_bytes:
            return
        self._up_acked_bytes += acked_bytes
        packets = int(self._up_acked_bytes / self._up_bytes_per_packet)
        self._up_acked_bytes -= int(packets * self._up_bytes_per_packet)
        bounds.long_term_bytes += packets * model.datagram_bytes
        if model.round_ended is not None:
            self._raise_faster(window_bytes)

    def _raise_faster(self, window_bytes: int) -> None:
        """RaiseInflightLongtermSlope."""
        growth = 1 << self._up_rounds
        self._up_rounds = min(self._up_rounds + 1, params.MAX_UP_ROUNDS)
        self._up_bytes_per_packet = max(window_bytes / growth, self._model.datagram_bytes)
