"""The puncher's sockets and waiting: nothing is left behind, whatever fails and whoever waits."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from helpers.endpoint_support import make
from helpers.support import PATIENCE_S
from kkp2p_compat._errors import BadPacket, LinkLost, OutOfDescriptors, TimedOut
from kkp2p_compat.engine.paths import birthdays as birthdays_module
from kkp2p_compat.engine.paths import puncher
from kkp2p_compat.engine.paths.birthdays import Birthdays
from kkp2p_compat.engine.paths.path_finder import PathFinder
from kkp2p_compat.engine.paths.puncher import Means, Puncher
from kkp2p_compat.transport.udp import doors
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.traversal.candidates import Candidate
from kkp2p_compat.traversal.checks import Checks, Credentials
from kkp2p_compat.traversal.nat import NatBehaviour
from kkp2p_compat.traversal.plan import Plan
from kkp2p_compat.traversal.punch import SAMPLES, SPREAD_SOCKETS

__all__ = ["make"]

log = logging.getLogger("test")
EIM, APDM = "endpoint-independent", "address-and-port-dependent"
SEQUENTIAL = NatBehaviour(APDM, APDM, "sequential", 1)
RANDOM = NatBehaviour(APDM, APDM, "random")
STEADY = NatBehaviour(EIM, APDM, "preserved")


class Own:
    """In place of OwnAddresses."""

    def __init__(self, nat: NatBehaviour) -> None:
        self.nat = nat
        self.samples: list[list[int] | Exception] = [[20000, 20001, 20002]]

    def sample_ports(self, count: int) -> list[int]:
        assert count == SAMPLES
        gevent.sleep(0)
        sample = self.samples.pop(0) if len(self.samples) > 1 else self.samples[0]
        if isinstance(sample, Exception):
            raise sample
        return sample


class Search:
    """In place of the path finder's: drops what the checks send."""

    def __init__(self) -> None:
        dice = random.Random(1)
        self.checks = Checks(
            controlling=True,
            local=Credentials.make(dice),
            remote=Credentials.make(dice),
            local_candidates=[Candidate("host", 9, "192.0.2.1", 4000)],
            candidates=[Candidate("srflx", 5, "192.0.2.2", 4000)],
            now=time.monotonic(),
            random=dice,
        )
        self.polls = 0

    def poll(self) -> None:
        self.polls += 1
        while self.checks.poll_transmit() is not None:
            pass


class Case:
    def __init__(
        self, endpoint: Endpoint, birthdays: Birthdays, nat: NatBehaviour, mine: str, theirs: str
    ) -> None:
        self.endpoint = endpoint
        self.search = Search()
        self.own = Own(nat)
        self.told: list[dict[str, Any]] = []
        self.has_told = Event()
        plan = Plan("predict", "", mine, theirs)
        means = Means(endpoint, self.own, PathFinder(endpoint), birthdays, log, gevent.spawn)  # type: ignore[arg-type]
        self.puncher = Puncher(means, self.search, plan, True, self._tell)  # type: ignore[arg-type]
        self.running = gevent.spawn(self.puncher.run)

    def _tell(self, fields: dict[str, Any]) -> None:
        self.told.append(fields)
        self.has_told.set()

    def wait_told(self) -> None:
        with gevent.Timeout(PATIENCE_S):
            self.has_told.wait()

    @property
    def sockets(self) -> int:
        return len(self.endpoint._doors.extra)

    def end(self) -> None:
        self.puncher.close()
        self.running.kill()
        self.puncher.close()


@pytest.fixture
def start(make: Callable[[], Endpoint]) -> Iterator[Callable[..., Case]]:
    cases: list[Case] = []
    endpoint, birthdays = make(), Birthdays()

    def one(nat: NatBehaviour, mine: str, theirs: str) -> Case:
        cases.append(Case(endpoint, birthdays, nat, mine, theirs))
        return cases[-1]

    yield one
    for case in cases:
        case.end()
    assert not endpoint._doors.extra


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_prediction(start: Callable[..., Case]) -> None:
    before = open_descriptors()
    case = start(SEQUENTIAL, "predict", "aim")
    case.wait_told()
    assert case.told == [{"predict": [1, 20002, 1]}]
    assert case.sockets == 1
    assert case.search.polls
    case.end()
    assert open_descriptors() <= before


def test_the_socket_of_the_path_stays(start: Callable[..., Case]) -> None:
    case = start(RANDOM, "spread", "sweep")
    case.wait_told()
    kept = list(case.endpoint._doors.extra)[3]
    case.search.checks.selected = ("192.0.2.2", 4000, kept)
    case.puncher.keep(case.search.checks.selected)
    case.end()
    assert list(case.endpoint._doors.extra) == [kept]
    case.endpoint.close_sockets([kept])


def test_the_socket_of_a_path_that_nobody_took(start: Callable[..., Case]) -> None:
    case = start(RANDOM, "spread", "sweep")
    case.wait_told()
    case.search.checks.selected = ("192.0.2.2", 4000, next(iter(case.endpoint._doors.extra)))
    case.end()
    assert case.sockets == 0


