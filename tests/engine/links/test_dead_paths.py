"""What is done when a peer is not heard any more: when it is noticed, and who looks for a path."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event

from helpers.sim.pair import Pair, mbit_per_s
from helpers.sim.simnet import Conditions
from helpers.support import PATIENCE_S
from kkp2p_compat._errors import KKP2PError, LinkLost, PeerOffline
from kkp2p_compat.engine.links import roaming
from kkp2p_compat.engine.links.roaming import Roaming
from kkp2p_compat.transport import tcp
from kkp2p_compat.transport.udp.events import PathChanged, PathSuspected
from kkp2p_compat.transport.udp.recovery import Flight, Recovery

PATH = Conditions(rate_bytes_per_s=mbit_per_s(8), delay_s=0.02)
SIZE = 4_000_000  # seconds
IP_FREEBIND = 15  # linux/in.h

# The connection.


def _dark(pair: Pair) -> None:
    now = pair.network.now
    for link in (pair.there, pair.back):
        link.blackout(now, now + 3600)


@pytest.mark.parametrize("rtt_s", [0.01, 0.3, 1.0])
def test_a_dead_path_is_suspected_soon_whatever_was_measured_before(rtt_s: float) -> None:
    """After a move, or under load, the estimate of the round trip is far too large.  The first
    probe time-out is of the PING that follows the last answer by two seconds, or of data."""
    pair = Pair(rtt_s, PATH)
    pair.transfer(SIZE // 4, SIZE // 4)
    _dark(pair)
    rtt = pair.caller.connection.recovery.rtt
    rtt.smoothed_s, rtt.variation_s = rtt_s, rtt_s / 2
    pair.start(SIZE)
    took_s = pair.run(lambda: PathSuspected() in pair.caller.events, 60)
    assert took_s < 2.0 + rtt.pto_s + max(1.0, rtt.pto_s) + 0.5  # of the simulation's time


def test_a_path_found_at_the_address_that_we_have_is_a_new_one() -> None:
    """It is our own address that has changed: nothing that was known of the old path counts."""
    pair = Pair("same", PATH)
    transfer = pair.start(SIZE, SIZE)
    pair.run(None, 1.0)
    old = pair.caller.connection.controller
    pair.caller.connection.try_path(pair.callee.address, pair.network.now)
    pair.caller.drive()
    pair.run(lambda: pair.caller.connection.controller is not old, 1.0)
    pair.run(lambda: transfer.done, 60)
    assert not [event for event in pair.caller.events if isinstance(event, PathChanged)]
    pair.finish()


def test_a_host_that_slept_suspects_a_path_that_died_meanwhile() -> None:
    """What it reads first when it wakes up is old: not a round trip of half a minute."""
    pair = Pair("asleep", PATH)
    transfer = pair.start(SIZE, SIZE)
    pair.run(None, 1.0)
    caller = pair.caller
    kept: list[Any] = []
    caller.receive, caller.drive, awake = kept.append, lambda: None, (caller.receive, caller.drive)
    pair.network.hosts[caller.address] = kept.append
    now = pair.network.now
    pair.there.blackout(now, now + 40)
    pair.back.blackout(now + 0.1, now + 40)  # the callee's last packets are in the socket's buffer
    pair.run(None, 30.0)
    caller.receive, caller.drive = awake
    pair.network.hosts[caller.address] = caller.receive
    assert kept
    for packets in kept:
        caller.receive(packets)
    assert caller.connection.recovery.rtt.smoothed_s < 1.0
    pair.run(lambda: PathSuspected() in caller.events, 5.0)
    pair.run(lambda: transfer.done, 60)
    pair.finish()


@pytest.mark.parametrize("pause_s", [1.0, 2.0, 5.0])
def test_a_program_that_kept_the_interpreter_s_lock_suspects_nothing(pause_s: float) -> None:
    """The silence was its own: timers come before the answers that wait in the socket."""
    pair = Pair("lock kept", PATH)
    transfer = pair.start(SIZE, SIZE)
    pair.run(None, 1.0)
    caller, now = pair.caller, pair.network.now
    for link in (pair.there, pair.back):
        link.blackout(now, now + 0.5)
    pair.run(lambda: caller.connection.recovery.pto_count > 0, 0.5)
    kept: list[Any] = []
    caller.receive, caller.drive, awake = kept.append, lambda: None, (caller.receive, caller.drive)
    pair.network.hosts[caller.address] = kept.append
    pair.run(None, pause_s)
    caller.receive, caller.drive = awake
    pair.network.hosts[caller.address] = caller.receive
    caller.connection.handle_timer(pair.network.now)
    caller.drive()
    for packets in kept:
        caller.receive(packets)
    pair.run(lambda: transfer.done, 60)
    assert PathSuspected() not in caller.events
    pair.finish()


def test_round_trips_are_measured_again_from_when_we_run() -> None:
    recovery = Recovery()
    for number, sent_at in ((0, 0.0), (1, 31.0)):
        recovery.sent(Flight(number, number + 1, 100, sent_at, None))
    recovery.measure_from(30.0)
    assert recovery.handle_ack([(0, 1)], 0.0, 30.5)
    assert recovery.rtt.latest_s is None
    assert recovery.handle_ack([(0, 2)], 0.0, 31.25)
    assert recovery.rtt.latest_s == 0.25


# A TCP connection.


def test_only_a_connection_whose_address_is_gone_is_stranded() -> None:
    with socket.socket() as listener, socket.socket() as sock:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        sock.connect(listener.getsockname())
        assert not tcp.stranded(sock)
        assert not tcp.stranded(sock.fileno())
    assert not tcp.stranded(sock)  # closed
    for one in socket.socketpair():
        with one:
            assert not tcp.stranded(one)
    for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family) as sock:
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)  # an address that nobody has
            sock.bind((address, 0))
            assert tcp.stranded(sock)


# The engine.


class FakeLink:
    """As much of a PeerLink as Roaming sees."""

    def __init__(self, dials: str | None) -> None:
        self.name = "peer"
        self.info = SimpleNamespace(dials=dials)
        self.search: Any = None
        self.closed: KKP2PError | None = None
        self.tried: list[Any] = []
        self.on_try = Event()

    def try_path(self, address: Any) -> None:
        self.tried.append(address)
        self.on_try.set()


class Case:
    """``answers``: what each search gives, in order; the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.redials = self.checks = 0
        self.greenlets: list[Any] = []
        log = logging.getLogger("test")
        self.roaming = Roaming(self.redial, self.check, log, self.spawn)

    def redial(self, link: Any, budget_s: float) -> Any:
        self.redials += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Event):
            answer.wait()
        return ("192.0.2.1", 5), 0.02

    def check(self) -> None:
        self.checks += 1

    def spawn(self, function: Callable[..., Any], *args: Any) -> Any:
        self.greenlets.append(gevent.spawn(function, *args))
        return self.greenlets[-1]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(roaming, "PROVE_S", 0.001)
    monkeypatch.setattr(roaming, "PAUSE_FIRST_S", 0.001)
    monkeypatch.setattr(roaming, "PAUSE_SPREAD_S", 0.001)
    monkeypatch.setattr(roaming, "PAUSE_MOST_S", 0.001)
    with gevent.Timeout(PATIENCE_S):
        yield


