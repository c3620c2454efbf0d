"""One listening port of the cloud: takes connections, a few in a turn, and pauses where it must."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from gevent import get_hub
from gevent import socket as gsocket

from .._address import HostPort
from .._io import READ, OneShot
from ..transport import tcp
from .limits import LOG_EVERY_S

__all__ = ["Door"]

log = logging.getLogger(__name__)

# Our choices.
BACKLOG = 1024
ACCEPTS_PER_TURN = 64  # then those that are connected have their turn
ACCEPT_PAUSE_S = 0.5  # when there is no free descriptor
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Door:
    """Bound when it is made; ``open`` lets connections in, ``close`` ends that.

    ``admit`` gets each one, and the address that it comes from.  ``shared``: other processes listen
    at the same port, and the kernel divides the connections among them.
    """

    def __init__(
        self, host: str, port: int, admit: Callable[[Any, str], None], shared: bool = False
    ) -> None:
        """``port`` 0: any free one.  Raises OSError, with a sentence for the user."""
        self._admit = admit
        self._accepting: Any = None
        self._resuming: OneShot | None = None
        self._pause_logged = -LOG_EVERY_S
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = self._listener = gsocket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # IPv4, too
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            where = f"{host}:{port}"
            raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error
        self.address: HostPort = listener.getsockname()[:2]

    def open(self) -> None:
        listener, loop = self._listener, get_hub().loop
        listener.listen(BACKLOG)
        listener.settimeout(0)
        self._accepting = loop.io(listener.fileno(), READ)
        self._accepting.start(self._on_accept)
        self._resuming = OneShot(ACCEPT_PAUSE_S)  # a timer: to accept, after a pause

    def close(self) -> None:
        """May be called again."""
        for watcher in (self._accepting, self._resuming):
            if watcher is not None:
                watcher.close()
        self._accepting = self._resuming = None
        tcp.close_listener(self._listener)

    def take_waiting(self) -> None:
        """Those that are in the kernel's queue now: it resets them when the door is closed."""
        while self._accepting is not None and self._on_accept():
            pass

    def _on_accept(self) -> bool:
        """Whether there may be more."""
        for _ in range(ACCEPTS_PER_TURN):
            if self._accepting is None:
                return False
            try:
                sock, peer = self._listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _OUT_OF:
                    self._pause(error)
                    return False
                continue  # that connection is gone already
            self._admit(sock, peer[0])
        return True

    def _pause(self, error: OSError) -> None:
        """Waiting connections stay in the kernel's queue until a descriptor is free again."""
        now = time.monotonic()
        if now - self._pause_logged >= LOG_EVERY_S:
            self._pause_logged = now
            log.error("no new connections for now: %s", error)
        self._accepting.stop()
        if self._resuming is not None:
            self._resuming.start(self._resume)

    def _resume(self) -> None:
        if self._accepting is not None:
            self._accepting.start(self._on_accept)
