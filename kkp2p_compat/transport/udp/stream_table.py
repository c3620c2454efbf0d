"""The channels of a connection: opening and ending them, their bytes and messages, flow control.

The half of PeerConnection that knows nothing of packets, paths or time-outs.  ``handle_*`` take the
peer's frames; the plain verbs are the application's.  A frame that breaks the protocol raises
BadPacket, which ends the connection.
"""

from __future__ import annotations

from collections import deque

from ..._errors import BadPacket, KKP2PError
from . import frames as f
from .duplex_stream import DuplexStream
from .events import (
    ChannelOffered,
    ChannelOpened,
    ChannelRefused,
    Ended,
    Event,
    MessageReceived,
    Readable,
    ResetReceived,
    Stopped,
    Writable,
)
from .packing import INITIAL_DATA_WINDOW_BYTES, Packer
from .ranges import RangeSet
from .recovery import Recovery
from .streams import MAX_UNTAKEN_BYTES, SLOW_S, ReceiveWindow, Shared

__all__ = ["REFUSED_BUSY", "REFUSED_MOVED", "REFUSED_UNSUPPORTED", "StreamTable"]

# REFUSED reasons: our choice, docs/protocol.rst.
REFUSED_BUSY = 1
REFUSED_UNSUPPORTED = 2
REFUSED_MOVED = 3

# Our choices.
MAX_CHANNELS = 16_384  # that a peer may hold open
CLOGGED_S = 1.0  # without credit
MAX_ID_RANGES = 1024  # gaps among the ids that a peer opened: reordering makes a few
MAX_CONTROL_FRAMES = 65_536  # not acknowledged: a peer that makes us owe more is at fault
MIN_UNSENT_BYTES, MAX_UNSENT_BYTES = 16 * 1024, 1024 * 1024  # taken from a writer before it is sent
UNSENT_BYTES = 4 * 1024 * 1024  # of all writers together, as long as the minimum leaves it so


