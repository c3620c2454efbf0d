"""Delivery rate, pacer and CUBIC alone, with the sums beside the expected numbers."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from kkp2p_compat.transport.udp.congestion import (
    Controller,
    DeliveryRate,
    Pacer,
    RateSample,
    Snapshot,
    Update,
    make_controller,
)

SIZE = 1_000  # bytes of a datagram


def snapshot(sent_at: float, in_flight: int = SIZE, lost: int = 0) -> Snapshot:
    return Snapshot(sent_at, SIZE, in_flight, 0, sent_at, sent_at, lost, False)


# Delivery rate


def sample_of(rate: DeliveryRate, now: float, min_rtt_s: float = 0.0) -> RateSample:
    sample = rate.sample(now, min_rtt_s)
    assert sample is not None
    return sample


def test_a_flight_that_is_alone_is_measured_from_when_it_left() -> None:
    rate = DeliveryRate()
    flight = rate.sent(4 * SIZE, 0, 10.0)
    rate.acked(flight, 4 * SIZE, 10.5)
    sample = sample_of(rate, 10.5)
    assert sample.bytes_per_s == 8_000  # 4,000 bytes in 0.5 s
    assert (sample.delivered, sample.total_delivered, sample.in_flight) == (4_000, 4_000, 4_000)


def test_bunched_acknowledgements_do_not_look_like_bandwidth() -> None:
    rate = DeliveryRate()
    flights = [rate.sent(SIZE, n * SIZE, n * 0.1) for n in range(10)]  # 1,000 bytes in 0.1 s
    rate.acked(flights[0], SIZE, 1.0)
    sample_of(rate, 1.0)
    late = rate.sent(SIZE, 9 * SIZE, 1.0)
    for flight in flights[1:]:
        rate.acked(flight, SIZE, 1.01)  # nine at once
    sample_of(rate, 1.01)
    rate.acked(late, SIZE, 1.02)
    # The path seems to deliver 10,000 bytes in 0.02 s; but sending them took 1.0 - 0.0 s.
    assert sample_of(rate, 1.02).bytes_per_s == 10_000


def test_pieces_of_a_flight_are_samples_of_their_own() -> None:
    rate = DeliveryRate()
    flight = rate.sent(4 * SIZE, 0, 0.0)
    rate.acked(flight, SIZE, 1.0)
    assert sample_of(rate, 1.0).bytes_per_s == 1_000  # 1,000 bytes in 1 s
    rate.acked(flight, 3 * SIZE, 2.0)
    assert sample_of(rate, 2.0).bytes_per_s == 2_000  # 4,000 bytes in 2 s


def test_an_interval_below_the_smallest_round_trip_says_nothing() -> None:
    rate = DeliveryRate()
    rate.acked(rate.sent(SIZE, 0, 0.0), SIZE, 0.1)
    assert sample_of(rate, 0.1, min_rtt_s=0.2).bytes_per_s == 0.0


def test_there_is_no_sample_without_an_acknowledgement() -> None:
    rate = DeliveryRate()
    rate.sent(SIZE, 0, 0.0)
    assert rate.sample(1.0, 0.1) is None


def test_what_was_lost_since_the_flight_left_is_counted() -> None:
    rate = DeliveryRate()
    rate.lost(5 * SIZE)
    flight = rate.sent(SIZE, SIZE, 0.0)
    rate.lost(2 * SIZE)
    rate.acked(flight, SIZE, 1.0)
    assert sample_of(rate, 1.0).lost == 2 * SIZE


def test_samples_are_app_limited_until_the_gap_has_been_delivered() -> None:
    rate = DeliveryRate()
    first = rate.sent(SIZE, 0, 0.0)
    rate.app_limited(SIZE)  # the gap comes behind the first 1,000 bytes
    second = rate.sent(SIZE, SIZE, 0.5)
    rate.acked(first, SIZE, 1.0)
    assert not sample_of(rate, 1.0).is_app_limited
    rate.acked(second, SIZE, 1.5)
    assert sample_of(rate, 1.5).is_app_limited
    third = rate.sent(SIZE, 0, 1.5)
    rate.acked(third, SIZE, 2.0)
    assert not sample_of(rate, 2.0).is_app_limited


def test_an_older_flight_in_the_same_frame_does_not_replace_the_newer() -> None:
    rate = DeliveryRate()
    old = rate.sent(SIZE, 0, 0.0)
    new = rate.sent(SIZE, SIZE, 0.5)
    rate.acked(new, SIZE, 1.0)
    rate.acked(old, SIZE, 1.0)
    assert sample_of(rate, 1.0).sent_at == 0.5


# Pacer


def test_pacer_lets_a_quantum_go_and_then_waits_for_it() -> None:
    pacer = Pacer(0.0)
    assert pacer.budget(0.0, 1_000_000.0, 5_000) == 5_000
    pacer.sent(5_000, 0.0, 1_000_000.0)
    assert pacer.budget(0.0, 1_000_000.0, 5_000) == 0
    assert pacer.next_send(0.0, 1_000_000.0) == pytest.approx(0.005)  # 5,000 / 1,000,000
    assert pacer.budget(0.005, 1_000_000.0, 5_000) == 5_000


def test_pacer_makes_up_for_a_late_timer_but_saves_up_no_burst() -> None:
    pacer = Pacer(0.0)
    pacer.sent(5_000, 0.0, 1_000_000.0)
    assert pacer.budget(0.006, 1_000_000.0, 5_000) == 6_000  # late by 1 ms: 1,000 bytes more
    assert pacer.budget(60.0, 1_000_000.0, 5_000) == 7_000  # never more than 2 ms of the rate


@pytest.mark.parametrize("tick_s", [0.0001, 0.001, 0.0017])
def test_pacer_keeps_the_rate_whatever_the_timer(tick_s: float) -> None:
    rate, pacer, now, total = 3_000_000.0, Pacer(0.0), 0.0, 0
    while now < 2.0:
        budget = pacer.budget(now, rate, 3_000)
        pacer.sent(budget, now, rate)
        total += budget
        now = max(math.ceil(pacer.next_send(now, rate) / tick_s), round(now / tick_s) + 1) * tick_s
    assert total == pytest.approx(6_000_000, rel=0.01)  # 2 s of the rate


# CUBIC


class CubicRun:
    """A path on which nothing queues: every round trip takes 0.1 s."""

    def __init__(self) -> None:
        self.controller: Controller = make_controller("cubic", SIZE, 0.0, random.Random(1))
        self.now = 0.0

    def round(self, lost: int = 0, rtt_s: float = 0.1, acks: int = 1) -> int:
        """A window is sent, and acknowledged but for ``lost`` bytes; the new window."""
        sent_at, self.now = self.now, self.now + rtt_s
        window = self.controller.window_bytes
        for part in range(acks):
            size = (window - lost) // acks
            self.controller.update(Update(
                self.now, size, [(snapshot(sent_at), lost)] if lost and part == 0 else [], window,
                window - size, rtt_s, rtt_s, 0.1, None, sent_at,
            ))  # fmt: skip
        return self.controller.window_bytes


def test_cubic_starts_with_ten_packets_and_doubles() -> None:
    run = CubicRun()
    assert run.controller.window_bytes == 10_000
    assert run.round() == 20_000
    assert run.round() == 40_000


def test_cubic_cuts_to_seven_tenths_once_a_round_trip() -> None:
    run = CubicRun()
    for _ in range(3):
        run.round()
    assert run.controller.window_bytes == 80_000
    assert run.round(lost=2_000) == 56_000  # 0.7 * 80,000
    sent_before = snapshot(run.now - 0.05)
    run.controller.update(
        Update(run.now + 0.05, 0, [(sent_before, SIZE)], 56_000, 55_000, None, 0.1, 0.1, None, None)
    )
    assert run.controller.window_bytes == 56_000


def test_cubic_comes_back_to_where_the_loss_was_in_the_time_of_its_curve() -> None:
    run = CubicRun()
    for _ in range(3):
        run.round()
    run.round(lost=2_000)
    # K = cbrt((80 - 56) / 0.4) = cbrt(60) = 3.91 s: at 0.1 s a round, 39 rounds.
    windows = [run.round() for _ in range(45)]
    assert windows == sorted(windows)
    assert windows[20] < 80_000  # flat, but below
    assert 78_000 < windows[38] < 82_000
    assert windows[44] > 80_000


def test_cubic_does_not_grow_a_window_that_is_not_used() -> None:
    run = CubicRun()
    run.controller.update(Update(0.1, SIZE, [], 2 * SIZE, SIZE, 0.1, 0.1, 0.1, None, 0.0))
    assert run.controller.window_bytes == 10_000


def test_cubic_leaves_slow_start_when_round_trips_grow() -> None:
    run = CubicRun()
    for _ in range(2):
        run.round(acks=8)
    before = run.controller.window_bytes
    # 20 ms longer than 100 ms, over the step of 12.5 ms.  That round still doubles for 8 of its
    # acknowledgements, the five after it grow by a quarter, and then it is over.
    windows = [run.round(rtt_s=0.12, acks=8) for _ in range(8)]
    assert windows[0] <= 2 * before
    assert all(b <= a * 1.3 for a, b in pairwise(windows))
    assert windows[7] < windows[6] * 1.05


def test_cubic_begins_again_after_persistent_congestion() -> None:
    run = CubicRun()
    run.round()
    run.controller.handle_persistent_congestion(run.now)
    assert run.controller.window_bytes == 2 * SIZE


def test_cubic_keeps_room_for_two_of_the_larger_packets() -> None:
    run = CubicRun()
    run.controller.handle_persistent_congestion(0.0)
    run.controller.set_datagram_bytes(1_400)
    assert run.controller.window_bytes == 2_800


def test_an_unknown_controller_is_refused() -> None:
    with pytest.raises(KeyError):
        make_controller("vegas", SIZE, 0.0, random.Random(1))
