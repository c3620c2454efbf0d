"""Whole transfers over a simulated link: how much of it BBR uses, what it queues, how it shares.

Everything is deterministic; a run depends on its parameters and seeds only.
"""

from __future__ import annotations

import math

import pytest

from helpers.toy_link import MBIT, Clock, Link, Sender
from kkp2p_compat.transport.udp.congestion.bbr import Bbr
from kkp2p_compat.transport.udp.congestion.bbr.modes import Mode

KB = 1 << 10
MB = 1 << 20
ACK_EVERY = 16  # packets


def alone(
    mbit: float, rtt_s: float, queue_bytes: int, loss: float, until: float, **sender: float
) -> Sender:
    """A sender that had the link to itself ``until`` then."""
    clock = Clock()
    link = Link(clock, mbit * MBIT, queue_bytes, loss)
    one = Sender(clock, link, rtt_s=rtt_s, **{"ack_every": ACK_EVERY, **sender})  # type: ignore[arg-type]
    clock.run(until)
    return one


def two(
    controllers: tuple[str, str], queue_bdp: float, late_s: float = 0.0, until: float = 20.0
) -> tuple[float, float, Link]:
    """The shares of a link of 20 Mbit/s and 40 ms in the last half, and the link."""
    clock = Clock()
    rate, rtt_s = 20 * MBIT, 0.04
    link = Link(clock, rate, int(rate * rtt_s * queue_bdp))
    shares = []
    senders = [
        Sender(clock, link, controller, rtt_s, ack_every=ACK_EVERY, start=late_s * n, seed=n)
        for n, controller in enumerate(controllers)
    ]
    clock.run(until)
    for sender in senders:
        shares.append(sender.goodput_bytes_per_s(until / 2, until) / rate)
    return shares[0], shares[1], link


@pytest.mark.parametrize(
    ("mbit", "rtt_s", "queue_bytes", "loss", "since", "until", "share"),
    [
        (100, 0.05, MB, 0.0, 1, 4, 0.95),
        (100, 0.05, MB, 0.01, 1, 4, 0.9),
        (100, 0.05, 60 * KB, 0.0, 1, 4, 0.9),  # a tenth of what fills the path
        (100, 0.05, MB, 0.1, 1, 4, 0.8),  # 0.9 is what can come through
        (20, 0.08, 256 * KB, 0.03, 1, 12, 0.92),  # 0.97 is what can come through
        (100, 0.02, 256 * KB, 0.0, 1, 4, 0.95),
        (100, 0.2, MB, 0.001, 3, 9, 0.93),  # two fifths of what fills the path
        (1000, 0.01, MB, 0.0, 0.3, 1.2, 0.93),
        (1, 0.05, 64 * KB, 0.0, 1, 20, 0.95),
        (10, 0.6, MB, 0.02, 10, 40, 0.88),  # a satellite; it pauses for ProbeRTT
    ],
)
def test_it_uses_the_link(
    mbit: float,
    rtt_s: float,
    queue_bytes: int,
    loss: float,
    since: float,
    until: float,
    share: float,
) -> None:
    one = alone(mbit, rtt_s, queue_bytes, loss, until)
    assert one.goodput_bytes_per_s(since, until) > share * mbit * MBIT


@pytest.mark.parametrize("ack_every", [1, 2, 64])
@pytest.mark.parametrize("loss", [0.0, 0.01])
def test_the_size_of_the_batches_does_not_matter(ack_every: int, loss: float) -> None:
    one = alone(50, 0.05, MB, loss, 4, ack_every=ack_every)
    assert one.goodput_bytes_per_s(1, 4) > 0.93 * 50 * MBIT


def test_round_trips_that_vary_do_not_make_random_loss_look_like_congestion() -> None:
    one = alone(20, 0.08, 256 * KB, 0.03, 12, ack_jitter_s=0.02)
    assert one.goodput_bytes_per_s(1, 12) > 0.9 * 20 * MBIT


def test_random_loss_is_learned() -> None:
    one = alone(20, 0.08, 256 * KB, 0.03, 12)
    assert isinstance(one.controller, Bbr)
    assert one.controller.bounds.ambient_loss == pytest.approx(0.03, rel=0.4)


def test_a_deep_queue_is_not_filled() -> None:
    one = alone(50, 0.05, 10 * MB, 0.0, 6)
    assert one.link.mean_delay_s(0.0) < 0.2 * 0.05
    assert max(delay for when, delay in one.link.delays if when > 1) < 1.1 * 0.05
    assert one.link.dropped == 0


def test_a_shallow_queue_does_not_overflow_all_the_time() -> None:
    one = alone(100, 0.02, 256 * KB, 0.0, 6)
    assert one.link.dropped * one.size < 0.01 * one.sent_bytes


def test_ten_times_the_bandwidth_is_found() -> None:
    clock = Clock()
    link = Link(clock, 5 * MBIT, MB)
    one = Sender(clock, link, ack_every=ACK_EVERY)
    clock.run(4)
    link.bytes_per_s = 50 * MBIT
    clock.run(10)
    assert one.goodput_bytes_per_s(8, 10) > 0.95 * 50 * MBIT


