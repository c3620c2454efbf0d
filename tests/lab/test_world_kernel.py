"""Linux's own NAT, with each flag of masquerade: what docs/testing.rst says of it is so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import agents
from agents import Agent
from kkp2p_compat.testing.lab import Host, Internet, Lab, NatType
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run

Start = Callable[[Host], Agent]
RANDOM = ["", "random", "fully-random"]
PORTS = range(7000, 7004)


@pytest.fixture
def agent(run: Run) -> Start:
    need("nft")
    return lambda host: Agent(run(host, "ready", agents.__file__))


def outside_ports(net: Internet, sender: Agent, port: int, server: Agent, ip: str) -> list[int]:
    """Which port each of the server's sees."""
    seen = []
    for target in PORTS:
        server.heard(target)
        sender.send(port, (ip, target))
        net.settle()
        ((_, _, source),) = server.heard(target)
        seen.append(source)
    return seen


@pytest.mark.parametrize("random", RANDOM)
def test_mapping_and_filtering(lab: Lab, agent: Start, random: str) -> None:
    net = lab.internet()
    router, server_host = net.kernel_nat("router", random), net.host("server")
    one, two = (agent(router.host(name)) for name in ("one", "two"))
    server = agent(server_host)
    ports = outside_ports(net, one, 4000, server, server_host.address)
    assert outside_ports(net, one, 4000, server, server_host.address) == ports
    others = outside_ports(net, two, 4000, server, server_host.address)
    if random:
        assert len(set(ports)) > 1  # each by itself; four random ones are never all the same
        assert len(set(others)) > 1
    else:
        assert ports == [4000] * 4
        # Taken by the first host: another one, but again the same for all.
        assert others == others[:1] * 4
        assert others[0] != 4000
    # In gets the port that was sent to, and no other.
    one.send(4001, (server_host.address, 7000))
    net.settle()
    _, _, outer = server.heard(7000)[-1]
    for port in PORTS:
        server.send(port, (router.address, outer), str(port))
    net.settle()
    assert one.heard(4001) == [("7000", server_host.address, 7000)]


@pytest.mark.parametrize("rule", ["drop", "accept"])
def test_an_early_probe(lab: Lab, agent: Start, rule: str) -> None:
    """A probe that comes before its NAT was opened spoils the port, but only where the router
    takes strangers' packets itself: the sender's conversation with the router then has the port
    towards that sender.  The one that is taken instead is used for all that are new, too."""
    net = lab.internet()
    router, server_host = net.kernel_nat("router", input=rule), net.host("server")
    inside, server = agent(router.host("inside")), agent(server_host)
    server.send(PORTS[1], (router.address, 4000), "early")
    net.settle()
    ports = outside_ports(net, inside, 4000, server, server_host.address)
    assert ports[0] == 4000
    assert (ports[1] != 4000) == (rule == "accept")
    assert ports[2:] == [ports[1]] * 2


def test_no_hairpin(lab: Lab, agent: Start) -> None:
    net = lab.internet()
    router, server_host = net.kernel_nat("router"), net.host("server")
    one, two = (agent(router.host(name)) for name in ("one", "two"))
    one.send(4000, (server_host.address, 7000))
    net.settle()
    two.send(4000, (router.address, 4000))
    net.settle()
    assert one.heard(4000) == []


def test_ttl_and_a_carrier(lab: Lab, agent: Start) -> None:
    """The router's kernel takes its one of the TTL; its outside may be a carrier's inside."""
    net = lab.internet()
    carrier = net.nat("carrier", NatType(allocation="random"), subnet="100.64.0.0/24")
    router, server_host = net.kernel_nat("router", behind=carrier), net.host("server")
    inside, server = agent(router.host("inside")), agent(server_host)
    server.heard(7000)
    inside.send(4000, (server_host.address, 7000))
    net.settle()
    ((_, ip, port),) = server.heard(7000)
    assert ip == carrier.address
    assert router.address == "100.64.0.2"
    assert carrier.bindings() == [(17, (router.address, 4000), (ip, port))]
    inside.send(4000, (server_host.address, 7000), ttl=64)
    net.settle()
    assert server.ttls(7000) == [64 - 1 - 1 - 6]


def test_another_address_outside(lab: Lab, agent: Start) -> None:
    """The provider gives it a new one: it forgets what it had translated to the old one."""
    net = lab.internet()
    router, server_host = net.kernel_nat("router"), net.host("server")
    inside, server = agent(router.host("inside")), agent(server_host)
    server.heard(7000)
    seen = []
    for _ in range(2):
        inside.send(4000, (server_host.address, 7000))
        net.settle()
        assert server.heard(7000) == [("x", router.address, 4000)]
        seen.append(router.address)
        net.move(router, net)
    assert len(set(seen)) == 2


def test_cuts_reach_behind_it(lab: Lab, agent: Start) -> None:
    net = lab.internet()
    router, server_host = net.kernel_nat("router"), net.host("server")
    inside_host = router.host("inside")
    inside, server = agent(inside_host), agent(server_host)
    server.heard(7000)
    for cut, mend in (
        (lambda: net.cut(router), lambda: net.mend(router)),
        (inside_host.unplug, inside_host.plug_in),
    ):
        cut()
        inside.send(4000, (server_host.address, 7000), "cut")
        net.settle()
        mend()
        assert server.heard(7000) == []
    inside.send(4000, (server_host.address, 7000), "mended")
    net.settle()
    assert [text for text, _, _ in server.heard(7000)] == ["mended"]
