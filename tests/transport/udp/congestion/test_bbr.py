"""Each mode of BBR alone: what ends it, and what it does to the pace and the window.

The path delivers 1,000,000 bytes a second, and a round trip takes 0.1 s: what fills it is 100,000
bytes, 100 packets of 1,000.
"""

from __future__ import annotations

import math
import random

import pytest

from kkp2p_compat.transport.udp.congestion import RateSample, Snapshot, Update
from kkp2p_compat.transport.udp.congestion.bbr import Bbr
from kkp2p_compat.transport.udp.congestion.bbr.modes import FOLLOWERS, GAINS, Mode

SIZE = 1_000
RATE = 1_000_000.0
RTT_S = 0.1
BDP = 100_000
QUANTUM = 2_000  # two packets; a millisecond's worth is less
QUEUED_S = 0.15  # a round trip that shows a queue: more than 0.1 * (1 + 1/8)


class Run:
    """Each ``round`` is one update that acknowledges a round trip's worth of data."""

    def __init__(self) -> None:
        self.bbr = Bbr(SIZE, 0.0, random.Random(1))
        self.now = 0.0
        self.delivered = 0
        self.lost = 0

    def round(
        self,
        rate: float = RATE,
        rtt_s: float = RTT_S,
        *,
        lost: int = 0,
        in_flight: int = BDP,
        sent_in_flight: int = BDP,
        app_limited: bool = False,
        runs: int = 1,
        same_round: bool = False,
    ) -> Mode:
        """``lost`` bytes, in ``runs`` runs, of ``sent_in_flight`` that were on their way."""
        self.now += rtt_s
        acked = int(rate * rtt_s)
        prior = -1 if same_round else self.delivered
        self.delivered += acked
        flight = Snapshot(
            self.now - rtt_s, SIZE, sent_in_flight, prior, 0.0, 0.0, self.lost, app_limited
        )
        self.lost += lost
        sample = RateSample(
            rate, acked, prior, self.delivered, lost, sent_in_flight, flight.sent_at, app_limited
        )
        self.bbr.update(
            Update(
                self.now,
                acked,
                [(flight, lost // runs)] * runs if lost else [],
                in_flight + acked,
                in_flight,
                rtt_s,
                rtt_s,
                RTT_S,
                sample,
                flight.sent_at,
            )
        )
        return self.bbr.mode

    def until(self, mode: Mode, limit: int = 100, **how: float) -> int:
        """How many rounds it took to come to ``mode``."""
        for count in range(limit):
            if self.bbr.mode is mode:
                return count
            self.round(**how)  # type: ignore[arg-type]
        raise AssertionError(f"{mode} was not reached, but {self.bbr.mode}")


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def cruising(run: Run) -> Run:
    run.until(Mode.CRUISE)
    return run


@pytest.fixture
def probing(cruising: Run) -> Run:
    cruising.until(Mode.UP)
    return cruising


# Startup and Drain


def test_startup_paces_for_doubling_from_the_first_round_trip(run: Run) -> None:
    run.round(10_000 / RTT_S, same_round=True)
    assert run.bbr.pacing_bytes_per_s == pytest.approx(2.77 * 10_000 / 0.1)
    assert run.bbr.window_bytes == 20_000  # 10,000 and the 10,000 that were acknowledged


def test_startup_ends_after_three_rounds_without_growth(run: Run) -> None:
    rates = [RATE / 4, RATE / 2, RATE, RATE, RATE * 1.2]
    assert {run.round(rate) for rate in rates} == {Mode.STARTUP}
    assert run.round(RATE * 1.24) is Mode.DRAIN  # the third that is not 1.25 of the best before


def test_startup_goes_on_while_the_rate_grows_by_a_quarter(run: Run) -> None:
    assert all(run.round(RATE * 1.25**n) is Mode.STARTUP for n in range(40))


def test_startup_learns_nothing_from_app_limited_rounds(run: Run) -> None:
    assert all(run.round(RATE, app_limited=True) is Mode.STARTUP for _ in range(20))


def test_startup_is_not_ended_by_one_acknowledgement_held_back(run: Run) -> None:
    for n in range(8):
        run.round(RATE * 1.3**n, same_round=True)  # the round's best
        assert run.round(RATE / 10) is Mode.STARTUP


@pytest.mark.parametrize(
    ("rtt_s", "lost", "runs", "ends"),
    [
        (QUEUED_S, 6_000, 6, True),  # 4 % of 150,000, and a queue
        (QUEUED_S, 6_000, 5, False),  # one burst rather than an overflow
        (QUEUED_S, 2_400, 6, False),  # under 2 %
        (RTT_S, 6_000, 6, False),  # 6 %, but the queue is empty
        (RTT_S, 60_000, 6, True),  # 42 %: more than chance (20 % and 7 %), by more than 10 %
    ],
)
def test_startup_ends_when_a_queue_overflows(
    run: Run, rtt_s: float, lost: int, runs: int, ends: bool
) -> None:
    run.round(RATE / 2)
    for n in range(1, 3):  # in two rounds in a row
        run.round(RATE / 2 * 1.3**n, rtt_s, lost=lost, runs=runs)
    assert (run.bbr.mode is Mode.DRAIN) == ends


def test_drain_sends_half_until_nothing_queues(run: Run) -> None:
    run.until(Mode.DRAIN, in_flight=2 * BDP)
    assert run.bbr.pacing_bytes_per_s == pytest.approx(0.5 * RATE * 0.99)
    assert run.round(in_flight=2 * BDP) is Mode.DRAIN
    assert run.round(in_flight=BDP + QUANTUM) is Mode.DOWN


def test_drain_ends_after_three_rounds_in_any_case(run: Run) -> None:
    run.until(Mode.DRAIN, in_flight=2 * BDP)
    assert [run.round(in_flight=2 * BDP) for _ in range(4)] == [Mode.DRAIN] * 3 + [Mode.DOWN]


# ProbeBW


def test_cruise_keeps_the_rate_and_twice_the_product_in_its_window(cruising: Run) -> None:
    cruising.round()
    bbr = cruising.bbr
    assert bbr.pacing_bytes_per_s == pytest.approx(RATE * 0.99)
    # 2 * 100,000, the 100,000 that come with one acknowledgement, three quanta of 2,000, and 2 ms
    # of the rate: 2,000.
    assert bbr.window_bytes == 308_000


def test_down_waits_for_room(run: Run) -> None:
    run.until(Mode.DOWN)
    assert run.bbr.pacing_bytes_per_s == pytest.approx(0.9 * RATE * 0.99)
    assert run.round(in_flight=BDP + QUANTUM + 1) is Mode.DOWN
    assert run.round(in_flight=BDP + QUANTUM) is Mode.CRUISE


def test_it_probes_again_after_two_to_three_seconds(cruising: Run) -> None:
    assert 20 <= cruising.until(Mode.REFILL) <= 31  # rounds of 0.1 s
    assert cruising.bbr.pacing_bytes_per_s == pytest.approx(RATE * 0.99)
    assert cruising.round() is Mode.UP
    assert cruising.bbr.pacing_bytes_per_s == pytest.approx(1.25 * RATE * 0.99)


def test_a_small_window_probes_as_often_as_reno_would(run: Run) -> None:
    small = 8 * SIZE / RTT_S  # eight packets fill the path: after eight rounds
    run.until(Mode.CRUISE, rate=small, in_flight=8 * SIZE)
    assert 6 <= run.until(Mode.REFILL, rate=small, in_flight=8 * SIZE) <= 9


def test_up_ends_when_more_is_not_delivered(probing: Run) -> None:
    assert [probing.round(rtt_s=QUEUED_S) for _ in range(3)] == [Mode.UP, Mode.UP, Mode.DOWN]
    assert math.isinf(probing.bbr.bounds.long_term_bytes)


def test_up_goes_on_while_more_is_delivered(probing: Run) -> None:
    assert all(probing.round(RATE * 1.25**n) is Mode.UP for n in range(1, 12))
    assert probing.bbr.model.max_bytes_per_s == pytest.approx(RATE * 1.25**11)


def test_up_ends_when_a_queue_overflows_and_remembers_where(probing: Run) -> None:
    assert probing.round(rtt_s=QUEUED_S, lost=5_000, sent_in_flight=120_000) is Mode.DOWN
    # 115,000 were in flight before the 5,000 that are lost; of these (0.02 * 115,000) / 0.98 =
    # 2,347 make 2 % of what is then in flight.
    assert probing.bbr.bounds.long_term_bytes == pytest.approx(117_347, abs=1)
    probing.until(Mode.CRUISE, in_flight=90_000)
    probing.round()
    assert probing.bbr.window_bytes == int(117_346.94 * 0.85)  # headroom for others


def test_up_takes_random_loss_for_what_it_is(probing: Run) -> None:
    assert probing.round(lost=5_000, sent_in_flight=120_000) is Mode.UP  # 4 %, no queue
    assert math.isinf(probing.bbr.bounds.long_term_bytes)


def test_the_probe_after_an_overflow_is_cautious(probing: Run) -> None:
    probing.round(rtt_s=QUEUED_S, lost=5_000, sent_in_flight=120_000)
    probing.until(Mode.UP)
    assert probing.round(in_flight=119_000) is Mode.DOWN  # as soon as it is there
    # It did no harm, so the probe goes on after a round, without cruising.
    assert probing.round() is Mode.REFILL


def test_the_long_term_bound_rises_by_what_went_through(probing: Run) -> None:
    probing.round(rtt_s=QUEUED_S, lost=5_000, sent_in_flight=120_000)
    probing.round(sent_in_flight=130_000)
    assert probing.bbr.bounds.long_term_bytes == 130_000


def test_the_bandwidth_of_the_cycle_before_the_last_is_forgotten(cruising: Run) -> None:
    cruising.until(Mode.DOWN, rate=RATE / 2)
    assert cruising.bbr.model.max_bytes_per_s == RATE
    cruising.round(RATE / 2)  # this cycle is over, and what Startup found is forgotten
    assert cruising.bbr.model.max_bytes_per_s == RATE / 2


def test_app_limited_samples_do_not_lower_the_bandwidth(cruising: Run) -> None:
    for _ in range(100):
        cruising.round(RATE / 10, app_limited=True, in_flight=BDP // 10)
    assert cruising.bbr.model.max_bytes_per_s == RATE


# Loss outside probes


def test_random_loss_slows_nothing_down(cruising: Run) -> None:
    for _ in range(15):
        cruising.round(lost=3_000)
    assert cruising.bbr.mode is Mode.CRUISE
    assert cruising.bbr.pacing_bytes_per_s == pytest.approx(RATE * 0.99)
    # Learned over all rounds, of which the last 15 lost 3,000 of 103,000.
    assert 0.015 < cruising.bbr.bounds.ambient_loss < 0.03


def test_a_queue_that_overflows_bounds_rate_and_window_by_what_comes_through(cruising: Run) -> None:
    cruising.round(rtt_s=QUEUED_S)
    cruising.round(0.8 * RATE, rtt_s=QUEUED_S, lost=4_000)
    model = cruising.bbr.model
    assert model.bytes_per_s == 0.8 * RATE
    cruising.until(Mode.REFILL)
    assert model.bytes_per_s == RATE  # forgotten


def test_what_comes_through_bounds_not_below_seven_tenths(cruising: Run) -> None:
    cruising.round(0.1 * RATE, rtt_s=QUEUED_S, lost=4_000)
    assert cruising.bbr.model.bytes_per_s == 0.7 * RATE


def test_ambient_loss_is_not_held_against_a_full_queue(cruising: Run) -> None:
    for _ in range(15):
        cruising.round(lost=5_000)
    cruising.round(rtt_s=QUEUED_S, lost=5_000)
    assert math.isinf(cruising.bbr.model.short_term_bytes_per_s)


def test_a_queue_that_stands_bounds_the_pace_but_not_the_window(cruising: Run) -> None:
    before = cruising.bbr.window_bytes
    cruising.round(0.8 * RATE, rtt_s=QUEUED_S)
    assert cruising.bbr.pacing_bytes_per_s == pytest.approx(0.8 * RATE * 0.99)
    assert cruising.bbr.window_bytes >= before
    cruising.round()  # the queue is empty
    assert cruising.bbr.pacing_bytes_per_s == pytest.approx(RATE * 0.99)


# ProbeRTT, idle, the rest


def test_probe_rtt_halves_what_is_in_flight_for_a_fifth_of_a_second(cruising: Run) -> None:
    before = cruising.bbr.window_bytes
    rounds = cruising.until(Mode.PROBE_RTT, rtt_s=0.11)  # 0.11 s is no queue, but not the least
    assert rounds * 0.11 == pytest.approx(5.0, abs=0.4)
    assert cruising.bbr.window_bytes == BDP // 2
    assert cruising.round(in_flight=BDP) is Mode.PROBE_RTT  # not yet low
    modes = [cruising.round(RATE / 2, in_flight=BDP // 2) for _ in range(4)]
    assert modes == [Mode.PROBE_RTT] * 3 + [Mode.CRUISE]
    assert cruising.bbr.window_bytes >= before
    assert cruising.bbr.model.max_bytes_per_s == RATE  # it was slow on purpose


def test_a_round_trip_near_the_smallest_needs_no_probe_rtt(cruising: Run) -> None:
    for _ in range(200):
        assert cruising.round(rtt_s=RTT_S * 1.03) is not Mode.PROBE_RTT


def test_being_idle_is_as_good_as_probe_rtt(cruising: Run) -> None:
    cruising.now += 30.0
    cruising.bbr.handle_sent(cruising.now, SIZE, 0)
    assert cruising.bbr.pacing_bytes_per_s == pytest.approx(RATE * 0.99)
    assert cruising.round(rtt_s=0.105) is not Mode.PROBE_RTT
    assert cruising.round(rtt_s=0.105) is not Mode.PROBE_RTT


def test_a_longer_path_is_believed_after_ten_seconds(cruising: Run) -> None:
    for _ in range(40):
        cruising.round(rtt_s=0.3)
    assert cruising.bbr.model.min_rtt_s == 0.3


def test_persistent_congestion_begins_again_with_four_packets(cruising: Run) -> None:
    cruising.bbr.handle_persistent_congestion(cruising.now)
    assert cruising.bbr.window_bytes == 4 * SIZE
    cruising.round()
    assert cruising.bbr.window_bytes == 104_000  # and what was acknowledged


def test_the_window_never_falls_below_four_packets(run: Run) -> None:
    for _ in range(60):
        run.round(100.0, in_flight=SIZE)
        assert run.bbr.window_bytes >= 4 * SIZE


def test_a_larger_datagram_makes_the_quantum_larger(cruising: Run) -> None:
    assert cruising.bbr.quantum_bytes == 2 * SIZE
    cruising.bbr.set_datagram_bytes(1_400)
    cruising.until(Mode.UP)
    assert cruising.bbr.quantum_bytes == 2_800


def test_a_loss_timer_without_acknowledgement_changes_no_rate(cruising: Run) -> None:
    pace = cruising.bbr.pacing_bytes_per_s
    flight = Snapshot(cruising.now, SIZE, BDP, cruising.delivered, 0.0, 0.0, 0, False)
    cruising.bbr.update(
        Update(cruising.now + 1, 0, [(flight, SIZE)], BDP, BDP - SIZE, None, 0.1, 0.1, None, None)
    )
    assert cruising.bbr.pacing_bytes_per_s == pace


def test_every_mode_has_gains_and_followers() -> None:
    assert set(GAINS) == set(FOLLOWERS) == set(Mode)
    assert set().union(*FOLLOWERS.values()) == set(Mode)
