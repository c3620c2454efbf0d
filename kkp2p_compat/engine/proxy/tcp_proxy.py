"""Local TCP ports, or Unix sockets, that forward to peers: one channel for each connection.

Connections are independent of each other: a peer that is away, a refusal or a broken stream ends
the one connection (with a reset, so that no program takes it for the end of its data), and the
proxy lives on.  Nothing of what passes through is ever logged.  Whoever watches a proxy is told
when a connection is made, and when it is over.
"""

from __future__ import annotations

import errno
import itertools
import socket as _socket
from collections.abc import Callable
from typing import Any

import gevent

from ..._descriptors import keep_private
from ..._errors import EngineClosed, LinkLost
from ..._io import READ
from ..._sentence import Sentence, said
from ...transport import tcp
from ...transport.udp.stream_table import EARLY_BYTES
from ..links.streams import OpenStream
from .base import Proxy, binding
from .listening import Listener
from .proxied import STOPPED, Proxied

__all__ = ["TcpProxy"]

MAX_CONNECTIONS = 10_000  # our choice: per proxy; one more is reset
ACCEPTS_PER_TURN = 64  # our choice: about 5 ms
OUT_OF_DESCRIPTORS_PAUSE_S = 0.2


class TcpProxy(Proxy):
    """A channel for each connection."""

    kind = "TCP"
    _listener: Listener | None = None
    _acceptable: Any = None  # its watcher
    _pause: Any = None  # a timer, since descriptors ran out

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._connections: set[_Connection] = set()
        self._numbers = itertools.count(1)  # of connections to a Unix socket, which have no port

    def start(self, place: str, port: int) -> None:
        with binding(place, port):
            self._listener = Listener(place, port)
        self.address = self._listener.address
        self._acceptable = gevent.get_hub().loop.io(self._listener.fileno(), READ)
        self._acceptable.start(self._accept)

    def stop(self) -> None:
        for watcher in (self._acceptable, self._pause):
            if watcher is not None:
                watcher.close()
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.stop()
        self._none_left.wait()

    def _accept(self) -> None:
        """All that wait, within limits: they come in bursts."""
        assert self._listener is not None
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
            self.carry(local, address[1] if address else 0)

    def carry(self, local: _socket.socket, port: int = 0, name: str = "") -> None:
        """Forward a connection, which need not be one to the listener; it is ours from now on."""
        if port:
            name = name or Sentence("port {number}", number=port)
        else:
            name = name or Sentence("connection {number}", number=next(self._numbers))
        proxied = Proxied(self.peer_id, name, port)
        connection = _Connection(self, keep_private(local), proxied)
        self._connections.add(connection)
        self.note_begun()
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
        self.note_over()


class _Connection:
    """One connection of a proxy, from ``begin`` until it is forgotten.

    On a live link it is all callbacks: a greenlet would cost as much as all the rest of a short
    connection.
    """

    __slots__ = ("_local", "_proxied", "_proxy", "_stop", "_stopped", "_stream")

    def __init__(self, proxy: TcpProxy, local: _socket.socket, proxied: Proxied) -> None:
        self._proxy = proxy
        self._local = local
        self._proxied = proxied
        self._stop: Callable[[], object] | None = None  # ends what it does at the moment
        self._stopped = False

    def begin(self) -> None:
        try:
            early = self._local.recv(EARLY_BYTES, _socket.MSG_PEEK)
        except BlockingIOError:
            early = b""
        except OSError as error:  # which is told only once
            self._fail(LinkLost("local program: {why}", why=said(error)))
            return
        dialing = self._proxy.dialing(self._handle_dialed)
        self._stop = dialing.stop
        dialing.begin(early)

    def _handle_dialed(self, result: OpenStream | Exception) -> None:
        if isinstance(result, OpenStream):
            self._carry(result)
        else:
            self._fail(result)

    def _fail(self, error: Exception) -> None:
        proxy, proxied = self._proxy, self._proxied
        _reset(self._local)
        proxied.over, proxied.problems = True, [said(error)]
        proxied.timeline = proxy.dialer.last_attempt(proxy.peer_id, proxy.ctx.connect_mode)
        if not self._stopped:
            proxy.log_error(f"{proxied.name}: {error}")
        self._end()

    def _carry(self, stream: OpenStream) -> None:
        if self._stopped:
            stream.give_up()
            self._fail(EngineClosed(STOPPED))
            return
        proxy, proxied = self._proxy, self._proxied
        self._stream = stream
        proxied.take(stream)
        proxy.log_info(f"{proxied.name}: connected by {proxied.path}")
        proxy.watch(proxied)
        carried = stream.carry(self._local, proxy.background, self._handle_over)
        if not proxied.over:
            self._stop = lambda: carried.abort(EngineClosed(STOPPED))

    def _handle_over(self, errors: list[Exception]) -> None:
        proxy, proxied = self._proxy, self._proxied
        if self._stopped:
            errors = [EngineClosed(STOPPED)]
        proxied.over, proxied.problems = True, [said(error) for error in errors]
        proxied.take_end(self._stream)
        if not self._stopped:
            for broken in errors:
                proxy.log_error(f"{proxied.name}: broken: {broken}")
            if not errors:
                proxy.log_info(f"{proxied.name}: ended")
        self._end()

    def _end(self) -> None:
        self._stop = None  # which leads back here: a circle is the collector's
        self._proxy.watch(self._proxied)
        self._proxy.forget(self)

    def stop(self) -> None:
        self._stopped = True
        if self._stop is not None:
            self._stop()


def _reset(local: Any) -> None:
    """The local program sees an error, not an end of stream.  Nothing was written to it yet."""
    tcp.abort(local)
    local.close()
