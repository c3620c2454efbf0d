"""Calls that come together are answered one after the other, and what came before goes first."""

from __future__ import annotations

import time

import gevent
from gevent import get_hub

from kkp2p_compat.engine.calls import pace as pace_module
from kkp2p_compat.engine.calls.pace import Pace


def begin(pace: Pace, count: int, begun: list[int]) -> list[gevent.Greenlet[..., None]]:
    def answer(number: int) -> None:
        pace.wait()
        begun.append(number)

    return [gevent.spawn(answer, number) for number in range(count)]


def test_calls_that_come_together_begin_in_their_order_and_apart() -> None:
    begun: list[int] = []
    started = time.monotonic()
    gevent.joinall(begin(Pace(), 5, begun), raise_error=True)
    assert begun == [0, 1, 2, 3, 4]
    assert time.monotonic() - started >= 4 * pace_module.PACE_S


def test_a_call_that_comes_alone_does_not_wait() -> None:
    begun: list[int] = []
    begin(Pace(), 3, begun)
    gevent.sleep(0)
    assert begun == [0]


def test_a_host_that_is_busy_goes_round_its_loop_between_two_calls() -> None:
    """Else it would take new ones before it has read what its earlier ones wait for."""
    begun: list[int] = []
    seen: list[int] = []
    pace = Pace()

    def answer(number: int) -> None:
        pace.wait()
        time.sleep(2 * pace_module.PACE_S)  # the processor is taken: the next one is due at once
        begun.append(number)

    def look() -> None:
        seen.append(len(begun))

    prepare = get_hub().loop.prepare()  # called once in each round
    prepare.start(look)
    gevent.joinall([gevent.spawn(answer, number) for number in range(3)], raise_error=True)
    prepare.stop()
    prepare.close()
    assert {1, 2} <= set(seen)


def test_one_that_is_given_up_leaves_its_turn_to_the_next() -> None:
    begun: list[int] = []
    calls = begin(Pace(), 4, begun)
    gevent.sleep(0)  # the first one has begun, the others wait
    for given_up in (calls[1], calls[2]):
        given_up.kill()
    gevent.joinall(calls, raise_error=True)
    assert begun == [0, 3]
