"""What leaves in which packet: the short way of a short message, runs, and when it is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from keyed_connection import PEER, keyed_connection, played_peer
from kkp2p_compat._codes import KKP2P_TCP_CHANNEL
from kkp2p_compat.transport.udp import frames as f
from kkp2p_compat.transport.udp.events import ChannelOffered, Transmit, Writable
from kkp2p_compat.transport.udp.header import OVERHEAD_BYTES

STREAM = 1  # the peer's
TICK_S = 0.001


class Sender:
    """A connection with one open channel, on a path whose size is confirmed; we are its peer."""

    def __init__(self) -> None:
        self.now = 100.0
        self.connection = keyed_connection(self.now, is_caller=True, rtt_s=0.01)
        self._sealer, self._opener = played_peer()
        self._number = 0
        self.largest = -1
        self.give(f.encode(f.Open(STREAM, KKP2P_TCP_CHANNEL, 0, 0)))
        assert isinstance(self.connection.poll_event(), ChannelOffered)
        self.connection.streams.accept(STREAM)
        self.frames()
        self.acknowledge()
        assert self.connection.path.mtu.confirmed
        self.frames()

    def give(self, *frames: bytes) -> None:
        data = b"".join(self._sealer.seal(self._number, 9, [b"".join(frames)]))
        self._number += 1
        self.now += TICK_S
        self.connection.handle_datagrams(data, len(data), PEER, self.now)

    def acknowledge(self, largest: int | None = None) -> None:
        """All up to this packet; None: up to the last."""
        largest = self.largest if largest is None else largest
        self.give(f.ACK_HEADER.pack(f.ACK, largest, 0, largest, 0))

    def write(self, data: bytes) -> None:
        self.connection.streams.write(STREAM, data)

    def transmits(self) -> Iterator[Transmit]:
        while (transmit := self.connection.poll_transmit(self.now)) is not None:
            yield transmit

    def payloads(self) -> list[bytes]:
        """Of all packets that may leave now."""
        return [payload for transmit in self.transmits() for payload in self.open(transmit)]

    def open(self, transmit: Transmit) -> list[bytes]:
        """The payloads of its packets."""
        found = []
        for place in range(0, len(transmit.data), transmit.segment_bytes):
            packet = transmit.data[place : place + transmit.segment_bytes]
            self.largest, payload = self._opener.open_untrusted(packet)
            found.append(payload)
        return found

    def frames(self) -> list[f.Frame]:
        """All that are no probe of the path's size."""
        return [
            frame
            for payload in self.payloads()
            for frame in f.parse_untrusted(payload)
            if not isinstance(frame, f.Ping)
        ]

    def kinds(self) -> list[list[str]]:
        """The frames of each packet, by name."""
        return [
            [type(frame).__name__ for frame in f.parse_untrusted(payload)]
            for payload in self.payloads()
        ]


def test_a_short_message_fills_a_packet_to_its_end() -> None:
    sender = Sender()
    sender.write(b"hello")
    assert sender.payloads() == [f.STREAM_HEADER.pack(f.STREAM, STREAM, 0) + b"hello"]
    sender.write(b", world")
    assert sender.payloads() == [f.STREAM_HEADER.pack(f.STREAM, STREAM, 5) + b", world"]


def test_what_is_left_of_a_turn_ends_the_batch_and_the_next_turn_is_in_whole_packets() -> None:
    sender = Sender()
    other = STREAM + 2
    sender.give(f.encode(f.Open(other, KKP2P_TCP_CHANNEL, 0, 0)))
    sender.connection.streams.accept(other)
    sender.frames()
    sender.acknowledge()
    chunk = sender.connection.packer.room - f.STREAM_HEADER.size
    sizes = {STREAM: 5 * chunk + 100, other: 2 * chunk + 50}
    for stream_id, size in sizes.items():
        sender.connection.streams.write(stream_id, bytes(size))
    sender.connection.streams.finish(other)
    batches = [
        [
            (frame.stream, len(frame.data), frame.fin)
            for payload in sender.open(transmit)
            for frame in f.parse_untrusted(payload)
            if isinstance(frame, f.Stream)
        ]
        for transmit in sender.transmits()
    ]
    assert batches == [
        [(STREAM, chunk, False)] * 5 + [(STREAM, 100, False)],
        [(other, chunk, False)] * 2 + [(other, 50, True)],
    ]


