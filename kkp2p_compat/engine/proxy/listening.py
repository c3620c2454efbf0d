"""What a proxy of streams listens on: a TCP port, or a Unix socket (unix(7)) in the file system."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Any

from gevent import monkey

from ..._address import is_ip, text_of
from ..._descriptors import keep_private
from ...control.resolver import look_up_name
from ...transport import tcp

__all__ = ["Listener", "address_at", "show_place"]

LOOK_UP_S = 5.0  # our choice: for a name
BACKLOG = 1024  # our choice: a burst of browsers; the kernel bounds it by net.core.somaxconn
# Not gevent's: its calls would wait, and here a watcher does that.
_new_socket: Any = monkey.get_original("socket", "socket")


def show_place(address: tuple[str, int]) -> str:
    """Of a listener, as its user gave it."""
    return f"unix:{address[0]}" if _is_path(address[0]) else text_of(address)


def address_at(place: str) -> str:
    """What to bind a plain socket to: given a name, ``bind`` would ask the resolver, and keep the
    engine's hub waiting.

    IPv4 comes first, as ``localhost`` has always been that.  Raises KKP2PError.
    """
    if is_ip(place):
        return place
    found = look_up_name(place, LOOK_UP_S)
    return min(found, key=lambda address: ":" in address)


def _is_path(place: str) -> bool:
    """Whether it is a Unix socket's, and no IP address."""
    return place.startswith("/")


class Listener:
    """``place``: an IP address or a name, or an absolute path; then ``port`` means nothing.

    Waits for a name.  Raises OSError, UnicodeError or KKP2PError.
    """

    def __init__(self, place: str, port: int) -> None:
        self._path = place if _is_path(place) else ""
        if not self._path:
            place = address_at(place)
        self._identity: tuple[int, int] | None = None
        family = socket.AF_INET6 if ":" in place else socket.AF_INET
        sock = keep_private(_new_socket(socket.AF_UNIX if self._path else family))
        try:
            # What is accepted inherits these.
            sock.setblocking(False)
            tcp.reset_if_killed(sock)
            if self._path:
                self._bind_path(sock)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.tune(sock)
                sock.bind((place, port))
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        self.address: tuple[str, int] = (place, 0) if self._path else sock.getsockname()[:2]
        self._sock = sock

    def fileno(self) -> int:
        return int(self._sock.fileno())

    def accept(self) -> tuple[Any, Any]:
        """A connection, and the address of its program."""
        return self._sock.accept()

    def _bind_path(self, sock: Any) -> None:
        try:
            sock.bind(self._path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_behind(self._path):
                raise
            os.unlink(self._path)
            sock.bind(self._path)
        self._identity = _identity(self._path)

    def close(self) -> None:
        tcp.close_listener(self._sock)
        with contextlib.suppress(OSError):  # it is gone, or not ours to remove
            if self._path and _identity(self._path) == self._identity:
                os.unlink(self._path)


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _is_left_behind(path: str) -> bool:
    """Whether a socket's program has ended without removing it."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with _new_socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        return bool(sock.connect_ex(path) == errno.ECONNREFUSED)
