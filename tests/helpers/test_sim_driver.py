"""The driver: a simple connection passes its transfers, and a broken one is caught."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from helpers.sim.drive import TIMER_STEP_S, Body, Peer
from helpers.sim.simnet import Conditions, Link, Network, Stuck
from helpers.sim.toy import STREAM, ToyConnection

CLEAN: Mapping[str, Any] = {}
HERE, THERE = ("192.0.2.1", 1000), ("198.51.100.1", 2000)


class Pair:
    """Two toy connections, one link each way."""

    def __init__(
        self, here_class: type[ToyConnection] = ToyConnection, fields: Mapping[str, Any] = CLEAN
    ) -> None:
        self.network = Network(7)
        conditions = Conditions(**fields)
        links = [Link(self.network, name, conditions) for name in ("there", "back")]
        self.here = Peer(self.network, "here", here_class(1, 2, THERE), HERE, links[0])
        self.there = Peer(self.network, "there", ToyConnection(2, 1, HERE), THERE, links[1])
        self.network.state = lambda: f"{self.here}\n{self.there}"

    def transfer(self, up: Body, down: Body, **reading: Any) -> float:
        self.here.send(STREAM, up)
        self.there.send(STREAM, down)
        readers = [self.here.expect(STREAM, down), self.there.expect(STREAM, up, **reading)]
        self.here.drive()
        self.there.drive()
        return self.network.run(lambda: all(reader.done for reader in readers), limit_s=120)


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 300_000])
@pytest.mark.parametrize(
    "fields",
    [{}, {"loss": 0.1, "duplicate": 0.1}, {"rate_bytes_per_s": 1e6, "queue_bytes": 20_000}],
    ids=["clean", "loss and copies", "a small queue"],
)
def test_bodies_arrive_both_ways(fields: dict[str, Any], size: int) -> None:
    pair = Pair(fields=fields)
    pair.transfer(Body(size, 1), Body(size // 2, 2))
    assert pair.there.incoming[STREAM].received == size


def test_a_slow_reader_takes_its_time() -> None:
    pair = Pair()
    assert pair.transfer(Body(10_000), Body(0), take_bytes=1000, every_s=0.5) >= 4.5


def test_a_connection_that_gets_no_answer_ends_with_its_error() -> None:
    pair = Pair(fields={"loss": 1.0})
    pair.here.send(STREAM, Body(1))
    pair.here.drive()
    pair.network.run(lambda: pair.here.closed)
    assert pair.here.closed is not None


def test_bodies_differ_by_offset_and_seed() -> None:
    assert Body(10, 1).piece(0, 10) != Body(10, 2).piece(0, 10)
    assert Body(100, 1).piece(10, 40) == Body(100, 1).piece(0, 100)[10:50]
    assert len(Body(100).piece(90, 40)) == 10
    assert Body(1 << 24).piece(0, 64) != Body(1 << 24).piece(1 << 20, 64)


def test_an_address_that_changes_is_followed_by_what_is_sent_there() -> None:
    pair = Pair()
    moved = ("203.0.113.9", 9)
    pair.here.move(moved)
    pair.there.connection.address = moved
    pair.transfer(Body(5000), Body(5000))
    assert pair.network.undeliverable == 0


def test_packets_of_others_do_not_reach_the_connection() -> None:
    pair = Pair()
    stray = [b"", bytes(15), bytes(40), b"\x40" + bytes(14) + b"\x09" + bytes(40)]
    pair.here.receive([(packet, THERE) for packet in stray])
    assert pair.here.strays == 4


class TellsTooMuch(ToyConnection):
    def peek(self, stream_id: int) -> list[memoryview]:
        return [memoryview(bytes(self._received) + b"?")]


class EndsEarly(ToyConnection):
    def at_end(self, stream_id: int) -> bool:
        return True


class NeverQuiet(ToyConnection):
    def next_timer(self) -> float:
        return 0.0

    def handle_timer(self, now: float) -> None:
        pass


class Silent(ToyConnection):
    def next_timer(self) -> None:
        return None


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (TellsTooMuch, {}, "here: wrong bytes on 0"),
        (EndsEarly, {}, "here: wrong end of 0"),
        (NeverQuiet, {}, "here: the timer stays at 0.0"),
        (Silent, {"loss": 1.0}, r"(?s)nothing to come \(seed 7.*here.*in 0"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_connection_is_caught(
    kind: type[ToyConnection], fields: dict[str, Any], said: str
) -> None:
    pair = Pair(kind, fields)
    with pytest.raises(Stuck, match=said):
        pair.transfer(Body(5000, 1), Body(5000, 2))


def test_the_timer_has_the_step_of_the_event_loop() -> None:
    pair = Pair(fields={"loss": 1.0})
    fired: list[float] = []
    step = pair.here.connection.handle_timer

    def fire(now: float) -> None:
        fired.append(now)
        step(now)

    pair.here.connection.handle_timer = fire
    pair.here.send(STREAM, Body(1))
    pair.network.run(limit_s=0.00042)
    pair.here.drive()
    pair.network.run(lambda: fired)
    late = fired[0] - (1000.00042 + 0.3)
    assert 0 <= late <= TIMER_STEP_S
    assert fired[0] / TIMER_STEP_S == pytest.approx(round(fired[0] / TIMER_STEP_S))
