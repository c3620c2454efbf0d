"""ProbeRTT: keep little in flight for a moment, so that the queue runs empty and the round trip of
the bare path shows.

Needed only when no round trip near the smallest was seen for ``PROBE_RTT_INTERVAL_S``: others keep
the queue filled, or the bandwidth is believed too high.

Follows draft-ietf-ccwg-bbr, section "ProbeRTT".  Departure: half of what fills the path is reckoned
by the rate that came through last.  When the path has become slower, half by the best rate known
would still fill the queue, and what is then measured would make it worse.
"""

from __future__ import annotations

from . import params
from .model import Model
from .modes import GAINS, Mode

__all__ = ["ProbeRtt"]


class ProbeRtt:
    """Left when the window was low for ``PROBE_RTT_S`` and for one round."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.most_in_flight = 0.0
        self._done_at: float | None = None  # None: there is still too much in flight
        self._round_done = False

    def enter(self) -> None:
        model = self._model
        rate = min(model.bytes_per_s, model.sample_bytes_per_s)
        product = GAINS[Mode.PROBE_RTT].window * model.bdp_bytes(rate)
        self.most_in_flight = max(product, model.min_window_bytes)
        self._done_at = None

    def update(self) -> Mode:
        model = self._model
        model.ignore_in_flight()
        if self._done_at is None:
            if model.in_flight <= self.most_in_flight:
                self._done_at = model.now + params.PROBE_RTT_S
                self._round_done = False
                model.begin_round()
        elif model.round_ended is not None:
            self._round_done = True
        return self.next_mode(model.now) if self._round_done else Mode.PROBE_RTT

    def next_mode(self, now: float) -> Mode:
        """Also asked when the connection was idle meanwhile: that drained the queue as well."""
        if self._done_at is None or now <= self._done_at:
            return Mode.PROBE_RTT
        self._model.recent_min_rtt_at = now
        return Mode.CRUISE if self._model.full_bw_reached else Mode.STARTUP
