"""Local TCP ports that forward to peers: one channel for each connection.

Connections are independent of each other: a peer that is away, a refusal or a broken stream ends
the one connection (with a reset, so that no program takes it for the end of its data), and the
proxy lives on.  Nothing of what passes through is ever logged.  Whoever watches a proxy is told
when a connection is made, and when it is over.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import socket as _socket
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from .._codes import KKP2P_ERROR_BIND_IP
from .._descriptors import keep_private
from .._errors import CallRefused, EngineClosed, KKP2PError, LinkLost
from .._io import READ
from .._structs import connect_ctx_t
from ..transport import tcp
from ..transport.udp.stream_table import EARLY_BYTES
from .calls.dialer import Dialer
from .links.background import Background
from .links.streams import OpenStream
from .runtime.timeline import Timeline

__all__ = ["Proxied", "Proxies", "Proxy", "Watch"]

BACKLOG = 1024  # our choice: a burst of browsers; the kernel bounds it by net.core.somaxconn
MAX_CONNECTIONS = 10_000  # our choice: per proxy; one more is reset
ACCEPTS_PER_TURN = 64  # our choice: about 5 ms
OUT_OF_DESCRIPTORS_PAUSE_S = 0.2
STOPPED = "the proxy is stopped"


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
        self.dialer = dialer
        self.background = background
        self.ctx = dataclasses.replace(ctx)
        self.watch = watch
        self._listener: Any = None
        self._acceptable: Any = None  # its watcher
        self._pause: Any = None  # a timer, since descriptors ran out
        self._connections: set[_Connection] = set()
        self._none_left = Event()
        self._none_left.set()

    def start(self, ip: str, port: int) -> None:
        """Listen; raises with -113 when that address and port cannot be had."""
        try:
            family = _socket.AF_INET6 if ":" in ip else _socket.AF_INET
            listener = keep_private(_socket.socket(family, _socket.SOCK_STREAM))
            try:
                listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
                tcp.tune(listener)  # what is accepted inherits this, and the next
                tcp.reset_if_killed(listener)
                listener.setblocking(False)
                listener.bind((ip, port))
                listener.listen(BACKLOG)
            except BaseException:
                listener.close()
                raise
        except (OSError, UnicodeError) as error:
            raise KKP2PError(f"proxy {ip}:{port}: {error}", KKP2P_ERROR_BIND_IP) from error
        self.address = listener.getsockname()[:2]
        self._listener = listener
        self._acceptable = gevent.get_hub().loop.io(listener.fileno(), READ)
        self._acceptable.start(self._accept)

    def stop(self) -> None:
        """End the listener and every connection."""
        for watcher in (self._acceptable, self._pause):
            if watcher is not None:
                watcher.close()
        if self._listener is not None:
            tcp.close_listener(self._listener)
        for connection in list(self._connections):
            connection.stop()
        self._none_left.wait()

    def _accept(self) -> None:
        """All that wait, within limits: they come in bursts."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                local, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.log_error(f"cannot accept: {error}")
                    self._rest()
                    return
                continue  # that connection was gone before it was accepted
            local.setblocking(False)  # whatever socket.setdefaulttimeout() says
            if len(self._connections) >= MAX_CONNECTIONS:
                self.log_error(f"over {MAX_CONNECTIONS} connections: one more is reset")
                _reset(local)
                continue
            connection = _Connection(self, keep_private(local), address[1])
            self._connections.add(connection)
            self._none_left.clear()
            connection.begin()

    def _rest(self) -> None:
        """No event tells of a free descriptor."""
        self._acceptable.stop()
        if self._pause is not None:
            self._pause.close()
        self._pause = gevent.get_hub().loop.timer(OUT_OF_DESCRIPTORS_PAUSE_S)
        self._pause.start(self._acceptable.start, self._accept)

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._none_left.set()

    def log_error(self, text: str) -> None:
        self.background.log.error("%s: proxy %d: %s", self.peer_id, self.proxy_id, text)

    def log_info(self, text: str) -> None:
        self.background.log.info("%s: proxy %d: %s", self.peer_id, self.proxy_id, text)


