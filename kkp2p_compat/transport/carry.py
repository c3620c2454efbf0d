"""Carry a stream between a socket of this host and a sealed connection to a peer.

``plain`` is the engine's end of the application's descriptor, or a local connection of a proxy;
``wire`` is the TCP connection to the peer, through the relay, and a socket of gevent's.  Both
half-closes go through.  Backpressure does too: each direction holds one chunk and waits until it is
taken.
"""

from __future__ import annotations

import os
import socket as _socket
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.lock import RLock
from gevent.pool import Group
from gevent.socket import wait_read, wait_write

from .._errors import KKP2PError, LinkLost
from .._io import hung_up
from . import pair, tcp
from .sealed import (
    END,
    MAX_PLAINTEXT_BYTES,
    RECORD_OVERHEAD_BYTES,
    RESET,
    DirectionKeys,
    RecordOpener,
    RecordSealer,
)

__all__ = ["SealedStream"]

# Our choice: four full records at a time, and their exact size on the wire: none is cut in two.
CHUNK_BYTES = 4 * MAX_PLAINTEXT_BYTES
WIRE_CHUNK_BYTES = 4 * (MAX_PLAINTEXT_BYTES + RECORD_OVERHEAD_BYTES)
CLOSE_TIMEOUT_S = 30.0  # our choice: how long the peer may take for the rest, as for raw channels


