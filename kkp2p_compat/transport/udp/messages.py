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

from ..._codes import MAX_MESSAGE_BYTES
from ..._errors import BadPacket
from .frames import DATAGRAM_HEADER, encode_datagram
from .ranges import RangeSet

__all__ = ["COST_BYTES", "MAX_QUEUED_S", "MIN_QUEUE_BYTES", "Assembler", "MessageQueue", "Splitter"]


# Our choice.
MIN_QUEUE_BYTES = 128 << 10  # of messages to send: what may wait on any path ...
MAX_QUEUED_S = (
    0.25  # ... and on a fast one as much as leaves in this time: later it is worth little
)
MAX_UNFINISHED = 64  # messages
MAX_HELD_BYTES = 1 << 20  # 16 of the longest messages
COST_BYTES = 160  # of memory, of a part besides its data: one-byte parts took 100 MB without it
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
    """The messages of all channels of a connection that wait to be sent.

    Channels take turns, a packet each (as fq_codel does, RFC 8290), so that none of them waits for
    another's queue.  If they become too many, a channel with more than its share loses its oldest:
    they are worth least.
    """

    __slots__ = ("_bytes", "_largest", "dropped", "dropped_of", "waiting", "waiting_bytes")

    def __init__(self) -> None:
        self.waiting: dict[int, deque[list[bytes]]] = {}  # by stream id: the frames left of each
        self.waiting_bytes = 0  # with what they cost besides
        self.dropped = 0  # messages
        self.dropped_of: Counter[int] = Counter()  # the same, by stream id
        self._bytes: dict[int, int] = {}
        self._largest = 0  # the channel that had most when it was last looked for

    def put(self, stream_id: int, frames: list[bytes], most_bytes: int) -> None:
        queue = self.waiting.get(stream_id)
        if queue is None:
            queue = self.waiting[stream_id] = deque()
            self._bytes[stream_id] = 0
        queue.append(frames)
        self._count(stream_id, _cost(frames))
        while self.waiting_bytes > most_bytes and (len(self.waiting) > 1 or len(queue) > 1):
            self._give_up_first(self._choose(stream_id))

    def take(self, room: int, most: int) -> list[bytes]:
        """Frames that fit into ``room``; a message is dropped if one of its exceeds ``most``."""
        taken: list[bytes] = []
        served = None
        while self.waiting:
            stream_id, queue = next(iter(self.waiting.items()))
            frames = queue[0]
            if len(frames[0]) > most:  # the path has become too narrow for it
                self._give_up_first(stream_id)
                continue
            if len(frames[0]) > room:
                if stream_id == served:
                    self.waiting[stream_id] = self.waiting.pop(stream_id)  # the next one's turn
                break
            frame, served = frames.pop(0), stream_id
            room -= len(frame)
            taken.append(frame)
            self._count(stream_id, -len(frame) - COST_BYTES)
            if not frames:
                self._drop_first(stream_id)
        return taken

    def clear(self) -> None:
        self.waiting.clear()
        self._bytes.clear()
        self.waiting_bytes = 0

    def _choose(self, stream_id: int) -> int:
        """One that has its share of the queue or more: this one, or the largest."""
        share = self.waiting_bytes / len(self.waiting)
        for candidate in (stream_id, self._largest):
            if self._bytes.get(candidate, 0) >= share:
                return candidate
        self._largest = max(self._bytes, key=self._bytes.__getitem__)
        return self._largest

    def _give_up_first(self, stream_id: int) -> None:
        self._drop_first(stream_id)
        self.dropped += 1
        self.dropped_of[stream_id] += 1

    def _drop_first(self, stream_id: int) -> None:
        """It has been sent, or is given up."""
        queue = self.waiting[stream_id]
        self._count(stream_id, -_cost(queue.popleft()))
        if not queue:
            del self.waiting[stream_id], self._bytes[stream_id]

    def _count(self, stream_id: int, size: int) -> None:
        self._bytes[stream_id] += size
        self.waiting_bytes += size


def _cost(frames: list[bytes]) -> int:
    return sum(map(len, frames)) + COST_BYTES * len(frames)


@dataclass(slots=True)
class _Unfinished:
    parts: int
    since: float
    size: int = 0  # bytes of data
    cost: int = 0
    data: dict[int, bytes] = field(default_factory=dict)


class Assembler:
    """Puts the messages that one channel receives together."""

    __slots__ = ("_delivered", "_done", "_held", "_unfinished", "dropped")

    def __init__(self) -> None:
        # Numbers of messages that were delivered or dropped, counted on beyond 2^32.  A set of few
        # ranges: numbers come nearly in order, and if there are too many gaps the oldest is closed.
        self._done = RangeSet([(-1, 0)])
        self._unfinished: dict[int, _Unfinished] = {}  # the oldest first
        self._held = 0  # the cost of all of them, in bytes
        self.dropped = 0  # messages of which only some parts have come
        self._delivered = 0  # messages

    @property
    def missing(self) -> int:
        """Messages that have not come, though a newer one has."""
        return self._done.largest + 1 - self._delivered

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
            self._delivered += 1
            return data
        self._unfinished[number] = entry
        entry.data[part] = data
        entry.size += len(data)
        entry.cost += len(data) + COST_BYTES
        self._held += len(data) + COST_BYTES
        if len(entry.data) == parts:
            self._forget(number)
            self._delivered += 1
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