def test_an_acknowledgement_that_is_due_goes_along() -> None:
    sender = Sender()
    sender.give(f.encode(f.Ping()))
    sender.write(b"hello")
    assert sender.kinds() == [["Ack", "Stream"]]
    sender.write(b"again")
    assert sender.kinds() == [["Stream"]]


def test_an_acknowledgement_alone_is_neither_recorded_nor_followed() -> None:
    sender = Sender()
    sender.give(f.encode(f.Ping()))
    sender.give(f.encode(f.Ping()))
    (transmit,) = sender.transmits()
    assert not transmit.more
    assert sender.connection.next_timer() is not None
    assert sender.connection.recovery.in_flight == 0


def test_the_end_of_the_stream_goes_with_the_last_bytes_or_alone() -> None:
    sender = Sender()
    sender.write(b"bye")
    sender.connection.streams.finish(STREAM)
    assert sender.payloads() == [f.STREAM_HEADER.pack(f.STREAM_FIN, STREAM, 0) + b"bye"]
    sender = Sender()
    sender.write(b"bye")
    sender.payloads()
    sender.connection.streams.finish(STREAM)
    assert sender.payloads() == [f.STREAM_HEADER.pack(f.STREAM_FIN, STREAM, 3)]
    assert not sender.connection.streams.by_id[STREAM].send.done
    sender.acknowledge()
    assert sender.connection.streams.by_id[STREAM].send.done


def test_an_end_that_was_lost_is_sent_again() -> None:
    sender = Sender()
    sender.write(b"bye")
    sender.connection.streams.finish(STREAM)
    sender.payloads()
    for _ in range(3):
        sender.connection.ping()
        sender.payloads()
    sender.give(f.ACK_HEADER.pack(f.ACK, sender.largest, 0, 2, 0))
    assert [frame for frame in sender.frames() if isinstance(frame, f.Stream)] == [
        f.Stream(STREAM, 0, memoryview(b"bye"), True)
    ]


def test_control_frames_and_data_share_a_packet_and_are_both_repeated() -> None:
    sender = Sender()
    sender.give(f.encode(f.Ping()))
    stream_id = sender.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    sender.write(b"hello")
    assert sender.kinds() == [["Ack", "Open", "Stream"]]
    assert sender.connection.packer.control_on_way == 1
    for _ in range(3):
        sender.connection.ping()
        assert sender.kinds() == [["Ping"]]
    sender.give(f.ACK_HEADER.pack(f.ACK, sender.largest, 0, 2, 0))
    repeated = [frame for frame in sender.frames() if not isinstance(frame, f.Ack)]
    assert repeated == [
        f.Open(stream_id, KKP2P_TCP_CHANNEL, 0, 0),
        f.Stream(STREAM, 0, memoryview(b"hello"), False),
    ]
    sender.acknowledge()
    assert sender.connection.packer.control_on_way == 0
    assert sender.connection.recovery.in_flight == 0


def test_more_control_frames_than_a_short_packet_takes() -> None:
    sender = Sender()
    for _ in range(300):
        sender.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    sender.write(b"hello")
    frames = sender.frames()
    assert [frame.stream for frame in frames if isinstance(frame, f.Open)] == list(range(0, 600, 2))
    assert [bytes(frame.data) for frame in frames if isinstance(frame, f.Stream)] == [b"hello"]


def test_control_frames_do_not_wait_for_the_window() -> None:
    sender = Sender()
    sender.connection.path.controller.window_bytes = 0
    sender.write(b"hello")
    stream_id = sender.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    assert sender.frames() == [f.Open(stream_id, KKP2P_TCP_CHANNEL, 0, 0)]
    assert sender.connection.streams.by_id[STREAM].send.unsent_bytes == 5


def test_what_was_lost_goes_before_what_is_new() -> None:
    sender = Sender()
    for byte in b"abcdef":
        sender.write(bytes([byte]))
        assert len(sender.frames()) == 1
    first = sender.largest - 5
    sender.give(f.ACK_HEADER.pack(f.ACK, sender.largest, 0, sender.largest - first - 1, 0))
    sender.write(b"g")
    found = [frame for frame in sender.frames() if isinstance(frame, f.Stream)]
    assert [(frame.offset, bytes(frame.data)) for frame in found] == [(0, b"a"), (6, b"g")]


