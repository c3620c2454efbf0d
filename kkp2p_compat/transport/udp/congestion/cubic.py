"""CUBIC: congestion control by loss, for paths and tests that want what most TCP does.

After a loss the window is cut to 0.7 of what it was, then grows along a cubic of the time since:
fast at first, flat where the loss was, then fast again; never slower than Reno would.  Before the
first loss it doubles each round trip, until the round trips grow (HyStart++).

Follows RFC 9438 in bytes rather than segments, and RFC 9406 with L = infinity, as its section 4.3
asks of a paced sender.  The recovery period is that of RFC 9002 section 7.3.2.
"""

from __future__ import annotations

import math

from .controller import Update, initial_window, quantum

__all__ = ["Cubic"]

# RFC 9438
C = 0.4  # 4.1: segments per second cubed
BETA = 0.7  # 4.6: what is left of the window after a loss
RENO_ALPHA = 3 * (1 - BETA) / (1 + BETA)  # 4.3: as fast as Reno, given BETA
MAX_TARGET = 1.5  # 4.2: of the window, in a round trip
# RFC 9406 section 4.3
MIN_RTT_STEP_S, MAX_RTT_STEP_S, RTT_STEP_DIVISOR = 0.004, 0.016, 8
RTT_SAMPLES = 8
SLOW_GROWTH_DIVISOR = 4
SLOW_GROWTH_ROUNDS = 5

MIN_WINDOW_PACKETS = 2  # RFC 9002 section 7.2
PACING_GAIN = 1.25  # RFC 9002 section 7.7
START_PACING_GAIN = 2.0  # our choice, as Linux: the window doubles within the round trip
FIRST_RTT_S = 0.001  # as draft-ietf-ccwg-bbr: nothing is known, so the first window goes at once


class SlowStart:
    """HyStart++: whether the window may still double each round trip (RFC 9406 section 4.2)."""

    def __init__(self, now: float) -> None:
        self._round_began_at = now
        self._last_min_s = self._min_s = math.inf
        self._samples = 0
        self._baseline_s: float | None = None  # not None: growing slowly, to see if it was noise
        self._slow_rounds = 0
        self.over = False

    def growth(self, acked_bytes: int) -> int:
        return acked_bytes if self._baseline_s is None else acked_bytes // SLOW_GROWTH_DIVISOR

    def update(self, update: Update) -> None:
        if update.sent_at is not None and update.sent_at >= self._round_began_at:
            self._end_round(update.now)
        if update.rtt_s is None:
            return
        self._min_s = min(self._min_s, update.rtt_s)
        self._samples += 1
        if self._samples < RTT_SAMPLES:
            return
        if self._baseline_s is not None:
            if self._min_s < self._baseline_s:  # it was noise
                self._baseline_s = None
        elif not math.isinf(self._last_min_s):
            step_s = min(max(self._last_min_s / RTT_STEP_DIVISOR, MIN_RTT_STEP_S), MAX_RTT_STEP_S)
            if self._min_s >= self._last_min_s + step_s:
                self._baseline_s = self._min_s
                self._slow_rounds = 0

    def _end_round(self, now: float) -> None:
        self._round_began_at = now
        self._last_min_s, self._min_s = self._min_s, math.inf
        self._samples = 0
        if self._baseline_s is not None:
            self._slow_rounds += 1
            self.over = self._slow_rounds >= SLOW_GROWTH_ROUNDS


