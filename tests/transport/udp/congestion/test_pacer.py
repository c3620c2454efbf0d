"""The pacer alone, with the sums beside the expected numbers."""

from __future__ import annotations

import math

import pytest

from kkp2p_compat.transport.udp.congestion import Pacer


def test_pacer_lets_a_quantum_go_and_then_waits_for_it() -> None:
    pacer = Pacer(0.0)
    assert pacer.budget(0.0, 1_000_000.0, 5_000) == 5_000
    pacer.sent(5_000, 0.0, 1_000_000.0)
    assert pacer.budget(0.0, 1_000_000.0, 5_000) == 0
    assert pacer.next_send(0.0, 1_000_000.0) == pytest.approx(0.005)  # 5,000 / 1,000,000
    assert pacer.budget(0.005, 1_000_000.0, 5_000) == 5_000


def test_pacer_lets_half_a_quantum_go_for_whoever_is_awake_earlier() -> None:
    pacer = Pacer(0.0)
    pacer.sent(5_000, 0.0, 1_000_000.0)
    assert pacer.budget(0.0024, 1_000_000.0, 5_000) == 0
    assert pacer.budget(0.0026, 1_000_000.0, 5_000) == 2_600
    assert pacer.next_send(0.0026, 1_000_000.0) == pytest.approx(0.005)


def test_pacer_saves_up_nothing_while_something_else_is_waited_for() -> None:
    pacer = Pacer(0.0)
    pacer.next_send(0.0, 1_000_000.0)
    assert pacer.budget(0.001, 1_000_000.0, 5_000) == 6_000
    pacer.sent(500, 0.001, 1_000_000.0)
    assert pacer.budget(0.001, 1_000_000.0, 5_000) == 5_500  # what is left of it stays
    pacer.sent(5_500, 0.001, 1_000_000.0)  # now the window is used up, and nobody asks for a while
    assert pacer.budget(0.1, 1_000_000.0, 5_000) == 5_000


def test_pacer_of_a_fast_path_saves_up_whatever_is_waited_for() -> None:
    """There acknowledgements set the pace, and one that is late lets go what was due meanwhile."""
    pacer, rate = Pacer(0.0), 100_000_000.0
    pacer.sent(65_536, 0.0, rate)
    assert pacer.budget(0.001, rate, 65_536) == 100_000
    assert pacer.budget(1.0, rate, 65_536) == 65_536 + 200_000


def test_pacer_makes_up_for_a_late_timer_but_saves_up_no_burst() -> None:
    pacer = Pacer(0.0)
    pacer.sent(5_000, 0.0, 1_000_000.0)
    pacer.next_send(0.0, 1_000_000.0)
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
