"""Plays the endpoint for Connections in a simulated network, and the application above them.

A ``Peer`` does with its PeerConnection what the endpoint does, in the same order: datagrams or the
timer in, then events, then what the application wants, then datagrams out, then the timer.  The
timer's step is that of the event loop.  Bodies are written and read in pieces and compared as
they arrive, so that a transfer of any size costs no memory of its own.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from kkp2p_compat.transport.udp.events import (
    ChannelOffered,
    Closed,
    Event,
    MessageReceived,
    Readable,
    ResetReceived,
    Stopped,
    Writable,
)

from .simnet import Address, Link, Network, coalesce

__all__ = ["Body", "Incoming", "Outgoing", "Peer"]

HEADER = struct.Struct(">QQ")  # docs/protocol.rst: first byte and packet number, connection id
TIMER_STEP_S = 0.001  # libev's with epoll
PIECE_BYTES = 256 * 1024  # one write of the application, at most
MAX_IDLE_TURNS = 100  # timers in a row that may fire without the clock moving
MAX_TRANSMITS = 100_000  # of one turn

_PATTERN = Random("body").randbytes((1 << 20) + 7)
_PATTERN_TWICE = _PATTERN * 2


@dataclass(frozen=True)
class Body:
    """``size`` bytes that differ from those at any other offset or of any other seed."""

    size: int
    seed: int = 0

    def piece(self, offset: int, length: int) -> bytes:
        start = (self.seed * 104_729 + offset) % len(_PATTERN)
        return _PATTERN_TWICE[start : start + min(length, self.size - offset, len(_PATTERN))]


@dataclass
class Outgoing:
    """What the application still has to write on a stream."""

    body: Body
    finish: bool = True
    written: int = 0
    finished: bool = False
    waits: bool = False  # for Writable


@dataclass
class Incoming:
    """What the application has read from a stream, compared with what it should be.

    ``take_bytes`` and ``every_s``: a slow reader takes that much, then looks away for so long.
    """

    body: Body
    take_bytes: int | None = None
    every_s: float = 0.0
    paused: bool = False
    received: int = 0
    ended: bool = False
    reset_reason: int | None = None
    # (time, bytes read by then)
    progress: list[tuple[float, int]] = field(default_factory=list, repr=False)
    look_at: float = 0.0

    @property
    def done(self) -> bool:
        return self.ended and self.received == self.body.size

    def at(self, when: float) -> int:
        """Bytes read by that time."""
        return max((count for time, count in self.progress if time <= when), default=0)


class Peer:
    """One PeerConnection, the address it sends from, and its application."""

    def __init__(
        self, network: Network, name: str, connection: Any, address: Address, link: Link
    ) -> None:
        self.network, self.name, self.connection = network, name, connection
        self.address, self.link = address, link
        # By the peer's address, where the path to it is another one: our own address, and the link.
        self.routes: dict[Address, tuple[Address, Link]] = {}
        self.events: list[Event] = []
        self.closed: Exception | None = None
        self.outgoing: dict[int, Outgoing] = {}
        self.incoming: dict[int, Incoming] = {}
        self.offers: deque[ChannelOffered] = deque()
        self.messages: list[bytes] = []
        # Decides on an offered channel: called with the event, after which the peer is driven.
        self.on_offer: Callable[[ChannelOffered], object] = self.offers.append
        self.strays = 0
        self._unread: set[int] = set()
        self.turns = 0  # wake-ups: several inputs at one instant are one
        self._turn_at = -math.inf
        self._gathered: list[tuple[bytes, Address]] = []  # left in the socket for now
        self._gathers = False
        self._armed_at = math.inf
        self._idle_turns = 0
        self._last_timer = -math.inf
        self.choice: Any = None  # between paths: a PathChoice
        network.hosts[address] = self.receive

    def __str__(self) -> str:
        streams = [
            f"    {kind} {number}: {stream}"
            for kind, table in (("out", self.outgoing), ("in", self.incoming))
            for number, stream in table.items()
            if not (getattr(stream, "finished", False) or getattr(stream, "done", False))
        ]
        last = [str(event) for event in self.events[-3:]]
        timer = None if self.closed else self.connection.next_timer()
        return "\n".join(
            [f"  {self.name}: closed {self.closed!r}, timer {timer}, events {last}", *streams]
        )

    def move(self, address: Address) -> None:
        """Send from and listen on another address from now on: a NAT rebinds, a network changes."""
        del self.network.hosts[self.address]
        self.address = address
        self.network.hosts[address] = self.receive

    # Input

    def receive(self, packets: list[tuple[bytes, Address]]) -> None:
        """What the endpoint does with a readable socket: ours by connection id, then one turn."""
        mine = []
        for packet in packets:
            data = packet[0]
            ours = len(data) >= HEADER.size and 0x40 <= data[0] < 0x80
            if ours and HEADER.unpack_from(data)[1] == self.connection.local_id:
                mine.append(packet)
            else:
                self.strays += 1
        self._gathered += mine
        if mine and not self._gathers:
            self._read_socket()

    def _read_socket(self) -> None:
        connection, now = self.connection, self.network.now
        if self._gathers:
            for link in self.network.links:
                link.look()
            self._gathers = False
        packets, self._gathered = self._gathered, []
        if not packets or self.closed is not None:
            return
        for data, segment_bytes, source in coalesce(packets):
            connection.handle_datagrams(data, segment_bytes, source, now)
        gather_s = connection.gather_s(now)
        if 0 < gather_s < math.inf:
            self._gathers = True
            when = math.ceil((now + gather_s) / TIMER_STEP_S) * TIMER_STEP_S
            self.network.at(when, self._read_socket)
        self.drive()

    def drive(self) -> None:
        """After any input or command: events, the application, datagrams, the timer."""
        if self.closed is not None:
            return
        connection, network = self.connection, self.network
        now = network.now
        self.turns += now > self._turn_at
        self._turn_at = now
        while True:
            self._poll_events()
            self._pump()
            sent = 0
            while (transmit := connection.poll_transmit(now)) is not None:
                address = transmit.address
                source, link = self.routes.get(address, (self.address, self.link))
                link.send(transmit.data, transmit.segment_bytes, source, address)
                sent += 1
                if sent > MAX_TRANSMITS:
                    network.fail(f"{self.name}: does not stop to send")
            if not self._poll_events():
                break
        if self.closed is None:
            self._arm(self._next_timer())

    def _next_timer(self) -> float | None:
        own = self.connection.next_timer()
        if self.choice is None:
            return own
        chosen: float = self.choice.next_timer()
        return chosen if own is None else min(own, chosen)

    def _poll_events(self) -> int:
        count = 0
        while (event := self.connection.poll_event()) is not None:
            self._handle(event)
            count += 1
            if count > MAX_TRANSMITS:
                self.network.fail(f"{self.name}: does not stop to tell events: {event}")
        return count

    def _handle(self, event: Event) -> None:
        if not isinstance(event, (Readable, Writable, MessageReceived)):
            self.events.append(event)
            if self.choice is not None:
                self.choice.handle_event(event, self.network.now)
        if isinstance(event, ChannelOffered):
            self.on_offer(event)
        elif isinstance(event, Readable):
            self._unread.add(event.stream_id)
            self._read_all()  # at once, as the engine does: later events may end the stream
        elif isinstance(event, ResetReceived):
            reader = self.incoming.setdefault(event.stream_id, Incoming(Body(0)))
            reader.reset_reason = event.reason
        elif isinstance(event, Writable) and event.stream_id in self.outgoing:
            self.outgoing[event.stream_id].waits = False
        elif isinstance(event, Stopped):
            self.outgoing.pop(event.stream_id, None)
        elif isinstance(event, MessageReceived):
            self.messages.append(event.data)
        elif isinstance(event, Closed):
            self.closed = event.error

    # The application

    def send(self, stream_id: int, body: Body, finish: bool = True) -> Outgoing:
        made = self.outgoing[stream_id] = Outgoing(body, finish)
        return made

    def expect(self, stream_id: int, body: Body, **fields: Any) -> Incoming:
        made = self.incoming[stream_id] = Incoming(body, **fields)
        self._unread.add(stream_id)
        return made

    def look(self, stream_id: int) -> None:
        """Read on the next turn, without having been told that there is something."""
        self._unread.add(stream_id)

    def resume(self, stream_id: int) -> None:
        """Go on to read a stream that was paused."""
        self.incoming[stream_id].paused = False
        self._unread.add(stream_id)
        self.drive()

    def _pump(self) -> None:
        if self.closed is not None:
            return
        self._read_all()
        for stream_id, writer in list(self.outgoing.items()):
            self._write(stream_id, writer)
            if writer.finished or (not writer.finish and writer.written == writer.body.size):
                del self.outgoing[stream_id]

    def _read_all(self) -> None:
        for stream_id in list(self._unread):
            reader = self.incoming.get(stream_id)
            if reader is not None and self._read(stream_id, reader):
                self._unread.discard(stream_id)

    def _write(self, stream_id: int, writer: Outgoing) -> None:
        connection, body = self.connection, writer.body
        while writer.written < body.size:
            room = 0
            if not writer.waits:
                room = min(connection.streams.writable_bytes(stream_id), PIECE_BYTES)
            if room <= 0:
                writer.waits = True
                return
            piece = body.piece(writer.written, room)
            connection.streams.write(stream_id, piece)
            writer.written += len(piece)
        if writer.finish:
            connection.streams.finish(stream_id)
            writer.finished = True

    def _read(self, stream_id: int, reader: Incoming) -> bool:
        """Whether there is nothing more to read for now."""
        connection, now = self.connection, self.network.now
        if reader.paused or reader.ended or reader.reset_reason is not None:
            return True
        if now < reader.look_at:
            return False
        left = reader.take_bytes
        taken = 0
        for buffer in connection.streams.peek(stream_id):
            data = bytes(buffer)
            if left is not None:
                data = data[: left - taken]
            if data != reader.body.piece(reader.received, len(data)):
                self.network.fail(f"{self.name}: wrong bytes on {stream_id}: {reader}")
            reader.received += len(data)
            taken += len(data)
        if taken:
            connection.streams.consume(stream_id, taken)
            reader.progress.append((now, reader.received))
        if connection.streams.at_end(stream_id):
            reader.ended = True
            if reader.received != reader.body.size:
                self.network.fail(f"{self.name}: wrong end of {stream_id}: {reader}")
            return True
        if left is not None and taken:
            reader.look_at = now + reader.every_s
            self.network.at(reader.look_at, self.drive)
            return False
        return True

    # The timer

    def _arm(self, deadline: float | None) -> None:
        if deadline is None:
            return
        due = max(deadline, self.network.now)
        when = max(math.ceil(due / TIMER_STEP_S) * TIMER_STEP_S, due)
        if when < self._armed_at:
            self._armed_at = when
            self.network.at(when, lambda: self._fire(when))

    def _fire(self, planned: float) -> None:
        if planned != self._armed_at or self.closed is not None:
            return
        self._armed_at = math.inf
        now, deadline = self.network.now, self._next_timer()
        if deadline is not None and deadline <= now:
            self._idle_turns = self._idle_turns + 1 if now == self._last_timer else 0
            self._last_timer = now
            if self._idle_turns > MAX_IDLE_TURNS:
                self.network.fail(f"{self.name}: the timer stays at {deadline}")
            self.connection.handle_timer(now)
            if self.choice is not None and self.choice.next_timer() <= now:
                self.choice.handle_timer(now)
            self.drive()
        else:
            self._arm(deadline)
