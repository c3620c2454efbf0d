"""Two endpoints with a connection between them whose packets go by one TCP connection."""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Callable
from random import SystemRandom

import gevent
from gevent.event import Event as Flag

from helpers.support import PATIENCE_S
from kkp2p_compat._codes import KKP2P_TCP_CHANNEL
from kkp2p_compat.transport.udp import events as e
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.transport.udp.framed_socket import FramedSocket
from kkp2p_compat.transport.udp.peer_connection import PeerConnection
from kkp2p_compat.transport.udp.transport_settings import TransportSettings

__all__ = ["FramedPair", "Talker", "tcp_pair"]

log = logging.getLogger("test")
PIECE_BYTES = 256 << 10


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


class Talker:
    """A connection, and the application above it, that writes and reads one stream at a time."""

    def __init__(self, connection: PeerConnection, endpoint: Endpoint) -> None:
        self.connection = connection
        self.local_id = connection.local_id
        self.events: list[e.Event] = []
        self.read = bytearray()
        self.changed = Flag()
        self.reads = True
        self._endpoint = endpoint
        self._unsent = memoryview(b"")
        self._stream_id = 0

    def handle_event(self, event: e.Event) -> None:
        streams = self.connection.streams
        if isinstance(event, e.ChannelOffered):
            streams.accept(event.stream_id)
            self._stream_id = event.stream_id
        elif isinstance(event, e.Writable):
            self._write()
        elif isinstance(event, e.Readable) and self.reads:
            self._read(event.stream_id)
        else:
            self.events.append(event)
        self.changed.set()

    def _read(self, stream_id: int) -> None:
        taken = 0
        for piece in self.connection.streams.peek(stream_id):
            self.read += piece
            taken += len(piece)
        self.connection.streams.consume(stream_id, taken)

    def open(self) -> None:
        self._stream_id = self.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
        self._endpoint.wake(self)

    def write(self, data: bytes) -> None:
        self._unsent = memoryview(data)
        self._write()
        self._endpoint.wake(self)

    def _write(self) -> None:
        streams = self.connection.streams
        while self._unsent and (room := streams.writable_bytes(self._stream_id)) > 0:
            piece = self._unsent[: min(room, PIECE_BYTES)]
            streams.write(self._stream_id, bytes(piece))
            self._unsent = self._unsent[len(piece) :]

    def wait_for(self, condition: Callable[[], object]) -> None:
        with gevent.Timeout(PATIENCE_S):
            while not condition():
                self.changed.clear()
                self.changed.wait()


class FramedPair:
    """``one`` is the caller.  ``broken``: which end was told that which of its sockets broke."""

    def __init__(self, make: Callable[[], Endpoint], **settings: int) -> None:
        ids = secrets.randbits(64), secrets.randbits(64)
        keys = secrets.token_bytes(32), secrets.token_bytes(32)
        self.endpoints = make(), make()
        self.broken: list[tuple[int, int]] = []
        self.told = Flag()
        self.numbers: list[int] = []
        self.ends = []
        for me, sock in enumerate(tcp_pair()):
            endpoint, number = self.endpoints[me], self.adopt(me, sock)
            connection = PeerConnection(
                send_secret=keys[me],
                receive_secret=keys[1 - me],
                cipher="aes-128-gcm",
                is_caller=me == 0,
                local_id=ids[me],
                remote_id=ids[1 - me],
                address=("192.0.2.1", 443, number),
                now=time.monotonic(),
                random=SystemRandom(),
                settings=TransportSettings(**settings),
            )
            self.numbers.append(number)
            self.ends.append(Talker(connection, endpoint))
            endpoint.add(self.ends[-1])
        self.one, self.other = self.ends

    def adopt(self, me: int, sock: socket.socket) -> int:
        def tell(number: int) -> None:
            self.broken.append((me, number))
            self.told.set()

        def make(number: int) -> FramedSocket:
            return FramedSocket(sock, ("192.0.2.1", 443), number, log)

        return self.endpoints[me].adopt(make, tell)

    def framed(self, me: int) -> FramedSocket:
        """The socket of one of the ends."""
        made = self.endpoints[me]._doors.extra[self.numbers[me]].socket
        assert isinstance(made, FramedSocket)
        return made
