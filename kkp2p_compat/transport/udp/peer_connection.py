"""A connection with a peer over UDP: datagrams and time in, datagrams and events out.

Opens no socket, reads no clock, throws no dice.  The driver's loop is always the same:

1. an input (``handle_datagrams``, ``handle_timer``) or a command of the application,
2. ``poll_event`` until it is None,
3. ``poll_transmit`` until it is None, sending each as it comes,
4. one timer for ``next_timer``.

The handshake is over before there is a connection: a call has given both sides the secrets, the
connection ids and an address that works.  RFC 9000 is the model; docs/protocol.rst, "The UDP
transport", has the format and says where we depart.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..._errors import BadPacket, KKP2PError, LinkLost
from . import frames as f
from .acks import Received
from .congestion import DeliveryRate, Pacer, Update, make_controller
from .doubt import Doubt
from .events import (
    Address,
    Closed,
    Event,
    PathChanged,
    PathRecovered,
    PathSuspected,
    Readable,
    Transmit,
)
from .mtu import MtuSearch
from .packing import Packer
from .path_validation import PathCheck
from .protection import PacketOpener, PacketSealer
from .recovery import Flight, Recovery
from .stream_table import StreamTable
from .transport_settings import TransportSettings

if TYPE_CHECKING:
    from random import Random

__all__ = ["CLOSE_NORMAL", "CLOSE_PROTOCOL_ERROR", "PeerConnection"]

# CLOSE codes: our choice, docs/protocol.rst.
CLOSE_NORMAL = 0
CLOSE_PROTOCOL_ERROR = 1

# Our choices.
MAX_PATH_RESPONSES = 4  # waiting to be sent
CLOSE_PACKETS = 3  # how often a CLOSE is sent, a probe time-out apart
SUSPECT_PTOS = 3  # probe time-outs in a row: perhaps it carries nothing any more
SUSPECT_S = 1.0  # after the first of them: the next ones are far away where the estimate is large
STALL_S = 1.0  # a timer that is so late tells that this host was asleep, or has far too much to do
LATE_S = 0.25  # a timer that is so late: the silence may be ours, and its answers wait to be read
SILENCE_S = 2.0  # after something from the peer: one PING finds out whether it is still there


class PeerConnection(StreamTable):
    """Secrets, ids and the first address come from the call; ``now`` is any monotonic clock."""

    def __init__(
        self, *, send_secret: bytes, receive_secret: bytes, cipher: str, is_caller: bool,
        local_id: int, remote_id: int, address: Address, now: float, random: Random,
        settings: TransportSettings | None = None, rtt_s: float | None = None,
    ) -> None:  # fmt: skip
        """``rtt_s``: a round trip that the checks of the path have measured."""
        self.settings = settings = settings or TransportSettings()
        recovery, received = Recovery(), Received()
        packer = Packer(
            PacketSealer(send_secret, cipher), remote_id, recovery, received,
            settings.max_message_queue_bytes,
        )  # fmt: skip
        super().__init__(
            is_caller, packer, recovery, now,
            settings.max_stream_window_bytes, settings.max_data_window_bytes,
        )  # fmt: skip
        self.local_id = local_id
        self.remote_id = remote_id
        self.address = address
        self.terminated = False  # Closed was put out; nothing happens any more
        self.dropped: dict[str, int] = {}  # packets, by the reason
        self.received_packets = 0  # genuine ones, repeated ones with them
        self.received_bytes = 0  # of these datagrams
        self._random = random
        self._opener = PacketOpener(receive_secret, cipher)
        self._received = received
        self._heard_at = now  # a genuine packet
        self._suspicious = False  # PathSuspected was put out
        self._suspect_at = math.inf  # unless something is acknowledged before
        self._ask_at = math.inf  # when to find out whether a peer that fell silent is there
        self._path_check: PathCheck | None = None
        self._doubt: Doubt | None = None  # the last one
        self._doubting = False
        self._special: deque[tuple[Address, bytes]] = deque()  # frames for one packet each
        self._closing: bytes | None = None  # the CLOSE frame that ends us
        self._close_error: KKP2PError | None = None
        self._close_at = 0.0
        self._closes_left = 0
        self._start_path(now)
        if rtt_s is not None:
            self.recovery.rtt.update(rtt_s, 0.0)

    def _start_path(self, now: float) -> None:
        """Nothing is known of the path (any more)."""
        self.mtu = MtuSearch(self.settings.max_datagram_bytes, now)
        self.rate = DeliveryRate()
        self.controller = make_controller(
            self.settings.congestion, self.mtu.size, now, self._random
        )
        self._packer.start_path(self.mtu, self.rate, self.controller, Pacer(now))

    @property
    def sent(self) -> Packer:
        """Its counters are of what was sent."""
        return self._packer

    # Input.

    def handle_datagrams(
        self, data: bytes, segment_bytes: int, address: Address, now: float
    ) -> None:
        """Datagrams of ``segment_bytes`` one behind the other, the last perhaps shorter."""
        if self.terminated:
            return
        self._go_on(now)
        received = self._received
        largest_before = received.largest
        eliciting = place = 0
        try:
            while place < len(data) and not (self.terminated or self._closing):
                try:
                    number, plains = self._opener.open_run_untrusted(data, place, segment_bytes)
                except BadPacket as error:
                    self._count_drop(str(error))
                    place += segment_bytes
                    continue
                self.received_packets += len(plains)
                self.received_bytes += min(len(plains) * segment_bytes, len(data) - place)
                place += len(plains) * segment_bytes
                if number > received.largest:
                    eliciting += self._handle_packets(plains, address)
                    received.add(number, number + len(plains), now)
                    continue
                for plain in plains:  # out of order: each may be a repetition
                    if received.is_new(number):
                        eliciting += self._handle_packets([plain], address)
                        received.add(number, number + 1, now)
                    else:
                        self._count_drop("a packet that came before")
                    number += 1
        except BadPacket as error:
            self._fail(error)
        if eliciting:
            received.want_ack(eliciting, now, self.recovery.rtt.smoothed_s)
        if received.heard_at == now:
            self._heard_at = now
            if self._suspicious:
                self._suspicious = False
                self.recovery.pto_count = 0  # what backed off in the dark asks at once
                # Unless something is acknowledged: it may carry nothing in our direction.
                self._suspect_at = now + max(SUSPECT_S, self.recovery.rtt.pto_s)
                self._events.append(PathRecovered())
        if self._closing is not None:
            if self._closes_left:
                self._close_at = min(self._close_at, now)
        elif received.largest > largest_before and address != self.address:
            self._suspect_move(address, now)

    def _handle_packets(self, plains: list[bytes], address: Address) -> int:
        """The plaintexts of new packets; how many of them ask for an acknowledgement."""
        eliciting = index = 0
        count = len(plains)
        unpack, header_bytes, kind = f.STREAM_HEADER.unpack_from, f.STREAM_HEADER.size, f.STREAM
        while index < count:
            plain = plains[index]
            index += 1
            if len(plain) <= header_bytes or plain[0] != kind:
                eliciting += self._handle_frames(f.parse_untrusted(plain), address)
                continue
            # The hot path: a bulk transfer is made of packets of one stream, in order.
            _, stream_id, offset = unpack(plain)
            pieces = [plain[header_bytes:]]
            stop = offset + len(plain) - header_bytes
            while index < count:
                plain = plains[index]
                if len(plain) <= header_bytes or unpack(plain) != (kind, stream_id, stop):
                    break
                pieces.append(plain[header_bytes:])
                stop += len(plain) - header_bytes
                index += 1
            eliciting += len(pieces)
            self._ask_at = self._now + SILENCE_S
            channel = self.channels.get(stream_id)
            if channel is not None:  # else it is over, and the peer repeats itself
                self._handle_stream(channel, offset, pieces, False)
        return eliciting

    def _count_drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if self._opener.exhausted:
            self._fail(LinkLost("too many forged packets"))

    def _handle_frames(self, parsed: Iterable[f.Frame], address: Address) -> bool:
        """Whether one of them asks for an acknowledgement."""
        eliciting = False
        for frame in parsed:
            kind = type(frame)
            if kind is not f.Ack and kind is not f.Close:
                eliciting = True
                if kind is not f.Ping:  # or two sides that do nothing would keep asking
                    self._ask_at = self._now + SILENCE_S
            handler = self._handlers.get(kind)
            if handler is not None:
                handler(self, frame)
            elif kind is f.PathChallenge:
                if len(self._special) < MAX_PATH_RESPONSES:
                    self._special.append((address, f.encode_path_response(frame.token)))  # type: ignore[union-attr]
            elif kind is f.PathResponse:
                self._handle_path_response(frame.token, address)  # type: ignore[union-attr]
        return eliciting

    def _handle_ack(self, ack: f.Ack) -> None:
        if ack.largest >= self._packer.next_number:
            raise BadPacket("an acknowledgement of what was never sent")
        if self._doubt is not None and self._doubt.answered_by(ack.largest):
            self._doubting = False
        now, recovery = self._now, self.recovery
        in_flight_before = recovery.in_flight
        acked = recovery.handle_ack(ack.ranges, ack.delay_s, now)
        if not acked:
            return
        acked_bytes = 0
        touched: dict[int, None] = {}
        newest = acked[0]
        for flight in acked:
            flight.tell_acked()
            for frame in flight.frames:
                self._packer.control_on_way -= 1
                self._handle_frame_acked(frame)
            if flight.stream is not None:
                touched[flight.stream.stream_id] = None
            for piece in flight.pieces:
                touched[piece[0].stream_id] = None
            if flight.mtu_probe:
                self._handle_mtu_probe_acked(flight)
            else:
                acked_bytes += flight.size
                self.rate.acked(flight.snapshot, flight.size, now)
                self.mtu.handle_acked(flight.packet_bytes, now)
            if flight.stop > newest.stop:
                newest = flight
        largest_is_new = newest.stop - 1 == ack.largest
        self._digest_losses(
            now, in_flight_before, acked_bytes, newest.sent_at,
            recovery.rtt.latest_s if largest_is_new else None,
        )  # fmt: skip
        for stream_id in touched:
            channel = self.channels.get(stream_id)
            if channel is not None and channel.send.done:
                self._forget_if_done(channel)

    def _handle_frame_acked(self, frame: bytes) -> None:
        if frame[0] == f.RESET:
            channel = self.channels.get(int.from_bytes(frame[1:5], "big"))
            if channel is not None:
                channel.send.handle_reset_acked()
                self._forget_if_done(channel)

    def _handle_mtu_probe_acked(self, flight: Flight) -> None:
        if self.mtu.handle_probe_acked(flight.packet_bytes, self._now):
            self.controller.set_datagram_bytes(self.mtu.size)

    def _digest_losses(
        self, now: float, in_flight_before: int, acked_bytes: int, sent_at: float | None,
        rtt_s: float | None,
    ) -> None:  # fmt: skip
        """Give up what is lost, and tell the controller of it and of what was acknowledged."""
        recovery = self.recovery
        given_up = recovery.detect_lost(now)
        lost = []
        for flight in given_up:
            if flight.mtu_probe:
                self.mtu.handle_probe_lost(flight.packet_bytes, now)
                continue
            lost.append((flight.snapshot, flight.size))
            self.rate.lost(flight.size)
            self._packer.repeat(flight)
            if self.mtu.handle_lost(flight.packet_bytes, flight.stop - flight.first, now):
                self.controller.set_datagram_bytes(self.mtu.size)
        sample = self.rate.sample(now, recovery.rtt.min_s)
        if not acked_bytes and not lost:
            return
        self.controller.update(
            Update(
                now, acked_bytes, lost, in_flight_before, recovery.in_flight, rtt_s,
                recovery.rtt.smoothed_s, recovery.rtt.min_s, sample, sent_at,
            )
        )  # fmt: skip
        if lost and recovery.persistent_congestion(given_up):
            self.controller.handle_persistent_congestion(now)

    def _handle_close(self, frame: f.Close) -> None:
        error = LinkLost(f"the peer closed the connection: code {frame.code}, {frame.reason!r}")
        self._end(error)

    _handlers: dict[type, Callable[[Any, Any], None]] = {  # noqa: RUF012
        f.Ack: _handle_ack,
        f.Stream: StreamTable._handle_stream_frame,
        f.Open: StreamTable._handle_open,
        f.Opened: StreamTable._handle_opened,
        f.Refused: StreamTable._handle_refused,
        f.Reset: StreamTable._handle_reset,
        f.Stop: StreamTable._handle_stop,
        f.Datagram: StreamTable._handle_datagram,
        f.MaxData: StreamTable._handle_max_data,
        f.MaxStreamData: StreamTable._handle_max_stream_data,
        f.Close: _handle_close,
    }

    def handle_timer(self, now: float) -> None:
        if self.terminated:
            return
        was_late = self._go_on(now)
        if self._closing is not None:
            return
        if now >= self._heard_at + self.settings.idle_timeout_s:
            self._end(LinkLost(f"the peer is silent for {self.settings.idle_timeout_s:.0f} s"))
            return
        if self._doubting and self._doubt is not None and self._doubt.over(now):
            self._doubting = False
            if self._doubt.confirmed(now, self._heard_at):
                self._end(LinkLost("the peer is gone: it does not answer, and the cloud lost it"))
                return
        recovery = self.recovery
        if recovery.loss_time is not None:
            if now >= recovery.loss_time:
                self._digest_losses(now, recovery.in_flight, 0, None, None)
        elif not self._packer.probing and (pto := recovery.pto_time()) is not None and now >= pto:
            recovery.pto_count += 1
            if recovery.pto_count == 1:
                self._suspect_at = now + max(SUSPECT_S, recovery.rtt.pto_s)
            elif recovery.pto_count == SUSPECT_PTOS and self._suspect_at < math.inf:
                self._suspect_at = now
            self._packer.probe()
            oldest = recovery.oldest()
            if oldest is not None and self.mtu.handle_timeout(oldest.packet_bytes, now):
                self.controller.set_datagram_bytes(self.mtu.size)
        if now >= self._suspect_at and was_late:
            # Such as by a program that kept the interpreter's lock: ask first, and read.
            self._suspect_at = now + recovery.rtt.pto_s
        elif now >= self._suspect_at:
            self._suspect_at = math.inf
            if recovery.pto_count and not self._suspicious:
                self._suspicious = True
                self._events.append(PathSuspected())
        if now >= self._ask_at:
            self._ask_at = math.inf
            self.ping()
        elif now >= self._packer.eliciting_at + self.settings.keepalive_s:
            self.ping()
        check = self._path_check
        if check is not None and check.failed and now >= check.next_at:
            self._path_check = None

    def _go_on(self, now: float) -> bool:
        """Whether we are late.  What has waited meanwhile says nothing of the path's round trip."""
        late_s = 0.0
        if now - self._now > LATE_S and (due_at := self.next_timer()) is not None:
            late_s = now - due_at
            if late_s > STALL_S:
                self.recovery.measure_from(now)
        self._now = now
        return late_s > LATE_S

    def next_timer(self) -> float | None:
        if self.terminated:
            return None
        if self._closing is not None:
            return self._close_at
        settings, recovery, packer = self.settings, self.recovery, self._packer
        earliest = min(
            self._heard_at + settings.idle_timeout_s, packer.eliciting_at + settings.keepalive_s,
            self._ask_at, self._suspect_at,
        )  # fmt: skip
        loss = recovery.pto_time() if recovery.loss_time is None else recovery.loss_time
        path = None if self._path_check is None else self._path_check.next_at
        doubt = self._doubt.next_at if self._doubting and self._doubt is not None else None
        for time in (
            self._received.ack_at, loss, packer.paced_until, self.mtu.next_time(), path, doubt
        ):  # fmt: skip
            if time is not None and time < earliest:
                earliest = time
        return earliest

    # The path.

    def _suspect_move(self, address: Address, now: float) -> None:
        """A genuine packet, newer than all others, came from elsewhere."""
        if self._path_check is None or self._path_check.address != address:
            token = self._random.randbytes(f.TOKEN_BYTES)
            self._path_check = PathCheck(address, token, now, self.recovery.rtt.pto_s)

    def _handle_path_response(self, token: bytes, address: Address) -> None:
        check = self._path_check
        if check is None or not check.proved_by(token) or check.address != address:
            return
        before, self.address = self.address, check.address
        self._path_check = None
        # RFC 9000 section 9.4: only a new port is most likely the same path.
        if check.searched or before[0] != self.address[0]:
            for flight in self.recovery.forget_path():
                self._packer.repeat(flight)
            self._start_path(self._now)
        self.recovery.pto_count = 0
        if before != self.address:
            self._events.append(PathChanged(self.address))

    # Commands.

    def ping(self) -> None:
        self._control(f.encode_ping())

    def doubt(self, now: float) -> bool:
        """Somebody says that the peer is gone: ask it, and end soon if it does not answer.

        False: that was asked a moment ago.
        """
        if self.terminated or self._closing is not None:
            return False
        if self._doubt is not None and not self._doubt.allows_another(now):
            return False
        self._doubt = Doubt(now, self._packer.next_number, self.recovery.rtt.pto_s)
        self._doubting = True
        return True

    def trust(self) -> None:
        """The same now says that it is back."""
        self._doubting = False

    def try_path(self, address: Address, now: float) -> None:
        """The peer may be (again) at this address, say new connectivity checks.

        The path is another one even if it is the address that we have: then ours has changed.
        """
        self._now = now
        self.recovery.pto_count = 0  # what backed off for the old path has waited long enough
        if self._path_check is not None and self._path_check.failed:
            self._path_check = None  # that was before
        self._suspect_move(address, now)
        if self._path_check is not None:
            self._path_check.searched = True

    def close(self, code: int, reason: str, now: float) -> None:
        """End the connection; Closed follows when the peer has had the chance to hear of it."""
        self._now = now
        if self._closing is None and not self.terminated:
            self._begin_close(code, LinkLost(reason))

    def _fail(self, error: KKP2PError) -> None:
        """The peer breaks the protocol."""
        if self._closing is None and not self.terminated:
            self._begin_close(CLOSE_PROTOCOL_ERROR, error)
            self._closes_left = 1

    def _begin_close(self, code: int, error: KKP2PError) -> None:
        self._closing = f.encode_close(code, str(error))
        self._close_error = error
        self._closes_left = CLOSE_PACKETS
        self._close_at = self._now

    def _end(self, error: KKP2PError) -> None:
        if not self.terminated:
            self.terminated = True
            self._events.append(Closed(error))
            self._packer.clear()

    # Output.

    def poll_event(self) -> Event | None:
        if not self._events:
            return None
        event = self._events.popleft()
        if type(event) is Readable:
            self._readable.discard(event.stream_id)
        return event

    def poll_transmit(self, now: float) -> Transmit | None:
        self._now = now
        if self.terminated:
            return None
        if self._closing is not None:
            return self._poll_close(now)
        if self._special:
            address, frame = self._special.popleft()
            return self._packer.single(frame, address)
        check = self._path_check
        if check is not None and check.poll(now):
            return self._packer.single(f.encode_path_challenge(check.token), check.address)
        if self._doubting and self._doubt is not None and self._doubt.poll(now):
            return self._packer.single(f.encode_ping(), self.address)
        probe = self.mtu.poll_probe(now)
        if probe is not None:
            return self._packer.mtu_probe(probe, self.address, now)
        transmit = self._packer.pack(self.address, now)
        if transmit is not None:
            self._wake_writers()
        return transmit

    def _poll_close(self, now: float) -> Transmit | None:
        if now < self._close_at:
            return None
        if not self._closes_left:
            self._end(self._close_error or LinkLost())
            return None
        self._closes_left -= 1
        self._close_at = now + self.recovery.rtt.pto_s
        return self._packer.single(self._closing or b"", self.address)
