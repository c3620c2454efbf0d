"""Recovery alone: what is measured of which flight."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat.transport.udp.recovery import (
    GRANULARITY_S,
    MAX_ACK_DELAY_S,
    Flight,
    Recovery,
    RoundTrip,
    carried,
)
from kkp2p_compat.transport.udp.streams import SendStream


def test_round_trips_are_measured_again_from_when_we_run() -> None:
    recovery = Recovery()
    for number, sent_at in ((0, 0.0), (1, 31.0)):
        recovery.sent(Flight(number, number + 1, 100, sent_at, None))
    recovery.measure_from(30.0)
    assert recovery.handle_ack([(0, 1)], 0.0, 30.5)
    assert recovery.rtt.latest_s is None
    assert recovery.handle_ack([(0, 2)], 0.0, 31.25)
    assert recovery.rtt.latest_s == 0.25


def numbers_of(flights: list[Flight]) -> list[int]:
    return [number for flight in flights for number in range(flight.first, flight.stop)]


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=12),
    st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=8), max_size=6),
)
def test_acknowledgements_take_what_they_name_and_leave_the_rest(
    sizes: list[int], acks: list[list[int]]
) -> None:
    """Against a set of numbers, which is slow and obvious."""
    recovery, stream = Recovery(), SendStream(4, 1 << 20)
    stop = 0
    for sent_at, count in enumerate(sizes):
        first, stop = stop, stop + count
        recovery.sent(Flight(first, stop, 100, sent_at, None, stream, first * 90, 90, stop * 90))
    left = set(range(stop))
    for edges in acks:
        cuts = sorted({min(edge, stop) for edge in edges}, reverse=True)
        ranges = [(low, high) for high, low in pairwise(cuts)][::2]
        if not ranges:
            continue
        named = {number for low, high in ranges for number in range(low, high)}
        acked = recovery.handle_ack(ranges, 0.0, 100.0)
        assert sorted(numbers_of(acked)) == sorted(named & left)
        offsets = {
            offset // 90 for _, start, end, _ in carried(acked) for offset in range(start, end, 90)
        }
        assert offsets == named & left
        left -= named
        assert recovery.in_flight == 100 * len(left)
    oldest = recovery.oldest()
    assert (None if oldest is None else oldest.first) == min(left, default=None)
    assert numbers_of(recovery.take_all()) == sorted(left)


def test_flights_that_go_on_are_told_as_one() -> None:
    one, other = SendStream(4, 1 << 20), SendStream(8, 1 << 20)
    flights = [
        Flight(0, 2, 100, 0.0, None, one, 0, 50, 100),
        Flight(2, 3, 100, 0.0, None, one, 100, 50, 150),
        Flight(3, 4, 100, 0.0, pieces=[(other, 0, 9, True), (one, 150, 160, False)]),
        Flight(4, 5, 100, 0.0),
        Flight(5, 6, 100, 0.0, None, one, 150, 50, 200),
        Flight(6, 7, 100, 0.0, None, one, 250, 50, 300),
        Flight(7, 8, 100, 0.0, None, other, 300, 50, 350),
    ]
    assert sorted(carried(flights), key=lambda piece: (piece[0].stream_id, *piece[1:])) == [
        (one, 0, 200, False),
        (one, 150, 160, False),
        (one, 250, 300, False),
        (other, 0, 9, True),
        (other, 300, 350, False),
    ]
    assert list(carried([])) == []


def test_the_probe_time_out_follows_each_sample() -> None:
    rtt = RoundTrip()
    assert rtt.pto_s == 0.333 + 4 * 0.333 / 2 + MAX_ACK_DELAY_S
    rtt.update(0.1, 0.0)
    assert rtt.pto_s == 0.1 + 4 * 0.05 + MAX_ACK_DELAY_S
    rtt.update(0.2, 0.0)  # RFC 9002 section 5.3: the deviation is from the estimate before
    assert (rtt.smoothed_s, rtt.variation_s) == (0.1 + 0.1 / 8, 0.05 + (0.1 - 0.05) / 4)
    for _ in range(200):
        rtt.update(0.1, 0.0)
    assert abs(rtt.pto_s - (0.1 + GRANULARITY_S + MAX_ACK_DELAY_S)) < 1e-6
