"""When an acknowledgement is owed: Received alone, told the time."""

from __future__ import annotations

import math

import pytest

from kkp2p_compat.transport.udp.acks import (
    CALM_PACKETS,
    MAX_ACK_GAP_S,
    MIN_ACK_GAP_S,
    PER_ACK,
    YOUNG_PACKETS,
    Received,
)
from kkp2p_compat.transport.udp.recovery import MAX_ACK_DELAY_S

NOW = 1000.0
RTT_S = 0.1


@pytest.fixture
def received() -> Received:
    """Not young any more, and all acknowledged at NOW."""
    made = Received()
    made.add(0, YOUNG_PACKETS + 1, NOW)
    made.want_ack(YOUNG_PACKETS + 1, NOW, RTT_S)
    made.take_ack(NOW)
    assert made.ack_at == math.inf
    return made


@pytest.mark.parametrize(
    ("rtt_s", "gap_s"), [(0.001, MIN_ACK_GAP_S), (0.016, 0.002), (0.1, MAX_ACK_GAP_S)]
)
def test_packets_in_order_are_acknowledged_together(
    received: Received, rtt_s: float, gap_s: float
) -> None:
    first = YOUNG_PACKETS + 1
    for number in range(first, first + PER_ACK - 1):
        received.add(number, number + 1, NOW)
        received.want_ack(1, NOW, rtt_s)
        assert received.ack_at == NOW + MAX_ACK_DELAY_S
    received.add(first + PER_ACK - 1, first + PER_ACK, NOW + 0.0001)
    received.want_ack(1, NOW + 0.0001, rtt_s)
    assert received.ack_at == NOW + gap_s  # since the last one


def test_after_a_gap_the_sender_need_not_wait_for_its_acknowledgements(received: Received) -> None:
    first = YOUNG_PACKETS + 2
    received.add(first, first + 1, NOW)
    received.want_ack(1, NOW, RTT_S)
    received.take_ack(NOW)
    assert not received.calm
    received.add(first + 1, first + CALM_PACKETS, NOW)
    received.want_ack(CALM_PACKETS - 1, NOW, RTT_S)
    assert received.ack_at == NOW + MIN_ACK_GAP_S
    received.take_ack(NOW)
    received.add(first + CALM_PACKETS, first + CALM_PACKETS + PER_ACK, NOW)
    received.want_ack(PER_ACK, NOW, RTT_S)
    assert received.calm
    assert received.ack_at == NOW + MAX_ACK_GAP_S


def test_it_can_be_hurried(received: Received) -> None:
    received.hurry(NOW)
    assert received.ack_at == math.inf  # there is nothing to acknowledge
    received.add(YOUNG_PACKETS + 1, YOUNG_PACKETS + 2, NOW)
    received.want_ack(1, NOW, RTT_S)
    received.hurry(NOW)
    assert received.ack_at == NOW


def test_a_packet_behind_a_gap_and_the_one_that_fills_it_are_acknowledged_at_once(
    received: Received,
) -> None:
    missing = YOUNG_PACKETS + 1
    for number in (missing + 1, missing):
        received.add(number, number + 1, NOW)  # as soon after the last ACK as can be
        received.want_ack(1, NOW, RTT_S)
        assert received.ack_at == NOW
        received.take_ack(NOW)
    received.add(missing + 2, missing + 3, NOW)
    received.want_ack(1, NOW, RTT_S)
    assert received.ack_at == NOW + MAX_ACK_DELAY_S


def test_a_gap_before_packets_that_ask_for_nothing_makes_the_next_that_asks_urgent(
    received: Received,
) -> None:
    received.add(YOUNG_PACKETS + 5, YOUNG_PACKETS + 6, NOW)
    assert received.ack_at == math.inf
    received.add(YOUNG_PACKETS + 6, YOUNG_PACKETS + 7, NOW)
    received.want_ack(1, NOW, RTT_S)
    assert received.ack_at == NOW


def test_a_packet_with_data_carries_an_acknowledgement_of_many(received: Received) -> None:
    for count in range(1, PER_ACK + 1):
        number = YOUNG_PACKETS + count
        received.add(number, number + 1, NOW)  # right after the last ACK: none is due yet
        received.want_ack(1, NOW, RTT_S)
        assert received.ack_at > NOW
        assert received.ack_goes_along(NOW) == (count == PER_ACK)
