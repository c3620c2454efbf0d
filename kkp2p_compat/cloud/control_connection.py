"""One TLS connection of the control plane, seen from the cloud.

There are many and most are idle, so a connection is no greenlet: loop watchers call it, and it
holds little more than its TLS state.  Rules:

- No method called from outside closes anything at once or raises for what the network did: a
  failure is noted and acted upon in a callback of its own.  So a service may send to any number of
  peers in a row, and one peer's trouble never interrupts what is done for another.
- What waits for a slow reader is bounded; beyond it the connection is dropped.
- Every connection has a deadline at every time (see Deadlines), and no timer.
- What is read is handled in turns of TURN_S, and what a turn has for one peer is sent at once, at
  its end.  Who has used more than its share (see Allowance and Shares) waits for its next turn, by
  a timer: it is delayed and nobody else is.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent import get_hub, ssl
from gevent.pool import Group

from .._errors import BadPacket
from .._io import READ, WRITE
from ..control.wire import LineReader, Message, encode
from ..transport import tcp
from .certificate import TLSIdentity
from .limits import Allowance, Gatekeeper

__all__ = ["ControlConnection", "Service"]

log = logging.getLogger(__name__)

T = TypeVar("T")

# Our choices.
READ_BYTES = 16384  # the most that one TLS record holds
TURN_S = 0.002  # then the other connections have their turn
CLOSE_S = 5.0  # for the last line to reach the peer
QUIET_BEATS = 2.5  # docs/protocol.rst: a peer quiet for so many heartbeats is gone

_SHAKING, _OPEN, _CLOSING, _CLOSED = range(4)


class Service:
    """What control connections talk to.  ``handlers``: one for each op.  A handler gets what
    ``meet`` has made of the connection, and the message.

    ``unsent``: during a turn, the connections that have lines to send at its end.
    """

    def __init__(self, handlers: dict[str, Callable[[Any, Message], None]]) -> None:
        self._handlers = handlers
        self.unsent: dict[ControlConnection, None] | None = None

    def meet(self, connection: ControlConnection) -> Any:
        """What the service knows a connection as: here as itself."""
        return connection

    def handle(self, connection: ControlConnection, message: Message) -> None:
        op = message["op"]
        handler = self._handlers.get(op)
        try:
            if handler is None:
                raise BadPacket("no such op here")
            handler(connection.known_as, message)
        except BadPacket as error:
            connection.send(encode("error", reason=str(error), re=op[:32]))

    def gone(self, known_as: Any) -> None:
        """The connection is over, or as good as; called once for each that was open."""


class ControlConnection:
    """Made for a socket whose first byte looks like TLS; ``start`` it."""

    __slots__ = (
        "_allowance",
        "_closing",
        "_context",
        "_gate",
        "_next_turn",
        "_out",
        "_quiet_s",
        "_read_bytes",
        "_readable",
        "_reader",
        "_service",
        "_sock",
        "_state",
        "_writable",
        "binding",
        "deadline",
        "host",
        "known_as",
        "peer_id",
    )

    def __init__(
        self,
        sock: Any,
        host: str,
        gate: Gatekeeper,
        service: Service,
        identity: TLSIdentity,
        closing: Group,
    ) -> None:
        limits = gate.limits
        now = time.monotonic()
        self.host = host
        self.deadline = now + limits.handshake_s
        self._quiet_s = 0.0  # how long it may be quiet; 0: the deadline stands
        self._sock = sock
        self._gate = gate
        self._service = service
        self._context = identity.context
        self.binding = identity.binding  # what a login here is bound to: the certificate
        self._closing = closing
        self._state = _SHAKING
        self._reader = LineReader(limits.line_bytes, limits.stranger_line_bytes)
        self._read_bytes = 0  # in this turn
        self._out = b""
        self._readable: Any = None
        self._writable: Any = None
        self._next_turn: Any = None  # a timer, while it waits
        self._allowance = Allowance(limits, now)
        self.peer_id: str | None = None  # who it is, once that is proved
        self.known_as: Any = None  # to the service, while it is open

    def __str__(self) -> str:
        return f"{self.host} ({self.peer_id})" if self.peer_id else self.host

    # For the server and the services.

    def start(self) -> None:
        self._gate.deadlines.add(self)
        try:
            self._sock.getpeername()  # fails if it is reset: gevent's wrap_socket would leak it
            self._sock = self._context.wrap_socket(
                self._sock, server_side=True, do_handshake_on_connect=False
            )
            self._sock.settimeout(0)
            self._readable = get_hub().loop.io(self._sock.fileno(), READ)
            self._readable.start(self._on_readable)
        except (OSError, ValueError) as error:  # reset already
            self._drop(f"no TLS: {error}")

    def allow_quiet(self, seconds: float) -> None:
        """From now on every message buys this much time; 0: it has ``seconds`` no more."""
        self._quiet_s = seconds
        self.deadline = time.monotonic() + seconds

    def prove(self, peer_id: str) -> None:
        """It has proved who it is: it may send long lines, too."""
        self.peer_id = peer_id
        self._reader.allow_long_lines()

    def must_finish(self, seconds: float) -> None:
        """From now on it has this much time, whatever it says."""
        self._quiet_s = 0.0
        self.deadline = time.monotonic() + seconds

    @property
    def is_open(self) -> bool:
        return self._state == _OPEN

    @property
    def is_arriving(self) -> bool:
        """It shakes hands, or has not yet said what it wants, or logs in."""
        return self._state == _SHAKING or (self._state == _OPEN and self.is_new)

    @property
    def is_new(self) -> bool:
        """It has neither called nor logged in yet."""
        return self._quiet_s == 0

    def has_room(self, line: bytes) -> bool:
        """Whether a line that somebody else has caused may be sent.

        Half of what may wait is for what the peer has asked for itself: so nobody can have it
        dropped for reading slowly.
        """
        is_slow = self._writable is not None
        return not is_slow or len(self._out) + len(line) <= self._gate.limits.output_bytes // 2

    def send(self, line: bytes) -> None:
        if self._state != _OPEN:
            return
        self._out += line
        unsent = self._service.unsent
        if self._writable is not None:
            if len(self._out) > self._gate.limits.output_bytes:
                why = f"reads too slowly: {len(self._out)} bytes are waiting"
                self._fail(self._gate.over("output_bytes", why))
        elif unsent is None or len(self._out) > READ_BYTES:
            self._flush()
        else:
            unsent[self] = None

    def finish(self, line: bytes) -> None:
        """Send this last line, and close when it has arrived."""
        if self._state != _OPEN:
            return
        self.send(line)
        if self._writable is None:
            self._flush()
        if self._state == _OPEN:
            self._leave_service()
            self.must_finish(CLOSE_S)
            if not self._out:
                self._later(self._close_orderly)

    def shut_down(self) -> None:
        if self._state == _SHAKING:
            self._fail("shutdown")
        self.finish(encode("bye", reason="shutdown"))

    def expire(self) -> None:
        """The deadline is over."""
        if self._state == _OPEN and self.peer_id is None and self._quiet_s:
            self.finish(encode("bye", reason="idle"))
        elif self._state == _OPEN and self.peer_id is not None:
            self._drop("no heartbeat")
        elif self._state == _CLOSING:
            self._drop("does not take the last line")
        else:
            self._gate.refused(self.host, "too slow to shake hands or log in")
            self._drop("too slow")

    # Watchers' callbacks.

    def _on_readable(self) -> None:
        if self._next_turn is None and not self._must_wait():
            self._take_turn()

    def _must_wait(self) -> bool:
        """Whether it has used more than its share: then it waits until that is made up for."""
        shares, now = self._gate.shares, time.monotonic()
        wait_s = max(self._allowance.wait_s(now), shares.wait_s(self.host, now))
        if wait_s <= 0:
            return False
        # All connections of one address would go on at once: so each pays for a turn in advance.
        shares.spend(self.host, now, TURN_S)
        self.pause(wait_s, lambda: shares.spend(self.host, time.monotonic(), -TURN_S))
        return True

    def _take_turn(self, first: Callable[[], object] | None = None) -> None:
        if self._state not in (_SHAKING, _OPEN):
            return
        began = time.thread_time()
        unsent = self._service.unsent = {}
        more = self._read_untrusted(time.monotonic() + TURN_S, first)
        self._service.unsent = None
        for connection in unsent:
            connection._flush()
        used, now = time.thread_time() - began, time.monotonic()
        size, self._read_bytes = self._read_bytes, 0
        self._allowance.spend(now, used, size)
        self._gate.shares.spend(self.host, now, used, size)
        if more and self._next_turn is None and not self._must_wait():
            self.pause(0.0)

    def pause(self, seconds: float, then: Callable[[], object] | None = None) -> None:
        """Take nothing from the peer for so long; then call ``then``, and go on."""
        if self._readable is not None:
            self._readable.stop()
            self._next_turn = get_hub().loop.timer(seconds)
            self._next_turn.start(self._resume, then, update=True)  # the turn may have been long

    def wait_for(self, work: Callable[[], T], then: Callable[[T], object]) -> None:
        """Take nothing from the peer while ``work`` goes on, which may wait; then call ``then``.

        ``then`` gets what work returned; it is not called if the connection ends meanwhile.
        """
        if self._readable is None:
            return
        self._readable.stop()
        next_turn = self._next_turn = get_hub().loop.timer(0.0)

        def wait() -> None:
            try:
                result = work()
            except Exception:
                log.exception("%s: a fault of ours", self)
                self._fail("a fault of ours")
                return
            if self._next_turn is next_turn:  # else it was closed
                next_turn.start(self._resume, lambda: then(result))

        gevent.spawn(wait)

    def _resume(self, then: Callable[[], object] | None) -> None:
        self._next_turn.close()
        self._next_turn = None
        self._readable.start(self._on_readable)
        self._take_turn(then)

    def _read_untrusted(self, until: float, first: Callable[[], object] | None) -> bool:
        """Whether there may be more to do at once."""
        try:
            if first is not None:
                first()
            return self._read(until)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False  # a handshake's answer is small: it never waits for room
        except BadPacket as error:
            self._gate.refused(self.host, str(error))
            self.send(encode("error", reason=str(error)))
            self.finish(encode("bye", reason="bad-message"))
        except OSError as error:
            if self._state == _SHAKING:
                self._gate.refused(self.host, f"TLS: {error}")
            self._drop(str(error))
        except Exception:
            log.exception("%s: a fault of ours", self)
            self._drop("a fault of ours")
        return False

    def _on_writable(self) -> None:
        self._flush()
        if not self._out and self._state == _CLOSING:
            self._close_orderly()

    def _read(self, until: float) -> bool:
        if self._state == _SHAKING:
            self._sock.do_handshake()
            self._open()
        while True:
            for message in self._reader.messages():
                self._take(message)
                if self._state != _OPEN or self._next_turn is not None:
                    return False
                if time.monotonic() >= until:
                    return True  # in our buffer, in the kernel's, or in that of TLS
            data = self._sock.recv(READ_BYTES)
            if not data:
                self._drop("closed by the peer")
                return False
            self._read_bytes += len(data)
            self._reader.feed(data)

    def _open(self) -> None:
        self._state = _OPEN
        self.known_as = self._service.meet(self)

    def _take(self, message: Message) -> None:
        now = time.monotonic()
        if not self._allowance.take_message(now):
            rate = self._gate.limits.messages_per_s
            why = self._gate.over("messages_per_s", f"over {rate:g} messages a second")
            self._gate.refused(self.host, why)
            self.finish(encode("bye", reason="limit"))
            return
        if self._quiet_s:
            self.deadline = now + self._quiet_s
        self._service.handle(self, message)

    def _flush(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(memoryview(self._out)[:READ_BYTES])
                if not sent:
                    break
                self._out = self._out[sent:]
        except OSError as error:
            self._fail(str(error))
            return
        if self._out and self._writable is None:
            self._writable = get_hub().loop.io(self._sock.fileno(), WRITE)
            self._writable.start(self._on_writable)
        elif not self._out and self._writable is not None:
            self._writable.close()
            self._writable = None

    # The end.

    def _later(self, function: Callable[..., None], *args: Any) -> None:
        get_hub().loop.run_callback(function, *args)

    def _fail(self, reason: str) -> None:
        if self._state == _CLOSED:
            return
        if self._state != _CLOSING:
            self._leave_service()
        self._later(self._drop, reason)

    def _leave_service(self) -> None:
        """From here on nothing is taken from the peer, and nobody can reach it."""
        was_open = self._state == _OPEN
        self._state = _CLOSING
        self._stop_reading()
        if was_open:
            self._later(self._service.gone, self.known_as)
            self.known_as = None

    def _stop_reading(self) -> None:
        for watcher in (self._readable, self._next_turn):
            if watcher is not None:
                watcher.close()
        self._readable = self._next_turn = None

    def _close_watchers(self) -> None:
        self._stop_reading()
        if self._writable is not None:
            self._writable.close()
            self._writable = None

    def _close_orderly(self) -> None:
        """Everything is handed to the kernel: see that it arrives."""
        if self._state == _CLOSING:
            self._state = _CLOSED
            self._close_watchers()
            self._gate.deadlines.discard(self)
            with contextlib.suppress(OSError):  # close_notify; its answer is not waited for
                self._sock.unwrap()
            self._closing.spawn(self._linger)

    def _linger(self) -> None:
        try:
            tcp.linger(self._sock, CLOSE_S)
        finally:
            self._gate.leave(self.host)

    def _drop(self, reason: str) -> None:
        """Close at once."""
        if self._state == _CLOSED:
            return
        if self._state == _OPEN:
            self._flush()  # what this turn has for it
        if self._state == _OPEN:
            self._leave_service()
        self._state = _CLOSED
        self._close_watchers()
        self._gate.deadlines.discard(self)
        self._out = b""
        try:
            self._sock.close()
        finally:
            self._gate.leave(self.host)
        log.debug("%s: closed: %s", self, reason)
