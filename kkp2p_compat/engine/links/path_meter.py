"""How much the path in use carries, while there is more to send than it takes.

Only then does it show what the path is worth.  One look without anything left to send, and the
measurement begins anew.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ...transport.udp.path_state import Load

__all__ = ["Measured", "PathMeter", "rate_text"]

WINDOW_S = 3.0  # our choice


class Measured(NamedTuple):
    bytes_per_s: float
    loss: float  # a share of the packets


def rate_text(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8 / 1e6:.1f} Mbit/s"


class PathMeter:
    """``look`` every now and then; ``restart`` when the path is another one."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Load]] = deque()

    def restart(self) -> None:
        self._looks.clear()

    def look(self, load: Load, now: float) -> None:
        if not load.is_backlogged:
            self._looks.clear()
            return
        looks = self._looks
        looks.append((now, load))
        while len(looks) > 2 and looks[1][0] <= now - WINDOW_S:
            looks.popleft()

    def measured(self, least_s: float = WINDOW_S) -> Measured | None:
        """None: not for so long."""
        looks = self._looks
        if not looks or looks[-1][0] - looks[0][0] < least_s:
            return None
        (begin, first), (end, last) = looks[0], looks[-1]
        packets = max(1, last.sent_packets - first.sent_packets)
        return Measured(
            (last.delivered_bytes - first.delivered_bytes) / (end - begin),
            (last.lost_packets - first.lost_packets) / packets,
        )
