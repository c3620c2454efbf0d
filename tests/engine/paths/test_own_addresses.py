"""Own addresses are found out by a real endpoint, and behind NATs on a network of callbacks."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random

import gevent
import pytest
from gevent.event import Event

from helpers.line_server import wait_for
from helpers.stun_support import start_responder
from helpers.support import PATIENCE_S
from kkp2p_compat._address import Address, HostPort
from kkp2p_compat._errors import BadPacket, KKP2PError, OutOfDescriptors, TimedOut
from kkp2p_compat.cloud.stun import respond_untrusted
from kkp2p_compat.engine.paths import lifetime, own_addresses
from kkp2p_compat.engine.paths.lifetime import measure_lifetime
from kkp2p_compat.engine.paths.own_addresses import OwnAddresses, Timing
from kkp2p_compat.testing.nat import (
    PORT_RESTRICTED,
    SYMMETRIC_RANDOM,
    SYMMETRIC_SEQUENTIAL,
    UDP,
    Nat,
    NatType,
)
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.traversal import stun_client
from kkp2p_compat.traversal.candidates import Candidate, host_candidates
from kkp2p_compat.traversal.nat import BLOCKED, UNKNOWN, NatBehaviour
from kkp2p_compat.traversal.stun import Kind, Message

log = logging.getLogger("test")
SERVER, OTHER = ("203.0.113.1", 3080), ("203.0.113.2", 3081)
INSIDE, OUTSIDE = "192.168.1.2", "198.51.100.7"


class Network:
    """In place of an Endpoint: a host behind a NAT, and a server with two addresses."""

    def __init__(self, nat_type: NatType) -> None:
        self.nat = Nat(nat_type, [OUTSIDE], Random(1))
        self.down = False
        self.ahead_s = 0.0  # of the NAT's clock
        self.open: dict[int, int] = {0: 4000}
        self.numbers = itertools.count(1)
        self.sent = 0
        self.lose: Callable[[int], bool] = lambda number: False
        self.no_descriptors = False
        self.on_stun: Callable[[bytes, Address], object] = lambda data, source: None

    def ports(self) -> dict[int, int]:
        return {int(socket.AF_INET): 4000}

    def open_sockets(self, family: int, count: int) -> list[int]:
        assert family == socket.AF_INET
        if self.no_descriptors:
            raise OutOfDescriptors
        numbers = list(itertools.islice(self.numbers, count))
        self.open |= {number: 40000 + 7 * number for number in numbers}
        return numbers

    def close_sockets(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            del self.open[number]

    def port_of(self, number: int) -> int:
        return self.open[number]

    def send_check(self, data: bytes, to: Address) -> None:
        number = to[2] if len(to) == 3 else 0
        self.sent += 1
        if self.down or self.lose(number):
            return
        now = time.monotonic() + self.ahead_s
        target = to[0], to[1]
        source = self.nat.outbound(UDP, (INSIDE, self.open[number]), target, now)
        assert source is not None
        far = SERVER[0] if target[0] == OTHER[0] else OTHER[0], SERVER[1] + OTHER[1] - to[1]
        if target[0] not in (SERVER[0], OTHER[0]) or far[1] not in (SERVER[1], OTHER[1]):
            return
        try:
            reply = respond_untrusted(data, source, target, far)
        except BadPacket:
            return
        inner = self.nat.inbound(UDP, reply.to, reply.sender, now)
        for here, port in self.open.items():
            if inner == (INSIDE, port):
                back: Address = (*reply.sender, here) if here else reply.sender
                gevent.get_hub().loop.run_callback(self.on_stun, reply.data, back)
                return


class Own(OwnAddresses):
    """One whose changes a test can wait for."""

    def __init__(
        self,
        endpoint: object,
        servers: Sequence[HostPort],
        spawn: Callable[..., object],
        **others: object,
    ) -> None:
        self.changed = Event()
        self.changes: list[tuple[NatBehaviour, int]] = []  # and how many candidates
        super().__init__(endpoint, servers, log, spawn, self._note, **others)  # type: ignore[arg-type]

    def _note(self) -> None:
        self.changes.append((self.nat, len(self.candidates())))
        self.changed.set()


Maker = Callable[..., Own]


@pytest.fixture
def make() -> Iterator[Maker]:
    made: list[Own] = []
    greenlets: list[gevent.Greenlet[..., object]] = []

    def spawn(function: Callable[[], object]) -> gevent.Greenlet[..., object]:
        greenlets.append(gevent.spawn(function))
        return greenlets[-1]

    def make(endpoint: object, *servers: HostPort, **others: object) -> Own:
        own = Own(endpoint, servers or (SERVER,), spawn, **others)
        endpoint.on_stun = own.questions.handle_stun  # type: ignore[attr-defined]
        made.append(own)
        own.start()
        return own

    yield make
    for own in made:
        own.close()
    gevent.joinall(greenlets)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the NAT, where an answer comes at once or not at all."""
    monkeypatch.setattr(stun_client, "INTERVALS_S", (0.01, 0.01, 0.01, 0.01))
    monkeypatch.setattr(
        own_addresses, "host_candidates", lambda ports: host_candidates(ports, [INSIDE])
    )


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(log)
    yield made
    made.close()


