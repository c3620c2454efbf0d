"""A connection with a peer over UDP: datagrams and time in, datagrams and events out.

Opens no socket, reads no clock, takes no random numbers but from the source that it is given.  The
driver's loop is always the same:

1. an input (``handle_datagrams``, ``handle_timer``) or a command of the application,
2. ``poll_event`` until it is None,
3. ``poll_transmit`` until it is None, sending each as it comes,
4. one timer for ``next_timer``.

The handshake is over before there is a connection: a call has given both sides the secrets, the
connection ids and an address that works.  RFC 9000 is the model; docs/protocol.rst, "The UDP
transport", has the format and says where we depart from it.

What it consists of: ``streams`` (what applications read and write), ``packer`` (what is sent),
``recovery`` (what is on its way), ``path`` (how much and how fast), ``paths`` (which one is used,
and which could be), ``liveness`` (whether the peer is there), ``lifecycle`` (its end).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..._address import Address
from ..._errors import BadPacket, CallRefused, KKP2PError, LinkLost
from . import frames as f
from .acks import Received
from .clock import Clock, Timer
from .events import Closed, EventQueue, PathRecovered, PathSuspected, ProofReceived, Transmit
from .gathering import Gathering
from .lifecycle import CLOSE_PROTOCOL_ERROR, CLOSE_UNPROVEN, Cue, Lifecycle, Phase
from .liveness import SILENCE_S, Liveness
from .outcomes import Outcomes
from .packing import Packer
from .path_state import Load, PathState
from .paths import Paths
from .protection import PacketOpener, PacketSealer
from .recovery import Recovery
from .stream_table import StreamTable
from .transport_settings import TransportSettings

if TYPE_CHECKING:
    from random import Random

__all__ = ["PeerConnection"]

# Our choices.
STALL_S = 1.0  # a timer that is so late tells that this host was asleep, or has far too much to do
LATE_S = 0.25  # a timer that is so late: the silence may be ours, and its answers wait to be read

# For the hot path: a global name is found ten times as fast as an attribute of a class.
_OPEN, _CLOSED = Phase.OPEN, Phase.CLOSED
_NEVER = math.inf


class PeerConnection:
    """Secrets, ids and the first address come from the call; ``now`` is any monotonic clock."""

    def __init__(
        self,
        *,
        send_secret: bytes,
        receive_secret: bytes,
        cipher: str,
        is_caller: bool,
        local_id: int,
        remote_id: int,
        address: Address,
        now: float,
        random: Random,
        settings: TransportSettings | None = None,
        rtt_s: float | None = None,
    ) -> None:
        """``random``: a SystemRandom outside tests.  ``rtt_s``: as measured by checks."""
        self.settings = settings = settings or TransportSettings()
        self.local_id = local_id
        self.dropped: dict[str, int] = {}  # packets, by the reason
        self.received_bytes = 0  # of genuine datagrams, with those that came twice
        self._clock = Clock(now)
        self._events = EventQueue()
        self.poll_event = self._events.poll
        self.lifecycle = Lifecycle()
        self.liveness = Liveness(now)
        self.recovery = Recovery()
        self._opener = PacketOpener(receive_secret, cipher)
        self._received = Received()
        self._gathering = Gathering(self._received, self.recovery)
        self.gather_s = self._gathering.wait_s
        sealer = PacketSealer(send_secret, cipher)
        self.packer = Packer(sealer, remote_id, self.recovery, self._received)
        self.streams = StreamTable(
            is_caller, self.packer, self.recovery, self._clock, self._events, settings
        )
        self.paths = Paths(
            address,
            is_caller=is_caller,
            recovery=self.recovery,
            packer=self.packer,
            events=self._events,
            settings=settings,
            now=now,
            random=random,
        )
        self._outcomes = Outcomes(
            self.recovery, self.paths, self.packer, self.streams, self.liveness, self._events
        )
        if rtt_s is not None:
            self.recovery.rtt.update(rtt_s, 0.0)

    @property
    def path(self) -> PathState:
        return self.paths.current

    @property
    def address(self) -> Address:
        return self.paths.current.address

    def load(self) -> Load:
        packer, delivered_bytes = self.packer, self.paths.current.rate.delivered_bytes
        is_backlogged = bool(packer.active or packer.messages.waiting)
        return Load(delivered_bytes, packer.next_number, packer.lost_packets, is_backlogged)

    # Input.

    def handle_datagrams(
        self, data: bytes, segment_bytes: int, address: Address, now: float
    ) -> bool:
        """Datagrams of ``segment_bytes``, one behind the other, the last perhaps shorter.

        True: an event waits.
        """
        lifecycle = self.lifecycle
        if lifecycle.phase is _CLOSED:
            return False
        self._go_on(now)
        received, paths = self._received, self.paths
        is_elsewhere = address != paths.current.address
        if not is_elsewhere:
            paths.current.heard_at = now
        tells_path = False
        eliciting = place = 0
        try:
            while place < len(data) and lifecycle.phase is _OPEN:
                try:
                    number, plains = self._opener.open_run_untrusted(data, place, segment_bytes)
                except BadPacket as error:
                    self._count_drop(str(error))
                    place += segment_bytes
                    continue
                self.received_bytes += min(len(plains) * segment_bytes, len(data) - place)
                place += len(plains) * segment_bytes
                if number > received.largest:
                    if is_elsewhere or paths.settling or paths.validation.followed:
                        tells_path |= not all(map(f.is_about_path, plains))
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
            if self.packer.owes_too_much:
                raise BadPacket("more to answer than can be kept")
        except BadPacket as error:
            self._fail(error)
        if eliciting:
            received.want_ack(eliciting, now, self.recovery.rtt.smoothed_s)
        if received.heard_at == now and self.liveness.handle_packet(
            now, self.recovery.rtt, by_path=not is_elsewhere
        ):
            self.recovery.pto_count = 0  # what backed off in the dark asks at once
            self._events.put(PathRecovered())
        if lifecycle.phase is not _OPEN:
            lifecycle.handle_packet(now, self.recovery.rtt.smoothed_s)
        elif tells_path:
            paths.handle_newer(address, now)
        return self._events.waits() > 0

    def _handle_packets(self, plains: list[bytes], address: Address) -> int:
        """The plaintexts of new packets; how many of them ask for an acknowledgement."""
        eliciting = index = 0
        count = len(plains)
        unpack, header_bytes, kind = f.STREAM_HEADER.unpack_from, f.STREAM_HEADER.size, f.STREAM
        while index < count:
            plain = plains[index]
            index += 1
            if len(plain) <= header_bytes or plain[0] != kind:
                self._gathering.interrupt()
                eliciting += self._handle_frames(f.parse_untrusted(plain), address)
                continue
            # The hot path: a bulk transfer is made of packets of one stream, in order, and a short
            # message is one such packet.  To parse them one by one would come to the same.
            _, stream_id, offset = unpack(plain)
            pieces = [piece := plain[header_bytes:]]
            stop = offset + len(piece)
            while index < count:
                plain = plains[index]
                if len(plain) <= header_bytes or unpack(plain) != (kind, stream_id, stop):
                    break
                pieces.append(piece := plain[header_bytes:])
                stop += len(piece)
                index += 1
            eliciting += len(pieces)
            self._gathering.handle_packets(pieces)
            self.liveness.ask_at = self._clock.now + SILENCE_S
            self.streams.handle_data(stream_id, offset, pieces, False)
        return eliciting

    def _count_drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if self._opener.exhausted:
            self._fail(LinkLost("too many forged packets"))

    def _handle_frames(self, parsed: Iterable[f.Frame], address: Address) -> bool:
        """Whether one of them asks for an acknowledgement."""
        eliciting = False
        for frame in parsed:
            if isinstance(frame, f.Ack):
                self._outcomes.handle_ack(frame, address, self._clock.now)
                continue
            kind = type(frame)
            if kind is not f.Close:
                eliciting = True
                if kind is not f.Ping:  # or two sides that do nothing would keep asking
                    self.liveness.ask_at = self._clock.now + SILENCE_S
            handler = self._handlers.get(kind)
            if handler is None:
                self.streams.handle_frame(frame)
            else:
                handler(self, frame, address)
        return eliciting

    def _handle_ping(self, frame: f.Ping, address: Address) -> None:
        """That it came is all there is to it."""

    def _handle_path_challenge(self, frame: f.PathChallenge, address: Address) -> None:
        self.paths.validation.handle_challenge(frame.token, address)

    def _handle_path_response(self, frame: f.PathResponse, address: Address) -> None:
        self.paths.handle_response(frame.token, address, self._clock.now)

    def _handle_close(self, frame: f.Close, address: Address) -> None:
        reason = f"the peer closed the connection: code {frame.code}, {frame.reason!r}"
        self._end(Cue.LOST, (CallRefused if frame.code == CLOSE_UNPROVEN else LinkLost)(reason))

    _handlers: dict[type, Callable[[Any, Any, Address], None]] = {  # noqa: RUF012
        f.Ping: _handle_ping,
        f.PathChallenge: _handle_path_challenge,
        f.PathResponse: _handle_path_response,
        f.Close: _handle_close,
        f.Proof: lambda self, frame, address: self._events.put(ProofReceived(frame)),
    }

    # Time.

    def _deadlines(self) -> tuple[float, ...]:
        """When each Timer is due, in their order; infinite: it is not waited for.

        It is asked for with every batch, so it has no loops and few calls.
        """
        liveness, packer, paths = self.liveness, self.packer, self.paths
        return (
            liveness.heard_at + self.settings.idle_timeout_s,
            _NEVER if liveness.doubt is None else liveness.doubt.next_at,
            self.recovery.timer_at(),
            liveness.suspect_at,
            liveness.ask_at,
            packer.eliciting_at + self.settings.keepalive_s,
            paths.validation.next_at,
            paths.left.next_at,
            self._received.ack_at,
            packer.paced_until,
            paths.current.mtu.next_at,
        )

    def next_timer(self) -> float | None:
        if self.packer.unsettled:
            self.packer.settle()
        phase = self.lifecycle.phase
        if phase is _OPEN:
            return min(self._deadlines())
        return self.lifecycle.close_at if phase is Phase.CLOSING else None

    def handle_timer(self, now: float) -> None:
        if self.lifecycle.phase is Phase.CLOSED:
            return
        is_late = self._go_on(now)
        if self.lifecycle.phase is Phase.CLOSING:
            return  # ``poll_transmit`` has something to send
        deadlines = self._deadlines()
        for place, handle in enumerate(self._on_timer.values()):
            if handle is not None and now >= deadlines[place]:
                handle(self, now, is_late)
                if self.lifecycle.phase is not _OPEN:
                    return
                deadlines = self._deadlines()  # one that is handled may move another

    def _go_on(self, now: float) -> bool:
        """Whether we are late.  What has waited meanwhile says nothing of the path's round trip."""
        late_s = 0.0
        if self.packer.unsettled:
            self.packer.settle()
        if now - self._clock.now > LATE_S and (due_at := self.next_timer()) is not None:
            late_s = now - due_at
            if late_s > STALL_S:
                self.recovery.measure_from(now)
        self._clock.now = now
        return late_s > LATE_S

    def _handle_idle(self, now: float, is_late: bool) -> None:
        silence_s = self.settings.idle_timeout_s
        self._end(Cue.LOST, LinkLost("the peer is silent for {seconds:.0f} s", seconds=silence_s))

    def _handle_doubt(self, now: float, is_late: bool) -> None:
        if self.liveness.is_gone(now):
            error = LinkLost("the peer is gone: it does not answer, and the cloud lost it")
            self._end(Cue.LOST, error)

    def _handle_loss(self, now: float, is_late: bool) -> None:
        self._outcomes.handle_timer(now, is_late)

    def _handle_suspicion(self, now: float, is_late: bool) -> None:
        if is_late:  # as after a program that kept the interpreter's lock: ask first, and read
            self.liveness.suspect_at = now + self.recovery.rtt.pto_s
        elif self.liveness.handle_wait_over(answered=not self.recovery.pto_count):
            self._events.put(PathSuspected())

    def _handle_silence(self, now: float, is_late: bool) -> None:
        self.liveness.ask_at = math.inf
        self.ping()

    def _handle_keepalive(self, now: float, is_late: bool) -> None:
        self.ping()

    def _handle_validation(self, now: float, is_late: bool) -> None:
        self.paths.expire(now)

    def _handle_left(self, now: float, is_late: bool) -> None:
        self.paths.give_up(now)

    _on_timer: dict[Timer, Callable[[PeerConnection, float, bool], None] | None] = {  # noqa: RUF012
        Timer.IDLE: _handle_idle,
        Timer.DOUBT: _handle_doubt,
        Timer.LOSS: _handle_loss,
        Timer.SUSPICION: _handle_suspicion,
        Timer.SILENCE: _handle_silence,
        Timer.KEEPALIVE: _handle_keepalive,
        Timer.VALIDATION: _handle_validation,
        Timer.LEFT: _handle_left,
        Timer.ACK: None,  # ``poll_transmit`` finds these three by itself
        Timer.PACING: None,
        Timer.MTU: None,
    }

    # Commands.

    def ping(self) -> None:
        self.packer.queue_control(f.Ping())

    def doubt(self, now: float) -> bool:
        """The cloud says that the peer is gone: ask it, and end soon if it does not answer.

        False: that was asked a moment ago.
        """
        return self.lifecycle.phase is Phase.OPEN and self.liveness.begin_doubt(
            now, self.packer.next_number, self.recovery.rtt
        )

    def trust(self) -> None:
        """The cloud says that the peer is back."""
        self.liveness.doubt = None

    def try_path(self, address: Address, now: float) -> None:
        """New connectivity checks say that the peer may be (again) at this address.

        It is another path even if the address is the one in use: then our own has changed.
        """
        self._go_on(now)
        self.recovery.pto_count = 0  # what backed off for the old path has waited long enough
        self.paths.search(address, now)

    def probe_path(self, address: Address, now: float) -> None:
        """Ask whether the peer is at this address, too: PathProved or PathUnproved follows."""
        self._go_on(now)
        self.paths.probe(address, now)

    def move_to(self, address: Address, now: float, *, lossless: bool) -> bool:
        """Use this address from now on; False: it has never proved that the peer is there.

        ``lossless``: the old path is alive, so what is on its way there will arrive; else all of it
        is sent again.
        """
        self._go_on(now)
        moved = self.paths.move(address, now, lossless=lossless)
        if moved:
            self.ping()  # the peer has to hear of it
        return moved

    def close(self, code: int, reason: str, now: float) -> None:
        """End the connection; Closed follows when the peer has had the chance to hear of it."""
        self._clock.now = now
        self.lifecycle.begin_close(Cue.CLOSE, code, LinkLost(reason), now)

    def _fail(self, error: KKP2PError) -> None:
        """The peer breaks the protocol."""
        self.lifecycle.begin_close(Cue.BREACH, CLOSE_PROTOCOL_ERROR, error, self._clock.now)

    def _end(self, cue: Cue, error: KKP2PError) -> None:
        if self.lifecycle.move(cue):
            self._events.put(Closed(error))
            self.packer.clear()

    # Output.

    def poll_transmit(self, now: float) -> Transmit | None:
        self._go_on(now)  # after a sleep, an application's write may come before what has arrived
        packer = self.packer
        if self.lifecycle.phase is not _OPEN:
            return self._poll_close(now)
        path, validation = self.paths.current, self.paths.validation
        mtu = path.mtu
        if now >= validation.next_at or validation.responses:
            special = validation.poll(now, self._received)
            if special is not None:
                address, frame = special
                return packer.single(frame, address)
        if (doubt := self.liveness.doubt) is not None and doubt.poll(now):
            return packer.single(f.encode(f.Ping()), path.address)
        if now >= mtu.next_at and (probe_bytes := mtu.poll_probe(now)) is not None:
            return packer.mtu_probe(probe_bytes, path.address, now)
        transmit = packer.pack(path.address, now)
        if packer.progress or self.streams.line:
            self.streams.wake_writers()
        return transmit

    def _poll_close(self, now: float) -> Transmit | None:
        lifecycle = self.lifecycle
        if lifecycle.phase is Phase.CLOSED or now < lifecycle.close_at:
            return None
        frame = lifecycle.next_close(now, self.recovery.rtt.pto_s)
        if frame is None:
            self._end(Cue.TOLD, lifecycle.error)
            return None
        return self.packer.single(frame, self.address)