def test_a_limit_of_the_stream_holds_for_a_short_message() -> None:
    sender = Sender()
    send = sender.connection.streams.by_id[STREAM].send
    send.limit = 3
    sender.write(b"hello")
    assert [bytes(frame.data) for frame in sender.frames() if isinstance(frame, f.Stream)] == [
        b"hel"
    ]
    assert sender.payloads() == []
    sender.give(f.encode(f.MaxStreamData(STREAM, 100)))
    assert [bytes(frame.data) for frame in sender.frames() if isinstance(frame, f.Stream)] == [
        b"lo"
    ]


def test_the_limit_of_all_streams_holds_for_a_short_message() -> None:
    sender = Sender()
    sender.connection.packer.max_data = 2
    sender.write(b"hello")
    assert [bytes(frame.data) for frame in sender.frames() if isinstance(frame, f.Stream)] == [
        b"he"
    ]
    assert sender.payloads() == []


def test_short_messages_do_not_pass_the_window() -> None:
    """Each is recorded before the next is let go, though nobody asked for a deadline meanwhile."""
    sender = Sender()
    connection = sender.connection
    data = bytes(900)
    for _ in range(200):
        sender.write(data)
        for transmit in sender.transmits():
            assert len(transmit.data) <= connection.path.mtu.size
        sender.now += TICK_S
    connection.next_timer()
    window = connection.path.controller.window_bytes
    assert window - connection.path.mtu.size < connection.recovery.in_flight <= window
    assert connection.streams.by_id[STREAM].send.unsent_bytes > 0


def test_what_has_left_is_recorded_when_the_deadline_is_asked_for() -> None:
    sender = Sender()
    connection = sender.connection
    sender.write(b"hello")
    (transmit,) = sender.transmits()
    due = connection.next_timer()
    assert connection.recovery.in_flight == len(transmit.data)
    assert due == sender.now + connection.recovery.rtt.pto_s


def test_what_has_left_is_recorded_before_an_answer_is_read() -> None:
    sender = Sender()
    connection = sender.connection
    sender.write(b"hello")
    (transmit,) = sender.transmits()
    assert not transmit.more
    sender.largest += 1
    before = connection.path.rate.delivered_bytes
    sender.acknowledge()
    assert connection.recovery.in_flight == 0
    assert connection.path.rate.delivered_bytes == before + len(transmit.data)


def test_a_writer_that_does_not_wait_is_not_woken() -> None:
    sender = Sender()
    connection = sender.connection
    sender.write(b"hello")
    sender.payloads()
    assert connection.poll_event() is None
    sender.give(f.encode(f.MaxStreamData(STREAM, 1 << 40)))
    sender.write(bytes(connection.streams.writable_bytes(STREAM)))
    assert connection.streams.writable_bytes(STREAM) == 0
    events = []
    while not events:
        sender.payloads()
        sender.acknowledge()
        while (event := connection.poll_event()) is not None:
            events.append(event)
    assert events == [Writable(STREAM)]


@pytest.mark.parametrize("count", [1, 2, 64])
@pytest.mark.parametrize("offset", [0, (1 << 64) - 64 * 1427])
def test_a_run_is_what_its_frames_are_one_by_one(count: int, offset: int) -> None:
    chunk = 1427
    data = Random(count).randbytes(count * chunk)
    run = f.encode_stream_run(7, offset, memoryview(data), chunk)
    assert run == [
        f.STREAM_HEADER.pack(f.STREAM, 7, offset + place) + data[place : place + chunk]
        for place in range(0, len(data), chunk)
    ]


def test_a_bulk_flight_carries_the_stream_as_it_was_written() -> None:
    sender = Sender()
    data = Random(3).randbytes(100_000)
    sender.write(data)
    arrived = bytearray()
    while len(arrived) < len(data):
        for payload in sender.payloads():
            assert len(payload) + OVERHEAD_BYTES <= sender.connection.path.mtu.size
            for frame in f.parse_untrusted(payload):
                if isinstance(frame, f.Stream):
                    assert frame.offset == len(arrived)
                    arrived += frame.data
        sender.acknowledge()
        sender.now += TICK_S
    assert arrived == data
