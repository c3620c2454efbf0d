"""Carry one channel of a connection between the connection and a local socket.

``StreamPipe``: a stream channel and a stream socket, either the engine's end of a socket pair or a
local TCP connection of a proxy.  ``MessagePipe``: a UDP channel and a SOCK_SEQPACKET pair.
``MessagePort``: a UDP channel and a function, for a UDP proxy, one of whose sockets serves many.

All work is done in callbacks of the hub's watchers: a switch to a greenlet would cost as much as
the packets do.  Backpressure goes both ways: a socket is read only while the connection takes
bytes, and what a socket does not take stays in the connection, whose window then closes.
"""

from __future__ import annotations

import errno
import socket as _socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from gevent import get_hub

from ..._codes import MAX_MESSAGE_BYTES
from ..._errors import KKP2PError, LinkLost
from ..._io import READ, WRITE, at_end, hung_up
from ..._sentence import said
from .. import pair
from .messages import COST_BYTES
from .peer_connection import PeerConnection

__all__ = ["Carrier", "MessagePipe", "MessagePort", "OnEnd", "Pipe", "StreamPipe"]

# Our choices.
MAX_PIECES = 512  # in one sendmsg; Linux takes 1,024
MIN_READ_BYTES, MAX_READ_BYTES = 4096, 1 << 20  # in one recv
MAX_MESSAGES_PER_TURN = 64
MAX_QUEUED_BYTES = 1 << 20  # of messages that the application does not take; then drop the oldest

OnEnd = Callable[[KKP2PError | None, bool], object]

_RETRY = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)


class Carrier(Protocol):
    """The owner of the connection."""

    @property
    def connection(self) -> PeerConnection: ...
    def wake(self) -> None:
        """The connection has something to do."""


class Pipe:
    """What both kinds share.  ``on_end`` is called once; then the socket is the caller's to close.

    Its arguments: what broke the channel, None if both directions ended in order; and whether that
    was before the peer's end had been passed on to the socket.
    """

    def __init__(self, carrier: Carrier, stream_id: int, sock: Any, on_end: OnEnd) -> None:
        self.stream_id = stream_id
        self._carrier = carrier
        self._streams = carrier.connection.streams
        self._sock = sock  # a plain socket: gevent's would wait
        self._on_end = on_end
        self._loop = get_hub().loop
        self._readable = self._loop.io(sock.fileno(), READ)
        self._writable: Any = None  # most sockets always have room
        self._sent_all = False  # nothing more will come from the socket
        self._received_all = False  # nothing more will go to the socket
        self._broken: KKP2PError | None = None
        self._ended = False
        self.is_left = False  # by the local side, which has closed its socket

    def start(self) -> None:
        if not self._sent_all:
            self._readable.start(self._handle_readable)
        self.handle_data()
        self._carrier.wake()

    def application_closed(self) -> None:
        """The local side is gone: what it wrote still goes out, what comes is not wanted."""
        self.is_left = True
        self._end_receiving(unwanted=True)

    def abort(self, error: KKP2PError) -> None:
        """Give up both directions, from our side."""
        self._streams.reset(self.stream_id, 0)
        self._streams.stop(self.stream_id)
        self._carrier.wake()
        self._end(error)

    def check(self) -> None:
        """Notice what no event tells: the local side is closed altogether, not only for sending."""
        if self._sent_all and not self._received_all and hung_up(self._sock.fileno()):
            self._end_receiving(unwanted=True)

    # From the connection's events.

    def handle_data(self) -> None:
        """Readable: there is something for the socket, or the end of it."""
        raise NotImplementedError

    def handle_room(self) -> None:
        """Writable: the connection takes bytes again."""
        if not self._sent_all and not self._ended and not self._readable.active:
            self._handle_readable()  # at once, or the path may run dry until the next turn

    def handle_stopped(self) -> None:
        """The peer's application reads no more."""
        if not self._sent_all:
            self._refuse_writes()
            self._end_sending()

    def handle_broken(self, error: KKP2PError) -> None:
        """The peer gave up, or the connection is lost: what has come is still delivered."""
        self._broken = error
        if not self._sent_all and not self._ended:
            self._sent_all = True
            self._readable.stop()
        self._end_if_done()
        self.handle_data()

    # Inside.

    def _handle_readable(self) -> None:
        raise NotImplementedError

    def _wait_for_room(self) -> None:
        if self._writable is None:
            self._writable = self._loop.io(self._sock.fileno(), WRITE)
        if not self._writable.active:
            self._writable.start(self._handle_writable)

    def _handle_writable(self) -> None:
        self._writable.stop()
        self.handle_data()
        self._carrier.wake()  # a window may have to be announced

    def _finish_sending(self) -> None:
        self._streams.finish(self.stream_id)
        self._carrier.wake()
        self._end_sending()

    def _end_sending(self) -> None:
        self._sent_all = True
        self._readable.stop()
        self._end_if_done()

    def _end_receiving(self, unwanted: bool) -> None:
        if self._received_all or self._ended:
            return
        self._received_all = True
        if self._writable is not None:
            self._writable.stop()
        if unwanted:
            self._streams.stop(self.stream_id)
            self._carrier.wake()
        else:
            pair.shut_down(self._sock, _socket.SHUT_WR)
        self._end_if_done()

    def _refuse_writes(self) -> None:
        """What the application writes from now on fails."""
        raise NotImplementedError

    def _end_if_done(self) -> None:
        if self._sent_all and self._received_all:
            self._end(self._broken)

    def _end(self, error: KKP2PError | None) -> None:
        if self._ended:
            return
        is_cut = error is not None and not self._received_all
        self._ended = self._sent_all = self._received_all = True
        self._readable.close()
        if self._writable is not None:
            self._writable.close()
        self._settle(is_cut)
        self._on_end(error, is_cut)

    def _settle(self, is_cut: bool) -> None:
        """Before the socket is closed."""
        raise NotImplementedError


