"""The emulated link: its rules frame by frame, and the running thing between two hosts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import link_ends
from helpers.support import PATIENCE_S
from kkp2p_compat.testing.lab import Host, Lab
from kkp2p_compat.testing.link import (
    VIRTIO_HEADER,
    Direction,
    Link,
    LinkProcess,
    joined,
    wire_bytes,
)

ENDS = link_ends.__file__
ETHERNET, IPV4, TCP, UDP = 14, 20, 32, 8
PLAIN = bytes(VIRTIO_HEADER.size)


def frame(size: int) -> bytes:
    return PLAIN + bytes(size)


def train(transport: int, payload: int, segment: int) -> bytes:
    """What the kernel hands over for TCP (32 bytes of header) or UDP (8)."""
    start, tcp = ETHERNET + IPV4, transport == TCP
    header = VIRTIO_HEADER.pack(1, 1 if tcp else 5, 99, segment, start, 16 if tcp else 6)
    body = bytearray(start + transport + payload)
    if tcp:
        body[start + 12] = TCP // 4 << 4
    return header + body


@pytest.mark.parametrize(
    ("what", "size"),
    [
        (frame(60), 60),
        (train(TCP, 1448, 1448), 66 + 1448),
        (train(TCP, 1449, 1448), 2 * 66 + 1449),
        (train(TCP, 3 * 1448, 1448), 3 * (66 + 1448)),
        (train(UDP, 10 * 1200, 1200), 10 * (42 + 1200)),
    ],
)
def test_every_segment_costs_its_headers(what: bytes, size: int) -> None:
    assert wire_bytes(what) == size


def test_frames_leave_at_the_rate_and_arrive_a_delay_later() -> None:
    way = Direction(Link(rate_bps=8_000_000, delay_s=0.5, queue_bytes=10_000), "s")
    for _ in range(3):
        way.take(frame(1000), 10.0)
    way.take(frame(500), 20.0)  # the queue has long been empty
    arrivals = []
    while (at := way.next_due()) < float("inf"):
        assert way.due(at - 1e-6) == []
        arrivals += [(round(at, 6), len(one) - VIRTIO_HEADER.size) for one in way.due(at)]
    assert arrivals == [(10.501, 1000), (10.502, 1000), (10.503, 1000), (20.5005, 500)]


def test_what_does_not_fit_is_dropped_until_the_wire_has_made_room() -> None:
    way = Direction(Link(rate_bps=8_000_000, queue_bytes=3_000), "s")
    for _ in range(5):
        way.take(frame(1000), 0.0)
    assert (way.frames, way.overflowed) == (5, 2)
    way.take(frame(1000), 0.0009)
    assert way.overflowed == 3
    way.take(frame(1000), 0.0011)
    assert way.overflowed == 3
    assert len(way.due(1.0)) == 4


def test_a_train_is_dropped_whole() -> None:
    way = Direction(Link(rate_bps=8_000_000, queue_bytes=20_000, trains=True), "s")
    one = train(UDP, 10 * 1200, 1200)
    way.take(one, 0.0)
    way.take(one, 0.0)
    assert (way.overflowed, way.bytes) == (1, 12_420)
    assert way.due(0.0124) == []
    assert way.due(0.0125) == [one]


def test_without_a_rate_nothing_waits_or_overflows() -> None:
    way = Direction(Link(delay_s=0.25, queue_bytes=1), "s")
    for _ in range(100):
        way.take(frame(1500), 1.0)
    assert len(way.due(1.25)) == 100


def test_loss_is_seeded_and_costs_time() -> None:
    def lost(seed: str, chance: float) -> list[int]:
        way = Direction(Link(rate_bps=8e9, loss=chance, queue_bytes=1 << 30), seed)
        for number in range(10_000):
            way.take(PLAIN + number.to_bytes(1000, "big"), 0.0)
        arrived = {int.from_bytes(one[len(PLAIN) :], "big") for one in way.due(1.0)}
        assert way.lost == 10_000 - len(arrived)
        assert way._free_at == pytest.approx(0.01)
        return sorted(set(range(10_000)) - arrived)

    assert lost("a", 0.0) == []
    assert lost("a", 1.0) == list(range(10_000))
    assert lost("a", 0.03) == lost("a", 0.03) != lost("b", 0.03)
    assert 200 < len(lost("a", 0.03)) < 400


@pytest.fixture
def hosts(lab: Lab) -> tuple[Host, Host]:
    return lab.host("one"), lab.host("two")


def ready(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def send(
    hosts: tuple[Host, Host], count: int, size: int, gap_s: float
) -> tuple[list[int], list[float], float]:
    """Numbered datagrams from the first host to the second: which came and when, and how long a
    question and its answer took."""
    one, two = hosts
    receiver = ready(two.python(ENDS, "receive"))
    trip_s = one.run(sys.executable, ENDS, "send", two.address, str(count), str(size), str(gap_s))
    numbers, times = json.loads(receiver.communicate(timeout=PATIENCE_S)[0])
    return numbers, times, float(trip_s)


def counters(link: LinkProcess | None) -> dict[str, float]:
    assert link is not None
    counted: dict[str, float] = link.counters()["there"]
    return counted


def test_loss_between_two_hosts(hosts: tuple[Host, Host]) -> None:
    """Every frame is accounted for, and those that the rule let through arrive in order."""
    with joined(*hosts, Link(rate_bps=50e6, delay_s=0.01, loss=0.1, seed=7)) as link:
        numbers, _, _ = send(hosts, 1000, 200, 0.0005)
        count = counters(link)
    rule = Direction(Link(loss=0.1), "7 there")
    for number in range(1000):
        rule.take(PLAIN + number.to_bytes(200, "big"), 0.0)
    assert numbers == [int.from_bytes(one[len(PLAIN) :], "big") for one in rule.due(0.0)]
    assert count["overflowed"] == 0
    assert count["lost"] + count["delivered"] == count["frames"] > 1000


def test_rate_delay_and_queue_between_two_hosts(hosts: tuple[Host, Host]) -> None:
    """A burst overflows the queue; what comes takes its time on the wire.  (At least that: a
    busy machine may add to it, so there is no upper bound.)"""
    with joined(*hosts, Link(rate_bps=1e6, delay_s=0.05, queue_bytes=30_000)) as link:
        numbers, times, trip_s = send(hosts, 100, 958, 0.0)  # frames of 1,000 bytes, 8 ms each
        count = counters(link)
    assert 30 <= len(numbers) < 100
    assert numbers == sorted(numbers)
    assert count["overflowed"] >= 100 - len(numbers)
    assert count["lost"] == 0
    assert times[-1] - times[0] >= 0.008 * (len(numbers) - 1) * 0.9
    assert trip_s >= 0.1


def test_trains_pass_whole(hosts: tuple[Host, Host]) -> None:
    """64 KB of TCP or UDP segments are one frame of the emulator, and arrive unharmed."""
    one, two = hosts
    with joined(*hosts, Link(rate_bps=1e9, delay_s=0.005, trains=True)) as link:
        receiver = ready(two.python(ENDS, "take"))
        one.run(sys.executable, ENDS, "give", two.address)
        assert json.loads(receiver.communicate(timeout=PATIENCE_S)[0]) == [True, True]
        count = counters(link)
    assert count["bytes"] > len(link_ends.STREAM) + len(link_ends.segments())
    assert count["frames"] < count["bytes"] / 5000
