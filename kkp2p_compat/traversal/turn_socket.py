"""A socket whose datagrams go through a TURN server: one more way for an endpoint to reach a peer.

Addresses are the peers', as everywhere; nothing goes anywhere but to the server.  Whole batches get
ChannelData's header, and lose it, between the endpoint and the kernel.  Requests and answers pass
by: the client gets them, and whoever drives it is called.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from logging import Logger

from .._address import Address, HostPort
from ..transport.udp.batch_socket import BatchSocket
from .candidates import family_of
from .channel_data import HEADER, HEADER_BYTES, unwrap_untrusted, wrap
from .turn import TurnClient

__all__ = ["TurnSocket"]

# Our choice: how many receives that brought nothing for the endpoint one ``receive`` may make, so
# that a server which floods us does not keep us.  The descriptor stays readable.
MAX_FUTILE = 16


class TurnSocket:
    """A BatchSocket's face over a TurnClient.

    ``holds_more``: datagrams were received that no watcher can tell of; call ``receive``.
    ``poll`` is called when the client may have something to send, which goes by ``send_check``.
    """

    broken = False  # its owner closes it
    datagram_bytes = 0

    def __init__(
        self,
        server: HostPort,
        client: TurnClient,
        number: int,
        log: Logger,
        poll: Callable[[], object],
    ) -> None:
        """``server``: with a numeric host.  Raises OSError, as BatchSocket."""
        self.number = number
        self.holds_more = False
        self._client = client
        self._poll = poll
        self._waiting: deque[tuple[bytes, int, Address]] = deque()
        family = socket.AddressFamily(family_of(server[0]))
        self._sock = BatchSocket(family, log, number=number)
        self._server: Address = (*server, number)
        self.port = self._sock.port
        self.failures = self._sock.failures
        self.fileno = self._sock.fileno
        self.close = self._sock.close
        self.grow = self._sock.grow

    # Sending.

    def send(self, data: bytes, segment_bytes: int, address: Address) -> int:
        """As BatchSocket's."""
        peer = address[0], address[1]
        grant = self._client.channels.get(peer)
        if grant is None or grant.channel is None:
            return self._send_indications(data, segment_bytes, peer)
        grant.used_at = time.monotonic()
        wrapped = wrap(grant.channel, data, segment_bytes)
        message_bytes = segment_bytes + HEADER_BYTES
        done = self._sock.send(wrapped, message_bytes, self._server)
        if done == len(wrapped):
            return len(data)
        return done // message_bytes * segment_bytes

    def _send_indications(self, data: bytes, segment_bytes: int, peer: HostPort) -> int:
        now = time.monotonic()
        for start in range(0, len(data), segment_bytes):
            wire = self._client.indication(data[start : start + segment_bytes], peer, now)
            if start == 0:
                self._poll()  # the request for the permission goes first
            if wire is None:
                self.failures["no permission to send to that peer"] += 1
            elif self._sock.send(wire, len(wire), self._server) < len(wire):
                return start
        return len(data)

    def send_with_ttl(self, data: bytes, address: Address, ttl: int) -> int:
        """Nothing is sent: it is to open NATs on the way to the peer, and not to arrive."""
        return len(data)

    def send_check(self, data: bytes, address: Address, ttl: int | None = None) -> None:
        """What the client has to say to its server, now or never."""
        if self._sock.send(data, len(data), address) < len(data):
            self.failures["socket full"] += 1

    # Receiving.

    def receive(self) -> tuple[bytes, int, Address] | None:
        """As BatchSocket's."""
        for _ in range(MAX_FUTILE):
            if self._waiting:
                datagrams = self._waiting.popleft()
                self.holds_more = bool(self._waiting)
                return datagrams
            received = self._sock.receive()
            if received is None:
                break
            data, data_bytes, source = received
            if data_bytes == len(data) >= HEADER_BYTES and source == self._server:
                # By itself, as it comes where nothing joins datagrams: in half of the time.
                channel, size = HEADER.unpack_from(data)
                grant = self._client.numbers.get(channel)
                if grant is not None and grant.peer and size == data_bytes - HEADER_BYTES:
                    grant.used_at = time.monotonic()
                    return data[HEADER_BYTES:], size, (*grant.peer, self.number)
            self._sort_untrusted(*received)
        return None

    def _sort_untrusted(self, data: bytes, segment_bytes: int, source: Address) -> None:
        if source != self._server:
            self.failures["not from the TURN server"] += 1
            return
        now = time.monotonic()
        is_said = False  # by the server itself
        for channel, piece, piece_bytes in unwrap_untrusted(data, segment_bytes):
            if channel:
                grant = self._client.numbers.get(channel)
                if grant is None or grant.peer is None:
                    self.failures["by a channel that we have not bound"] += 1
                    continue
                grant.used_at = now
                self._waiting.append((piece, piece_bytes, (*grant.peer, self.number)))
            else:
                is_said = True
                taken = self._client.handle_datagram_untrusted(piece, now)
                if taken is not None:
                    datagram, peer = taken
                    self._waiting.append((datagram, len(datagram), (*peer, self.number)))
        if is_said:
            self._poll()