class SealedStream:
    """Call ``run`` once; ``application_closed`` whenever the local side is known to be closed.

    ``mark``: see pair.py, if ``plain`` is one end of a socket pair; None: it is a TCP connection.
    """

    def __init__(
        self,
        plain: Any,
        wire: Any,
        keys: tuple[DirectionKeys, DirectionKeys],
        mark: pair.Mark | None,
    ) -> None:
        """``keys``: ours, the peer's."""
        self._plain = plain
        self._wire = wire
        self._sealer = RecordSealer(keys[0])
        self._opener = RecordOpener(keys[1])
        self._mark = mark
        self._wire_lock = RLock()  # two greenlets send: data and its end, or a reset
        self._sealed_end = False  # all that the local side will ever send is on the wire
        self._send_error: KKP2PError | None = None
        self._wire_ended = False  # in order or not
        self._application_gone = False
        self._peer_gone = False  # the peer's application, not the peer
        self._refused = False  # nothing is taken from the local side any more
        self._greenlets = Group()
        self._outcome: AsyncResult[KKP2PError | None] = AsyncResult()
        self.bytes_sent = 0  # payload: to the peer
        self.bytes_received = 0

    @property
    def received_all(self) -> bool:
        """Whether the peer's stream came to its end, or nobody wanted it any more."""
        return self._opener.ended or self._application_gone

    def run(self) -> KKP2PError | None:
        """Carry until the end: the error that broke the stream, None if it ended in order.

        In order means: our end is sealed and on the wire, and the peer's has come or nobody is
        left to take what it still sends.  Closes neither socket.
        """
        self._greenlets.spawn(self._seal)
        self._greenlets.spawn(self._open)
        try:
            return self._outcome.get()
        finally:
            self._greenlets.kill()

    def abort(self, error: KKP2PError) -> None:
        """Give up both directions: ``run`` returns the error."""
        self._finish(error)

    def application_closed(self) -> None:
        """The local side takes nothing any more: the peer is told to stop sending.  May wait."""
        if not self._application_gone:
            self._application_gone = True
            if not self._outcome.ready():
                self._greenlets.spawn(self._limit_the_rest)
            self._send_reset()
            self._check()

    def _limit_the_rest(self) -> None:
        """A peer that is alive and never reads must not keep a stream that nobody uses here."""
        gevent.sleep(CLOSE_TIMEOUT_S)
        self._finish(LinkLost("the peer does not take the rest"))

    def check(self) -> None:
        """Notice what no event tells; to be called every few seconds."""
        if tcp.unresponsive(self._wire):
            self._finish(LinkLost("the relay does not answer"))
        elif self._sealed_end and not self._application_gone and hung_up(self._plain.fileno()):
            self._greenlets.spawn(self.application_closed)

    def _check(self) -> None:
        if self._sealed_end and (self._opener.ended or self._application_gone):
            self._finish(None)

    def _finish(self, error: KKP2PError | None) -> None:
        if not self._outcome.ready():
            self._outcome.set(error)

    # To the peer.

    def _seal(self) -> None:
        try:
            while data := self._read_plain():
                with self._wire_lock:
                    self._wire.sendall(self._sealer.seal(data))
                self.bytes_sent += len(data)
            with self._wire_lock:
                if self._outcome.ready():
                    return  # given up: no end
                self._wire.sendall(self._sealer.end())
        except OSError as error:
            self._cannot_send(error)
            return
        except KKP2PError as error:
            self._finish(error)  # no end is sealed, so the peer sees a cut
            return
        self._sealed_end = True
        if hung_up(self._plain.fileno()):
            self.application_closed()
        self._check()

    def _cannot_send(self, error: OSError) -> None:
        """This is not the end yet: what the peer had sent before may still wait to be read.

        A peer that has gone away in order breaks our sending like one that crashed; which of the
        two it was shows when all that it sent is read.
        """
        self._send_error = LinkLost(f"sending to the peer: {error}")
        if self._wire_ended:
            self._finish(self._send_error)
        else:
            self._refuse_writes()

    def _refuse_writes(self) -> None:
        """Writes of the local side must fail, not vanish.

        Not of a TCP connection before the peer's end, and all before it, has arrived: what comes in
        with both directions shut makes the kernel reset it, and what it could not send yet is lost.
        """
        try:
            if self._mark is not None:
                self._refused = True
                pair.refuse_writes(self._plain, self._mark)
            elif self._opener.ended:
                tcp.wait_until_acknowledged(self._plain, CLOSE_TIMEOUT_S)
                self._plain.shutdown(_socket.SHUT_RD)
        except OSError:  # closed, or reset, by the local side: nobody is left to tell
            return

    def _read_plain(self) -> bytes:
        """b"": the local side has ended its direction, or the peer takes no more.

        Waits without gevent's ``recv``, which would take the byte that ``refuse_writes`` leaves.
        """
        fd = self._plain.fileno()
        while not (self._refused or self._peer_gone):
            try:
                return os.read(fd, CHUNK_BYTES)
            except BlockingIOError:
                wait_read(fd)
            except OSError as error:
                if self._mark is None:
                    raise LinkLost(f"the local program: {error}") from error
                return b""  # closed with data unread; all that it had sent has been read
        return b""

    def _send_reset(self) -> None:
        try:
            with self._wire_lock:
                self._wire.sendall(self._sealer.reset())
        except OSError as error:
            self._cannot_send(error)

    # From the peer.

    def _open(self) -> None:
        broken: KKP2PError | None = None
        try:
            while data := self._wire.recv(WIRE_CHUNK_BYTES - self._opener.pending):
                self._opener.feed(data)
                for kind, plaintext in self._opener.records():
                    self._take(kind, plaintext)
            self._opener.finish()
        except OSError as error:
            broken = LinkLost(f"receiving from the peer: {error}")
        except KKP2PError as error:
            broken = error
        self._wire_ended = True
        if self._opener.ended and self._peer_gone:
            self._finish(None)  # it took what it wanted, and we have all that it sent
        elif broken or self._send_error:
            self._finish(broken or self._send_error)

    def _take(self, kind: int, plaintext: bytes) -> None:
        try:
            if kind == RESET:
                self._peer_gone = True
                self._refuse_writes()
            elif kind == END:
                self._check()
                self._plain.shutdown(_socket.SHUT_WR)
                if self._peer_gone or self._send_error:
                    self._refuse_writes()
            elif not self._application_gone:
                self._write_plain(plaintext)
                self.bytes_received += len(plaintext)
        except OSError as error:
            if self._mark is None and not self._sealed_end:
                # A reset is reported once: the reader may take what follows for an end.
                self._finish(LinkLost(f"the local program: {error}"))
            else:
                self.application_closed()

    def _write_plain(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._plain.send(left) :]
            except BlockingIOError:
                wait_write(self._plain.fileno())
