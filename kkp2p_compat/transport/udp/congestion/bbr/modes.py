"""The modes of BBR, what each does to rate and window, and which may follow which."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from . import params

__all__ = ["FOLLOWERS", "GAINS", "PROBE_BW", "PROBING", "Gains", "Mode"]


class Mode(Enum):
    STARTUP = "startup"  # double the rate each round until the pipe is full
    DRAIN = "drain"  # empty the queue that made
    DOWN = "down"  # send less than the path delivers, to leave room
    CRUISE = "cruise"  # send what the path delivers
    REFILL = "refill"  # fill the pipe without a queue, for a round
    UP = "up"  # send more, to see whether more is delivered
    PROBE_RTT = "probe_rtt"  # let the queue run empty, to see the path's round trip


class Gains(NamedTuple):
    pacing: float  # of the bandwidth
    window: float  # of the bandwidth-delay product


GAINS = {
    Mode.STARTUP: Gains(params.STARTUP_PACING_GAIN, params.WINDOW_GAIN),
    Mode.DRAIN: Gains(params.DRAIN_PACING_GAIN, params.WINDOW_GAIN),
    Mode.DOWN: Gains(params.DOWN_PACING_GAIN, params.WINDOW_GAIN),
    Mode.CRUISE: Gains(1.0, params.WINDOW_GAIN),
    Mode.REFILL: Gains(1.0, params.WINDOW_GAIN),
    Mode.UP: Gains(params.UP_PACING_GAIN, params.UP_WINDOW_GAIN),
    Mode.PROBE_RTT: Gains(1.0, params.PROBE_RTT_WINDOW_GAIN),
}

PROBE_BW = frozenset({Mode.DOWN, Mode.CRUISE, Mode.REFILL, Mode.UP})
PROBING = frozenset({Mode.STARTUP, Mode.REFILL, Mode.UP})  # loss is looked for, not yielded to

FOLLOWERS = {
    Mode.STARTUP: {Mode.DRAIN, Mode.PROBE_RTT},
    Mode.DRAIN: {Mode.DOWN, Mode.PROBE_RTT},
    Mode.DOWN: {Mode.CRUISE, Mode.REFILL, Mode.PROBE_RTT},
    Mode.CRUISE: {Mode.REFILL, Mode.PROBE_RTT},
    Mode.REFILL: {Mode.UP, Mode.PROBE_RTT},
    Mode.UP: {Mode.DOWN, Mode.PROBE_RTT},
    Mode.PROBE_RTT: {Mode.STARTUP, Mode.CRUISE},
}
