"""Messages of UDP channels: cut into DATAGRAM frames, and put together again.

A message arrives whole or not at all, and once: nothing is sent again, and a message that misses a
part for too long, or takes the place of newer ones, is dropped.  Messages may arrive in another
order than they were sent in, as UDP datagrams do.

Sans-IO; ``now`` is in seconds on any clock that does not go back.  The peer may send anything: what
one channel holds of it is bounded.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from ..._errors import BadPacket
from .frames import DATAGRAM_HEADER, encode_datagram
from .ranges import RangeSet

__all__ = ["MAX_MESSAGE_BYTES", "Assembler", "MessageQueue", "Splitter"]

MAX_MESSAGE_BYTES = 65536  # the C SDK's UDP channels

# Our choice.
MAX_UNFINISHED = 64  # messages
MAX_HELD_BYTES = 1 << 20  # 16 of the longest messages
PART_COST_BYTES = 160  # of memory besides its data; without it, one-byte parts took 100 MB
MAX_WAIT_S = 5.0  # from its first part; several round trips of the slowest path
MAX_GAPS = 256  # among the numbers of messages that are done: so far a late one is recognised

_MAX_PART_BYTES = (1 << 16) - 1  # the length field of the frame
_NUMBERS = 1 << 32  # messages are numbered modulo this


class Splitter:
    """Makes the frames of the messages that one channel sends."""

    __slots__ = ("_next", "_stream")

    def __init__(self, stream: int) -> None:
        self._stream = stream
        self._next = 0

    def split(self, message: bytes, room: int) -> list[bytes]:
        """The DATAGRAM frames of a message, each at most ``room`` bytes.

        ValueError if the message is over MAX_MESSAGE_BYTES or ``room`` is under 17 bytes.
        """
        size = min(room - DATAGRAM_HEADER.size, _MAX_PART_BYTES)
        if len(message) > MAX_MESSAGE_BYTES or size < 2:
            raise ValueError(f"a message of {len(message)} bytes in parts of {size}")
        number = self._next
        self._next = (number + 1) % _NUMBERS
        starts = range(0, len(message) or 1, size)  # an empty message has one part
        return [
            encode_datagram(self._stream, number, part, len(starts), message[start : start + size])
            for part, start in enumerate(starts)
        ]


class MessageQueue:
    """The messages of all channels of a connection that wait to be sent, in their order.

    If they become too many, the oldest are dropped: they are worth least.
    """

    __slots__ = ("_max_bytes", "_waiting", "counts", "waiting_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.counts: Counter[int] = Counter()  # of messages, by stream id
        self._waiting: deque[tuple[int, list[bytes]]] = deque()  # stream id, the frames left
        self.waiting_bytes = 0  # of their data
        self._max_bytes = max_bytes

    def put(self, stream_id: int, frames: list[bytes]) -> None:
        self._waiting.append((stream_id, frames))
        self.counts[stream_id] += 1
        self.waiting_bytes += _data_bytes(frames)
        while self.waiting_bytes > self._max_bytes and len(self._waiting) > 1:
            self._drop_first()

    def take(self, room: int, most: int) -> list[bytes]:
        """Frames that fit into ``room``; a message is dropped if one of its exceeds ``most``."""
        taken = []
        while self._waiting:
            frames = self._waiting[0][1]
            if len(frames[0]) > room:
                if len(frames[0]) > most:  # the path has become too narrow for it
                    self._drop_first()
                    continue
                break
            frame = frames.pop(0)
            room -= len(frame)
            taken.append(frame)
            self.waiting_bytes -= len(frame) - DATAGRAM_HEADER.size
            if not frames:
                self._drop_first()
        return taken

    def clear(self) -> None:
        self._waiting.clear()
        self.counts.clear()
        self.waiting_bytes = 0

    def _drop_first(self) -> None:
        """It has been sent, or is given up."""
        stream_id, frames = self._waiting.popleft()
        self.waiting_bytes -= _data_bytes(frames)
        self.counts[stream_id] -= 1
        if not self.counts[stream_id]:
            del self.counts[stream_id]


def _data_bytes(frames: list[bytes]) -> int:
    return sum(map(len, frames)) - len(frames) * DATAGRAM_HEADER.size


@dataclass(slots=True)
class _Unfinished:
    parts: int
    since: float
    size: int = 0  # bytes of data
    cost: int = 0
    data: dict[int, bytes] = field(default_factory=dict)


class Assembler:
    """Puts the messages that one channel receives together."""

    __slots__ = ("_done", "_held", "_unfinished", "dropped")

    def __init__(self) -> None:
        # Numbers of messages that were delivered or dropped, counted on beyond 2^32.  A set of few
        # ranges: numbers come nearly in order, and if there are too many gaps the oldest is closed.
        self._done = RangeSet([(-1, 0)])
        self._unfinished: dict[int, _Unfinished] = {}  # the oldest first
        self._held = 0  # the cost of all of them, in bytes
        self.dropped = 0  # messages of which only some parts have come

    def add_untrusted(
        self, message: int, part: int, parts: int, data: bytes, now: float
    ) -> bytes | None:
        """Take a part; returns the message if this completes it.  BadPacket for a breach."""
        if part >= parts or (parts > 1 and not data):
            raise BadPacket(f"part {part} of {parts} of a message, {len(data)} bytes")
        self.expire(now)
        number = self._full_number(message)
        if number < 0 or number in self._done:
            return None
        entry = self._unfinished.get(number) or _Unfinished(parts, now)
        if parts != entry.parts:
            raise BadPacket(f"a message of {entry.parts} parts and of {parts}")
        if part in entry.data:
            return None
        if entry.size + len(data) > MAX_MESSAGE_BYTES:
            raise BadPacket(f"a message of over {MAX_MESSAGE_BYTES} bytes")
        if parts == 1:
            self._finish(number)
            return data
        self._unfinished[number] = entry
        entry.data[part] = data
        entry.size += len(data)
        entry.cost += len(data) + PART_COST_BYTES
        self._held += len(data) + PART_COST_BYTES
        if len(entry.data) == parts:
            self._forget(number)
            return b"".join(entry.data[index] for index in range(parts))
        while len(self._unfinished) > MAX_UNFINISHED or self._held > MAX_HELD_BYTES:
            self._drop_oldest()
        return None

    def expire(self, now: float) -> None:
        """Drop what has waited too long; ``add_untrusted`` does so, too."""
        while self._unfinished:
            if now - next(iter(self._unfinished.values())).since < MAX_WAIT_S:
                break
            self._drop_oldest()

    def _full_number(self, message: int) -> int:
        """The number, of those that end in these 32 bits, nearest to the highest one done."""
        highest = self._done.largest
        half = _NUMBERS // 2
        return highest + (message - highest + half) % _NUMBERS - half

    def _drop_oldest(self) -> None:
        self._forget(next(iter(self._unfinished)))
        self.dropped += 1

    def _forget(self, number: int) -> None:
        self._held -= self._unfinished.pop(number).cost
        self._finish(number)

    def _finish(self, number: int) -> None:
        self._done.add(number, number + 1)
        if len(self._done) > MAX_GAPS:
            first, _ = self._done.pop_first()
            second, _ = next(iter(self._done))
            self._done.add(first, second)
