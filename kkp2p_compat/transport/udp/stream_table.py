"""The streams of a connection: opening and ending them, their bytes and messages, flow control.

Each carries one channel, as the application calls it.  This part knows nothing of packets, paths or
time-outs: ``handle_*`` take the peer's frames, the plain verbs are the application's, and the
packer is told what there is to send.  A frame that breaks the protocol raises BadPacket, which ends
the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..._errors import BadPacket
from . import frames as f
from .clock import Clock
from .duplex_stream import DuplexStream
from .events import (
    ChannelOffered,
    ChannelOpened,
    ChannelRefused,
    Ended,
    EventQueue,
    MessageReceived,
    ResetReceived,
    Stopped,
    Writable,
)
from .flow_control import MAX_UNTAKEN_BYTES, SLOW_S, ReceiveBudget, ReceiveWindow
from .messages import MAX_QUEUED_S, MIN_QUEUE_BYTES
from .packing import INITIAL_DATA_WINDOW_BYTES, Packer
from .ranges import RangeSet
from .recovery import Recovery
from .transport_settings import TransportSettings

__all__ = [
    "EARLY_BYTES",
    "REFUSED_BUSY",
    "REFUSED_MOVED",
    "REFUSED_SILENT",
    "REFUSED_UNSUPPORTED",
    "StreamTable",
]

# REFUSED reasons: our choice, docs/protocol.rst.
REFUSED_BUSY = 1
REFUSED_UNSUPPORTED = 2
REFUSED_MOVED = 3
REFUSED_SILENT = 4

# Our choices.
EARLY_BYTES = 400  # with OPEN; it must fit into a packet of the narrowest path
MAX_CHANNELS = 16_384  # that a peer may hold open
CLOGGED_S = 1.0  # without credit for new bytes
MAX_ID_RANGES = 1024  # of the ids that a peer has opened: reordering makes a few
MIN_UNSENT_BYTES, MAX_UNSENT_BYTES = 16 * 1024, 1024 * 1024  # taken from a writer before it is sent
UNSENT_BYTES = 4 * 1024 * 1024  # of all writers together, as long as the minimum leaves it so
# A small share costs as much as a large one: a read, a part of a batch, and at the peer an event, a
# write and a wake-up.  So of many writers a few have this much, while the others wait in line ...
TURN_BYTES = 128 * 1024
ROUND_S = 0.5  # ... as far as it takes no longer to come round to all of them


class StreamTable:
    """``by_id`` has the streams that are not over; ``events`` gets what applications must know."""

    def __init__(
        self,
        is_caller: bool,
        packer: Packer,
        recovery: Recovery,
        clock: Clock,
        events: EventQueue,
        settings: TransportSettings,
    ) -> None:
        self.by_id: dict[int, DuplexStream] = {}
        self._is_caller = is_caller
        self._packer = packer
        self._recovery = recovery  # its round trip
        self._clock = clock
        self._events = events
        self._max_window_bytes = settings.max_stream_window_bytes
        self._max_queue_bytes = settings.max_message_queue_bytes
        self._next_id = 0 if is_caller else 1
        self._peer_ids = RangeSet()  # of the streams that the peer opened, halved
        self._turned_away: int | None = None  # one too many, whose first bytes may follow its OPEN
        self._data_window = ReceiveWindow(INITIAL_DATA_WINDOW_BYTES, settings.max_data_window_bytes)
        self.credited_at = clock.now  # when the peer last raised its limit for all streams
        self._data_received = 0
        self._data_consumed = 0
        self._budget = ReceiveBudget()
        self._waiting_writers: set[int] = set()  # streams whose application was told: no room
        self._spared_at = clock.now  # when streams that do nothing last gave back their windows
        self.line: dict[int, None] = {}  # writers that have used up their turn, in their order
        self._called = 0  # of them, by events that wait

    def clogged(self, now: float) -> bool:
        """Whether data that applications do not read takes most of what a connection may hold."""
        untaken = self._data_received - self._data_consumed
        starved = not self._packer.data_credit and now - self.credited_at > CLOGGED_S
        return untaken > MAX_UNTAKEN_BYTES // 2 or starved

    # From the application.

    def open(self, channel_type: int, encrypt_data: int, desc: int, early: bytes = b"") -> int:
        """Ask the peer for a channel; ChannelOpened or ChannelRefused follows, or Closed.

        ``early``: the first bytes of the stream, at most EARLY_BYTES; they count as sent.  Of a UDP
        channel it is the first message, of any length, which is lost if the peer refuses.
        """
        stream_id = self._next_id
        self._next_id += 2
        stream = self.by_id[stream_id] = self._new_stream(stream_id, channel_type, ours=True)
        if stream.splitter is not None:
            self._packer.queue_control(f.Open(stream_id, channel_type, encrypt_data, desc))
            if early:
                self.send_message(stream_id, early)
            return stream_id
        size = len(early) if len(early) <= self._packer.data_credit else 0
        stream.send.begin(size)
        # Never parted: bytes that came before their OPEN would be acknowledged and dropped.
        tail = f.encode_stream_header(stream_id, 0, size, False) + early if size else b""
        self._packer.queue_control(f.Open(stream_id, channel_type, encrypt_data, desc), tail, size)
        return stream_id

    def sent_bytes(self, stream_id: int) -> int:
        stream = self.by_id.get(stream_id)
        return 0 if stream is None else stream.send.next_offset

    def accept(self, stream_id: int) -> None:
        self.by_id[stream_id].opened = True
        self._packer.queue_control(f.Opened(stream_id))

    def refuse(self, stream_id: int, reason: int) -> None:
        self._forget(self.by_id[stream_id])
        self._packer.queue_control(f.Refused(stream_id, reason))

    def writable_bytes(self, stream_id: int) -> int:
        """How much ``write`` takes now; after 0 a Writable follows.

        Only a writer that has used up its share waits in line, so not one that writes little.
        """
        stream = self.by_id.get(stream_id)
        if stream is None or stream.send.finished or stream_id in self.line:
            return 0
        room = self._share() - stream.send.unsent_bytes
        if room <= 0:
            self._waiting_writers.add(stream_id)
            return 0
        return room

    def _share(self) -> int:
        """What a writer may be ahead by."""
        writers = max(1, self._packer.active + len(self.line))
        share = UNSENT_BYTES // writers
        if share < TURN_BYTES:
            in_a_round = int(self._packer.pacing_bytes_per_s * ROUND_S)
            share = max(share, min(TURN_BYTES, in_a_round // writers))
        share = max(MIN_UNSENT_BYTES, min(MAX_UNSENT_BYTES, share))
        # In whole packets: what is left over would go in one of its own, or with another stream.
        return share - share % (self._packer.room - f.STREAM_HEADER.size) or share

    def write(self, stream_id: int, data: bytes) -> None:
        """ValueError after ``finish``, KeyError when the channel is over."""
        send = self.by_id[stream_id].send
        send.write(data)
        self._packer.activate((send,))

    def finish(self, stream_id: int) -> None:
        """The end of the stream follows what was written."""
        stream = self.by_id.get(stream_id)
        if stream is not None:
            stream.send.finish()
            self._packer.activate((stream.send,))

    def reset(self, stream_id: int, reason: int) -> None:
        """Give up what was written."""
        stream = self.by_id.get(stream_id)
        if stream is not None:
            sent = stream.send.next_offset
            if stream.send.give_up():
                self._packer.drop(stream.send)
                self._packer.queue_control(f.Reset(stream_id, sent, reason))

    def peek(self, stream_id: int) -> list[bytes]:
        """What can be read, in order; it stays until ``consume``."""
        stream = self.by_id.get(stream_id)
        return stream.receive.peek() if stream is not None else []

    def consume(self, stream_id: int, count: int) -> None:
        """The application has the first ``count`` bytes of what ``peek`` showed."""
        stream = self.by_id[stream_id]
        receive = stream.receive
        receive.consume(count)
        if receive.final_size is None and receive.window.renew(
            receive.consumed, self._clock.now, self._recovery.rtt.smoothed_s, not receive.is_taken
        ):
            self._packer.announce_stream(stream)
        if self._budget.short:
            self._spare()
        self._take_up(count)
        if receive.done:
            self._forget_if_done(stream)

    def _take_up(self, count: int) -> None:
        self._data_consumed += count
        if self._data_window.renew_all(
            self._data_received, self._data_consumed, self._clock.now, self._recovery.rtt.smoothed_s
        ):
            self._packer.announce_data(self._data_window)

    def _spare(self) -> None:
        """A window could not grow: streams that do nothing give back what they do not need."""
        self._budget.short = False
        if self._clock.now - self._spared_at >= SLOW_S:
            self._spared_at = self._clock.now
            for stream in self.by_id.values():
                stream.receive.spare(self._clock.now)

    def at_end(self, stream_id: int) -> bool:
        """Whether all was read, to the end that the peer has set.

        Ask after each Readable: an end that nobody has seen is kept.
        """
        stream = self.by_id.get(stream_id)
        if stream is None or not stream.receive.at_end:
            return False
        if not stream.receive.end_seen:
            stream.receive.end_seen = True
            self._forget_if_done(stream)
        return True

    def stop(self, stream_id: int) -> None:
        """Read no more; the peer is told not to send."""
        stream = self.by_id.get(stream_id)
        if stream is None or stream.receive.stopped or stream.receive.done:
            return
        receive = stream.receive
        taken = receive.consumed
        receive.stop()
        self._take_up(receive.consumed - taken)
        self._packer.queue_control(f.Stop(stream_id))
        self._forget_if_done(stream)

    def send_message(self, stream_id: int, data: bytes) -> None:
        """Send a message of a UDP channel once, whole or not at all."""
        stream = self.by_id[stream_id]
        if stream.splitter is None:
            raise ValueError("not a UDP channel")
        stream.message_bytes_sent += len(data)
        packer = self._packer
        timely = int(packer.pacing_bytes_per_s * MAX_QUEUED_S)
        most = min(max(timely, MIN_QUEUE_BYTES), self._max_queue_bytes)
        packer.messages.put(stream_id, stream.splitter.split(data, packer.room), most)

    # The peer's frames, and what it has acknowledged.

    def handle_frame(self, frame: f.Frame) -> None:
        self._handlers[type(frame)](self, frame)

    def handle_data(self, stream_id: int, offset: int, pieces: list[bytes], fin: bool) -> None:
        """One or more STREAM frames whose data follows each other."""
        stream = self.by_id.get(stream_id)
        if stream is None:  # it is over, and the peer repeats itself
            if stream_id == self._turned_away:
                self._turned_away = None
                self._count_received(count := sum(map(len, pieces)))
                self._take_up(count)
            return
        receive = stream.receive
        before, keeps_up = receive.highest, receive.is_taken
        fresh = receive.handle_data(offset, pieces, fin)
        if receive.highest != before:
            self._count_received(receive.highest - before)
            if keeps_up and receive.window.widen(
                receive.highest, receive.consumed, self._clock.now, self._recovery.rtt.smoothed_s
            ):
                self._packer.announce_stream(stream)
            if receive.stopped:
                self._take_up(receive.highest - before)
        if fresh:
            self._events.put_readable(stream_id)
        if receive.done:
            self._forget_if_done(stream)

    def _handle_stream(self, frame: f.Stream) -> None:
        self.handle_data(frame.stream, frame.offset, [bytes(frame.data)], frame.fin)

    def _count_received(self, count: int) -> None:
        self._data_received += count
        window = self._data_window
        if self._data_received > window.limit:
            raise BadPacket("more data than the connection's limit")
        if window.make_room(self._data_received, self._data_consumed):
            self._packer.announce_data(window)

    def _handle_open(self, frame: f.Open) -> None:
        index, ours = frame.stream >> 1, (frame.stream & 1) == (0 if self._is_caller else 1)
        if ours:
            raise BadPacket("a channel opened under our number")
        if index in self._peer_ids:
            return  # repeated
        self._peer_ids.add(index, index + 1)
        if len(self._peer_ids) > MAX_ID_RANGES:
            raise BadPacket("channel numbers with too many gaps")
        if len(self.by_id) >= MAX_CHANNELS:
            self._turned_away = frame.stream
            self._packer.queue_control(f.Refused(frame.stream, REFUSED_BUSY))
            return
        self.by_id[frame.stream] = self._new_stream(frame.stream, frame.channel_type)
        self._events.put(
            ChannelOffered(frame.stream, frame.channel_type, frame.encrypt_data, frame.desc)
        )

    def _handle_opened(self, frame: f.Opened) -> None:
        stream = self.by_id.get(frame.stream)
        if stream is not None and stream.ours and not stream.opened:
            stream.opened = True
            stream.send.handle_opened()
            self._packer.activate((stream.send,))
            self._events.put(ChannelOpened(frame.stream))

    def _handle_refused(self, frame: f.Refused) -> None:
        stream = self.by_id.get(frame.stream)
        if stream is not None and stream.ours and not stream.opened:
            self._forget(stream)
            self._events.put(ChannelRefused(frame.stream, frame.reason))

    def _handle_reset(self, frame: f.Reset) -> None:
        stream = self.by_id.get(frame.stream)
        if stream is None:
            return
        receive = stream.receive
        before, taken = receive.highest, receive.consumed
        tell = receive.handle_reset(frame.final_size)
        self._count_received(receive.highest - before)
        if receive.was_reset:
            self._take_up(receive.highest - taken)
            receive.consumed = receive.highest
        if tell:
            self._events.put(ResetReceived(frame.stream, frame.reason))
        self._forget_if_done(stream)

    def _handle_stop(self, frame: f.Stop) -> None:
        stream = self.by_id.get(frame.stream)
        if stream is None or stream.send.reset or stream.send.done:
            return
        self.reset(frame.stream, 0)
        self._events.put(Stopped(frame.stream))

    def _handle_datagram(self, frame: f.Datagram) -> None:
        stream = self.by_id.get(frame.stream)
        if stream is None or stream.assembler is None or stream.receive.stopped:
            return
        message = stream.assembler.add_untrusted(
            frame.message, frame.part, frame.parts, frame.data, self._clock.now
        )
        if message is not None:
            stream.message_bytes_received += len(message)
            self._events.put(MessageReceived(frame.stream, message))

    def _handle_max_data(self, frame: f.MaxData) -> None:
        if frame.limit > self._packer.max_data:
            self._packer.max_data = frame.limit
            self.credited_at = self._clock.now
            self._packer.activate(stream.send for stream in self.by_id.values())

    def _handle_max_stream_data(self, frame: f.MaxStreamData) -> None:
        stream = self.by_id.get(frame.stream)
        if stream is not None and frame.limit > stream.send.limit:
            stream.send.limit = frame.limit
            self._packer.activate((stream.send,))

    _handlers: dict[type, Callable[[Any, Any], None]] = {  # noqa: RUF012
        f.Stream: _handle_stream,
        f.Open: _handle_open,
        f.Opened: _handle_opened,
        f.Refused: _handle_refused,
        f.Reset: _handle_reset,
        f.Stop: _handle_stop,
        f.Datagram: _handle_datagram,
        f.MaxData: _handle_max_data,
        f.MaxStreamData: _handle_max_stream_data,
    }

    def handle_frame_acked(self, frame: bytes) -> None:
        stream = self.by_id.get(int.from_bytes(frame[1:5], "big"))  # if it is about one
        if stream is not None:
            stream.handle_frame_acked(frame[0])
            self._forget_if_done(stream)

    def handle_acked(self, stream_ids: Iterable[int]) -> None:
        """The peer has more of these streams."""
        for stream_id in stream_ids:
            stream = self.by_id.get(stream_id)
            if stream is not None and stream.send.done:
                self._forget_if_done(stream)

    # Inside.

    def _new_stream(self, stream_id: int, channel_type: int, ours: bool = False) -> DuplexStream:
        return DuplexStream(stream_id, channel_type, ours, self._max_window_bytes, self._budget)

    def _forget_if_done(self, stream: DuplexStream) -> None:
        if stream.done and stream.stream_id in self.by_id:
            self._forget(stream)
            self._events.put(Ended(stream.stream_id))

    def _forget(self, stream: DuplexStream) -> None:
        self.by_id.pop(stream.stream_id, None)
        self._waiting_writers.discard(stream.stream_id)
        self.line.pop(stream.stream_id, None)
        self._packer.forget(stream)
        if untaken := stream.receive.highest - stream.receive.consumed:
            self._take_up(untaken)  # what came along with the OPEN of one that is refused
        stream.receive.forget()

    def wake_writers(self) -> None:
        """After something was sent, and while writers are in line."""
        progress, waiting, line = self._packer.progress, self._waiting_writers, self.line
        if waiting:
            share = self._share()
            at_once = UNSENT_BYTES // share
            for stream_id in waiting & progress:
                unsent = self.by_id[stream_id].send.unsent_bytes
                if line or self._packer.active > at_once:
                    if not unsent:
                        line[stream_id] = None
                elif unsent <= share // 2:
                    self._wake_writer(stream_id)
            if line:
                self._call_from_line(at_once)
        progress.clear()

    def _call_from_line(self, at_once: int) -> None:
        if not self._events.waits():
            self._called = 0  # they have written by now, and are active, or had nothing to write
        places = at_once - self._packer.active - self._called
        while self.line and places > 0 and self._packer.data_credit > 0:
            stream_id = next(iter(self.line))
            del self.line[stream_id]
            self._wake_writer(stream_id)
            self._called += 1
            places -= 1

    def _wake_writer(self, stream_id: int) -> None:
        self._waiting_writers.remove(stream_id)
        self._events.put(Writable(stream_id))
