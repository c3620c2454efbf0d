"""How many wake-ups a transfer costs, in simulated time; a wake-up costs as much as many packets.

What the rest of the suite holds (throughput with loss, short queues, fairness, changes of the
rate) must stay as it is: fewer turns are worth nothing without it.
"""

from __future__ import annotations

import pytest

from helpers.sim.pair import Pair, mbit_per_s
from helpers.sim.simnet import Conditions

ENDLESS = 3_000_000_000
BEGIN_S, END_S = 1.0, 3.0
PACKET_BY_PACKET_S = 0.00005


def _run(link: Conditions) -> tuple[float, float, float]:
    """The share of the link's rate; wake-ups for a megabyte, sending and receiving."""
    pair = Pair("turns", link, wake_s=PACKET_BY_PACKET_S)
    transfer = pair.start(ENDLESS)
    pair.run(None, BEGIN_S)
    before = pair.caller.turns, pair.callee.turns
    pair.run(None, END_S - BEGIN_S)
    reader, rate = transfer.at_callee, link.rate_bytes_per_s
    count = reader.at(1000 + END_S) - reader.at(1000 + BEGIN_S)
    assert rate is not None
    turns = pair.caller.turns - before[0], pair.callee.turns - before[1]
    return count / (END_S - BEGIN_S) / rate, turns[0] / count * 1e6, turns[1] / count * 1e6


@pytest.mark.parametrize(
    ("mbit", "delay_s", "loss", "share", "sending", "receiving"),
    [
        (100, 0.010, 0.0, 0.88, 140, 60),
        (100, 0.025, 0.01, 0.88, 140, 60),
        (100, 0.020, 0.05, 0.83, 150, 75),
        (20, 0.040, 0.0, 0.9, 360, 150),
        (20, 0.040, 0.03, 0.8, 360, 150),
    ],
)
def test_a_transfer_needs_few_wake_ups(
    mbit: float, delay_s: float, loss: float, share: float, sending: float, receiving: float
) -> None:
    link = Conditions(rate_bytes_per_s=mbit_per_s(mbit), delay_s=delay_s, loss=loss)
    got = _run(link)
    assert got[0] >= share
    assert got[1] <= sending
    assert got[2] <= receiving  # a megabyte is some 700 packets


def test_a_short_path_is_not_waited_for() -> None:
    link = Conditions(rate_bytes_per_s=mbit_per_s(100), delay_s=0.001)
    share, _, receiving = _run(link)
    assert share >= 0.92
    assert receiving >= 600


def test_a_short_queue_of_the_bottleneck_takes_the_quanta() -> None:
    link = Conditions(rate_bytes_per_s=mbit_per_s(100), delay_s=0.010, queue_bytes=20 * 1024)
    share, _, _ = _run(link)
    assert share >= 0.7