def test_a_tenth_of_the_bandwidth_is_accepted() -> None:
    clock = Clock()
    link = Link(clock, 50 * MBIT, 128 * KB)
    one = Sender(clock, link, ack_every=ACK_EVERY)
    clock.run(4)
    link.bytes_per_s = 5 * MBIT
    clock.run(14)
    assert one.goodput_bytes_per_s(9, 14) > 0.9 * 5 * MBIT
    assert link.mean_delay_s(11) < 0.05


# Start-up


@pytest.mark.parametrize(("size", "round_trips"), [(50_000, 4), (200_000, 6), (1_000_000, 9)])
def test_short_transfers_take_few_round_trips(size: int, round_trips: float) -> None:
    # 14,000 bytes in the first round trip, about twice as much in each one after it.
    one = alone(100, 0.05, MB, 0.0, 10, backlog_bytes=size)
    assert one.finished_at is not None
    assert one.finished_at < round_trips * 0.05


@pytest.mark.parametrize(
    "how",
    [
        {"ack_every": 64},  # acknowledgements that come together
        {"ack_jitter_s": 0.02},
        {"loss": 0.03},
        {"ack_every": 64, "ack_jitter_s": 0.01, "loss": 0.01},
    ],
    ids=str,
)
def test_startup_is_left_when_the_pipe_is_full(how: dict[str, float]) -> None:
    clock = Clock()
    link = Link(clock, 50 * MBIT, MB, how.pop("loss", 0.0))
    one = Sender(clock, link, **{"ack_every": ACK_EVERY, **how})  # type: ignore[arg-type]
    left: list[float] = []

    def watch(sender: Sender) -> None:
        bbr = sender.controller
        assert isinstance(bbr, Bbr)
        if bbr.mode is not Mode.STARTUP and not left:
            left.append(bbr.model.max_bytes_per_s)

    one.watch = watch
    clock.run(4)
    assert left
    assert left[0] > 0.95 * 50 * MBIT


def test_a_slow_application_does_not_end_startup() -> None:
    clock = Clock()
    link = Link(clock, 50 * MBIT, MB)
    one = Sender(clock, link, ack_every=ACK_EVERY, backlog_bytes=0)
    for n in range(250):  # 2 Mbit/s for 5 s
        clock.at(n * 0.02, lambda: one.write(5_000))
    clock.run(4.99)
    assert isinstance(one.controller, Bbr)
    assert one.controller.mode is Mode.STARTUP
    one.write(math.inf)
    clock.run(8)
    assert one.goodput_bytes_per_s(6, 8) > 0.95 * 50 * MBIT


def test_after_a_pause_it_goes_on_at_once() -> None:
    clock = Clock()
    link = Link(clock, 50 * MBIT, MB)
    one = Sender(clock, link, ack_every=ACK_EVERY, backlog_bytes=20e6)
    clock.run(20)
    assert one.finished_at is not None
    one.write(20e6)
    clock.run(22)
    assert one.goodput_bytes_per_s(20.1, 22) > 0.95 * 50 * MBIT


# Sharing


@pytest.mark.parametrize("queue_bdp", [0.5, 1, 4])
@pytest.mark.parametrize("late_s", [0.0, 3.0])
def test_two_bbr_flows_share(queue_bdp: float, late_s: float) -> None:
    first, second, link = two(("bbr", "bbr"), queue_bdp, late_s)
    assert first + second > 0.93
    assert 0.3 < first / (first + second) < 0.7
    assert link.mean_delay_s(10) < 1.1 * 0.04


@pytest.mark.parametrize("queue_bdp", [1, 2])
@pytest.mark.parametrize(
    ("controllers", "late_s"),
    [(("bbr", "cubic"), 0.0), (("bbr", "cubic"), 3.0), (("cubic", "bbr"), 3.0)],
)
def test_bbr_and_cubic_leave_each_other_room(
    controllers: tuple[str, str], queue_bdp: float, late_s: float
) -> None:
    first, second, _ = two(controllers, queue_bdp, late_s)
    assert first + second > 0.95
    assert min(first, second) > 0.25


def test_two_cubic_flows_share() -> None:
    first, second, _ = two(("cubic", "cubic"), 1, 3.0)
    assert first + second > 0.95
    assert min(first, second) > 0.3


def test_cubic_fills_the_link_and_its_queue() -> None:
    one = alone(50, 0.05, 300 * KB, 0.0, 8, controller="cubic")  # type: ignore[arg-type]
    assert one.goodput_bytes_per_s(1, 8) > 0.95 * 50 * MBIT
    assert one.link.dropped > 0


def test_a_run_can_be_repeated() -> None:
    runs = [alone(20, 0.05, 64 * KB, 0.02, 2) for _ in range(2)]
    assert runs[0].delivered == runs[1].delivered
