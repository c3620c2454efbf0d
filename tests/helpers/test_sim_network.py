"""The simulated network does to packets what its conditions say, and the same for the same seed."""

from __future__ import annotations

import hashlib
import itertools
from functools import partial

import pytest

from helpers.sim.simnet import Address, Conditions, Link, Network, Stuck, coalesce

HERE, THERE = ("192.0.2.1", 1000), ("198.51.100.1", 2000)
SIZE = 1000
WIRE = SIZE + 28
RATE = 1_028_000.0  # bytes/s: a thousand of our packets


class Trial:
    """A link with somebody who notes what arrives and when."""

    def __init__(self, wake_s: float = 0.0, seed: object = 1, **fields: object) -> None:
        self.network = Network(seed)
        self.link = Link(self.network, "link", Conditions(**fields), wake_s)  # type: ignore[arg-type]
        self.calls: list[list[bytes]] = []
        self.arrivals: list[tuple[float, int]] = []
        self.start = self.network.now
        self.network.hosts[THERE] = self._receive

    def _receive(self, packets: list[tuple[bytes, Address]]) -> None:
        self.calls.append([packet for packet, source in packets if source == HERE])
        for packet, _ in packets:
            self.arrivals.append((self.network.now - self.start, packet[0] << 8 | packet[1]))

    def send(self, count: int, first: int = 0) -> None:
        data = b"".join(
            number.to_bytes(2, "big") + bytes(SIZE - 2) for number in range(first, first + count)
        )
        self.link.send(data, SIZE, HERE, THERE)

    def numbers(self) -> list[int]:
        self.network.run(limit_s=60)
        return [number for _, number in self.arrivals]

    def seconds(self) -> list[float]:
        self.network.run(limit_s=60)
        return [round(when, 6) for when, _ in self.arrivals]


def test_rate_and_delay_set_when_packets_arrive() -> None:
    trial = Trial(rate_bytes_per_s=RATE, delay_s=0.02)
    trial.send(3)
    assert trial.seconds() == [0.021, 0.022, 0.023]
    assert trial.numbers() == [0, 1, 2]


def test_a_queue_holds_its_bytes_and_drops_the_tail() -> None:
    trial = Trial(rate_bytes_per_s=RATE, queue_bytes=5 * WIRE)
    trial.send(7)
    trial.send(1, first=7)
    assert trial.numbers() == [0, 1, 2, 3, 4]
    assert trial.link.counts["queue full"] == 3
    assert trial.link.queueing_s() == pytest.approx([0.0, 0.005])


def test_two_flows_share_a_queue() -> None:
    trial = Trial(rate_bytes_per_s=RATE, delay_s=0.0)
    other: Address = ("198.51.100.2", 1)
    seen: list[float] = []
    trial.network.hosts[other] = lambda packets: seen.append(trial.network.now - trial.start)
    trial.send(2)
    trial.link.send(bytes(SIZE), SIZE, HERE, other)
    trial.send(1, first=2)
    assert trial.seconds() == [0.001, 0.002, 0.004]
    assert seen == pytest.approx([0.003])


def test_what_waits_leaves_at_a_new_rate() -> None:
    trial = Trial(rate_bytes_per_s=RATE, delay_s=0.01)
    trial.send(4)
    trial.link.change_at(trial.start + 0.002, rate_bytes_per_s=RATE / 10)
    assert trial.seconds() == [0.011, 0.012, 0.022, 0.032]
    trial.send(1)
    assert trial.seconds()[-1] == pytest.approx(60 + 0.02)


def test_a_shorter_path_lets_packets_overtake() -> None:
    trial = Trial(delay_s=0.1)
    trial.send(1)
    trial.link.change(delay_s=0.01)
    trial.send(1, first=1)
    assert trial.numbers() == [1, 0]


def test_datagrams_larger_than_the_path_mtu_vanish() -> None:
    trial = Trial(mtu_bytes=WIRE - 1)
    trial.send(2)
    trial.link.change(mtu_bytes=WIRE)
    trial.send(1, first=2)
    assert trial.numbers() == [2]
    assert trial.link.counts["too large"] == 2


def test_a_blackout_takes_what_is_sent_in_it() -> None:
    trial = Trial()
    trial.link.blackout(trial.start + 1, trial.start + 2)
    for number, second in enumerate((0.5, 1.0, 1.999, 2.0)):
        trial.network.at(trial.start + second, partial(trial.send, 1, number))
    assert trial.numbers() == [0, 3]


def test_random_loss_is_as_frequent_as_it_should_be() -> None:
    trial = Trial(loss=0.1)
    trial.send(10_000)
    assert 800 < trial.link.counts["lost"] < 1200  # 6 standard deviations
    numbers = trial.numbers()
    assert numbers == sorted(numbers)
    assert len(numbers) == 10_000 - trial.link.counts["lost"]


def test_losses_in_bursts_come_together() -> None:
    trial = Trial(burst_enter=0.01, burst_leave=0.2)
    trial.send(20_000)
    numbers = trial.numbers()
    lost = trial.link.counts["lost in bursts"]
    bursts = sum(b - a > 1 for a, b in itertools.pairwise(numbers))
    assert 600 < lost < 1300  # 0.01 / (0.01 + 0.2) of them
    assert 3.5 < lost / bursts < 6.5  # 1 / burst_leave


