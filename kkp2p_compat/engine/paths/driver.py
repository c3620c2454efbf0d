"""Drives a sans-IO core that sends STUN messages: checks of a peer, or questions to servers.

Runs in the engine's hub: datagrams and timers drive the core in callbacks, over the endpoint's
sockets; whoever wants its result waits for it in a greenlet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from gevent import get_hub

from ..._address import Address

__all__ = ["Core", "Driver", "Sender"]

# Our choice: a timer that comes so late finds that this host is too busy.  libev runs timers before
# sockets, so the answer for which it would ask again may have been here for long.
LATE_S = 0.02


class Core(Protocol):
    def handle_timer(self, now: float) -> object: ...
    def poll_transmit(self) -> tuple[bytes, Address] | tuple[bytes, Address, int | None] | None: ...
    def next_timer(self) -> float | None: ...


class Sender(Protocol):
    """An endpoint, or one socket of it."""

    def send_check(self, data: bytes, address: Address, ttl: int | None = None) -> None: ...


class Driver:
    """``poll`` after each input to the core; ``progress`` is called when its output is sent."""

    def __init__(self, core: Core, sender: Sender, progress: Callable[[], object]) -> None:
        self._core = core
        self._sender = sender
        self._progress = progress
        self._timer: Any = None
        self._timer_at = math.inf
        self._closed = False

    def poll(self) -> None:
        """Send what the core has to send, and set its timer."""
        while (transmit := self._core.poll_transmit()) is not None:
            self._sender.send_check(*transmit)
        deadline = self._core.next_timer()
        # A timer that is due too early is left alone: it finds nothing to do.
        if deadline is not None and deadline < self._timer_at and not self._closed:
            self._start_timer(deadline, self._handle_timer)
        self._progress()

    def _start_timer(self, at: float, handle: Callable[[], object]) -> None:
        self._stop_timer()
        self._timer_at = at
        self._timer = get_hub().loop.timer(max(0.0, at - time.monotonic()))
        self._timer.start(handle, update=True)

    def _handle_timer(self) -> None:
        now = time.monotonic()
        if now - self._timer_at > LATE_S:
            self._start_timer(now, self._handle_due)  # when what has arrived by now was read
        else:
            self._handle_due()

    def _handle_due(self) -> None:
        self._stop_timer()
        self._core.handle_timer(time.monotonic())
        self.poll()

    def _stop_timer(self) -> None:
        self._timer_at = math.inf
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def close(self) -> None:
        self._closed = True
        self._stop_timer()
