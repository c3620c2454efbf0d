"""Two honest peers and a hostile network: what it may cost is time, and never a byte."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from random import Random

from keyed_connection import keyed_connection
from kkp2p_compat._address import Address
from kkp2p_compat._codes import KKP2P_TCP_CHANNEL, KKP2P_UDP_CHANNEL
from kkp2p_compat.transport.udp.events import (
    ChannelOffered,
    Closed,
    Event,
    MessageReceived,
    Readable,
    ResetReceived,
)
from kkp2p_compat.transport.udp.lifecycle import Phase

__all__ = ["SCRIPTS", "fuzz_pair"]

MTUS = (300, 576, 800, 1028, 1200, 1300, 1428, 1500)  # of the path, with headers
HEADERS = 28
ROUND_TRIP_S = 0.02
MAX_QUEUE = 400  # datagrams on their way in one direction: more are dropped
MAX_TURNS = 10_000  # of anything at one instant
CALM_TURNS = 6000  # until all has arrived on a good path
PATIENCE_S = 40.0  # the idle time-out ends a connection that is silent for longer


class End:
    """A connection, and the application that uses it."""

    def __init__(self, me: int) -> None:
        addresses = ("192.0.2.1", 1000), ("198.51.100.1", 2000)
        self.address: Address = addresses[me]
        self.connection = keyed_connection(
            0.0, is_caller=me == 0, address=addresses[1 - me], is_other=me == 0
        )
        self.queue: deque[tuple[bytes, Address]] = deque()  # to the other one, and from where
        self.written: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.read: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.said: list[bytes] = []  # messages of UDP channels
        self.heard: list[bytes] = []
        self.finished: set[int] = set()
        self.ended: set[int] = set()  # read to its end
        self.given_up: set[int] = set()  # what was written
        self.stopped: set[int] = set()  # not read to its end
        self.closed: Closed | None = None
        self.random = Random(me + 7)

    def drive(self, now: float) -> None:
        for _ in range(MAX_TURNS):
            event = self.connection.poll_event()
            if event is not None:
                self._handle(event)
                continue
            transmit = self.connection.poll_transmit(now)
            if transmit is None:
                if self.connection.poll_event() is None:
                    return
                raise AssertionError("an event that nobody was told of")
            size = transmit.segment_bytes
            for place in range(0, len(transmit.data), size):
                if len(self.queue) < MAX_QUEUE:
                    self.queue.append((transmit.data[place : place + size], self.address))
        raise AssertionError("events or datagrams without an end")

    def _handle(self, event: Event) -> None:
        if isinstance(event, Closed):
            assert self.closed is None
            self.closed = event
        elif isinstance(event, ChannelOffered):
            if event.desc % 4 == 3:
                self.connection.streams.refuse(event.stream_id, 1)
                self.stopped.add(event.stream_id)
            else:
                self.connection.streams.accept(event.stream_id)
        elif isinstance(event, Readable):
            self._take(event.stream_id)
        elif isinstance(event, ResetReceived):
            self.ended.add(event.stream_id)
        elif isinstance(event, MessageReceived):
            self.heard.append(event.data)

    def _take(self, stream_id: int) -> None:
        data = b"".join(self.connection.streams.peek(stream_id))
        if data:
            self.connection.streams.consume(stream_id, len(data))
            self.read[stream_id] += data
        if self.connection.streams.at_end(stream_id):
            self.ended.add(stream_id)
            self.connection.streams.finish(stream_id)
            self.finished.add(stream_id)

    def act(self, what: int, amount: int) -> None:
        """One thing that an application may do."""
        connection = self.connection
        streams = [number for number in connection.streams.by_id if self._may_use(number)]
        if what == 0:
            kind = KKP2P_UDP_CHANNEL if amount & 1 else KKP2P_TCP_CHANNEL
            connection.streams.open(kind, 0, amount)
            return
        if not streams or connection.lifecycle.phase is Phase.CLOSED:
            return
        stream_id = streams[amount % len(streams)]
        channel = connection.streams.by_id[stream_id]
        if what == 1 and not channel.send.finished and stream_id not in self.given_up:
            data = self.random.randbytes(amount * amount * 20)
            data = data[: connection.streams.writable_bytes(stream_id)]
            connection.streams.write(stream_id, data)
            self.written[stream_id] += data
        elif what == 2:
            connection.streams.finish(stream_id)
            self.finished.add(stream_id)
        elif what == 3:
            connection.streams.reset(stream_id, amount)
            self.given_up.add(stream_id)
        elif what == 4 and channel.splitter is not None and not channel.send.finished:
            self.said.append(self.random.randbytes(amount * 40))
            connection.streams.send_message(stream_id, self.said[-1])
        elif what == 5:
            connection.streams.stop(stream_id)
            self.stopped.add(stream_id)
        elif what == 6:
            self.address = (self.address[0], 1000 + amount)  # its NAT has rebound

    def _may_use(self, stream_id: int) -> bool:
        channel = self.connection.streams.by_id[stream_id]
        return channel.opened or channel.ours


class Network:
    def __init__(self) -> None:
        self.now = 0.0
        self.ends = End(0), End(1)
        self.mtu = MTUS[-1]

    def deliver(self, me: int) -> None:
        one, other = self.ends[me], self.ends[1 - me]
        if one.queue:
            data, source = one.queue.popleft()
            if len(data) + HEADERS <= self.mtu:
                other.connection.handle_datagrams(data, len(data), source, self.now)
                other.drive(self.now)

    def wait(self, seconds: float | None = None) -> None:
        """So long; or until something is due."""
        due = [end.connection.next_timer() for end in self.ends]
        earliest = min((time for time in due if time is not None), default=self.now)
        self.now = max(self.now, earliest if seconds is None else self.now + seconds)
        for end, time in zip(self.ends, due, strict=True):
            if time is not None and time <= self.now:
                end.connection.handle_timer(self.now)
            end.drive(self.now)

    def step(self, byte: int) -> None:
        what, amount = byte & 7, byte >> 3
        queue = self.ends[amount & 1].queue
        if what < 2:
            for _ in range(amount + 1):
                self.deliver(what)
        elif what == 2:
            for _ in range(min(len(queue), amount + 1)):
                queue.popleft()
        elif what == 3 and queue:
            queue.rotate(amount)
            queue.append(queue[0])
        elif what == 4 and queue:
            data, source = queue[0]
            place = amount % len(data)
            queue[0] = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], source
        elif what == 5:
            self.wait(None if amount < 16 else amount / 32)
        elif what == 6:
            self.mtu = MTUS[amount % len(MTUS)]

    def calm_down(self) -> None:
        """A good path from now on: to the end of all that is under way."""
        self.mtu = MTUS[-1]
        until = self.now + PATIENCE_S
        for _ in range(CALM_TURNS):
            moving = [len(end.queue) for end in self.ends]
            over = not any(moving) and all(
                end.connection.lifecycle.phase is Phase.CLOSED for end in self.ends
            )
            if over or self.now > until:
                return
            for me, count in enumerate(moving):
                for _ in range(count):
                    self.deliver(me)
            self.wait(ROUND_TRIP_S / 2 if any(moving) else None)
        raise AssertionError("never quiet")


def fuzz_pair(data: bytes) -> None:
    network = Network()
    network.ends[0].connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    for end in network.ends:
        end.drive(0.0)
    pending = iter(data)
    for byte in pending:
        if byte & 7 == 7:
            end = network.ends[byte >> 3 & 1]
            if end.closed is None:
                end.act(byte >> 4 & 7, next(pending, 0) & 63)
                end.drive(network.now)
        else:
            network.step(byte)
    network.calm_down()
    check(*network.ends)


def check(one: End, other: End) -> None:
    """Whatever was read was written; and all of it, where nobody gave up."""
    for source, target in ((one, other), (other, one)):
        assert not Counter(target.heard) - Counter(source.said), "a message that nobody sent"
        for stream_id, got in target.read.items():
            assert source.written[stream_id].startswith(got), "other bytes than were written"
        if source.closed or target.closed:
            continue
        for stream_id in source.finished - source.given_up:
            wrote = source.written[stream_id]
            if wrote and stream_id not in target.stopped:
                assert target.read[stream_id] == wrote, "bytes are missing"
                assert stream_id in target.ended
    assert not (one.closed and "protocol" in str(one.closed.error)), one.closed
    assert not (other.closed and "protocol" in str(other.closed.error)), other.closed


def _act(who: int, what: int, amount: int) -> bytes:
    return bytes([7 | who << 3 | what << 4, amount])


def _step(what: int, amount: int) -> bytes:
    return bytes([what | amount << 3])


ROUND = _step(0, 31) + _step(1, 31) + _step(5, 0)
SCRIPTS = [
    ROUND + _act(0, 1, 40) + ROUND * 3 + _act(1, 1, 9) + _act(0, 2, 0) + ROUND * 4,
    ROUND + _act(0, 1, 63) + _step(6, 3) + ROUND * 9 + _step(2, 0) + _step(3, 3) + ROUND * 5,
    ROUND
    + _act(0, 0, 1)
    + ROUND
    + _act(0, 4, 60)
    + _step(4, 9)
    + ROUND * 2
    + _act(1, 6, 5)
    + ROUND,
    _step(6, 0)
    + ROUND * 3
    + _act(0, 1, 20)
    + _step(5, 31) * 9
    + _act(0, 3, 1)
    + _act(1, 5, 1)
    + ROUND,
]
