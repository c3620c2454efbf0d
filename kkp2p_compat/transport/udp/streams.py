"""The two halves of a stream: what we send, and what we receive.

``SendStream`` keeps every byte until the peer has it, and knows which were lost.  It is done when
all of it and its end were acknowledged, or its reset was.  ``ReceiveStream`` puts pieces in order,
whatever order, overlap or repetition they come in, and is done when the application has taken all
of it, or nobody wants it any more.

Both count in bytes of the stream from its start ("offset").  Neither knows of packets, time or
sockets.  RFC 9000 sections 2 and 3 are the model; a stream's numbers are 64 bits.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from ..._errors import BadPacket
from .flow_control import ReceiveBudget, ReceiveWindow
from .ranges import RangeSet

__all__ = ["ReceiveStream", "SendStream"]

# Our choices.
MERGE_BYTES = 2048  # a last chunk shorter than this is appended to: tiny writes make few objects
SMALL_BYTES = 256  # received pieces that are smaller on average are merged
MAX_PIECES = 32_768  # of a connection, out of order: 1.5 times 24 MiB of 1,200-byte packets


class SendStream:
    """What the application wrote, until the peer acknowledges it."""

    __slots__ = (
        "_acked",
        "_chunks",
        "_fin_acked",
        "_starts",
        "done",
        "end",
        "fin_pending",
        "finished",
        "held",
        "limit",
        "lost",
        "next_offset",
        "reset",
        "stream_id",
    )

    def __init__(self, stream_id: int, limit: int) -> None:
        self.stream_id = stream_id
        self.held = False  # nothing may be sent yet
        self.limit = limit  # the peer's MAX_STREAM_DATA: it takes offsets below this
        self.end = 0  # offset after the last byte written
        self.next_offset = 0  # of the first byte that was never sent
        self.lost = RangeSet()  # to be sent again
        self.finished = False  # nothing more will be written
        self.fin_pending = False  # the end has to be sent, or sent again
        self.reset = False
        self.done = False
        self._starts: list[int] = []  # of each chunk, ascending
        self._chunks: list[bytes] = []
        self._acked = RangeSet()
        self._fin_acked = False

    @property
    def unsent_bytes(self) -> int:
        return self.end - self.next_offset

    @property
    def acked_bytes(self) -> int:
        return sum(stop - start for start, stop in self._acked)

    def begin(self, early_bytes: int) -> None:
        """So many bytes, the first, go along with OPEN."""
        self.end = self.next_offset = early_bytes

    def handle_opened(self) -> None:
        """The peer knows the stream, and has what went along with OPEN."""
        self.held = False
        if self.next_offset:
            self.handle_acked(0, self.next_offset, False)

    def write(self, data: bytes) -> None:
        if self.finished:
            raise ValueError("written after the end")
        if not data:
            return
        chunks = self._chunks
        if chunks and len(chunks[-1]) < MERGE_BYTES:
            chunks[-1] += data
        else:
            chunks.append(data)
            self._starts.append(self.end)
        self.end += len(data)

    def finish(self) -> None:
        if not self.finished:
            self.finished = self.fin_pending = True

    def give_up(self) -> bool:
        """Forget all that was not acknowledged; True: the peer has to be told, by a RESET."""
        if self.done or self.reset:
            return False
        self.finished = self.reset = True
        self.fin_pending = False
        self.lost = RangeSet()
        self._chunks.clear()
        self._starts.clear()
        return True

    def sendable(self, credit: int) -> bool:
        """Whether there is something to send; ``credit``: new bytes that the connection allows."""
        if self.reset or self.held:
            return False
        new = self.next_offset < min(self.end, self.limit) and credit > 0
        return new or bool(self.lost) or (self.fin_pending and self.next_offset == self.end)

    def next_range(self, credit: int) -> tuple[int, int]:
        """What to send next: what was lost first, then new bytes, at most ``credit`` of them."""
        if self.lost:
            return next(iter(self.lost))
        start = self.next_offset
        return start, max(start, min(start + credit, self.end, self.limit))

    def mark_sent(self, start: int, stop: int) -> int:
        """A range at the start of ``next_range`` was sent; returns how many bytes of it are new."""
        if self.lost:
            self.lost.subtract(start, stop)
            return 0
        self.next_offset = stop
        return stop - start

    def ends_at(self, offset: int) -> bool:
        """Whether a frame whose data stops here carries the end, too; then it counts as sent."""
        if self.fin_pending and offset == self.end == self.next_offset and not self.lost:
            self.fin_pending = False
            return True
        return False

    def view(self, start: int, stop: int) -> memoryview:
        """The bytes of a range that has been taken."""
        index = bisect_right(self._starts, start) - 1
        first = self._starts[index]
        if stop - first <= len(self._chunks[index]):
            return memoryview(self._chunks[index])[start - first : stop - first]
        last = bisect_left(self._starts, stop) - 1
        parts = self._chunks[index : last + 1]
        parts[0] = parts[0][start - first :]
        parts[-1] = parts[-1][: stop - self._starts[last]]
        return memoryview(b"".join(parts))

    def handle_acked(self, start: int, stop: int, fin: bool) -> None:
        if self.reset:
            return
        if stop > start:
            self._acked.add(start, stop)
            if self.lost:
                self.lost.subtract(start, stop)
        if fin:
            self._fin_acked = True
            self.fin_pending = False
        self._drop_acknowledged()
        if self._fin_acked and self._acked.covers(0, self.end):
            self.done = True

    def _drop_acknowledged(self) -> None:
        if not self._acked:
            return
        first, stop = next(iter(self._acked))
        if first > 0:
            return
        starts = self._starts
        count = bisect_right(starts, stop)
        if count and (count < len(starts) or stop < self.end):
            count -= 1  # the last of them is not acknowledged to its end
        if count:
            del starts[:count]
            del self._chunks[:count]

    def handle_lost(self, start: int, stop: int, fin: bool) -> None:
        if self.reset or self.done:
            return
        for gap_start, gap_stop in self._acked.missing(start, stop):
            self.lost.add(gap_start, gap_stop)
        if fin and not self._fin_acked:
            self.fin_pending = True

    def handle_reset_acked(self) -> None:
        if self.reset:
            self.done = True


class ReceiveStream:
    """What the peer sends, put in order until the application has taken it."""

    __slots__ = (
        "_budget",
        "_pieces",
        "_ready",
        "_starts",
        "consumed",
        "end_seen",
        "final_size",
        "highest",
        "next_offset",
        "stopped",
        "was_reset",
        "window",
    )

    def __init__(self, window: ReceiveWindow, budget: ReceiveBudget) -> None:
        self.window = window
        self._budget = budget
        self.highest = 0  # the furthest byte that came
        self.consumed = 0  # offset up to which the application has it
        self.next_offset = 0  # offset up to which all is here
        self.final_size: int | None = None
        self.stopped = False  # nobody wants it any more
        self.was_reset = False
        self.end_seen = False  # by the application
        self._ready: list[bytes] = []
        self._starts: list[int] = []  # of the pieces out of order, ascending, none overlapping
        self._pieces: dict[int, bytes] = {}

    @property
    def done(self) -> bool:
        """Whether nothing is left to come or to take."""
        if self.final_size is None:
            return False
        return self.was_reset or self.stopped or self.end_seen

    @property
    def at_end(self) -> bool:
        return self.consumed == self.final_size and not self.was_reset

    @property
    def is_taken(self) -> bool:
        """Whether the application has all that is in order."""
        return self.consumed == self.next_offset

    def handle_data(self, offset: int, pieces: list[bytes], fin: bool) -> bool:
        """Take ``pieces`` that follow each other from ``offset`` on; True: something can be read.

        Raises BadPacket for a breach.
        """
        stop = offset + sum(map(len, pieces))
        if stop > self.window.limit:
            raise BadPacket("stream data beyond the limit that was announced")
        if fin:
            self._set_final_size(stop)
        elif self.final_size is not None and stop > self.final_size:
            raise BadPacket("stream data behind the end")
        if stop > self.highest:
            self.highest = stop
        if self.was_reset:
            return False
        if self.stopped:
            self.consumed = self.next_offset = self.highest
            return False
        if offset == self.next_offset and not self._starts:
            if stop > offset:
                if stop - offset < SMALL_BYTES * len(pieces):
                    pieces = self._merge(pieces)
                self._ready += pieces
                self.next_offset = stop
            return stop > offset or fin
        if stop <= self.next_offset:
            return fin and self.next_offset == self.final_size
        for piece in pieces:
            self._keep(offset, offset + len(piece), piece)
            offset += len(piece)
        return self._advance()

    def _merge(self, pieces: list[bytes]) -> list[bytes]:
        """Small pieces as one: a peer's single bytes would take many times the window."""
        if self._ready and len(self._ready[-1]) < MERGE_BYTES:
            pieces = [self._ready.pop(), *pieces]
        return [b"".join(pieces)]

    def _set_final_size(self, size: int) -> None:
        if self.final_size not in (None, size) or size < self.highest:
            raise BadPacket("a stream with two ends")
        self.final_size = size

    def _keep(self, offset: int, stop: int, data: bytes) -> None:
        """Store the parts of a piece that are not here yet."""
        start = max(offset, self.next_offset)
        starts, pieces = self._starts, self._pieces
        index = bisect_right(starts, start)
        if index:
            before = starts[index - 1]
            start = max(start, before + len(pieces[before]))
        while start < stop:
            until = min(stop, starts[index]) if index < len(starts) else stop
            if start < until:
                if self._budget.pieces >= MAX_PIECES:
                    raise BadPacket("streams in too many pieces")
                self._budget.pieces += 1
                pieces[start] = data[start - offset : until - offset]
                starts.insert(index, start)
                index += 1
            if index == len(starts):
                break
            start = starts[index] + len(pieces[starts[index]])
            index += 1

    def _advance(self) -> bool:
        """Move the pieces that follow without a gap to what can be read."""
        following = []
        for start in self._starts:
            if start != self.next_offset:
                break
            piece = self._pieces.pop(start)
            following.append(piece)
            self.next_offset += len(piece)
        if not following:
            return False
        del self._starts[: len(following)]
        self._budget.pieces -= len(following)
        if sum(map(len, following)) < SMALL_BYTES * len(following):
            following = self._merge(following)
        self._ready += following
        return True

    def handle_reset(self, final_size: int) -> bool:
        """The peer gave up; True: the application has to be told."""
        if final_size > self.window.limit:
            raise BadPacket("a reset beyond the limit that was announced")
        whole = self.final_size is not None and self.next_offset == self.final_size
        self._set_final_size(final_size)
        self.highest = final_size
        if whole or self.was_reset:
            return False  # all had come before; RFC 9000 section 3.2 lets us deliver it
        self.was_reset = True
        self._discard()
        return not self.stopped

    def forget(self) -> None:
        """The stream is over: give back what it has taken of the budget."""
        self._discard()
        self.window.restart()

    def spare(self, now: float) -> None:
        """Other streams need a larger window: one that does nothing gives back its own."""
        if self.consumed == self.highest and self.window.idle(now):
            self.window.restart()

    def stop(self) -> None:
        """Nobody will read: what is here and what will come is dropped, and counts as taken."""
        self.stopped = True
        self._discard()
        self.consumed = self.next_offset = self.highest

    def _discard(self) -> None:
        self._ready.clear()
        self._budget.pieces -= len(self._starts)
        self._starts.clear()
        self._pieces.clear()

    def peek(self) -> list[bytes]:
        return self._ready

    def consume(self, count: int) -> None:
        """The application has ``count`` bytes more."""
        self.consumed += count
        ready = self._ready
        whole = 0
        for piece in ready:
            if len(piece) > count:
                break
            count -= len(piece)
            whole += 1
        del ready[:whole]
        if count:
            ready[0] = ready[0][count:]