class StreamTable:
    """See PeerConnection, which is one."""

    def __init__(
        self, is_caller: bool, packer: Packer, recovery: Recovery, now: float,
        max_stream_window_bytes: int, max_data_window_bytes: int,
    ) -> None:  # fmt: skip
        self.is_caller = is_caller
        self.channels: dict[int, DuplexStream] = {}
        self.recovery = recovery
        self._packer = packer
        self._now = now
        self._max_stream_window_bytes = max_stream_window_bytes
        self._events: deque[Event] = deque()
        self._readable: set[int] = set()  # ids with a Readable that was not polled yet
        self._next_id = 0 if is_caller else 1
        self._peer_ids = RangeSet()  # of the channels that the peer opened, halved
        self._data_window = ReceiveWindow(INITIAL_DATA_WINDOW_BYTES, max_data_window_bytes)
        self._credited_at = now  # when the peer last raised its limit for all streams
        self._data_received = 0
        self._data_consumed = 0
        self._shared = Shared()
        self._spared_at = now  # when streams that do nothing last gave back their windows

    def _fail(self, error: KKP2PError) -> None:
        """The peer breaks the protocol."""
        raise NotImplementedError

    def clogged(self, now: float) -> bool:
        """Whether what applications do not read takes most of what a connection may hold."""
        untaken = self._data_received - self._data_consumed
        starved = not self._packer.data_credit and now - self._credited_at > CLOGGED_S
        return untaken > MAX_UNTAKEN_BYTES // 2 or starved

    # From the application.

    def open_channel(self, channel_type: int, encrypt_data: int, desc: int) -> int:
        """Ask the peer for a channel; ChannelOpened or ChannelRefused follows, or Closed."""
        stream_id = self._next_id
        self._next_id += 2
        self.channels[stream_id] = self._new_channel(stream_id, channel_type, ours=True)
        self._control(f.encode_open(stream_id, channel_type, encrypt_data, desc))
        return stream_id

    def accept_channel(self, stream_id: int) -> None:
        self.channels[stream_id].opened = True
        self._control(f.encode_opened(stream_id))

    def refuse_channel(self, stream_id: int, reason: int) -> None:
        self._forget(self.channels[stream_id])
        self._control(f.encode_refused(stream_id, reason))

    def writable_bytes(self, stream_id: int) -> int:
        """How much ``write`` takes now; after 0 a Writable follows."""
        channel = self.channels.get(stream_id)
        if channel is None or channel.send.finished:
            return 0
        room = self._unsent_limit() - channel.send.unsent_bytes
        if room <= 0:
            channel.writer_waits = True
            return 0
        return room

    def _unsent_limit(self) -> int:
        share = UNSENT_BYTES // max(1, self._packer.active)
        return max(MIN_UNSENT_BYTES, min(MAX_UNSENT_BYTES, share))

    def write(self, stream_id: int, data: bytes) -> None:
        """ValueError after ``finish``, KeyError after the end of the channel."""
        send = self.channels[stream_id].send
        send.write(data)
        self._packer.activate((send,))

    def finish(self, stream_id: int) -> None:
        """End of stream behind what was written."""
        channel = self.channels.get(stream_id)
        if channel is not None:
            channel.send.finish()
            self._packer.activate((channel.send,))

    def reset(self, stream_id: int, reason: int) -> None:
        """Give up what was written."""
        channel = self.channels.get(stream_id)
        if channel is not None:
            sent = channel.send.next_offset
            if channel.send.give_up():
                self._packer.drop(channel.send)
                self._control(f.encode_reset(stream_id, sent, reason))

    def peek(self, stream_id: int) -> list[bytes]:
        """What can be read, in order; it stays until ``consume``."""
        channel = self.channels.get(stream_id)
        return channel.receive.peek() if channel is not None else []

    def consume(self, stream_id: int, count: int) -> None:
        """The application has the first ``count`` bytes of what ``peek`` showed."""
        channel = self.channels[stream_id]
        receive = channel.receive
        receive.consume(count)
        if receive.final_size is None and receive.window.renew(
            receive.consumed, self._now, self.recovery.rtt.smoothed_s, not receive.is_taken
        ):
            self._packer.announce_stream(channel)
        if self._shared.short:
            self._spare()
        self._take_up(count)
        if receive.done:
            self._forget_if_done(channel)

    def _take_up(self, count: int) -> None:
        self._data_consumed += count
        if self._data_window.renew_all(
            self._data_received, self._data_consumed, self._now, self.recovery.rtt.smoothed_s
        ):
            self._packer.announce_data(self._data_window)

    def _spare(self) -> None:
        """A window was too small and could not grow."""
        self._shared.short = False
        if self._now - self._spared_at >= SLOW_S:
            self._spared_at = self._now
            for channel in self.channels.values():
                channel.receive.spare(self._now)

    def at_end(self, stream_id: int) -> bool:
        """Whether all was read, to the end that the peer set.

        Ask after each Readable: an end that nobody has seen is kept.
        """
        channel = self.channels.get(stream_id)
        if channel is None or not channel.receive.at_end:
            return False
        if not channel.receive.end_seen:
            channel.receive.end_seen = True
            self._forget_if_done(channel)
        return True

    def stop(self, stream_id: int) -> None:
        """Read no more; the peer is told not to send."""
        channel = self.channels.get(stream_id)
        if channel is None or channel.receive.stopped or channel.receive.done:
            return
        receive = channel.receive
        taken = receive.consumed
        receive.stop()
        self._take_up(receive.consumed - taken)
        self._control(f.encode_stop(stream_id))
        self._forget_if_done(channel)

    def send_message(self, stream_id: int, data: bytes) -> None:
        """Send a message of a UDP channel once, whole or not at all."""
        channel = self.channels[stream_id]
        if channel.splitter is None:
            raise ValueError("not a UDP channel")
        channel.message_bytes_sent += len(data)
        self._packer.queue_message(stream_id, channel.splitter, data)

    # The peer's frames.

    def _handle_stream(
        self, channel: DuplexStream, offset: int, pieces: list[bytes], fin: bool
    ) -> None:
        receive = channel.receive
        before, keeps_up = receive.highest, receive.is_taken
        fresh = receive.handle_data(offset, pieces, fin)
        if receive.highest != before:
            self._count_received(receive.highest - before)
            if keeps_up and receive.window.widen(
                receive.highest, receive.consumed, self._now, self.recovery.rtt.smoothed_s
            ):
                self._packer.announce_stream(channel)
            if receive.stopped:
                self._take_up(receive.highest - before)
        if fresh and channel.stream_id not in self._readable:
            self._readable.add(channel.stream_id)
            self._events.append(Readable(channel.stream_id))
        if receive.done:
            self._forget_if_done(channel)

    def _handle_stream_frame(self, frame: f.Stream) -> None:
        channel = self.channels.get(frame.stream)
        if channel is not None:  # else it is over, and the peer repeats itself
            self._handle_stream(channel, frame.offset, [bytes(frame.data)], frame.fin)

    def _count_received(self, count: int) -> None:
        self._data_received += count
        window = self._data_window
        if self._data_received > window.limit:
            raise BadPacket("more data than the connection's limit")
        if window.make_room(self._data_received, self._data_consumed):
            self._packer.announce_data(window)

    def _handle_open(self, frame: f.Open) -> None:
        index, ours = frame.stream >> 1, (frame.stream & 1) == (0 if self.is_caller else 1)
        if ours:
            raise BadPacket("a channel opened under our number")
        if index in self._peer_ids:
            return  # repeated
        self._peer_ids.add(index, index + 1)
        if len(self._peer_ids) > MAX_ID_RANGES:
            raise BadPacket("channel numbers with too many gaps")
        if len(self.channels) >= MAX_CHANNELS:
            self._control(f.encode_refused(frame.stream, REFUSED_BUSY))
            return
        self.channels[frame.stream] = self._new_channel(frame.stream, frame.channel_type)
        self._events.append(
            ChannelOffered(frame.stream, frame.channel_type, frame.encrypt_data, frame.desc)
        )

    def _handle_opened(self, frame: f.Opened) -> None:
        channel = self.channels.get(frame.stream)
        if channel is not None and channel.ours and not channel.opened:
            channel.opened = True
            channel.send.held = False
            self._packer.activate((channel.send,))
            self._events.append(ChannelOpened(frame.stream))

    def _handle_refused(self, frame: f.Refused) -> None:
        channel = self.channels.get(frame.stream)
        if channel is not None and channel.ours and not channel.opened:
            self._forget(channel)
            self._events.append(ChannelRefused(frame.stream, frame.reason))

    def _handle_reset(self, frame: f.Reset) -> None:
        channel = self.channels.get(frame.stream)
        if channel is None:
            return
        receive = channel.receive
        before, taken = receive.highest, receive.consumed
        tell = receive.handle_reset(frame.final_size)
        self._count_received(receive.highest - before)
        if receive.was_reset:
            self._take_up(receive.highest - taken)
            receive.consumed = receive.highest
        if tell:
            self._events.append(ResetReceived(frame.stream, frame.reason))
        self._forget_if_done(channel)

    def _handle_stop(self, frame: f.Stop) -> None:
        channel = self.channels.get(frame.stream)
        if channel is None or channel.send.reset or channel.send.done:
            return
        self.reset(frame.stream, 0)
        self._events.append(Stopped(frame.stream))

    def _handle_datagram(self, frame: f.Datagram) -> None:
        channel = self.channels.get(frame.stream)
        if channel is None or channel.assembler is None or channel.receive.stopped:
            return
        message = channel.assembler.add_untrusted(
            frame.message, frame.part, frame.parts, frame.data, self._now
        )
        if message is not None:
            channel.message_bytes_received += len(message)
            self._events.append(MessageReceived(frame.stream, message))

    def _handle_max_data(self, frame: f.MaxData) -> None:
        if frame.limit > self._packer.max_data:
            self._packer.max_data = frame.limit
            self._credited_at = self._now
            self._packer.activate(channel.send for channel in self.channels.values())

    def _handle_max_stream_data(self, frame: f.MaxStreamData) -> None:
        channel = self.channels.get(frame.stream)
        if channel is not None and frame.limit > channel.send.limit:
            channel.send.limit = frame.limit
            self._packer.activate((channel.send,))

    # Inside.

    def _new_channel(self, stream_id: int, channel_type: int, ours: bool = False) -> DuplexStream:
        largest = self._max_stream_window_bytes
        return DuplexStream(stream_id, channel_type, ours, largest, self._shared)

    def _forget_if_done(self, channel: DuplexStream) -> None:
        if channel.done and channel.stream_id in self.channels:
            self._forget(channel)
            self._events.append(Ended(channel.stream_id))

    def _forget(self, channel: DuplexStream) -> None:
        self.channels.pop(channel.stream_id, None)
        self._packer.forget(channel)
        channel.receive.forget()

    def _control(self, frame: bytes) -> None:
        packer = self._packer
        packer.control.append(frame)
        if len(packer.control) + packer.control_on_way > MAX_CONTROL_FRAMES:
            self._fail(BadPacket("more to answer than can be kept"))

    def _wake_writers(self) -> None:
        limit = self._unsent_limit()
        for stream_id in self._packer.take_progress():
            channel = self.channels.get(stream_id)
            if channel is None or not channel.writer_waits:
                continue
            if channel.send.unsent_bytes <= limit // 2:
                channel.writer_waits = False
                self._events.append(Writable(stream_id))