class _Connection:
    """One connection of a proxy, from ``begin`` until it is forgotten.

    On a live link it is all callbacks: a greenlet would cost as much as all the rest of a short
    connection.  ``port`` is the local program's: the log names the connection by it.
    """

    __slots__ = ("_local", "_proxied", "_proxy", "_stop", "_stopped", "_stream")

    def __init__(self, proxy: Proxy, local: _socket.socket, port: int) -> None:
        self._proxy = proxy
        self._local = local
        self._proxied = Proxied(port)
        self._stop: Callable[[], object] | None = None  # ends what it does at the moment
        self._stopped = False

    def begin(self) -> None:
        try:
            early = self._local.recv(EARLY_BYTES, _socket.MSG_PEEK)
        except BlockingIOError:
            early = b""
        except OSError as error:  # which is told only once
            self._fail(LinkLost(f"local program: {error}"))
            return
        call_off = self._proxy.dialer.ask(self._proxy.ctx, self._handle_answer, early)
        if call_off is None:
            self._dial()
        else:
            self._stop = functools.partial(self._call_off, call_off)

    def _call_off(self, call_off: Callable[[], object]) -> None:
        call_off()
        self._fail(EngineClosed(STOPPED))

    def _handle_answer(self, answer: OpenStream | CallRefused | None) -> None:
        """Of the peer, on the live link."""
        if answer is None:
            self._dial()
        elif isinstance(answer, OpenStream):
            self._carry(answer)
        else:
            self._fail(answer)

    def _dial(self) -> None:
        dialing = self._proxy.background.thread.spawn(self._connect)
        dialing.rawlink(self._handle_connected)
        self._stop = functools.partial(dialing.kill, block=False)

    def _connect(self) -> OpenStream | KKP2PError:
        try:
            return self._proxy.dialer.connect(self._proxy.ctx)
        except KKP2PError as error:
            return error

    def _handle_connected(self, dialing: gevent.Greenlet[..., Any]) -> None:
        result = dialing.value
        if isinstance(result, OpenStream):
            self._carry(result)
        else:  # it has failed, was killed, or there is a bug, which is logged
            is_error = isinstance(result, KKP2PError)
            self._fail(result if is_error else dialing.exception or EngineClosed(STOPPED))

    def _fail(self, error: Exception) -> None:
        proxy, proxied = self._proxy, self._proxied
        _reset(self._local)
        proxied.over, proxied.problems = True, [str(error)]
        proxied.timeline = proxy.dialer.last_attempt(proxy.peer_id)
        if not self._stopped:
            proxy.log_error(f"port {proxied.port}: {error}")
        self._end()

    def _carry(self, stream: OpenStream) -> None:
        if self._stopped:
            stream.give_up()
            self._fail(EngineClosed(STOPPED))
            return
        proxy, proxied = self._proxy, self._proxied
        self._stream = stream
        proxied.take(stream)
        proxy.log_info(f"port {proxied.port}: connected by {proxied.path}")
        proxy.watch(proxied)
        carried = stream.carry(self._local, proxy.background, self._handle_over)
        if not proxied.over:
            self._stop = lambda: carried.abort(EngineClosed(STOPPED))

    def _handle_over(self, errors: list[Exception]) -> None:
        proxy, proxied = self._proxy, self._proxied
        if self._stopped:
            errors = [EngineClosed(STOPPED)]
        proxied.over, proxied.problems = True, [str(error) for error in errors]
        proxied.bytes_sent, proxied.bytes_received = self._stream.passed()
        if not self._stopped:
            for broken in errors:
                proxy.log_error(f"port {proxied.port}: broken: {broken}")
            if not errors:
                proxy.log_info(f"port {proxied.port}: ended")
        self._end()

    def _end(self) -> None:
        self._stop = None  # which leads back here: a circle is the collector's
        self._proxy.watch(self._proxied)
        self._proxy.forget(self)

    def stop(self) -> None:
        self._stopped = True
        if self._stop is not None:
            self._stop()


def _ignore(proxied: Proxied) -> None:
    """Nobody watches."""


def _reset(local: Any) -> None:
    """The local program sees an error, not an end of stream.  Nothing was written to it yet."""
    tcp.abort(local)
    local.close()


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