class StreamPipe(Pipe):
    """``mark``: see pair.py, if the socket is one of a pair; None: it is a TCP connection.

    Of a pair's, ECONNRESET means "closed without reading".
    """

    def __init__(
        self, carrier: Carrier, stream_id: int, sock: Any, on_end: OnEnd, mark: pair.Mark | None
    ) -> None:
        super().__init__(carrier, stream_id, sock, on_end)
        self._mark = mark
        self._at_end = False  # the socket has no more
        self._read_bytes = MIN_READ_BYTES  # asked for: memory for more takes time to get

    def start(self) -> None:
        if self._mark is None and not self._sent_all:
            # A local program has written by now.  What went along with OPEN was only peeked at.
            self._read(self._streams.sent_bytes(self.stream_id))
        if not self._ended:
            super().start()

    def application_closed(self) -> None:
        super().application_closed()
        while not self._sent_all and self._read():
            pass  # what it has written goes out together with its end

    def _handle_readable(self) -> None:
        self._read()

    def _read(self, skipped: int = 0) -> bool:
        """Whether there may be more.  ``skipped``: bytes that the stream has, at the start."""
        streams, stream_id = self._streams, self.stream_id
        room = streams.writable_bytes(stream_id)
        if not room:
            self._readable.stop()  # until handle_room
            return False
        try:
            data = self._sock.recv(min(room, self._read_bytes))
        except OSError as error:
            if error.errno in _RETRY:
                self._listen()
                return False
            if self._mark is None:
                self.abort(LinkLost("local program: {why}", why=said(error)))
                return False
            data = b""
        if data:
            self._read_bytes = min(max(MIN_READ_BYTES, 4 * len(data)), MAX_READ_BYTES)
            streams.write(stream_id, data[skipped:] if skipped else data)
            # Not while there is no room: a socket that has more would wake us for nothing.
            if len(data) < room or streams.writable_bytes(stream_id):
                self._listen()
            else:
                self._readable.stop()
            self._carrier.wake()
        else:
            self._at_end = True
            self._finish_sending()
        return bool(data)

    def _listen(self) -> None:
        if not self._readable.active:
            self._readable.start(self._handle_readable)

    def handle_data(self) -> None:
        streams, stream_id = self._streams, self.stream_id
        while not self._received_all and (pieces := streams.peek(stream_id)):
            pieces = pieces[:MAX_PIECES]
            try:
                one = len(pieces) == 1
                count = self._sock.send(pieces[0]) if one else self._sock.sendmsg(pieces)
            except OSError as error:
                if error.errno in _RETRY:
                    self._wait_for_room()
                elif self._mark is not None:
                    self._end_receiving(unwanted=True)
                else:
                    self.abort(LinkLost("local program: {why}", why=said(error)))
                return
            streams.consume(stream_id, count)
            if count < sum(map(len, pieces)):
                self._wait_for_room()
                return
        if self._received_all:
            return
        if streams.at_end(stream_id):
            self._end_receiving(unwanted=False)
        elif self._broken is not None:
            self._end(self._broken)

    def _refuse_writes(self) -> None:
        # Not of a TCP connection: what the local program sends after SHUT_RD and our FIN makes the
        # kernel reset it, and the program may lose the last that the peer has sent.
        if self._mark is not None:
            pair.refuse_writes(self._sock, self._mark)

    def _settle(self, is_cut: bool) -> None:
        if self._mark is not None and (is_cut or not self._at_end):
            pair.settle(self._sock, self._mark if is_cut else None)