def test_the_caller_looks_until_a_path_is_found_and_the_peer_heard() -> None:
    case, link = Case(PeerOffline(), LinkLost("the cloud is gone"), None), FakeLink("peer")
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]  # one search is enough
    assert len(case.greenlets) == 1
    link.on_try.wait()
    assert link.tried[0] == ("192.0.2.1", 5)
    assert case.redials == 3
    link.on_try.clear()
    link.on_try.wait()  # not heard yet: again
    case.roaming.handle_end(link)  # type: ignore[arg-type]
    case.greenlets[0].join()
    assert link.search is None
    assert case.checks == 2  # when it was suspected, and when it lives again


def test_a_search_under_way_ends_when_the_peer_is_heard() -> None:
    case, link = Case(Event()), FakeLink("peer")
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    while not case.redials:
        gevent.sleep(0)
    case.roaming.handle_end(link)  # type: ignore[arg-type]
    case.greenlets[0].join()
    assert link.tried == []


def test_the_callee_waits_to_be_called() -> None:
    case, link = Case(None), FakeLink(None)
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    assert case.greenlets == []
    assert case.checks == 1
    case.roaming.handle_end(link)  # type: ignore[arg-type]
    assert case.checks == 2


def test_a_link_that_is_closed_is_not_looked_after() -> None:
    case, link = Case(PeerOffline()), FakeLink("peer")
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    while case.redials < 3:
        gevent.sleep(0)
    link.closed = LinkLost("silent")
    case.greenlets[0].join()
    case.roaming.handle_end(link)  # type: ignore[arg-type]
    assert case.checks == 1


def test_hundreds_of_links_that_die_and_live_together_ask_the_cloud_once() -> None:
    case, links = Case(PeerOffline()), [FakeLink("peer") for _ in range(300)]
    for link in links:
        case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    assert case.checks == 1
    assert len(case.greenlets) == 300
    for link in links:
        case.roaming.handle_end(link)  # type: ignore[arg-type]
    assert case.checks == 2
    gevent.joinall(case.greenlets)
