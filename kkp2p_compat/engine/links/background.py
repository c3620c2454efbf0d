"""What goes on by itself for streams, also when nobody has them any more.  Runs in the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
from gevent.pool import Group

from ...transport import tcp
from ...transport.splice import Carriers
from ..runtime.thread import EngineThread

__all__ = ["LINGER_S", "Background"]

LINGER_S = 30  # our choice: how long what was written may take to arrive after a close


class Background:
    """Of one engine: greenlets that carry streams, sockets that linger, and regular checks."""

    def __init__(self, thread: EngineThread, log: logging.Logger) -> None:
        self.thread = thread
        self.log = log
        self.carriers = Carriers()
        self.checks: set[Callable[[], object]] = set()  # called every few seconds
        self._greenlets = Group()

    def spawn(self, function: Callable[..., object], *args: Any) -> gevent.Greenlet[..., Any]:
        """A greenlet that ``drain`` waits for."""
        greenlet = self.thread.spawn(function, *args)
        self._greenlets.add(greenlet)
        return greenlet

    def linger(self, sock: Any) -> None:
        """Close a socket once the other side has what was written to it."""
        self.spawn(tcp.linger, sock, LINGER_S)

    @property
    def busy(self) -> bool:
        """Whether data is on its way out."""
        return bool(self._greenlets)

    def sweep(self) -> None:
        for check in list(self.checks):
            check()

    def drain(self) -> None:
        """Wait until what was written has arrived."""
        self._greenlets.join()

    def kill(self) -> None:
        self._greenlets.kill()
        self.carriers.close()
