"""Drives a sans-IO core that sends STUN messages: checks of a peer, or questions to servers.

Runs in the engine's hub: datagrams and timers drive the core in callbacks, over the endpoint's
sockets; whoever wants its result waits for it in a greenlet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from gevent import get_hub

from ..._address import Address
from ...transport.udp.endpoint import Endpoint

__all__ = ["Core", "Driver"]


class Core(Protocol):
    def handle_timer(self, now: float) -> object: ...
    def poll_transmit(self) -> tuple[bytes, Address] | tuple[bytes, Address, int | None] | None: ...
    def next_timer(self) -> float | None: ...


class Driver:
    """``poll`` after each input to the core; ``progress`` is called when its output is sent."""

    def __init__(self, core: Core, endpoint: Endpoint, progress: Callable[[], object]) -> None:
        self._core = core
        self._endpoint = endpoint
        self._progress = progress
        self._timer: Any = None
        self._closed = False

    def poll(self) -> None:
        """Send what the core has to send, and set its timer."""
        while (transmit := self._core.poll_transmit()) is not None:
            self._endpoint.send_check(*transmit)
        self._stop_timer()
        deadline = self._core.next_timer()
        if deadline is not None and not self._closed:
            self._timer = get_hub().loop.timer(max(0.0, deadline - time.monotonic()))
            self._timer.start(self._handle_timer, update=True)
        self._progress()

    def _handle_timer(self) -> None:
        self._core.handle_timer(time.monotonic())
        self.poll()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def close(self) -> None:
        self._closed = True
        self._stop_timer()
