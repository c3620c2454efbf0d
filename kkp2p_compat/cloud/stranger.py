"""A connection that has said nothing yet: its first byte tells which service it wants."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from gevent import get_hub

from .._io import READ

__all__ = ["Stranger"]


class Stranger:
    """``sort`` gets it with its first byte, or none; ``dismiss`` with the reason why it could not
    stay; "": it has done nothing wrong.
    """

    __slots__ = ("_dismiss", "_readable", "_sort", "deadline", "host", "reason", "sock")

    def __init__(
        self,
        sock: Any,
        host: str,
        deadline: float,
        sort: Callable[[Stranger, bytes], object],
        dismiss: Callable[[Stranger, str], object],
    ) -> None:
        self.sock = sock
        self.host = host
        self.deadline = deadline
        self.reason = "says nothing"
        self._sort = sort
        self._dismiss = dismiss
        self._readable = get_hub().loop.io(sock.fileno(), READ)
        self._readable.start(self._on_readable)

    def _on_readable(self) -> None:
        try:
            first = self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            first = b""
        self._readable.close()
        self._sort(self, first)

    def expire(self) -> None:
        self._readable.close()
        self._dismiss(self, self.reason)

    def shut_down(self) -> None:
        self._readable.close()
        self._dismiss(self, "")
