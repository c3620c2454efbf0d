"""A local TCP port that forwards to a peer: one channel for each connection.

Connections are independent of each other: a peer that is away, a refusal or a broken stream ends
the one connection (with a reset, so that no program takes it for the end of its data), and the
proxy lives on.  Nothing of what passes through is ever logged.  Whoever watches a proxy is told
when a connection is made, and when it is over.
"""

from __future__ import annotations

import dataclasses
import errno
import socket as _socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
from gevent import socket
from gevent.event import AsyncResult

from .._codes import KKP2P_ERROR_BIND_IP
from .._descriptors import keep_private
from .._errors import EngineClosed, KKP2PError
from .._io import shut_down
from .._structs import connect_ctx_t
from ..transport import tcp
from ..transport.carry import SealedStream
from ..transport.splice import Outcome, Splice, close_both
from .links.streams import DirectStream, RelayedStream
from .runtime.timeline import Timeline

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Proxied", "Proxy", "Watch"]

BACKLOG = 1024  # our choice: a burst of browsers; the kernel bounds it by net.core.somaxconn
MAX_CONNECTIONS = 10_000  # our choice: per proxy; one more is reset
OUT_OF_DESCRIPTORS_PAUSE_S = 0.2
STOP_TIMEOUT_S = 1  # our choice: for the rest, when the connection is broken or the proxy stopped


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

    def take(self, connection: RelayedStream | DirectStream) -> None:
        direct = isinstance(connection, DirectStream)
        self.path = "p2p" if direct else "relay"
        if isinstance(connection, DirectStream):
            ip, port = connection.link.connection.address[:2]
            self.address = ip, port
        else:
            self.address = connection.relay
        self.reason, self.timeline = connection.reason, connection.timeline
        self.set_up_s = connection.set_up_s


Watch = Callable[[Proxied], object]