class MessagePipe(Pipe):
    """A message is one datagram of the pair; those that nobody takes in time are dropped."""

    def __init__(self, carrier: Carrier, stream_id: int, sock: Any, on_end: OnEnd) -> None:
        super().__init__(carrier, stream_id, sock, on_end)
        self.dropped = 0  # messages
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0

    def _handle_readable(self) -> None:
        for _ in range(MAX_MESSAGES_PER_TURN):
            try:
                message = self._sock.recv(MAX_MESSAGE_BYTES + 1)
            except OSError as error:
                if error.errno in _RETRY:
                    return
                message = b""
            if not message and at_end(self._sock.fileno()):
                self._finish_sending()
                return
            if len(message) > MAX_MESSAGE_BYTES:
                self.dropped += 1
                continue
            self._streams.send_message(self.stream_id, message)
            self._carrier.wake()

    def _refuse_writes(self) -> None:
        pair.shut_down(self._sock, _socket.SHUT_RD)

    def _settle(self, is_cut: bool) -> None:
        # Of this kind of socket ECONNRESET would overtake the messages that wait to be read.
        pair.settle(self._sock, None)

    def handle_message(self, message: bytes) -> None:
        if self._received_all:
            return
        self._queue.append(message)
        self._queued_bytes += len(message) + COST_BYTES
        self._flush()
        while self._queued_bytes > MAX_QUEUED_BYTES:
            self._queued_bytes -= len(self._queue.popleft()) + COST_BYTES
            self.dropped += 1

    def handle_data(self) -> None:
        self._flush()
        if self._queue or self._received_all:
            return
        if self._streams.at_end(self.stream_id):
            self._end_receiving(unwanted=False)
        elif self._broken is not None:
            self._end(self._broken)

    def _flush(self) -> None:
        while self._queue and not self._received_all:
            try:
                self._sock.send(self._queue[0])
            except OSError as error:
                if error.errno in _RETRY or error.errno == errno.ENOBUFS:
                    self._wait_for_room()
                else:
                    self._end_receiving(unwanted=True)
                return
            self._queued_bytes -= len(self._queue.popleft()) + COST_BYTES


class MessagePort:
    """A UDP channel that belongs to its user altogether: no socket lies between.

    ``on_message(data)`` takes a message at once, or never.  ``on_end(error)`` is called once: after
    ``finish``, or when the peer sends or reads no more (None), or with what broke the channel.
    """

    def __init__(
        self,
        carrier: Carrier,
        stream_id: int,
        on_message: Callable[[bytes], object],
        on_end: Callable[[KKP2PError | None], object],
    ) -> None:
        self.stream_id = stream_id
        self._carrier = carrier
        self._streams = carrier.connection.streams
        self._on_end = on_end
        self._ended = False
        self.dropped = 0  # messages of ours that were not sent, known when it is over
        self.handle_message = on_message

    def start(self) -> None:
        self.handle_data()

    def send(self, message: bytes) -> None:
        """It goes out once; where too many wait, the oldest are dropped."""
        self._streams.send_message(self.stream_id, message)
        self._carrier.wake()

    def finish(self) -> None:
        """End both directions in order: what was sent still goes out."""
        self._end(None)

    def check(self) -> None:
        """There is nothing that no event tells."""

    # From the connection's events.

    def handle_data(self) -> None:
        if self._streams.at_end(self.stream_id):
            self._end(None)

    def handle_room(self) -> None:
        """Messages do not wait for it."""

    def handle_stopped(self) -> None:
        self._end(None)

    def handle_broken(self, error: KKP2PError) -> None:
        self._end(error)

    def _end(self, error: KKP2PError | None) -> None:
        if self._ended:
            return
        self._ended = True
        self.dropped = self._carrier.connection.packer.messages.dropped_of[self.stream_id]
        self._streams.finish(self.stream_id)
        self._streams.stop(self.stream_id)
        self._carrier.wake()
        self._on_end(error)
