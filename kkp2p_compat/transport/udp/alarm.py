"""The one timer of an endpoint, which also rings at once where a timer of the loop would not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ..._io import WRITE
from .doors import Door

__all__ = ["Alarm"]

_now = time.monotonic


class Alarm:
    """``ring`` is called when a time that was ``set`` has come; then set the next one."""

    def __init__(self, loop: Any, door: Door, ring: Callable[[], object]) -> None:
        self._loop = loop
        self._ring = ring
        self._at = math.inf
        self._timer: Any = None
        # For what is due now: a timer of libev's takes at least a millisecond, but a socket that
        # can be written to, as ours nearly always can, is found in the next round of the loop.
        self._soon_door = door
        self._soon = loop.io(door.socket.fileno(), WRITE)

    def set(self, earliest: float) -> None:
        """A timer that is due too early is left alone: it finds nothing to do."""
        if earliest >= self._at:
            return
        wait_s = earliest - _now()
        if wait_s <= 0:
            if not self._soon.active:
                self._soon.start(self._go_off)
            if not self._soon_door.waiting:
                return
            wait_s = 0.0  # that socket is full, and the others must not wait for it
        if self._timer is not None:
            self._timer.close()
        self._at = earliest
        self._timer = self._loop.timer(wait_s)
        self._timer.start(self._go_off, update=True)

    def _go_off(self) -> None:
        self._soon.stop()
        self._at = math.inf
        self._ring()

    def close(self) -> None:
        self._at = -math.inf
        self._soon.close()
        if self._timer is not None:
            self._timer.close()