class Proxy:
    """Call ``start`` once, then ``stop``.  ``address`` is where it listens (port 0 resolved).

    ``watch`` is called in the engine's hub, when a connection is made and when it is over; it must
    not wait.
    """

    def __init__(
        self, engine: Engine, proxy_id: int, ctx: connect_ctx_t, watch: Watch | None = None
    ) -> None:
        self.proxy_id = proxy_id
        self.peer_id = ctx.peer_id
        self.address: tuple[str, int] = ("", 0)
        self._engine = engine
        self._ctx = dataclasses.replace(ctx)
        self._watch = watch or _ignore
        self._listener: Any = None
        self._accepting: gevent.Greenlet[..., None] | None = None
        self._connections: set[gevent.Greenlet[..., None]] = set()
        self._checks: set[Callable[[], object]] = set()

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
        self._accepting = self._engine.thread.spawn(self._accept)

    def stop(self) -> None:
        """End the listener and every connection."""
        if self._accepting is not None:
            self._accepting.kill()
        if self._listener is not None:
            tcp.close_listener(self._listener)
        gevent.killall(list(self._connections))

    def sweep(self) -> None:
        """Find connections whose relay is gone without a word."""
        for check in list(self._checks):
            check()

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
            greenlet = self._engine.thread.spawn(self._serve, keep_private(local), address[1])
            self._connections.add(greenlet)
            greenlet.rawlink(self._connections.discard)

    def _serve(self, local: Any, port: int) -> None:
        """One connection.  ``port`` is the local program's: the log names the connection by it."""
        proxied = Proxied(port)
        try:
            connection = self._engine.connect(self._ctx)
        except BaseException as error:
            _reset(local)
            proxied.over, proxied.problems = True, [str(error) or "the proxy is stopped"]
            proxied.timeline = self._engine.direct.recent.get(self.peer_id)
            self._watch(proxied)
            if not isinstance(error, KKP2PError):
                raise
            self._log_error(f"port {port}: {error}")
            return
        tcp.tune(local)
        tcp.reset_if_killed(local)
        proxied.take(connection)
        self._log_info(f"port {port}: connected by {proxied.path}")
        self._watch(proxied)
        errors: list[Exception] = [EngineClosed("the proxy is stopped")]  # when killed
        try:
            errors = self._carry(local, connection, proxied)
        finally:
            proxied.over, proxied.problems = True, [str(error) for error in errors]
            self._watch(proxied)
        for broken in errors:
            self._log_error(f"port {port}: broken: {broken}")
        if not errors:
            self._log_info(f"port {port}: ended")

    def _carry(
        self, local: Any, connection: RelayedStream | DirectStream, proxied: Proxied
    ) -> list[Exception]:
        """Until the end; returns what broke it, and counts the bytes."""
        if isinstance(connection, DirectStream):
            return self._pipe(local, connection, proxied)
        if connection.keys is None:
            return self._splice(local, connection, proxied)
        return self._carry_sealed(local, connection, proxied)

    def _splice(self, local: Any, connection: RelayedStream, proxied: Proxied) -> list[Exception]:
        result: AsyncResult[Outcome] = AsyncResult()
        splice = Splice(local, connection.sock, self._engine.carriers, result.set)
        splice.start()
        self._checks.add(splice.check)
        try:
            outcome = result.get()
            close_both(local, connection.sock, outcome)
        except BaseException:
            splice.stop(EngineClosed("the proxy is stopped"))  # nothing, if it has ended
            close_both(local, connection.sock, result.get(), STOP_TIMEOUT_S)
            raise
        finally:
            self._checks.discard(splice.check)
            outcome = result.get()
            proxied.bytes_sent, proxied.bytes_received = outcome.bytes_ab, outcome.bytes_ba
        return [error for error in (outcome.error_a, outcome.error_b) if error is not None]

    def _carry_sealed(
        self, local: Any, connection: RelayedStream, proxied: Proxied
    ) -> list[Exception]:
        stream = SealedStream(local, connection.sock, *connection.seal(), None)
        error: KKP2PError | None = EngineClosed("the proxy is stopped")
        self._checks.add(stream.check)
        try:
            error = stream.run()
        finally:
            self._checks.discard(stream.check)
            proxied.bytes_sent, proxied.bytes_received = stream.bytes_sent, stream.bytes_received
            if error is None:
                self._engine.linger(connection.sock)
                self._engine.linger(local)
            else:
                shut_down(connection.sock.fileno())  # a forked child may have a copy
                connection.sock.close()
                _reset(local)
        return [] if error is None else [error]

    def _pipe(self, local: Any, connection: DirectStream, proxied: Proxied) -> list[Exception]:
        result: AsyncResult[KKP2PError | None] = AsyncResult()
        plain = keep_private(_socket.socket(fileno=local.detach()))
        # Or it may wait: it may be gevent's, or have got socket.setdefaulttimeout()'s time-out.
        plain.setblocking(False)
        pipe = connection.link.pipe(
            connection.stream_id, connection.channel_type, plain,
            lambda error, _: result.set(error), None,
        )  # fmt: skip
        self._checks.add(pipe.check)
        try:
            error = result.get()
        except BaseException:
            pipe.abort(EngineClosed("the proxy is stopped"))
            error = result.get()
            raise
        finally:
            self._checks.discard(pipe.check)
            if (stream := connection.stream) is not None:
                proxied.bytes_sent = stream.bytes_sent
                proxied.bytes_received = stream.bytes_received
            local = keep_private(socket.socket(fileno=plain.detach()))
            if result.get() is None:
                self._engine.linger(local)
            else:
                _reset(local)
        return [] if error is None else [error]

    def _log_error(self, text: str) -> None:
        self._engine.log.error("%s: proxy %d: %s", self._ctx.peer_id, self.proxy_id, text)

    def _log_info(self, text: str) -> None:
        self._engine.log.info("%s: proxy %d: %s", self._ctx.peer_id, self.proxy_id, text)


def _ignore(proxied: Proxied) -> None:
    """Nobody watches."""


def _reset(local: Any) -> None:
    """Close so that the local program sees an error, not an end of stream."""
    tcp.linger(local, STOP_TIMEOUT_S, reset=True)
