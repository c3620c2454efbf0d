"""Work that goes on for streams by itself: carrying, lingering, and regular checks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent.pool import Group

from ..._io import READ
from ...transport import tcp
from ...transport.splice import Carriers
from ..runtime.thread import EngineThread

__all__ = ["Background"]


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
        self._leaving: set[_Leaving] = set()

    def spawn(self, function: Callable[..., object], *args: Any) -> gevent.Greenlet[..., Any]:
        """A greenlet that ``drain`` waits for."""
        greenlet = self.thread.spawn(function, *args)
        self._greenlets.add(greenlet)
        return greenlet

    def linger(self, sock: Any) -> None:
        """Close a socket once the other side has what was written to it."""
        try:
            tcp.end(sock)
        except OSError:
            sock.close()  # closed both ways, or reset
        else:
            self._leaving.add(_Leaving(sock, self._leave))

    def _leave(self, leaving: _Leaving, is_over: bool) -> None:
        self._leaving.discard(leaving)
        if is_over:
            leaving.sock.close()
        else:
            self.spawn(tcp.linger, leaving.sock)

    @property
    def busy(self) -> bool:
        """Whether data is on its way out."""
        return bool(self._greenlets or self._leaving)

    def sweep(self) -> None:
        for one in list(self.checked):
            one.check()

    def drain(self) -> None:
        """Wait until what was written has arrived."""
        self._end_leaving(False)
        self._greenlets.join()

    def _end_leaving(self, is_over: bool) -> None:
        for leaving in list(self._leaving):
            leaving.end(is_over)

    def kill(self) -> None:
        self._end_leaving(True)
        self._greenlets.kill()
        self.carriers.close()


class _Leaving:
    """A TCP connection whose own direction has ended: most others end theirs at once.

    ``on_end(self, True)``: the other has ended.  False: it takes its time, or nobody can tell; that
    is for ``tcp.linger``, which costs a greenlet.
    """

    def __init__(self, sock: Any, on_end: Callable[[_Leaving, bool], object]) -> None:
        self.sock = sock
        self._on_end = on_end
        loop = gevent.get_hub().loop
        self._readable = loop.io(sock.fileno(), READ)
        self._readable.start(self._handle_readable)
        self._late = loop.timer(tcp.GRACE_S)
        self._late.start(self.end, False)

    def _handle_readable(self) -> None:
        try:
            if not tcp.discard(self.sock):
                return
        except OSError:
            self.end(True)  # reset
        else:
            self.end(not tcp.only_we_ended(self.sock))

    def end(self, is_over: bool) -> None:
        self._readable.close()
        self._late.close()
        self._on_end(self, is_over)