def test_jitter_keeps_the_order_and_reordering_does_not() -> None:
    jitter = Trial(delay_s=0.01, jitter_s=0.005)
    jitter.send(100)
    numbers = jitter.numbers()
    assert numbers == list(range(100))
    times = jitter.seconds()
    assert 0.01 <= times[0] < times[-1] <= 0.015
    reorder = Trial(delay_s=0.01, reorder=0.5, reorder_s=0.005)
    reorder.send(100)
    numbers = reorder.numbers()
    assert sorted(numbers) == list(range(100))
    assert numbers != list(range(100))


def test_duplicates_and_flipped_bits() -> None:
    trial = Trial(duplicate=0.5)
    trial.send(200)
    numbers = trial.numbers()
    assert set(numbers) == set(range(200))
    assert len(numbers) == 200 + trial.link.counts["duplicated"]
    assert 50 < trial.link.counts["duplicated"] < 150
    trial = Trial(corrupt=1.0)
    trial.link.send(bytes(SIZE), SIZE, HERE, THERE)
    trial.numbers()
    [[packet]] = trial.calls
    assert len(packet) == SIZE
    assert int.from_bytes(packet, "big").bit_count() == 1


def test_a_filter_may_drop_copy_and_change() -> None:
    trial = Trial()
    trial.link.filter = lambda packet: [packet] * packet[1]
    trial.send(4)
    assert trial.numbers() == [1, 2, 2, 3, 3, 3]


def test_a_receiver_takes_in_one_go_what_arrives_while_it_looks_away() -> None:
    trial = Trial(wake_s=0.0025, rate_bytes_per_s=RATE, delay_s=0.0)
    trial.send(5)
    assert trial.seconds() == [0.0035] * 3 + [0.0065] * 2
    assert [len(call) for call in trial.calls] == [3, 2]
    one_by_one = Trial()
    one_by_one.send(3)
    assert one_by_one.numbers() == [0, 1, 2]
    assert [len(call) for call in one_by_one.calls] == [1, 1, 1]


def test_neighbours_of_one_source_and_size_become_one_buffer() -> None:
    sizes = [5, 5, 3, 5, 5, 7, 2, 2, 2]
    packets = [(bytes([n]) * size, HERE) for n, size in enumerate(sizes)]
    packets[8] = (packets[8][0], THERE)
    buffers = coalesce(packets)
    assert [(len(data), size, source) for data, size, source in buffers] == [
        (13, 5, HERE),
        (10, 5, HERE),
        (9, 7, HERE),
        (2, 2, HERE),
        (2, 2, THERE),
    ]
    assert b"".join(data for data, _, _ in buffers) == b"".join(data for data, _ in packets)
    assert [len(data) for data, _, _ in coalesce([(bytes(1200), HERE)] * 100)] == [
        54 * 1200,
        46 * 1200,
    ]
    assert [len(data) for data, _, _ in coalesce([(bytes(100), HERE)] * 100)] == [6400, 3600]


def test_what_nobody_listens_for_is_counted() -> None:
    trial = Trial()
    trial.link.send(bytes(10), 10, THERE, HERE)
    assert trial.numbers() == []
    assert trial.network.undeliverable == 1


def _digest(seed: object, extra_link: bool = False) -> str:
    trial = Trial(
        seed=seed,
        wake_s=0.001,
        rate_bytes_per_s=RATE,
        jitter_s=0.01,
        reorder=0.1,
        reorder_s=0.01,
        loss=0.1,
        burst_enter=0.02,
        burst_leave=0.3,
        duplicate=0.1,
        corrupt=0.1,
    )
    if extra_link:
        other = Link(trial.network, "other", Conditions(loss=0.5))
        other.send(bytes(SIZE * 10), SIZE, HERE, THERE)
        trial.network.run(limit_s=0.5)
        trial.arrivals.clear()
        trial.calls.clear()
        trial.start = trial.network.now
    trial.send(300)
    trial.network.run(limit_s=5)
    return hashlib.sha256(repr((trial.seconds(), trial.calls)).encode()).hexdigest()


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    assert _digest("a") == _digest("a") == _digest("a", extra_link=True)
    assert _digest("a") != _digest("b")


def test_a_run_that_does_not_end_fails_with_seed_and_state() -> None:
    trial = Trial(seed="the seed")
    trial.network.state = lambda: "the state"
    with pytest.raises(
        Stuck, match=r"nothing to come \(seed 'the seed'(?s:.*)link(?s:.*)the state"
    ):
        trial.network.run(lambda: False)
    trial.network.after(100, lambda: None)
    with pytest.raises(Stuck, match="not done after 50 s"):
        trial.network.run(lambda: False, limit_s=50)

    def again() -> None:
        trial.network.at(0, again)

    again()
    with pytest.raises(Stuck, match="not done after 1000 events"):
        trial.network.run(lambda: False, max_events=1000)