def settled(own: Own, condition: Callable[[], object]) -> None:
    """Wait for changes until it is so."""
    with gevent.Timeout(PATIENCE_S):
        while not condition():
            own.changed.wait()
            own.changed.clear()


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_over_loopback(make: Maker, endpoint: Endpoint, ip: str) -> None:
    responder = start_responder(ip)
    try:
        own = make(endpoint, (ip, responder.ports[0]))
        settled(own, lambda: own.nat.filtering != "unknown")
        assert own.ready.is_set()
        assert own.nat == NatBehaviour("none", "address-dependent", "preserved")
        assert not own.udp_blocked
        kinds = {candidate.kind for candidate in own.candidates()}
        assert kinds == {"host"}
        ports = own.sample_ports(5)
        assert len(set(ports)) == 5
        assert measure_lifetime(own, 0.0) == 0.0
    finally:
        responder.stop()


def test_a_shortage_of_descriptors_makes_no_address_unknown(
    make: Maker, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is made meanwhile tells what was known; and it does not fail for that."""
    short = False

    def look(ports: dict[int, int]) -> list[Candidate]:
        if short:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return host_candidates(ports, [INSIDE])

    monkeypatch.setattr(own_addresses, "host_candidates", look)
    own = make(endpoint)
    known = own.host_candidates()
    assert [candidate.address for candidate in known] == [INSIDE]
    short = True
    assert own.host_candidates() == known
    own.refresh("a test")
    assert own.host_candidates() == known


def test_behind_a_nat(make: Maker, inside: None) -> None:
    network = Network(PORT_RESTRICTED)
    own = make(network)
    settled(own, lambda: own.nat.hairpin is not None)
    assert own.nat == NatBehaviour(
        "endpoint-independent", "address-and-port-dependent", "preserved", hairpin=False
    )
    assert [(c.kind, c.address, c.port) for c in own.candidates()] == [
        ("host", INSIDE, 4000),
        ("srflx", OUTSIDE, 4000),
    ]
    assert own.ready.is_set()


def test_the_first_verdict_is_ready_at_once(make: Maker, inside: None) -> None:
    network = Network(PORT_RESTRICTED)
    own = make(network)
    with gevent.Timeout(PATIENCE_S):
        own.ready.wait()
    assert own.nat.mapping == "endpoint-independent"
    assert own.nat.filtering == "unknown"
    assert own.candidates()[-1].kind == "srflx"


def test_extra_sockets_are_closed(make: Maker, inside: None) -> None:
    network = Network(SYMMETRIC_RANDOM)
    own = make(network)
    settled(own, lambda: own.found and all(found.done for found in own.found.values()))
    assert own.nat.symmetric
    with gevent.Timeout(PATIENCE_S):
        while len(network.open) > 1:
            gevent.sleep(0)


def test_without_descriptors_less_is_found_out(make: Maker, inside: None) -> None:
    network = Network(PORT_RESTRICTED)
    network.no_descriptors = True
    own = make(network)
    settled(own, lambda: own.found and all(found.done for found in own.found.values()))
    assert own.nat == NatBehaviour("endpoint-independent")
    with pytest.raises(OutOfDescriptors):
        own.sample_ports(3)


def test_a_mapped_port(make: Maker, inside: None) -> None:
    own = make(Network(PORT_RESTRICTED))
    settled(own, lambda: len(own.candidates()) == 2)
    own.changes.clear()
    own.mapped = (OUTSIDE, 7000)
    own.see_changes()
    assert [count for _, count in own.changes] == [3]
    assert [c.kind for c in own.candidates()] == ["host", "mapped", "srflx"]
    own.mapped = (OUTSIDE, 4000)  # what the NAT gave anyway
    own.see_changes()
    assert [c.kind for c in own.candidates()] == ["host", "mapped"]
    own.see_changes()
    assert [count for _, count in own.changes] == [3, 2]  # nothing new
    own.close()
    own.mapped = None
    own.see_changes()
    assert len(own.changes) == 2  # told to nobody after the end


def test_nobody_to_ask(make: Maker, inside: None) -> None:
    network = Network(PORT_RESTRICTED)
    own = Own(network, (), gevent.spawn)
    own.start()
    assert own.ready.is_set()
    assert own.nat == UNKNOWN
    assert not own.udp_blocked
    assert [c.kind for c in own.candidates()] == ["host"]
    assert network.sent == 0
    with pytest.raises(TimedOut):
        own.sample_ports(1)
    assert measure_lifetime(own, 10.0) is None
    own.close()


def test_a_server_that_moves_is_followed_and_a_resolver_that_fails_takes_none_away(
    make: Maker, inside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([["203.0.113.99"], [SERVER[0]], None])

    def resolve(name: str, timeout_s: float) -> list[str]:
        assert name == "cloud.example"
        answer = next(answers)
        if answer is None:
            raise KKP2PError("no resolver")
        return answer

    monkeypatch.setattr(own_addresses, "resolve", resolve)
    own = make(Network(PORT_RESTRICTED), ("cloud.example", SERVER[1]))
    wait_for(lambda: own.udp_blocked)
    own.refresh("in place of waiting")
    wait_for(lambda: [mapped[0] for mapped in own.found[socket.AF_INET].mapped] == [OUTSIDE])
    before = own.found[socket.AF_INET]
    own.refresh("the resolver is down")
    wait_for(lambda: own.found[socket.AF_INET] is not before)
    assert [mapped[0] for mapped in own.found[socket.AF_INET].mapped] == [OUTSIDE]


def test_a_name_that_does_not_resolve(make: Maker, inside: None) -> None:
    own = make(Network(PORT_RESTRICTED), ("does.not.exist.invalid", 3080))
    with gevent.Timeout(PATIENCE_S):
        own.ready.wait()
    assert own.nat == UNKNOWN


def test_blocked_and_open_again(make: Maker, inside: None) -> None:
    network = Network(PORT_RESTRICTED)
    network.down = True
    own = make(network)
    with gevent.Timeout(PATIENCE_S):
        own.ready.wait()
    assert own.udp_blocked
    assert own.nat == BLOCKED
    assert [c.kind for c in own.candidates()] == ["host"]
    network.down = False
    own.refresh("the test says so")
    settled(own, lambda: not own.udp_blocked)
    assert own.candidates()[-1].kind == "srflx"


def test_a_look_that_was_cut_short_is_no_verdict(make: Maker, inside: None) -> None:
    """As when an interface comes or goes in the first moment."""
    network = Network(PORT_RESTRICTED)
    network.down = True
    own = make(network)
    with gevent.Timeout(PATIENCE_S):
        while not network.sent:
            gevent.sleep(0)
        own.refresh("the test says so")
        own.ready.wait()
    assert own.nat == BLOCKED


def test_blocked_is_looked_at_again(make: Maker, inside: None) -> None:
    network = Network(PORT_RESTRICTED)
    network.down = True
    own = make(network, timing=Timing(blocked_recheck_s=0.01))
    settled(own, lambda: own.udp_blocked)
    network.down = False
    settled(own, lambda: own.nat.hairpin is not None)
    assert not own.udp_blocked


def test_the_nat_forgets(make: Maker, inside: None) -> None:
    """A reboot gives us another outside address; it is noticed by the next question."""
    network = Network(PORT_RESTRICTED)
    own = make(network, timing=Timing(keep_s=0.01))
    settled(own, lambda: own.nat.hairpin is not None)
    network.nat.reboot(["198.51.100.8"])
    settled(own, lambda: own.candidates()[-1].address == "198.51.100.8")
    assert own.nat.mapping == "endpoint-independent"


def test_making_sure_waits_for_no_longer_than_the_answer(make: Maker, inside: None) -> None:
    """Whether all is as it was or not."""
    network = Network(PORT_RESTRICTED)
    own = make(network)
    settled(own, lambda: own.nat.hairpin is not None)
    with gevent.Timeout(PATIENCE_S):
        own.make_sure(3600)
        own.make_sure(3600)
        network.nat.reboot(["198.51.100.8"])
        own.make_sure(3600)
    assert own.candidates()[-1].address == "198.51.100.8"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long it waited until it asked again."""
    times: list[float] = []
    wait = gevent.wait

    def recorded(things: object, timeout: float, count: int) -> object:
        times.append(timeout)
        return wait(things, timeout, count)

    monkeypatch.setattr(own_addresses.gevent, "wait", recorded)
    return times


def test_bindings_that_end_soon_are_kept_by_asking_sooner(
    make: Maker, inside: None, waits: list[float]
) -> None:
    network = Network(NatType(allocation="random"))

    def forget(number: int) -> bool:
        """With every pause the NAT's bindings end."""
        network.ahead_s = 1000.0 * len(waits)
        return False

    network.lose = forget
    own = make(network, timing=Timing(keep_s=0.04, min_keep_s=0.01))
    settled(own, lambda: 0.01 in waits)
    assert list(dict.fromkeys(waits)) == [0.04, 0.02, 0.01]


def test_another_port_of_a_symmetric_nat_is_no_change(
    make: Maker, inside: None, waits: list[float]
) -> None:
    network = Network(SYMMETRIC_RANDOM)
    own = make(network, timing=Timing(keep_s=0.01))
    settled(own, lambda: own.found and all(found.done for found in own.found.values()))
    known = own.found[socket.AF_INET]
    network.nat.reboot()
    before = len(waits)
    with gevent.Timeout(PATIENCE_S):
        while len(waits) < before + 5:
            gevent.sleep(0.001)
    assert own.found[socket.AF_INET] is known


def test_the_network_goes_away(make: Maker, inside: None) -> None:
    network = Network(PORT_RESTRICTED)
    own = make(network, timing=Timing(keep_s=0.01, min_keep_s=0.01))
    settled(own, lambda: own.nat.hairpin is not None)
    network.down = True
    settled(own, lambda: own.udp_blocked)


def test_a_question_without_an_answer_is_asked_again_before_all_is_found_out_anew(
    make: Maker, inside: None, waits: list[float]
) -> None:
    """The server, or this host, may be busy; a NAT that starts anew answers, if otherwise."""
    network = Network(PORT_RESTRICTED)
    own = make(network, timing=Timing(keep_s=0.04, min_keep_s=0.01))
    settled(own, lambda: own.nat.hairpin is not None)
    known, sockets = own.found[socket.AF_INET], next(network.numbers)
    network.lose = lambda number: 0.01 not in waits  # it has noticed
    with gevent.Timeout(PATIENCE_S):
        while 0.01 not in waits or waits[-1] != 0.04:
            gevent.sleep(0.001)
    assert own.found[socket.AF_INET] is known
    assert next(network.numbers) == sockets + 1  # nothing else was asked


def test_what_is_known_stays_while_it_is_looked_at_again(make: Maker, inside: None) -> None:
    own = make(Network(PORT_RESTRICTED))
    settled(own, lambda: own.nat.hairpin is not None)
    known, old = own.nat, own.found[socket.AF_INET]
    own.changes.clear()
    own.refresh("the test says so")
    with gevent.Timeout(PATIENCE_S):
        while own.found[socket.AF_INET] is old:
            assert own.nat == known
            gevent.sleep(0)
    assert own.nat == known
    assert own.changes == []


def test_sampling_ports(make: Maker, inside: None) -> None:
    network = Network(SYMMETRIC_SEQUENTIAL)
    own = make(network)
    settled(own, lambda: own.found and all(found.done for found in own.found.values()))
    ports = own.sample_ports(6)
    assert ports == list(range(ports[0], ports[0] + 6))
    lost = set()

    def lose_first(number: int) -> bool:
        first = number not in lost
        lost.add(number)
        return first

    network.lose = lose_first
    assert len(own.sample_ports(3)) == 3
    network.lose = lambda number: number > 0
    open_before = len(network.open)
    with pytest.raises(TimedOut):
        own.sample_ports(2)
    assert len(network.open) == open_before


@pytest.mark.parametrize(("timeout_s", "lives_s"), [(35.0, 30.0), (1e6, 90.0), (4.0, 0.0)])
def test_how_long_a_binding_lives(
    make: Maker, inside: None, monkeypatch: pytest.MonkeyPatch, timeout_s: float, lives_s: float
) -> None:
    network = Network(NatType(timeout_s=timeout_s))

    def sleep(seconds: float) -> None:
        network.ahead_s = max(network.ahead_s, seconds)

    own = make(network)
    settled(own, lambda: own.nat.hairpin is not None)
    monkeypatch.setattr(lifetime.gevent, "sleep", sleep)
    assert measure_lifetime(own, 100.0) == lives_s


def test_no_server_that_can_tell_how_long(
    make: Maker, inside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(PORT_RESTRICTED)
    own = make(network)
    settled(own, lambda: own.nat.hairpin is not None)
    network.down = True
    assert measure_lifetime(own, 100.0) is None


def test_the_messages_of_others(make: Maker, inside: None) -> None:
    own = make(Network(PORT_RESTRICTED))
    settled(own, lambda: own.nat.hairpin is not None)
    check = Message(Kind.REQUEST, bytes(12), username="a:b").encode(b"key")
    for data in (check, b"", bytes(30), b"\0\1junk"):
        assert not own.questions.handle_stun(data, ("198.51.100.1", 1))
