"""How far relays are: measured by STUN, by TCP where that is silent, and told."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import gevent
import pytest

from helpers.cloud_client import until
from helpers.shared_directory import running_node
from kkp2p_compat._address import Address
from kkp2p_compat.control.way_out import DIRECT, WayOut
from kkp2p_compat.control.wire import MAX_ROUND_TRIP_MS, MAX_TOLD_RELAYS
from kkp2p_compat.engine.paths import relay_meter
from kkp2p_compat.engine.paths.network import Network
from kkp2p_compat.engine.paths.questions import Questions
from kkp2p_compat.engine.paths.relay_meter import RelayMeter
from kkp2p_compat.transport.udp.endpoint import Endpoint

HERE = "127.0.0.1"
log = logging.getLogger("test")


class World:
    """A meter, and what it has told."""

    def __init__(self) -> None:
        self.told: list[Mapping[str, int]] = []
        self.endpoint = Endpoint(log, self._handle_stun)
        self.questions = Questions(self.endpoint)
        self.ready = gevent.event.Event()
        self.ready.set()
        self.own = SimpleNamespace(questions=self.questions, ready=self.ready, udp_blocked=False)
        network = SimpleNamespace(underlay=lambda: SimpleNamespace(own=self.own))
        self.asked: list[tuple[str, int]] = []
        self.meter = RelayMeter(
            cast(Network, network), cast(WayOut, self), self.told.append, log, gevent.spawn
        )

    def _handle_stun(self, data: bytes, source: Address) -> None:
        self.questions.handle_stun(data, source)

    def connect(self, host: str, port: int) -> Any:
        self.asked.append((host, port))
        return DIRECT.connect(host, port)

    def name(self, *relays: tuple[str, int]) -> None:
        self.meter.handle_relays_untrusted([[*relay] for relay in relays], HERE)

    def measure(self, *relays: tuple[str, int]) -> Mapping[str, int]:
        count = len(self.told)
        self.name(*relays)
        until(lambda: len(self.told) > count)
        return self.told[-1]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.meter.close()
    made.endpoint.close()


@pytest.fixture
def relay() -> Iterator[tuple[str, int]]:
    with running_node("relay") as cloud:
        yield cloud.address


def name_of(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


@pytest.fixture
def silent() -> Iterator[Callable[[bool], tuple[str, int]]]:
    """Ports where nobody answers by UDP; by TCP only if it says so."""
    socks: list[socket.socket] = []

    def make(by_tcp: bool) -> tuple[str, int]:
        listener = socket.socket()
        socks.append(listener)
        listener.bind((HERE, 0))
        if by_tcp:
            listener.listen()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        socks.append(udp)
        address: tuple[str, int] = listener.getsockname()
        udp.bind(address)
        return address

    yield make
    for sock in socks:
        sock.close()


def test_a_relay_answers_by_udp(world: World, relay: tuple[str, int]) -> None:
    told = world.measure(relay)
    assert [*told] == [name_of(relay)]
    assert 0 <= told[name_of(relay)] < MAX_ROUND_TRIP_MS
    assert world.asked == []


def test_one_that_does_not_is_tried_by_tcp(
    world: World, silent: Callable[[bool], tuple[str, int]]
) -> None:
    place = silent(True)
    assert world.measure(place)[name_of(place)] < MAX_ROUND_TRIP_MS
    assert world.asked == [place]


def test_nobody_asks_by_udp_where_it_is_blocked(world: World, relay: tuple[str, int]) -> None:
    world.own.udp_blocked = True
    assert world.measure(relay)[name_of(relay)] < MAX_ROUND_TRIP_MS
    assert world.asked == [relay]


def test_one_that_is_dead_is_told_as_the_farthest(
    world: World, relay: tuple[str, int], silent: Callable[[bool], tuple[str, int]]
) -> None:
    dead = silent(False)
    told = world.measure(relay, dead)
    assert told[name_of(dead)] == MAX_ROUND_TRIP_MS
    assert told[name_of(relay)] < MAX_ROUND_TRIP_MS


def test_what_is_known_is_not_asked_again_before_the_network_changes(
    world: World, relay: tuple[str, int], silent: Callable[[bool], tuple[str, int]]
) -> None:
    place = silent(True)
    first = world.measure(place)
    assert world.measure(place, relay) == {**first, **world.told[-1]}
    assert world.asked == [place]
    world.meter.forget()
    until(lambda: len(world.told) == 3)
    assert world.asked == [place, place]
    assert [*world.measure(relay)] == [name_of(relay)]  # of those that are named now


def test_a_failure_is_forgotten_sooner(
    world: World, silent: Callable[[bool], tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, place = silent(False), silent(True)
    clock = [1000.0]
    monkeypatch.setattr(relay_meter, "_now", lambda: clock[0])
    world.measure(dead, place)
    clock[0] += relay_meter.FAILED_HOLDS_S
    world.measure(dead, place)
    assert sorted(world.asked) == sorted([place, dead, dead])


def test_none_nearer_than_the_cloud_is_asked(world: World, relay: tuple[str, int]) -> None:
    world.meter.handle_relays_untrusted([[*relay]], "203.0.113.1")
    until(lambda: world.told)
    assert world.told == [{name_of(relay): MAX_ROUND_TRIP_MS}]
    assert world.asked == []


@pytest.mark.parametrize("relays", [None, "x", 5, {}])
def test_no_list_of_relays(world: World, relays: object) -> None:
    world.meter.handle_relays_untrusted(relays, HERE)
    assert world.meter._running is None


class Json(dict[str, int]):
    """An object as Python 3.12 has it: to slice one is a KeyError, as a slice has a hash there."""

    def __getitem__(self, key: object) -> int:
        raise KeyError(key)


@pytest.mark.parametrize(
    "relay", [None, 5, "ab", {}, Json(x=1), [], ["x"], [1, 2], ["x", "y"], ["", 1], ["x", 0]]
)
def test_a_relay_that_cannot_be(
    world: World, caplog: pytest.LogCaptureFixture, relay: object
) -> None:
    caplog.set_level("INFO")
    world.meter.handle_relays_untrusted([relay], HERE)
    assert world.meter._running is None
    assert f"cloud {HERE}: relays that cannot be measured: a" in caplog.text


def test_only_so_many_are_asked(world: World) -> None:
    world.meter.handle_relays_untrusted([[HERE, port] for port in range(1, 100)], "203.0.113.1")
    until(lambda: world.told)
    assert len(world.told[0]) == MAX_TOLD_RELAYS
