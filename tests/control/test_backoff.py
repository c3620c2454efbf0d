"""Pauses between attempts to log in."""

from __future__ import annotations

import random
import statistics

import pytest

from kkp2p_compat.control import client
from kkp2p_compat.control.backoff import Backoff


def pauses(seed: int, count: int) -> list[float]:
    backoff = Backoff(random.Random(seed), 0.5, 30.0, 5.0)
    return [backoff.next() for _ in range(count)]


@pytest.mark.parametrize("seed", range(50))
def test_every_pause_is_between_the_first_and_three_times_the_one_before(seed: int) -> None:
    before = 5 / 3
    for pause in pauses(seed, 100):
        assert 0.5 <= pause <= min(30.0, 3 * before)
        before = pause


def test_pauses_grow() -> None:
    nth = [
        statistics.mean(column) for column in zip(*(pauses(s, 8) for s in range(500)), strict=True)
    ]
    assert nth == sorted(nth)
    assert nth[7] > 5 * nth[0]


def test_peers_spread_out() -> None:
    """A thousand peers that lose one cloud together do not come back together."""
    for nth, most in ((0, 150), (4, 150)):
        at = [pauses(seed, 5)[nth] for seed in range(1000)]
        assert max(sum(one <= other < one + 0.5 for other in at) for one in at) < most


def test_reset() -> None:
    backoff = Backoff(random.Random(1), 0.5, 30.0, 5.0)
    for _ in range(20):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 5.0


def test_what_the_client_uses() -> None:
    assert (client.BACKOFF_FIRST_S, client.BACKOFF_MOST_S, client.BACKOFF_SPREAD_S) == (
        0.5,
        30.0,
        5.0,
    )