class Cubic:
    """The ``Controller`` of RFC 9438."""

    def __init__(self, datagram_bytes: int, now: float) -> None:
        self._datagram_bytes = datagram_bytes
        self.window_bytes = initial_window(datagram_bytes)
        self._slow_start: SlowStart | None = SlowStart(now)
        self._recovery_began_at = -math.inf
        self._max_bytes = 0.0  # W_max: where the cubic is flat
        self._before_cut_bytes = 0.0  # cwnd_prior
        self._reno_bytes = 0.0  # W_est
        self._grown_bytes = 0.0  # what does not yet make up a byte of the window
        self._elapsed_s = 0.0  # t, without the time the window was not in use (section 5.8)
        self._plateau_s = 0.0  # K
        self._at = now
        self._set_pacing(FIRST_RTT_S)

    def update(self, update: Update) -> None:
        for snapshot, _ in update.lost:
            if snapshot.sent_at > self._recovery_began_at:
                self._cut(update.now)
        elapsed_s, self._at = update.now - self._at, update.now
        if self._slow_start is not None:
            self._slow_start.update(update)
        in_recovery = update.sent_at is None or update.sent_at <= self._recovery_began_at
        if update.acked_bytes and not in_recovery:
            if self._slow_start is None:
                # Full but for a quantum, which pacing may hold back.
                if update.in_flight_before + self.quantum_bytes >= self.window_bytes:
                    self._elapsed_s += elapsed_s
                    self._avoid_congestion(update.acked_bytes, update.smoothed_rtt_s)
            elif 2 * update.in_flight_before >= self.window_bytes:
                self.window_bytes += self._slow_start.growth(update.acked_bytes)
                if self._slow_start.over:
                    self._begin_epoch(self.window_bytes)
        self._set_pacing(update.smoothed_rtt_s)

    def handle_sent(self, now: float, size: int, in_flight_before: int) -> None:
        """Nothing: a window that was not in use has not grown either."""

    def handle_persistent_congestion(self, now: float) -> None:
        self._cut(now)
        self.window_bytes = MIN_WINDOW_PACKETS * self._datagram_bytes
        self._begin_epoch(self._max_bytes)

    def set_datagram_bytes(self, datagram_bytes: int) -> None:
        self._datagram_bytes = datagram_bytes
        self.window_bytes = max(self.window_bytes, MIN_WINDOW_PACKETS * datagram_bytes)

    def _cut(self, now: float) -> None:
        self._recovery_began_at = now
        window = self.window_bytes
        self._before_cut_bytes = window
        # Fast convergence (section 4.7): it did not get back to where it was; leave room.
        self.window_bytes = max(int(window * BETA), MIN_WINDOW_PACKETS * self._datagram_bytes)
        self._begin_epoch(window * (1 + BETA) / 2 if window < self._max_bytes else window)

    def _begin_epoch(self, max_bytes: float) -> None:
        self._slow_start = None
        self._max_bytes = max_bytes
        self._reno_bytes = self.window_bytes
        self._elapsed_s = self._grown_bytes = 0.0
        missing_bytes = max(max_bytes - self.window_bytes, 0.0)
        self._plateau_s = float((missing_bytes / self._datagram_bytes / C) ** (1 / 3))

    def _avoid_congestion(self, acked_bytes: int, rtt_s: float) -> None:
        window, datagram_bytes = self.window_bytes, self._datagram_bytes
        alpha = 1.0 if self._reno_bytes >= self._before_cut_bytes else RENO_ALPHA
        self._reno_bytes += alpha * datagram_bytes * acked_bytes / window
        if self._cubic_bytes(self._elapsed_s) < self._reno_bytes:  # section 4.3
            self.window_bytes = max(window, int(self._reno_bytes))
            return
        target = self._cubic_bytes(self._elapsed_s + rtt_s)
        target = min(max(target, window), window * MAX_TARGET)
        self._grown_bytes += (target - window) * acked_bytes / window
        whole = int(self._grown_bytes)
        self._grown_bytes -= whole
        self.window_bytes += whole

    def _cubic_bytes(self, elapsed_s: float) -> float:
        """W_cubic (section 4.2)."""
        return self._max_bytes + C * self._datagram_bytes * (elapsed_s - self._plateau_s) ** 3

    def _set_pacing(self, rtt_s: float) -> None:
        gain = PACING_GAIN if self._slow_start is None else START_PACING_GAIN
        self.pacing_bytes_per_s = gain * self.window_bytes / max(rtt_s, 1e-6)
        self.quantum_bytes = quantum(self.pacing_bytes_per_s, self._datagram_bytes)