def test_a_sample_that_fails_is_taken_again(
    start: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp2p_compat.traversal.punch.ROUND_S", 0.01)
    case = start(SEQUENTIAL, "predict", "aim")
    case.own.samples = [TimedOut(), OutOfDescriptors(), LinkLost(), [30000]]
    case.wait_told()
    assert case.told[0] == {"predict": [4, 30000, 1]}


def test_fewer_sockets_where_descriptors_are_short(
    start: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "MAX_EXTRA_SOCKETS", 100)
    case = start(RANDOM, "spread", "sweep")
    case.wait_told()
    assert case.told == [{"spread": 64}]
    assert case.sockets == 64


def test_no_sockets_at_all(start: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "MAX_EXTRA_SOCKETS", 15)
    case = start(RANDOM, "spread", "sweep")
    gevent.sleep(0.01)
    assert not case.running.dead
    assert case.told == []
    assert case.sockets == 0


def test_one_birthday_at_a_time(start: Callable[..., Case]) -> None:
    first, second = (start(RANDOM, "spread", "sweep") for _ in range(2))
    first.wait_told()
    third = start(STEADY, "sweep", "spread")
    third.puncher.handle_fields_untrusted({"spread": 256})
    gevent.sleep(0.01)
    assert second.told == []
    assert third.search.checks.guesses.next_at() == float("inf")
    first.end()
    second.wait_told()
    assert second.sockets == SPREAD_SOCKETS
    second.end()
    with gevent.Timeout(PATIENCE_S):
        while third.search.checks.guesses.next_at() == float("inf"):
            gevent.sleep(0)


def test_one_that_waits_for_its_turn_is_given_up(start: Callable[..., Case]) -> None:
    first, second, third = (start(RANDOM, "spread", "sweep") for _ in range(3))
    first.wait_told()
    second.end()
    first.end()
    third.wait_told()


def test_nobody_keeps_the_turn(start: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that goes on for as long as it may leaves birthdays to others."""
    monkeypatch.setattr(puncher, "TURN_S", 0.05)
    first, second = (start(RANDOM, "spread", "sweep") for _ in range(2))
    first.wait_told()
    second.wait_told()
    assert first.sockets == second.sockets == SPREAD_SOCKETS  # of both together
    first.end()
    second.end()
    start(RANDOM, "spread", "sweep").wait_told()  # it was given back once, not twice


def sweeps(case: Case) -> bool:
    """Whether it begins to, when the peer says that it is ready."""
    case.puncher.handle_fields_untrusted({"spread": 256})
    gevent.sleep(0)
    gevent.sleep(0)
    return case.search.checks.guesses.next_at() < float("inf")


def test_no_scan_of_a_third_party_by_call_after_call(
    start: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(STEADY, "sweep", "spread")
    assert sweeps(first)
    first.end()
    second = start(STEADY, "sweep", "spread")
    assert not sweeps(second)
    second.end()
    monkeypatch.setattr(birthdays_module, "SWEEP_PAUSE_S", 0.0)
    third = start(STEADY, "sweep", "spread")
    assert sweeps(third)
    third.search.checks.selected = ("192.0.2.2", 30000)
    third.end()
    monkeypatch.undo()
    fourth = start(STEADY, "sweep", "spread")
    assert sweeps(fourth), "the peer was there"


def test_what_is_remembered_of_sweeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(birthdays_module, "MAX_REMEMBERED", 3)
    birthdays = Birthdays()
    assert all(birthdays.may_sweep(f"192.0.2.{n}") for n in range(1, 9))
    assert not any(birthdays.may_sweep(f"192.0.2.{n}") for n in (6, 7, 8))
    assert birthdays.may_sweep("192.0.2.5")


def test_engines_do_not_wait_for_each_other(
    start: Callable[..., Case], make: Callable[[], Endpoint]
) -> None:
    start(RANDOM, "spread", "sweep").wait_told()
    other = Case(make(), Birthdays(), RANDOM, "spread", "sweep")
    other.wait_told()
    other.end()


def test_closed_while_a_sample_is_taken(start: Callable[..., Case]) -> None:
    case = start(SEQUENTIAL, "predict", "aim")
    go_on = Event()

    def sample_ports(count: int) -> list[int]:
        go_on.wait()
        return [20000]

    case.own.sample_ports = sample_ports  # type: ignore[method-assign]
    gevent.sleep(0)
    case.puncher.close()
    polls = case.search.polls
    go_on.set()
    with gevent.Timeout(PATIENCE_S):
        case.running.join()
    assert case.told == []
    assert case.sockets == 0
    assert case.search.polls == polls, "the search is closed"
    case.puncher.handle_fields_untrusted({"predict": "late"})


def test_what_the_peer_tells_is_checked(start: Callable[..., Case]) -> None:
    case = start(STEADY, "aim", "predict")
    with pytest.raises(BadPacket):
        case.puncher.handle_fields_untrusted({"predict": [1, 2]})
    case.puncher.handle_fields_untrusted({"predict": [1, 20000, 1]})
    gevent.sleep(0)
    assert case.search.checks.guesses.next_at() < float("inf")
    assert case.search.polls
