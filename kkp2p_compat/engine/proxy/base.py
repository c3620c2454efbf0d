"""What a TCP and a UDP proxy share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from gevent.event import Event

from ..._codes import KKP2P_ERROR_BIND_IP
from ..._errors import KKP2PError
from ..._sentence import said
from ..._structs import connect_ctx_t
from ..calls.dialer import Dialer
from ..links.background import Background
from .dialing import Dialing, OnDialed
from .listening import show_place
from .proxied import Watch

__all__ = ["Proxy", "binding"]


class Proxy:
    """Call ``start`` once, then ``stop``.  ``address`` is where it listens (port 0 resolved)."""

    kind: str  # for the log

    def __init__(
        self, dialer: Dialer, background: Background, number: int, ctx: connect_ctx_t, watch: Watch
    ) -> None:
        self.proxy_id = number
        self.peer_id = ctx.peer_id
        self.address: tuple[str, int] = ("", 0)
        self.dialer = dialer
        self.background = background
        self.ctx = dataclasses.replace(ctx)
        self.watch = watch
        self._under_way = 0  # connections, or channels of clients
        self._none_left = Event()
        self._none_left.set()

    def start(self, place: str, port: int) -> None:
        """Listen; raises with -113 when that address and port cannot be had."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the listener and every channel."""
        raise NotImplementedError

    def dialing(self, done: OnDialed) -> Dialing:
        return Dialing(self.dialer, self.background, self.ctx, done)

    def note_begun(self) -> None:
        self._under_way += 1
        self._none_left.clear()

    def note_over(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._none_left.set()

    def log_error(self, text: str) -> None:
        self.background.log.error("%s: proxy %d: %s", self.peer_id, self.proxy_id, text)

    def log_info(self, text: str) -> None:
        self.background.log.info("%s: proxy %d: %s", self.peer_id, self.proxy_id, text)


@contextlib.contextmanager
def binding(place: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError, KKP2PError) as error:
        where = show_place((place, port))
        raise KKP2PError(
            "proxy {where}: {why}", KKP2P_ERROR_BIND_IP, where=where, why=said(error)
        ) from error
