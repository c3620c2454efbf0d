"""For how long bulk is left in the socket: Gathering alone, told the time."""

from __future__ import annotations

import math

import pytest

from kkp2p_compat.transport.udp.acks import CALM_PACKETS, PER_ACK, Received
from kkp2p_compat.transport.udp.gathering import (
    BULK_PACKETS,
    GATHER_RTTS,
    MAX_GATHER_S,
    MAX_PACKETS,
    Gathering,
)
from kkp2p_compat.transport.udp.recovery import Recovery, RoundTrip

RTT_S = 0.02
SPACING_S = 0.0001  # between two packets
TURN_PACKETS = 25
FULL = [bytes(1400)]


class Reader:
    """Takes packets as they come."""

    def __init__(self, rtt_s: float = RTT_S) -> None:
        self.received = Received()
        self.recovery = Recovery()
        self.recovery.rtt.update(rtt_s, 0.0)
        self.gathering = Gathering(self.received, self.recovery)
        self.now = 1000.0

    def read(self, count: int = 1, after_s: float = SPACING_S) -> float:
        """``count`` packets in one turn; for how long to leave the next ones."""
        self.now += after_s
        first = self.received.largest + 1
        self.received.add(first, first + count, self.now)
        self.gathering.handle_packets(FULL * count)
        self.received.want_ack(count, self.now, RTT_S)
        return self.gathering.wait_s(self.now)

    def read_turn(self) -> float:
        return self.read(TURN_PACKETS, TURN_PACKETS * SPACING_S)

    def read_until_bulk(self) -> float:
        for _ in range(BULK_PACKETS - 1):
            assert self.read() == 0.0
        return self.read()


@pytest.fixture
def calm() -> Reader:
    """Has read so much that nothing was lost lately, and waits."""
    reader = Reader()
    for _ in range(CALM_PACKETS // TURN_PACKETS + 1):
        reader.read_turn()
    reader.received.take_ack(reader.now)
    return reader


def test_bulk_waits_for_an_eighth_of_the_round_trip(calm: Reader) -> None:
    assert calm.read_turn() == pytest.approx(GATHER_RTTS * RTT_S)


def test_what_has_come_is_acknowledged_before_and_after_a_wait(calm: Reader) -> None:
    for min_rtt_s in (RTT_S, 0.001):  # the second turn ends it
        calm.recovery.rtt.min_s = min_rtt_s
        assert calm.received.ack_at == math.inf
        calm.read_turn()
        assert calm.received.ack_at == calm.now
        calm.received.take_ack(calm.now)
    calm.read(1)
    assert calm.received.ack_at > calm.now


def test_it_waits_never_for_long_and_not_at_all_on_a_short_path(calm: Reader) -> None:
    calm.recovery.rtt.min_s = 1.0
    assert calm.read(25, 0.005) == MAX_GATHER_S
    calm.recovery.rtt.min_s = 0.004
    assert calm.read(25, 0.005) == 0.0


def test_it_waits_for_no_more_than_a_small_socket_buffer_holds(calm: Reader) -> None:
    assert calm.read(40, 0.001) == pytest.approx(MAX_PACKETS * 0.001 / 40)
    assert calm.read(44, 0.0005) == 0.0  # they would be there before a timer


def test_after_a_loss_it_waits_for_no_more_than_one_acknowledgement_is_for(calm: Reader) -> None:
    calm.received.add(calm.received.largest + 2, calm.received.largest + 3, calm.now)
    assert calm.read(10, 0.0015) == pytest.approx(PER_ACK * 0.00015)


def test_a_young_connection_does_not_wait() -> None:
    assert Reader().read_until_bulk() == 0.0  # ten packets are there before a timer
    unmeasured = Reader()
    unmeasured.recovery.leave_path(RoundTrip())  # how long a round trip takes is not known
    assert unmeasured.read(BULK_PACKETS, 0.005) == 0.0


def test_anything_but_bulk_is_read_at_once_and_so_is_what_follows(calm: Reader) -> None:
    for interrupt in (
        calm.gathering.interrupt,
        lambda: calm.gathering.handle_packets([bytes(20)]),
        lambda: calm.gathering.handle_packets([*FULL, *FULL, bytes(1000)]),
    ):
        assert calm.read_turn() > 0.0
        interrupt()
        assert calm.gathering.wait_s(calm.now) == 0.0
        assert calm.read_until_bulk() > 0.0


def test_it_gives_up_when_little_comes(calm: Reader) -> None:
    assert calm.read(2, 0.0025) == 0.0
    assert calm.read_until_bulk() > 0.0


def test_a_turn_that_brings_nothing_does_not_matter(calm: Reader) -> None:
    assert calm.gathering.wait_s(calm.now) == math.inf
    assert calm.read(2, 0.0025) == 0.0  # it has waited for these
