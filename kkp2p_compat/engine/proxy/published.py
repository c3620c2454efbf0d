"""What peers open, forwarded to local targets: the other half of a proxy.

Which target a channel is for its connect_desc says.  The peer is answered once the target has been
reached, or has not, so that its caller sees a refusal and no channel that breaks at once.  Channels
are independent of each other, and whoever watches is told of each, as of those of a proxy.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import gevent
from gevent.event import Event

from ..._codes import KKP2P_TCP_CHANNEL, KKP2P_UDP_CHANNEL
from ..._errors import CallRefused, EngineClosed, KKP2PError, TimedOut
from ..._io import READ, time_limit
from ..._sentence import Sentence, said
from ...transport.udp.pipe import MessagePort
from ...transport.udp.stream_table import REFUSED_BUSY, REFUSED_SILENT, REFUSED_UNSUPPORTED
from ..links.background import Background
from ..links.streams import OpenStream
from ..runtime.shares import Shares
from .proxied import Proxied, Watch
from .targets import Target, connected_udp
from .udp_socket import MAX_BYTES, why_lost

__all__ = ["Published", "Targets"]

# Our choices.
CONNECT_S = 5.0  # for a target to answer: its caller waits for twice as long by default
MAX_CONNECTIONS = 10_000
IDLE_S = 180.0  # a UDP channel without datagrams; a proxy ends its own after 120 s
SWEEP_S = 15.0  # how often idle ones are looked for
READS_PER_TURN = 64  # datagrams; about a millisecond
REPEATED_BYTES = 1500  # a datagram of a question, which may be sent to another address, too

_NOT_THERE = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)

STOPPED = Sentence("it is not published any more")

Targets = Mapping[int | None, Target]  # by connect_desc; None: for all others


class Published:
    """``take`` is for the acceptor.  Runs in the engine's hub."""

    def __init__(
        self, background: Background, targets: Targets, is_udp: bool, watch: Watch
    ) -> None:
        self.background = background
        self.watch = watch
        self._targets: Targets = dict(targets)
        self._kind = _UdpConnection if is_udp else _TcpConnection
        self._connections: set[_Connection] = set()
        self._shares = Shares()
        self._none_left = Event()
        self._numbers = itertools.count(1)
        self._sweeping = gevent.get_hub().loop.timer(SWEEP_S, SWEEP_S)
        self._sweeping.start(self._sweep)

    def take(
        self, stream: OpenStream, caller_id: str, share: str, release: Callable[[], object]
    ) -> None:
        """Accept or refuse; ``release`` is called when that is decided."""
        name = Sentence("connection {number}", number=next(self._numbers))
        proxied = Proxied(caller_id, name, 0)
        proxied.target = ""
        connection = self._kind(self, stream, proxied, share)
        target = self._targets.get(stream.desc, self._targets.get(None))
        if stream.channel_type != self._kind.channel_type:
            connection.refuse("a channel of the other kind, TCP or UDP", REFUSED_UNSUPPORTED)
        elif target is None:
            why = Sentence("no target for connect_desc {desc}", desc=stream.desc)
            connection.refuse(why, REFUSED_UNSUPPORTED)
        elif not self._shares.has_room(MAX_CONNECTIONS, share, bool(caller_id)):
            connection.refuse(Sentence("too many connections"), REFUSED_BUSY)
        else:
            proxied.target = str(target)
            self._connections.add(connection)
            self._shares.enter(share)
            self._none_left.clear()
            connection.dial(target, release)
            return
        release()

    def close(self) -> None:
        """End all, and refuse what comes; waits."""
        self._targets = {}
        self._sweeping.close()
        for connection in list(self._connections):
            connection.stop()
        if self._connections:
            self._none_left.wait()

    def forget(self, connection: _Connection) -> None:
        if connection in self._connections:  # one that was refused at once is not
            self._connections.remove(connection)
            self._shares.leave(connection.share)
        if not self._connections:
            self._none_left.set()

    def _sweep(self) -> None:
        idle_since = time.monotonic() - IDLE_S
        for connection in list(self._connections):
            connection.end_if_idle(idle_since)


