"""The engine's end of a socket pair whose other end is the application's descriptor.

How the application learns of an end depends on what is unread in our end when it is closed.  With
nothing unread the application reads end of stream; with a byte unread, ECONNRESET after all that
was delivered (unix(7) does not say so; Linux does it for every pair).  So we make sure that there
is such a byte before a cut, and none before an orderly end.

Such a byte can only come from the application's side: ``mark`` is a function that sends one through
its descriptor.  It cannot when the application has ended its own direction (SHUT_WR), or has
closed the descriptor while a copy of it lives in another process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket as _socket
import struct
import termios
from collections.abc import Callable
from typing import Any

__all__ = ["Mark", "refuse_writes", "settle", "shut_down"]

Mark = Callable[[], object]

CHUNK_BYTES = 1 << 16


def refuse_writes(sock: Any, mark: Mark) -> None:
    """What the application writes from now on fails; one byte is left unread.

    The rest is thrown away: a writer that waits for room is woken by room, not by the refusal.
    """
    _discard(sock, _unread_bytes(sock))  # first: the byte that is left may be one of a large piece
    mark()
    shut_down(sock, _socket.SHUT_RD)
    _discard(sock, _unread_bytes(sock) - 1)


def _unread_bytes(sock: Any) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0]
    return count


def _discard(sock: Any, count: int) -> None:
    while count > 0 and (data := os.read(sock.fileno(), min(count, CHUNK_BYTES))):
        count -= len(data)


def settle(sock: Any, mark: Mark | None) -> None:
    """Before our end is closed.  ``mark``: the application is to be told of a cut; None: of an end.

    Does not wait.
    """
    if mark is not None:
        mark()
        return
    shut_down(sock, _socket.SHUT_RD)
    with contextlib.suppress(ConnectionResetError):  # the application closed without reading all
        while os.read(sock.fileno(), CHUNK_BYTES):
            pass  # what it wrote and nobody takes any more


def shut_down(sock: Any, how: int) -> None:
    """End one direction, of a TCP connection too."""
    try:
        sock.shutdown(how)
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # the other end has closed first
            raise
