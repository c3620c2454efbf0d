"""A connection simple enough to be right at a glance, to try the driver and the network with.

One stream each way, a fixed window, every packet repeated until it is acknowledged.  Packets:
the header of ours, then ``D`` offset bytes, ``F`` offset (the end) or ``A`` offset (received
in order up to there).  Nothing is sealed: use it on links that do not corrupt.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from kkp2p_compat._address import Address
from kkp2p_compat._errors import LinkLost
from kkp2p_compat.transport.udp.events import Closed, Readable, Transmit

__all__ = ["STREAM", "ToyConnection"]

STREAM = 0
CHUNK_BYTES = 1000
WINDOW_BYTES = 64_000
REPEAT_S = 0.3
PATIENCE = 20  # repetitions without an answer

_PREFIX = struct.Struct(">QQcQ")


class ToyConnection:
    """The interface of PeerConnection, as far as the driver uses it."""

    def __init__(self, local_id: int, remote_id: int, address: Address) -> None:
        self.local_id, self.remote_id, self.address = local_id, remote_id, address
        self._events: deque[Any] = deque()
        self._sending = bytearray()
        self._finished = False
        self._acked = self._sent = 0
        self._received = bytearray()
        self._end: int | None = None
        self._consumed = self._in_order = 0
        self._ack_due = False
        self._repeat_at: float | None = None
        self._repeats = 0

    @property
    def streams(self) -> ToyConnection:
        """There is one stream, and no table of them."""
        return self

    def handle_datagrams(self, data: bytes, segment: int, address: Address, now: float) -> None:
        for start in range(0, len(data), segment):
            _, _, kind, offset = _PREFIX.unpack_from(data, start)
            body = data[start + _PREFIX.size : start + segment]
            if kind == b"A":
                if offset > self._acked:
                    self._acked, self._repeats = offset, 0
                    self._repeat_at = now + REPEAT_S
                continue
            self._ack_due = True
            if kind == b"F":
                self._end = offset
            if offset == self._in_order:
                self._received += body
                self._in_order += len(body) + (kind == b"F")
                self._events.append(Readable(STREAM))

    def gather_s(self, now: float) -> float:
        return 0.0

    def handle_timer(self, now: float) -> None:
        self._sent, self._repeat_at = self._acked, None
        self._repeats += 1
        if self._repeats > PATIENCE:
            self._events.append(Closed(LinkLost()))

    def poll_event(self) -> Any:
        return self._events.popleft() if self._events else None

    def poll_transmit(self, now: float) -> Transmit | None:
        packets: list[bytes] = []
        end = len(self._sending)
        if self._ack_due:
            self._ack_due = False
            return Transmit(self._packet(b"A", self._in_order), 1500, self.address)
        while self._sent < min(end, self._acked + WINDOW_BYTES) and len(packets) < 60:
            packets.append(
                self._packet(b"D", self._sent, self._sending[self._sent : self._sent + CHUNK_BYTES])
            )
            self._sent = min(self._sent + CHUNK_BYTES, end)
        if self._sent == end and self._finished and not packets:
            packets.append(self._packet(b"F", end))
            self._sent += 1
        if not packets:
            return None
        if self._repeat_at is None:
            self._repeat_at = now + REPEAT_S
        return Transmit(b"".join(packets), len(packets[0]), self.address)

    def _packet(self, kind: bytes, offset: int, body: bytes | bytearray = b"") -> bytes:
        return _PREFIX.pack(0x40 << 56, self.remote_id, kind, offset) + body

    def next_timer(self) -> float | None:
        waiting = len(self._sending) + self._finished
        return self._repeat_at if self._acked < waiting else None

    def writable_bytes(self, stream_id: int) -> int:
        return 2 * WINDOW_BYTES

    def write(self, stream_id: int, data: bytes) -> None:
        self._sending += data

    def finish(self, stream_id: int) -> None:
        self._finished = True

    def peek(self, stream_id: int) -> list[memoryview]:
        return [memoryview(bytes(self._received))]

    def consume(self, stream_id: int, count: int) -> None:
        del self._received[:count]
        self._consumed += count

    def at_end(self, stream_id: int) -> bool:
        return self._in_order - 1 == self._end and not self._received
