"""Work that goes on for streams by itself: carrying, lingering, and regular checks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent.pool import Group

from ...transport import tcp
from ...transport.splice import Carriers
from ..runtime.thread import EngineThread

__all__ = ["LINGER_S", "Background"]

LINGER_S = 30  # our choice: how long what was written may take to arrive after a close


class Checked(Protocol):
    def check(self) -> None:
        """Notice what no event tells."""


class Background:
    """All such work of one engine.  Runs in its hub."""

    def __init__(self, thread: EngineThread, log: logging.Logger) -> None:
        self.thread = thread
        self.log = log
        self.carriers = Carriers()
        self.checked: set[Checked] = set()  # every few seconds
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
        for one in list(self.checked):
            one.check()

    def drain(self) -> None:
        """Wait until what was written has arrived."""
        self._greenlets.join()

    def kill(self) -> None:
        self._greenlets.kill()
        self.carriers.close()
