"""The NATs of the lab's internet, probed from both sides: each does what its type says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest

import agents
from agents import Agent
from kkp2p_compat.testing.lab import Host, Internet, Lab, NatHandle, NatType
from kkp2p_compat.testing.nat import ALLOCATIONS, BEHAVIOURS
from kkp2p_compat.testing.programs import Run

Start = Callable[[Host], Agent]
EIM, ADM, APDM = BEHAVIOURS


@pytest.fixture
def agent(run: Run) -> Start:
    return lambda host: Agent(run(host, "ready", agents.__file__))


class Place(NamedTuple):
    """A host behind a NAT, and two in public."""

    net: Internet
    nat: NatHandle
    inside: Agent
    one: Agent
    other: Agent
    one_ip: str
    other_ip: str

    def send_in(self, *, port: int) -> list[str]:
        """Both public hosts, each from two ports, send to an outside port of the NAT: who of them
        got in, when the host listens at 4000."""
        for name, sender in (("one", self.one), ("other", self.other)):
            for source in (7000, 7001):
                sender.send(source, (self.nat.address, port), f"{name} {source}")
                self.net.settle()
        return [text for text, _, _ in self.inside.heard(4000)]

    def ports(self) -> list[int]:
        """What each of the four public ports sees as the source of the inside port 4000."""
        targets = [
            (host, ip, port)
            for host, ip in ((self.one, self.one_ip), (self.other, self.other_ip))
            for port in (7000, 7001)
        ]
        seen = []
        for host, ip, port in targets:
            host.heard(port)
            self.inside.send(4000, (ip, port))
            self.net.settle()
            ((_, source_ip, source_port),) = host.heard(port)
            assert source_ip == self.nat.address
            seen.append(source_port)
        return seen


@pytest.fixture
def place(lab: Lab, agent: Start) -> Place:
    net = lab.internet()
    nat = net.nat("nat")
    inside, one, other = nat.host("inside"), net.host("one"), net.host("other")
    return Place(net, nat, *map(agent, (inside, one, other)), one.address, other.address)


def test_mapping_filtering_and_allocation(place: Place) -> None:
    for mapping, filtering, allocation in itertools.product(BEHAVIOURS, BEHAVIOURS, ALLOCATIONS):
        place.nat.become(NatType(mapping, filtering, allocation))
        place.one.heard(7000)
        place.inside.send(4000, (place.one_ip, 7000))
        place.net.settle()
        ((_, _, outer),) = place.one.heard(7000)
        allowed = {
            EIM: ["one 7000", "one 7001", "other 7000", "other 7001"],
            ADM: ["one 7000", "one 7001"],
            APDM: ["one 7000"],
        }
        assert place.send_in(port=outer) == allowed[filtering]
        ports = place.ports()
        assert ports[0] == outer
        assert [ports.index(port) for port in ports] == {
            EIM: [0, 0, 0, 0],
            ADM: [0, 0, 2, 2],
            APDM: [0, 1, 2, 3],
        }[mapping]
        steps = {after - before for before, after in itertools.pairwise(dict.fromkeys(ports))}
        if allocation == "preserved":
            assert outer == 4000
        if allocation != "random":
            assert steps <= {1}


def test_a_reboot(place: Place) -> None:
    place.ports()
    assert place.send_in(port=4000)
    place.nat.reboot()
    assert place.send_in(port=4000) == []
    before = place.nat.address
    place.nat.reboot(new_address=True)
    assert place.nat.address != before
    assert place.ports() == [4000] * 4


def test_time_outs(place: Place) -> None:
    place.ports()
    place.net.age(119.0)
    assert place.send_in(port=4000)
    place.net.age(1.0)
    assert place.send_in(port=4000) == []
    assert place.net.counters()["nats"]["nat"]["dropped"] == {"no binding": 4}


@pytest.mark.parametrize("hairpin", [False, True])
def test_hairpin(lab: Lab, agent: Start, hairpin: bool) -> None:
    net = lab.internet()
    nat = net.nat("nat", NatType(hairpin=hairpin))
    one, other = agent(nat.host("one")), agent(nat.host("other"))
    other.heard(5000)
    for sender, port, target in ((one, 4000, 5000), (other, 5000, 4000), (one, 4000, 5000)):
        sender.send(port, (nat.address, target))
        net.settle()
    # Each has let the other in; both see the outside address of the other.
    assert other.heard(5000) == [("x", nat.address, 4000)] * hairpin
    assert one.heard(4000) == [("x", nat.address, 5000)] * hairpin


def test_a_carrier_s_nat(lab: Lab, agent: Start) -> None:
    """Two homes behind one CGNAT: two translations, and a hairpin at the outer one."""
    net = lab.internet()
    carrier = net.nat("carrier", NatType(hairpin=True), subnet="100.64.0.0/24")
    homes = [net.nat(f"home{n}", behind=carrier) for n in (1, 2)]
    one, two = (agent(home.host(f"in {home.name}")) for home in homes)
    server_host = net.host("server")
    server = agent(server_host)
    server.heard(7000)
    for host in (one, two):
        host.send(4000, (server_host.address, 7000))
        net.settle()
    assert server.heard(7000) == [("x", carrier.address, 4000), ("x", carrier.address, 4001)]
    assert [home.address for home in homes] == ["100.64.0.2", "100.64.0.3"]
    # The server answers; nobody else gets in.
    server.send(7000, (carrier.address, 4001), "answer")
    server.send(7001, (carrier.address, 4001), "stranger")
    net.settle()
    assert two.heard(4000) == [("answer", server_host.address, 7000)]
    # Punching by the outer addresses: each opens its own NAT with its first packet.
    for host, target in ((one, 4001), (two, 4000), (one, 4001)):
        host.send(4000, (carrier.address, target), "punch")
        net.settle()
    assert two.heard(4000) == [("punch", carrier.address, 4000)]
    assert one.heard(4000) == [("punch", carrier.address, 4001)]
    # And by the carrier's inner addresses, which are a network of their own.
    for host, home in ((one, homes[1]), (two, homes[0])):
        host.send(4000, (home.address, 4000), "inner")
        net.settle()
    assert one.heard(4000) == [("inner", homes[1].address, 4000)]
    assert two.heard(4000) == []  # it had not yet sent there


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_ports_run_out(place: Place, allocation: str) -> None:
    place.nat.become(NatType(APDM, allocation=allocation, ports=(2000, 2002)))
    for port in range(7000, 7005):
        place.inside.send(4000, (place.one_ip, port))
    place.net.settle()
    heard = [place.one.heard(port) for port in range(7000, 7005)]
    assert [len(one) for one in heard] == [0] * 5  # opened by the question
    assert place.net.counters()["dropped"]["inside"]["no free port at nat"] == 2
    assert sorted(outer[1] for _, _, outer in place.nat.bindings()) == [2000, 2001, 2002]
