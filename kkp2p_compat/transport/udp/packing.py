"""Decide what goes into the next packets, seal them, and remember what was in them.

A batch is what one system call can send: packets of one size, of which only the last may be
shorter.  A stream with enough to send fills whole packets (a *bulk* flight).  Everything else (an
acknowledgement, control frames, messages, the ends of streams) is put together in a *mixed* packet,
with as many bytes of streams as fit.

A few new bytes of one stream take a *short* way to one packet: there is nothing to choose.

Acknowledgements and control frames are sent at once.  Stream data and messages wait for the window
of congestion control and for the pacer, except after a probe time-out.  Both are told of what has
left only by ``settle``: the packets need not wait for that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from ..._address import Address
from . import frames as f
from .acks import Received
from .duplex_stream import DuplexStream
from .events import Transmit
from .flow_control import ReceiveWindow
from .header import OVERHEAD_BYTES
from .messages import MessageQueue
from .path_state import PathState
from .protection import PacketSealer
from .recovery import Flight, Recovery
from .streams import SendStream

__all__ = ["INITIAL_DATA_WINDOW_BYTES", "Packer"]

INITIAL_DATA_WINDOW_BYTES = 4 * 1024 * 1024  # our choice; a constant of the protocol
MAX_BATCH_PACKETS = 64  # Linux: UDP_MAX_SEGMENTS
MAX_BATCH_BYTES = 65_507  # of UDP payload, over IPv4
MAX_CONTROL_FRAMES = 65_536  # our choice: not acknowledged; a peer that causes more is at fault
PROBE_PACKETS = 2  # RFC 9002 section 6.2.4; the second is a small one
TURN_QUANTA = 2  # our choice: a stream's turn, as a multiple of what may leave at one instant
STREAM_BYTES = f.STREAM_HEADER.size
SHORT_CONTROL_FRAMES = 8  # our choice: most often there are none, or a limit or two
# In a packet with the bytes of a short message; no control frame is longer than a RESET.
SHORT_ROOM_BYTES = STREAM_BYTES + f.MAX_ACK_BYTES + (SHORT_CONTROL_FRAMES + 1) * f.MAX_CONTROL_BYTES
SIZED_BYTES = f.STREAM_SIZED_HEADER.size
_Part = bytes | memoryview
_Piece = tuple[SendStream, int, int, bool]  # as in a Flight


class Packer:
    """The sending half of a connection."""

    def __init__(
        self, sealer: PacketSealer, remote_id: int, recovery: Recovery, received: Received
    ) -> None:
        self.next_number = 0
        self.max_data = INITIAL_DATA_WINDOW_BYTES  # the peer's limit for all streams together
        self.control: deque[bytes] = deque()  # frames to send before any data
        self.control_on_way = 0  # frames that were sent, and are kept until they are acknowledged
        self.owes_too_much = False  # the peer makes us answer, and acknowledges no answer
        self.eliciting_at = 0.0  # when we last asked for an acknowledgement
        self.paced_until = math.inf  # data waits for the pacer
        self.sent_bytes = 0  # of datagrams
        self.lost_packets = 0
        self._sealer, self._remote_id = sealer, remote_id
        self._recovery, self.received = recovery, received
        self._sending: dict[SendStream, None] = {}  # with something to send; the first is the next
        self._blocked: set[SendStream] = set()  # the peer's limit forbids what they have
        self._data_sent = 0  # new bytes of all streams
        self._data_window: ReceiveWindow | None = None  # to be announced
        self._stream_windows: dict[int, DuplexStream] = {}  # to be announced
        self.messages = MessageQueue()
        self._turn_bytes = 0  # that the first of them has sent
        self.stream_turn = False  # messages and streams take turns
        self.progress: set[int] = set()  # streams that sent new bytes
        self.unsettled: list[Flight] = []  # have left, and are not recorded yet
        self._ran_dry = False  # with the last of these: the window had room for more

    def start_path(self, path: PathState) -> None:
        self.probes_left = 0  # packets to send whatever the window says
        self.mtu = path.mtu
        self._rate = path.rate
        self._controller = path.controller
        self._pacer = path.pacer

    @property
    def active(self) -> int:
        return len(self._sending)

    @property
    def pacing_bytes_per_s(self) -> float:
        return self._controller.pacing_bytes_per_s

    @property
    def data_credit(self) -> int:
        """New bytes of streams that the peer's limit allows."""
        return self.max_data - self._data_sent

    # What there is to send.

    def activate(self, streams: Iterable[SendStream]) -> None:
        """Something about these streams has changed."""
        credit = self.data_credit
        for stream in streams:
            if stream not in self._sending:
                self._put_in_line(stream, credit)

    def _put_in_line(self, stream: SendStream, credit: int) -> None:
        if stream.sendable(credit):
            self._sending[stream] = None
            self._blocked.discard(stream)
        elif stream.unsent_bytes and not stream.reset:
            self._blocked.add(stream)

    def drop(self, stream: SendStream) -> None:
        """Nothing more of this stream is to be sent; the other direction may live on."""
        self._sending.pop(stream, None)
        self._blocked.discard(stream)

    def forget(self, stream: DuplexStream) -> None:
        self.drop(stream.send)
        self._stream_windows.pop(stream.stream_id, None)
        self.messages.dropped_of.pop(stream.stream_id, None)

    def clear(self) -> None:
        self._sending.clear()
        self._blocked.clear()
        self._stream_windows.clear()
        self.messages.clear()
        self.control.clear()

    def queue_control(self, frame: f.Frame, tail: bytes = b"", new_bytes: int = 0) -> None:
        """``tail``: a frame with so many new bytes of a stream, in the same packet each time."""
        self.control.append(f.encode(frame) + tail)
        self._data_sent += new_bytes
        self.owes_too_much = len(self.control) + self.control_on_way > MAX_CONTROL_FRAMES

    def announce_data(self, window: ReceiveWindow) -> None:
        self._data_window = window

    def announce_stream(self, stream: DuplexStream) -> None:
        self._stream_windows[stream.stream_id] = stream

    def repeat(self, flight: Flight) -> None:
        """A flight was lost: what it carried has to be sent again."""
        self.lost_packets += flight.stop - flight.first
        self.control_on_way -= len(flight.frames)
        self._repeat_data(flight)

    def _repeat_data(self, flight: Flight) -> None:
        flight.tell_lost()
        self.control.extend(flight.frames)
        if flight.stream is not None:
            self.activate((flight.stream,))
        self.activate(stream for stream, *_ in flight.pieces)

    def probe(self) -> None:
        """Nothing was acknowledged for a probe time-out: ask, with the oldest data."""
        self.probes_left = PROBE_PACKETS
        oldest = self._recovery.oldest()
        if oldest is not None:
            self._repeat_data(oldest)

    # Single packets.

    @property
    def room(self) -> int:
        """Bytes of frames that a packet may have now."""
        return self.mtu.size - OVERHEAD_BYTES

    def single(self, frame: bytes, address: Address) -> Transmit:
        """A packet with a frame that is not repeated when it is lost."""
        data = self._seal_one(frame)
        return Transmit(data, len(data), address)

    def mtu_probe(self, size: int, address: Address, now: float) -> Transmit:
        payload = f.encode(f.Ping()).ljust(size - OVERHEAD_BYTES, b"\0")
        flight = Flight(self.next_number, self.next_number + 1, size, now, mtu_probe=True)
        data = self._seal_one(payload)
        self._recovery.sent(flight)
        self.eliciting_at = now
        return Transmit(data, len(data), address)

    def _seal_one(self, payload: bytes) -> bytes:
        self.next_number += 1
        return self._sealer.seal_one(self.next_number - 1, self._remote_id, payload)

    def _small_probe(self, address: Address, now: float) -> Transmit:
        """Where only this arrives, large packets are lost, and the path is not dead."""
        self.probes_left = 0
        transmit = self.single(f.encode(f.Ping()), address)
        number = self.next_number - 1
        self.unsettled.append(Flight(number, number + 1, len(transmit.data), now))
        return transmit

    # Batches.

    def pack(self, address: Address, now: float) -> Transmit | None:
        """The next batch; None: nothing may be sent now.  Sets ``paced_until``."""
        self.paced_until = math.inf
        if self.probes_left == 1:
            return self._small_probe(address, now)
        must_say = bool(self.control or self._stream_windows or self._data_window is not None)
        messages = self.messages.waiting
        size = self.mtu.size
        budget = self._budget(size, now) if self._sending or messages else 0
        send_data = budget >= size
        if not (send_data or must_say or self.probes_left or now >= self.received.ack_at):
            return None
        if not (messages or self.probes_left):
            payload = self._short(size - OVERHEAD_BYTES, send_data, must_say, now)
            if payload is not None:
                data = self._seal_one(payload)
                self.sent_bytes += len(data)
                return Transmit(data, len(data), address, False)
        limit = max(1, min(MAX_BATCH_PACKETS, MAX_BATCH_BYTES // size, budget // size))
        batch = _Batch(self, size - OVERHEAD_BYTES, now, limit)
        if must_say or self.probes_left or self.received.ack_goes_along(now):
            batch.mixed(send_data)
        while send_data and batch.full and len(batch.payloads) < limit:
            if not messages:
                if self._sending and batch.bulk(limit):
                    continue
            elif self.stream_turn and batch.bulk(len(batch.payloads) + 1):
                self.stream_turn = False
                continue
            if not batch.mixed(True):
                break
        if not batch.payloads:
            return None
        self._ran_dry = not (self._sending or messages or self._blocked)
        data = b"".join(self._sealer.seal(self.next_number, self._remote_id, batch.payloads))
        self.next_number += len(batch.payloads)
        self.sent_bytes += len(data)
        self.probes_left = 1 if self.probes_left or batch.padded else 0
        more = bool(self._sending or messages or self.control or self.probes_left)
        return Transmit(data, len(batch.payloads[0]) + OVERHEAD_BYTES, address, more)

    def _short(self, room: int, send_data: bool, must_say: bool, now: float) -> bytes | None:
        """A packet with all that may be sent now, of one stream at most; None: it takes more.

        The general way would come to the same, in two to three times the time.
        """
        if not self.mtu.confirmed and (send_data or must_say):
            return None  # it is padded
        if len(self.control) + len(self._stream_windows) > SHORT_CONTROL_FRAMES or any(
            len(frame) > f.MAX_CONTROL_BYTES for frame in self.control
        ):
            return None  # too many, or an OPEN with bytes of its stream
        stream = next(iter(self._sending)) if send_data else None
        start = stop = 0
        if stream is not None:
            start, stop = stream.next_offset, stream.end
            if (
                len(self._sending) > 1
                or stream.lost
                or not (stop > start or stream.fin_pending)
                or stop - start > min(room - SHORT_ROOM_BYTES, self.max_data - self._data_sent)
                or stop > stream.limit
            ):
                return None
        payload = self.received.take_ack(now) if self.received.ack_goes_along(now) else b""
        if stream is None and not must_say:
            return payload
        flight = Flight(self.next_number, self.next_number + 1, 0, now)
        if must_say:
            control, flight.frames = self.take_control(room)
            self.control_on_way += len(flight.frames)
            payload += b"".join(control)
        if stream is not None:
            self.mark_sent(stream, start, stop)
            fin = stream.ends_at(stop)
            kind = f.STREAM_FIN if fin else f.STREAM
            payload += f.STREAM_HEADER.pack(kind, stream.stream_id, start)
            payload += stream.view(start, stop) if stop > start else b""
            flight.pieces = ((stream, start, stop, fin),)
            del self._sending[stream]
            self.paced_until = math.inf
        self._ran_dry = not (self._sending or self._blocked)
        flight.packet_bytes = flight.size = len(payload) + OVERHEAD_BYTES
        self.unsettled.append(flight)
        return payload

    def _budget(self, size: int, now: float) -> int:
        """Bytes that may be sent now."""
        if self.probes_left:
            return size
        controller = self._controller
        room = controller.window_bytes - self._recovery.in_flight
        if room < size:
            return 0
        pacing = controller.pacing_bytes_per_s
        paced = self._pacer.budget(now, pacing, controller.quantum_bytes)
        if paced < size:
            self.paced_until = self._pacer.next_send(now, pacing)
        return min(room, max(paced, size)) if paced > 0 else 0

    def take_control(self, room: int) -> tuple[list[bytes], list[bytes]]:
        """Frames that fit, and those of them that have to be repeated if they are lost."""
        if self._data_window is not None:
            self.control.append(f.encode(f.MaxData(self._data_window.limit)))
            self._data_window = None
        for stream_id, stream in self._stream_windows.items():
            self.control.append(f.encode(f.MaxStreamData(stream_id, stream.receive.window.limit)))
        self._stream_windows.clear()
        taken, repeated = [], []
        while self.control and len(self.control[0]) <= room:
            frame = self.control.popleft()
            room -= len(frame)
            taken.append(frame)
            if frame[0] != f.PING:
                repeated.append(frame)
        return taken, repeated

    def next_stream(self) -> tuple[SendStream, int, int] | None:
        """The stream whose turn it is, and the range that it should send."""
        credit = self.data_credit
        turn, idle = None, []
        for stream in self._sending:
            if stream.stream_id in self.messages.waiting:
                continue  # the end of a UDP channel is sent after its messages
            if stream.sendable(credit):
                turn = stream, *stream.next_range(credit)
                break
            idle.append(stream)
        for stream in idle:
            del self._sending[stream]
            self._put_in_line(stream, credit)
        return turn

    def mark_sent(self, stream: SendStream, start: int, stop: int) -> None:
        new = stream.mark_sent(start, stop)
        if new:
            self._data_sent += new
            self.progress.add(stream.stream_id)

    def end_turn(self, stream: SendStream, sent: int) -> None:
        """It stays the first until it has sent so much: each turn costs the peer a wake-up."""
        self._turn_bytes += sent
        is_over = self._turn_bytes >= TURN_QUANTA * self._controller.quantum_bytes
        if is_over or not stream.sendable(self.data_credit):
            self._turn_bytes = 0
            self._sending.pop(stream, None)
            self._put_in_line(stream, self.data_credit)

    def settle(self) -> None:
        """Record what has left: before anything is asked that depends on it."""
        recovery, controller = self._recovery, self._controller
        for flight in self.unsettled:
            size, now, in_flight = flight.size, flight.sent_at, recovery.in_flight
            controller.handle_sent(now, size, in_flight)
            flight.snapshot = self._rate.sent(size, in_flight, now)
            recovery.sent(flight)
            self._pacer.sent(size, now, controller.pacing_bytes_per_s)
            self.eliciting_at = now
        self.unsettled.clear()
        if self._ran_dry:
            self._ran_dry = False
            self._rate.app_limited(recovery.in_flight)


class _Batch:
    """Packets that will leave together."""

    def __init__(self, packer: Packer, room: int, now: float, limit: int) -> None:
        self.payloads: list[bytes] = []
        self.full = True  # all packets so far, so another may follow
        self.padded = False  # one of the packets, to find out whether the path carries its size
        self._packer, self._room, self._now = packer, room, now
        self._long_from = limit // 2

    def bulk(self, limit: int) -> bool:
        """Fill packets from one stream; False: it has too little for one."""
        packer = self._packer
        turn = packer.next_stream()
        if turn is None:
            return False
        stream, start, stop = turn
        chunk = self._room - STREAM_BYTES
        count = min((stop - start) // chunk, limit - len(self.payloads))
        if not count:
            return False
        stop = start + count * chunk
        first, size = packer.next_number + len(self.payloads), self._room + OVERHEAD_BYTES
        run = stream.view(start, stop)
        self.payloads += f.encode_stream_run(stream.stream_id, start, run, chunk)
        packer.mark_sent(stream, start, stop)
        packer.end_turn(stream, stop - start)
        left = Flight(first, first + count, size, self._now, None, stream, start, chunk, stop)
        packer.unsettled.append(left)
        return True

    def mixed(self, send_data: bool) -> bool:
        """One packet of whatever there is to send; False: there was nothing."""
        packer, room = self._packer, self._room
        parts: list[_Part] = []
        if packer.received.ack_goes_along(self._now):
            parts.append(packer.received.take_ack(self._now))
        room -= sum(map(len, parts))
        acks = len(parts)
        control, repeated = packer.take_control(room)
        parts += control
        room -= sum(map(len, control))
        pieces: list[_Piece] = []
        if send_data:
            if packer.stream_turn:
                room = self._add_streams(parts, pieces, room)
            packer.stream_turn = not packer.stream_turn
            messages = packer.messages.take(room, packer.room)
            parts += messages
            room -= sum(map(len, messages))
            self._add_streams(parts, pieces, room)
        if len(parts) == acks and packer.probes_left:
            parts.append(f.encode(f.Ping()))
        if not parts:
            return False
        payload = b"".join(parts)
        if len(parts) > acks and not packer.mtu.confirmed:
            payload = payload.ljust(self._room, bytes([f.PADDING]))
            self.padded = True
        if not self.payloads and packer.messages.waiting:
            self._room = len(payload)  # the next message is of this size, or ends the batch
        self.full = len(payload) == self._room
        number = packer.next_number + len(self.payloads)
        self.payloads.append(payload)
        if len(parts) > acks:
            size = len(payload) + OVERHEAD_BYTES
            left = Flight(number, number + 1, size, self._now, pieces=pieces, frames=repeated)
            packer.unsettled.append(left)
            packer.control_on_way += len(repeated)
        return True

    def _add_streams(self, parts: list[_Part], pieces: list[_Piece], room: int) -> int:
        packer, is_long = self._packer, len(self.payloads) >= self._long_from
        while room > SIZED_BYTES and (turn := packer.next_stream()) is not None:
            stream, start, stop = turn
            if pieces and is_long and stop - start >= self._room - STREAM_BYTES:
                break  # or the rest of its turn is not in whole packets, nor any turn behind it
            stop = min(stop, start + room - SIZED_BYTES)
            packer.mark_sent(stream, start, stop)
            fin = stream.ends_at(stop)
            parts.append(f.encode_stream_header(stream.stream_id, start, stop - start, fin))
            if stop > start:
                parts.append(stream.view(start, stop))
            pieces.append((stream, start, stop, fin))
            room -= SIZED_BYTES + stop - start
            packer.end_turn(stream, stop - start)
        return room
