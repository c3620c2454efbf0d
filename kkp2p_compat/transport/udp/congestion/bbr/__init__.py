"""BBR: congestion control by a model of the path, so that loss alone does not slow it down.

Follows draft-ietf-ccwg-bbr (version 3 of BBR), without ECN.  Where it departs from the draft, the
module that does says so: ``bounds`` on which loss counts and on queues that stand, ``model`` on
round trips, full pipes and batches.

``Bbr`` turns the model into the three numbers the transport needs.  A file per mode decides when
the mode ends; ``modes`` has the gains and the transitions.

model.py      bandwidth and round trip of the path, as they are believed to be
bounds.py     what losses and queues say about the volume in flight
modes.py      the modes, their gains, and which may follow which
startup.py    Startup and Drain
probe_bw.py   ProbeBW
probe_rtt.py  ProbeRTT
params.py     the numbers
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..controller import Update, initial_window, quantum
from . import params
from .bounds import Bounds
from .model import Model
from .modes import FOLLOWERS, GAINS, PROBE_BW, PROBING, Mode
from .probe_bw import ProbeBw
from .probe_rtt import ProbeRtt
from .startup import Drain, Startup

if TYPE_CHECKING:
    from random import Random

__all__ = ["Bbr"]


class Bbr:
    """The ``Controller`` of draft-ietf-ccwg-bbr."""

    def __init__(self, datagram_bytes: int, now: float, random: Random) -> None:
        self.mode = Mode.STARTUP
        self._gains = GAINS[self.mode]
        self.model = Model(datagram_bytes, now)
        self.bounds = Bounds(self.model)
        self._startup = Startup(self.model, self.bounds)
        self._drain = Drain(self.model)
        self._probe_bw = ProbeBw(self.model, self.bounds, random)
        self._probe_rtt = ProbeRtt(self.model)
        self._window_before_probe_rtt = 0  # prior_cwnd
        self._restarts_from_idle = False
        self.window_bytes = initial_window(datagram_bytes)
        self.pacing_bytes_per_s = 0.0
        self._set_initial_pacing(params.FIRST_RTT_S)

    def update(self, update: Update) -> None:
        model = self.model
        if update.rtt_s is not None and math.isinf(model.min_rtt_s):
            self._set_initial_pacing(update.rtt_s)
        model.update(update, self.window_bytes)
        lost_too_much = self.bounds.notice_probe_loss(update, self.window_bytes)
        self.bounds.learn_ambient(update)
        if model.round_ended is not None and self.mode not in PROBING:
            self.bounds.yield_to_loss(model.round_ended, self.window_bytes)
            self.bounds.yield_to_queue(model.round_ended)
        self._enter(self._next_mode(update, lost_too_much))
        if update.sample is not None:
            self._restarts_from_idle = False
        self._set_pacing(self._gains.pacing)
        self._set_window(update.acked_bytes)

    def handle_sent(self, now: float, size: int, in_flight_before: int) -> None:
        if in_flight_before or not self.model.delivered_bytes:
            return
        self._restarts_from_idle = True
        self.model.restart_from_idle(now)
        if self.mode in PROBE_BW:
            self._set_pacing(1.0)
        elif self.mode is Mode.PROBE_RTT:
            self._enter(self._probe_rtt.next_mode(now))

    def handle_persistent_congestion(self, now: float) -> None:
        """Begin again with a small window; it doubles each round up to what the model allows."""
        self.window_bytes = self.model.min_window_bytes

    def set_datagram_bytes(self, datagram_bytes: int) -> None:
        self.model.datagram_bytes = datagram_bytes
        self.window_bytes = max(self.window_bytes, self.model.min_window_bytes)

    def _next_mode(self, update: Update, lost_too_much: bool) -> Mode:
        model, mode = self.model, self.mode
        if mode not in PROBE_BW:
            self._probe_bw.end_probe()
        if mode is Mode.PROBE_RTT:
            return self._probe_rtt.update()
        if model.recent_min_rtt_expired and not self._restarts_from_idle:
            return Mode.PROBE_RTT
        if mode is Mode.STARTUP:
            return self._startup.update()
        if mode is Mode.DRAIN:
            return self._drain.update()
        return self._probe_bw.update(mode, update, lost_too_much, self.window_bytes)

    def _enter(self, mode: Mode) -> None:
        before = self.mode
        if mode is before:
            return
        if mode not in FOLLOWERS[before]:
            raise ValueError(f"BBR cannot go from {before.value} to {mode.value}")
        self.mode = mode
        self._gains = GAINS[mode]
        if before is Mode.PROBE_RTT:
            self.bounds.forget_short_term()
            self.window_bytes = max(self.window_bytes, self._window_before_probe_rtt)
        if mode is Mode.PROBE_RTT:
            self._window_before_probe_rtt = self.window_bytes
            self._probe_rtt.enter()
            self._probe_bw.interrupt(before)
        elif mode is Mode.DRAIN:
            self._drain.enter()
        elif mode in PROBE_BW:
            self._probe_bw.enter(mode, before)

    def _set_initial_pacing(self, rtt_s: float) -> None:
        """Before the bandwidth is known: the window in a round trip, twice over."""
        rate = params.STARTUP_PACING_GAIN * self.window_bytes / max(rtt_s, 1e-6)
        self._pace(rate)

    def _set_pacing(self, gain: float) -> None:
        rate = self.model.bytes_per_s
        if self.mode not in PROBING:
            rate = min(rate, self.bounds.pacing_bytes_per_s)
        rate *= gain * params.PACING_MARGIN
        if self.model.full_bw_reached or rate > self.pacing_bytes_per_s:
            self._pace(rate)

    def _pace(self, rate_bytes_per_s: float) -> None:
        if rate_bytes_per_s == self.pacing_bytes_per_s:
            return
        # Never zero: the pacer divides by it.
        self.pacing_bytes_per_s = max(rate_bytes_per_s, float(self.model.datagram_bytes))
        self.quantum_bytes = quantum(self.pacing_bytes_per_s, self.model.datagram_bytes)

    def _set_window(self, acked_bytes: int) -> None:
        model, bounds = self.model, self.bounds
        most = model.most_in_flight(self._gains.window)
        window: float = self.window_bytes
        if model.full_bw_reached:
            window = min(window + acked_bytes, most)
        elif window < most or model.delivered_bytes < initial_window(model.datagram_bytes):
            window += acked_bytes
        if self.mode is Mode.PROBE_RTT:
            window = min(window, self._probe_rtt.most_in_flight, bounds.with_headroom())
        elif self.mode is Mode.CRUISE:
            window = min(window, bounds.with_headroom())
        elif self.mode in PROBE_BW:
            window = min(window, bounds.long_term_bytes)
        window = min(window, bounds.short_term_bytes)
        self.window_bytes = int(max(window, model.min_window_bytes))