class _Connection:
    """One channel, from the peer's wish until it is over."""

    channel_type: int
    _port: MessagePort | None = None  # of UDP, while it is carried

    def __init__(
        self, published: Published, stream: OpenStream, proxied: Proxied, share: str
    ) -> None:
        self.share = share
        self._published = published
        self._stream = stream
        self._proxied = proxied
        self._dialing: gevent.Greenlet[..., Any] | None = None

    def dial(self, target: Target, release: Callable[[], object]) -> None:
        def connect() -> Any:
            try:
                with time_limit(
                    CONNECT_S, TimedOut("no answer in {seconds:.0f} s", seconds=CONNECT_S)
                ):
                    return self._connect(target)
            except (OSError, KKP2PError) as error:
                return error

        def connected(dialing: gevent.Greenlet[..., Any]) -> None:
            self._dialing = None
            release()
            local = dialing.value
            if isinstance(local, OSError | KKP2PError):
                why = Sentence("{target}: {why}", target=str(target), why=said(local))
                self.refuse(why, REFUSED_SILENT)
            elif not dialing.successful() or isinstance(local, gevent.GreenletExit):
                self.refuse(said(dialing.exception or EngineClosed(STOPPED)), REFUSED_SILENT)
            else:
                self._carry(local)

        self._dialing = self._published.background.thread.spawn(connect)
        self._dialing.rawlink(connected)

    def refuse(self, why: str, reason: int) -> None:
        """Before it was accepted."""
        self._stream.refuse(reason)
        self._end([CallRefused(why)])

    def stop(self) -> None:
        """The peer sees a cut, or a refusal."""
        if self._dialing is not None:
            self._dialing.kill(block=False)
        else:
            self._give_up()

    def end_if_idle(self, idle_since: float) -> None:
        """Nothing has passed since then."""

    def _connect(self, target: Target) -> Any:
        """A socket to the target."""
        raise NotImplementedError

    def _carry(self, local: Any) -> None:
        """Accept the channel, and begin."""
        raise NotImplementedError

    def _give_up(self) -> None:
        """It is being carried: end it."""
        raise NotImplementedError

    def _begin(self, local: Any) -> None:
        proxied, stream = self._proxied, self._stream
        if isinstance(local.getsockname(), tuple):
            proxied.port = local.getsockname()[1]
        stream.accept()
        proxied.take(stream)
        self._log(logging.INFO, f"{proxied.target}, by {proxied.path}")
        self._published.watch(proxied)

    def _end(self, errors: list[Exception]) -> None:
        proxied = self._proxied
        if proxied.path:
            proxied.take_end(self._stream, self._port)
        proxied.over, proxied.problems = True, [said(error) for error in errors]
        # No errors of ours: strangers can make as many as they like.
        self._log(logging.INFO, "; ".join(proxied.problems) or "ended")
        self._published.watch(proxied)
        self._published.forget(self)

    def _log(self, level: int, text: str) -> None:
        proxied = self._proxied
        caller = repr(proxied.peer_id) if proxied.peer_id else "a stranger"
        self._published.background.log.log(level, "%s from %s: %s", proxied.name, caller, text)


class _TcpConnection(_Connection):
    channel_type = KKP2P_TCP_CHANNEL
    _carried: Any = None

    def _connect(self, target: Target) -> Any:
        return target.connect()

    def _carry(self, local: Any) -> None:
        self._begin(local)
        carried = self._stream.carry(local, self._published.background, self._handle_over)
        if not self._proxied.over:
            self._carried = carried

    def _handle_over(self, errors: list[Exception]) -> None:
        self._carried = None
        self._end(errors)

    def _give_up(self) -> None:
        if self._carried is not None:
            self._carried.abort(EngineClosed(STOPPED))


class _UdpConnection(_Connection):
    """A socket of its own for each channel, so that the target tells its clients apart.

    A target with several addresses is sought at the next one when nobody listens at one: localhost
    is 127.0.0.1 for one program and ::1 for another.
    """

    channel_type = KKP2P_UDP_CHANNEL
    _used_at = 0.0
    _unanswered = b""  # the last datagram, where it may be sent again to another address

    def _connect(self, target: Target) -> Any:
        self._addresses = deque(target.udp_addresses())
        return self._open()

    def _open(self) -> Any:
        """A socket to the first of the addresses to which there is a route."""
        for _ in range(len(self._addresses) - 1):
            with contextlib.suppress(OSError):
                return connected_udp(self._addresses[0])
            self._addresses.rotate(-1)
        return connected_udp(self._addresses[0])

    def _carry(self, local: Any) -> None:
        self._begin(local)
        self._used_at = time.monotonic()
        self._use(local)
        port = self._stream.exchange(self._handle_message, self._handle_end)
        if not self._proxied.over:
            self._port = port

    def _use(self, local: Any) -> None:
        self._local = local
        self._readable = gevent.get_hub().loop.io(local.fileno(), READ)
        self._readable.start(self._handle_readable)

    def _handle_readable(self) -> None:
        for _ in range(READS_PER_TURN):
            if self._port is None:
                return
            try:
                data = self._local.recv(MAX_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # of an earlier datagram: the target does not listen (yet)
                self._handle_lost(error)
                continue
            self._unanswered = b""
            self._used_at = time.monotonic()
            self._proxied.datagrams_sent += 1
            self._port.send(data)

    def _handle_message(self, data: bytes) -> None:
        self._used_at = time.monotonic()
        if len(self._addresses) > 1 and len(data) <= REPEATED_BYTES:
            self._unanswered = data
        self._proxied.datagrams_received += self._send(data)

    def _send(self, data: bytes) -> bool:
        try:
            self._local.send(data)
        except OSError as error:  # nobody listens, its socket is full, it is too long
            return self._handle_lost(error)
        return True

    def _handle_lost(self, error: OSError) -> bool:
        """Whether the datagram that is lost has gone to another address instead."""
        data, self._unanswered = self._unanswered, b""
        if error.errno in _NOT_THERE and self._turn_to_next() and data:
            return self._send(data)
        self._proxied.datagrams_lost[why_lost(error)] += 1
        return False

    def _turn_to_next(self) -> bool:
        if len(self._addresses) == 1:
            return False
        self._addresses.rotate(-1)
        try:
            local = self._open()
        except OSError:
            return False  # stay with the one that there is
        self._readable.close()
        self._local.close()
        self._proxied.port = local.getsockname()[1]
        self._use(local)
        return True

    def _handle_end(self, error: KKP2PError | None) -> None:
        self._readable.close()
        self._local.close()
        self._end([] if error is None else [error])
        self._port = None

    def _give_up(self) -> None:
        if self._port is not None:
            self._port.finish()

    def end_if_idle(self, idle_since: float) -> None:
        if self._port is not None and self._used_at < idle_since:
            self._port.finish()
