"""Local TCP ports that forward to peers: one channel for each connection.

Connections are independent of each other: a peer that is away, a refusal or a broken stream ends
the one connection (with a reset, so that no program takes it for the end of its data), and the
proxy lives on.  Nothing of what passes through is ever logged.  Whoever watches a proxy is told
when a connection is made, and when it is over.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import socket as _socket
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket

from .._codes import KKP2P_ERROR_BIND_IP
from .._descriptors import keep_private
from .._errors import EngineClosed, KKP2PError
from .._structs import connect_ctx_t
from ..transport import tcp
from .calls.dialer import Dialer
from .links.background import Background
from .links.streams import STOP_TIMEOUT_S, STOPPED, OpenStream
from .runtime.timeline import Timeline

__all__ = ["Proxied", "Proxies", "Proxy", "Watch"]

BACKLOG = 1024  # our choice: a burst of browsers; the kernel bounds it by net.core.somaxconn
MAX_CONNECTIONS = 10_000  # our choice: per proxy; one more is reset
OUT_OF_DESCRIPTORS_PAUSE_S = 0.2


class Proxied:
    """One connection of a proxy.  Bytes are the local program's."""

    def __init__(self, port: int) -> None:
        self.port = port  # the local program's
        self.began_at = time.monotonic()
        self.path = ""  # "p2p" or "relay", once it is connected
        self.address: tuple[str, int] | None = None  # the peer's, or the relay's
        self.reason = ""  # for that path
        self.set_up_s: float | None = None
        self.timeline: Timeline | None = None  # of the attempt that it came of
        self.bytes_sent = 0  # known when it is over
        self.bytes_received = 0
        self.over = False
        self.problems: list[str] = []  # what broke it; none: it ended in order

    def take(self, stream: OpenStream) -> None:
        self.path, self.address, self.reason = stream.path, stream.address, stream.reason
        self.timeline, self.set_up_s = stream.timeline, stream.set_up_s


# Called in the engine's hub, when a connection is made and when it is over; must not wait.
Watch = Callable[[Proxied], object]


class Proxy:
    """Call ``start`` once, then ``stop``.  ``address`` is where it listens (port 0 resolved)."""

    def __init__(
        self, dialer: Dialer, background: Background, number: int, ctx: connect_ctx_t, watch: Watch
    ) -> None:
        self.proxy_id = number
        self.peer_id = ctx.peer_id
        self.address: tuple[str, int] = ("", 0)
        self._dialer = dialer
        self._background = background
        self._spawn, self._log = background.thread.spawn, background.log
        self._ctx = dataclasses.replace(ctx)
        self._watch = watch
        self._listener: Any = None
        self._accepting: gevent.Greenlet[..., None] | None = None
        self._connections: set[gevent.Greenlet[..., None]] = set()

    def start(self, ip: str, port: int) -> None:
        """Listen; raises with -113 when that address and port cannot be had."""
        try:
            family = _socket.AF_INET6 if ":" in ip else _socket.AF_INET
            listener = socket.socket(family, _socket.SOCK_STREAM)
            try:
                listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
                listener.bind((ip, port))
                listener.listen(BACKLOG)
            except BaseException:
                listener.close()
                raise
        except (OSError, UnicodeError) as error:
            raise KKP2PError(f"proxy {ip}:{port}: {error}", KKP2P_ERROR_BIND_IP) from error
        self.address = listener.getsockname()[:2]
        self._listener = listener
        self._accepting = self._spawn(self._accept)

    def stop(self) -> None:
        """End the listener and every connection."""
        if self._accepting is not None:
            self._accepting.kill()
        if self._listener is not None:
            tcp.close_listener(self._listener)
        gevent.killall(list(self._connections))

    def _accept(self) -> None:
        while True:
            try:
                local, address = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._log_error(f"cannot accept: {error}")
                    gevent.sleep(OUT_OF_DESCRIPTORS_PAUSE_S)  # no event tells of a free descriptor
                continue  # else: that connection was gone before it was accepted
            if len(self._connections) >= MAX_CONNECTIONS:
                self._log_error(f"over {MAX_CONNECTIONS} connections: one more is reset")
                _reset(local)
                continue
            plain = keep_private(_socket.socket(fileno=local.detach()))
            plain.setblocking(False)  # whatever socket.setdefaulttimeout() says
            greenlet = self._spawn(self._serve, plain, address[1])
            self._connections.add(greenlet)
            greenlet.rawlink(self._connections.discard)

    def _serve(self, local: _socket.socket, port: int) -> None:
        """One connection.  ``port`` is the local program's: the log names the connection by it."""
        proxied = Proxied(port)
        try:
            stream = self._dialer.connect(self._ctx)
        except BaseException as error:
            _reset(local)
            proxied.over, proxied.problems = True, [str(error) or STOPPED]
            proxied.timeline = self._dialer.last_attempt(self.peer_id)
            self._watch(proxied)
            if not isinstance(error, KKP2PError):
                raise
            self._log_error(f"port {port}: {error}")
            return
        tcp.tune(local)
        tcp.reset_if_killed(local)
        proxied.take(stream)
        self._log_info(f"port {port}: connected by {proxied.path}")
        self._watch(proxied)
        errors: list[Exception] = [EngineClosed(STOPPED)]  # when killed
        try:
            errors = stream.carry(local, self._background)
        finally:
            proxied.over, proxied.problems = True, [str(error) for error in errors]
            proxied.bytes_sent, proxied.bytes_received = stream.passed()
            self._watch(proxied)
        for broken in errors:
            self._log_error(f"port {port}: broken: {broken}")
        if not errors:
            self._log_info(f"port {port}: ended")

    def _log_error(self, text: str) -> None:
        self._log.error("%s: proxy %d: %s", self._ctx.peer_id, self.proxy_id, text)

    def _log_info(self, text: str) -> None:
        self._log.info("%s: proxy %d: %s", self._ctx.peer_id, self.proxy_id, text)


def _ignore(proxied: Proxied) -> None:
    """Nobody watches."""


def _reset(local: Any) -> None:
    """Close so that the local program sees an error, not an end of stream."""
    tcp.linger(local, STOP_TIMEOUT_S, reset=True)


class Proxies:
    """The proxies of one engine, by their ids."""

    def __init__(self, dialer: Dialer, background: Background) -> None:
        self._dialer = dialer
        self._background = background
        self._by_id: dict[int, Proxy] = {}
        self._ids = itertools.count(1)  # never used twice: a late stop hits nobody

    def start(self, ip: str, port: int, ctx: connect_ctx_t, watch: Watch | None) -> Proxy:
        proxy = Proxy(self._dialer, self._background, next(self._ids), ctx, watch or _ignore)
        proxy.start(ip, port)
        self._by_id[proxy.proxy_id] = proxy
        self._background.log.warning(
            "%s: proxy %d listens on %s:%d", ctx.peer_id, proxy.proxy_id, *proxy.address
        )
        return proxy

    def find(self, proxy_id: int) -> Proxy | None:
        return self._by_id.get(proxy_id)

    def stop(self, proxy_id: int) -> bool:
        """Returns when its connections have ended; False: there is no such proxy."""
        proxy = self._by_id.pop(proxy_id, None)
        if proxy is None:
            return False
        proxy.stop()
        self._background.log.warning("%s: proxy %d stopped", proxy.peer_id, proxy_id)
        return True

    def stop_soon(self, proxy: Proxy) -> gevent.Greenlet[..., Any]:
        return self._background.thread.spawn(self.stop, proxy.proxy_id)

    def stop_all(self) -> None:
        gevent.joinall([self.stop_soon(proxy) for proxy in self._by_id.values()])
