"""The lab's internet between real hosts: what arrives, by which TTL, and what can happen."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import agents
from agents import Agent
from kkp2p_compat.testing.lab import Host, Lab, NatType
from kkp2p_compat.testing.programs import Run, output_of, wait_for

Start = Callable[[Host], Agent]
HOPS = 6  # routers between two access lines, as Lab.internet has it
STREAM = Path(__file__).with_name("stream.py")


@pytest.fixture
def agent(run: Run) -> Start:
    return lambda host: Agent(run(host, "ready", agents.__file__))


def test_every_router_takes_one_of_the_ttl(lab: Lab, agent: Start) -> None:
    """And drops the packet that has none left: exactly there, and not before its NAT."""
    net = lab.internet()
    home = net.nat("home", behind=net.nat("carrier"))
    flat = net.nat("flat")
    homely, flatly = agent(home.host("homely")), agent(flat.host("flatly"))
    server_host = net.host("server")
    server = agent(server_host)
    server.heard(7000)
    for sender, routers in ((homely, 2 + HOPS), (flatly, 1 + HOPS)):
        for ttl in (64, 255, routers + 1, routers):
            sender.send(4000, (server_host.address, 7000), ttl=ttl)
            net.settle()
        assert server.ttls(7000) == [64 - routers, 255 - routers, 1]
    # 3 is enough to get out of both NATs, and leads nowhere near another.
    made = [len(nat.bindings()) for nat in (home, flat)]
    homely.send(4001, (flat.address, 4000), ttl=3)
    flatly.send(4001, (flat.address, 4000), ttl=1)
    net.settle()
    assert [len(nat.bindings()) for nat in (home, flat)] == [made[0] + 1, made[1]]
    counted = net.counters()
    assert counted["nats"]["flat"]["dropped"] == {}
    assert counted["dropped"]["homely"] == {"TTL": 2}
    assert counted["dropped"]["flatly"] == {"TTL": 2}


def test_ttl_between_hosts_of_a_nat_and_by_ipv6(lab: Lab, agent: Start) -> None:
    net = lab.internet()
    nat = net.nat("nat", NatType(hairpin=True))
    hosts = [nat.host(name, ipv6=True) for name in ("one", "two")]
    server_host = net.host("server", ipv6=True, ipv4=False)
    assert server_host.address == server_host.address6
    one, two, server = map(agent, (*hosts, server_host))
    two.send(5000, (hosts[0].address, 1))
    one.heard(4000, 6)
    two.heard(5000, 6)
    server.heard(7000, 6)
    one.send(4000, (hosts[1].address, 5000), ttl=1)  # a neighbour
    two.send(5000, (nat.address, 4000))
    one.send(4000, (nat.address, 5000), ttl=9)  # a hairpin is one router
    one.send(4000, (hosts[1].address6, 5000), ttl=1)
    one.send(4000, (server_host.address6, 7000), ttl=1 + HOPS + 1)
    one.send(4000, (server_host.address6, 7000), ttl=1 + HOPS)
    server.send(7000, (hosts[0].address6, 4000), ttl=20)
    net.settle()
    assert two.ttls(5000) == [1, 8]
    assert two.ttls(5000, 6) == [1]
    assert server.ttls(7000, 6) == [1]
    assert one.ttls(4000, 6) == [20 - HOPS - 1]


def test_a_firewall_lets_in_what_answers(lab: Lab, agent: Start) -> None:
    net = lab.internet()
    nat = net.nat("nat")
    public, inside = (
        net.host("public", ipv6=True, firewall=True),
        nat.host("inside", ipv6=True, firewall=True),
    )
    mate_host = nat.host("mate", ipv6=True)
    server_host = net.host("server", ipv6=True)
    server, mate = agent(server_host), agent(mate_host)
    for number, host in enumerate((public, inside)):
        guarded = agent(host)
        guarded.heard(4000, 6)
        for port in (7000, 7001):
            server.send(port, (host.address6, 4000), "too early")
        net.settle()
        assert net.counters()["dropped"]["server"]["firewall"] == 2 + 3 * number
        guarded.send(4000, (server_host.address6, 7000))
        net.settle()
        for port in (7000, 7001):
            server.send(port, (host.address6, 4000), "answer")
        net.settle()
        assert guarded.heard(4000, 6) == [("answer", server_host.address6, 7000)]
    # Within one network there is no firewall, and mate has none at all.
    mate.send(4000, (inside.address6, 4000), "neighbour")
    mate.heard(4000, 6)
    server.send(7000, (mate_host.address6, 4000), "hello")
    net.settle()
    assert guarded.heard(4000, 6) == [("neighbour", mate_host.address6, 4000)]
    assert mate.heard(4000, 6) == [("hello", server_host.address6, 7000)]


def test_broadcast_reaches_all_of_one_network(lab: Lab, agent: Start) -> None:
    net = lab.internet()
    nat, elsewhere = net.nat("nat"), net.nat("elsewhere", subnet="192.168.1.0/24")
    one, two, three = (agent(nat.host(name)) for name in ("one", "two", "three"))
    far, public = agent(elsewhere.host("far")), agent(net.host("public"))
    for host in (one, two, three, far, public):
        host.heard(4000)
    for target in ("192.168.1.255", "255.255.255.255"):
        one.send(4000, (target, 4000), target)
        net.settle()
        for host in (two, three):
            assert host.heard(4000) == [(target, "192.168.1.2", 4000)]
        assert [host.heard(4000) for host in (far, public)] == [[], []]


def test_a_host_with_two_addresses(lab: Lab, agent: Start) -> None:
    net = lab.internet()
    server_host, client_host = net.host("server", addresses=2), net.nat("nat").host("client")
    server, client = agent(server_host), agent(client_host)
    one, two = server_host.addresses
    assert len({one, two, server_host.address}) == 2
    for ip in (one, two):
        server.heard(7000, ip=ip)
        client.send(4000, (ip, 7000), f"to {ip}")
    net.settle()
    seen = {ip: server.heard(7000, ip=ip) for ip in (one, two)}
    assert [text for found in seen.values() for text, _, _ in found] == [f"to {one}", f"to {two}"]
    _, ip, port = seen[one][0]
    for source in (one, two):
        server.send(7000, (ip, port), f"from {source}", ip=source)
    net.settle()
    assert client.heard(4000) == [(f"from {source}", source, 7000) for source in (one, two)]


def test_cuts(lab: Lab, agent: Start) -> None:
    net = lab.internet()
    hosts = {name: net.host(name) for name in ("one", "two", "three")}
    ends = {name: agent(host) for name, host in hosts.items()}

    def pairs() -> set[str]:
        """Who reaches whom."""
        for end in ends.values():
            end.heard(4000)
        for name, end in ends.items():
            for target in hosts.values():
                if target.name != name:
                    end.send(4000, (target.address, 4000), f"{name}>{target.name}")
        net.settle()
        return {text for end in ends.values() for text, _, _ in end.heard(4000)}

    everything = pairs()
    assert len(everything) == 6
    net.cut(hosts["one"])
    assert pairs() == {"two>three", "three>two"}
    net.mend(hosts["one"])
    net.cut_between(hosts["one"], hosts["two"])
    assert pairs() == everything - {"one>two", "two>one"}
    net.mend_between(hosts["one"], hosts["two"])
    net.block_udp(hosts["three"])
    assert pairs() == {"one>two", "two>one"}
    net.block_udp(hosts["three"], False)
    hosts["one"].unplug()
    assert pairs() == {"two>three", "three>two"}
    hosts["one"].plug_in()
    assert pairs() == everything


def test_a_host_moves(lab: Lab, agent: Start, run: Run) -> None:
    """From home to another home and into public; the kernel tells of each."""
    net = lab.internet()
    home, cafe = net.nat("home"), net.nat("cafe")
    host, server_host = home.host("host", ipv6=True), net.host("server")
    server, monitor = agent(server_host), run(host, None, "monitor", "address", program="ip")
    mover = agent(host)
    before = host.address6
    server.heard(7000)
    for to, outside in ((cafe, cafe.address), (net, None), (home, home.address)):
        old = host.address
        net.move(host, to)
        assert host.address != old
        wait_for(monitor, f"Deleted.* {old}/")
        wait_for(monitor, f" {host.address}/")
        mover.send(4000, (server_host.address, 7000))
        net.settle()
        assert server.heard(7000) == [("x", outside or host.address, 4000)]
    assert host.address6 != before
    assert host.address6 in host.run("ip", "-6", "address")
    assert "default" in host.run("ip", "-6", "route")


def test_delay_and_loss(lab: Lab, agent: Start) -> None:
    """What is lost is seeded and counted.  (Times have lower bounds only: the machine is busy.)"""
    net = lab.internet(delay_s=0.02, loss=0.1, seed=5)
    one, two_host = agent(net.host("one")), net.host("two", delay_s=0.03)
    two = agent(two_host)
    two.heard(7000)
    started = time.monotonic()
    for number in range(200):
        one.send(4000, (two_host.address, 7000), str(number))
    sent = time.monotonic()
    net.settle()
    assert time.monotonic() - started >= 0.05
    heard = [int(text) for text, _, _ in two.heard(7000)]
    assert heard == sorted(heard)
    counted = net.counters()
    assert counted["carried"]["one"] == {"two": len(heard)}
    assert counted["dropped"]["one"]["lost"] == 200 - len(heard)
    assert 5 <= 200 - len(heard) <= 50
    assert sent >= started


def test_the_line_of_one_host(lab: Lab, agent: Start, run: Run) -> None:
    """What it drops, and which MTU its own kernel knows; others have the lines that they had."""
    net = lab.internet()
    names = ("one", "two", "other")
    one_host, two_host, other_host = (net.host(name) for name in names)
    two, other = agent(two_host), agent(other_host)
    for end in (two, other):
        end.heard(7000)
    net.set_line(one_host, mtu=1280)
    assert "mtu 1280" in one_host.run("ip", "link", "show", "eth0")
    for size in (1280 - 28, 1280 - 27):
        two.send(4000, (one_host.address, 7000), "x" * size)
        two.send(4000, (other_host.address, 7000), "x" * size)
    net.settle()
    assert net.counters()["dropped"] == {"two": {"too large": 1}}
    assert len(other.heard(7000)) == 2
    net.set_line(one_host, mtu=0, udp_bps=8_000)
    one = agent(one_host)
    for _ in range(40):  # far over the burst of a policer
        one.send(4000, (two_host.address, 7000), "x" * 1000)
    net.settle()
    policed = net.counters()["dropped"]["one"]["policed"]
    assert 0 < policed == 40 - len(two.heard(7000))
    server = run(two_host, "ready", str(STREAM), "serve", "5000")
    output_of(run(one_host, None, str(STREAM), "send", two_host.address, "5000", "400000"))
    wait_for(server, "^400000 ")  # TCP passes
    assert net.counters()["dropped"]["one"]["policed"] == policed
    net.set_line(one_host, udp_bps=0)
    net.set_line(two_host, loss=1.0)
    for target in (two_host, other_host):
        one.send(4000, (target.address, 7000))
    net.settle()
    assert (two.heard(7000), len(other.heard(7000))) == ([], 1)
    with pytest.raises(ValueError, match="a line has no rate"):
        net.set_line(one_host, rate=1.0)


def test_streams_pass_nats_whole(lab: Lab, run: Run) -> None:
    """TCP with loss through three translations: a wrong checksum would stop it."""
    net = lab.internet(delay_s=0.001, loss=0.002)
    home = net.nat("home", behind=net.nat("carrier"))
    server_host = net.host("server")
    server = run(server_host, "ready", str(STREAM), "serve", "5000")
    for host in (home.host("homely"), net.kernel_nat("router").host("flatly")):
        client = run(host, None, str(STREAM), "send", server_host.address, "5000", "4000000")
        digest = output_of(client)
        assert wait_for(server, "^4000000 ") == f"4000000 {digest}"
    assert len(digest.strip()) == hashlib.sha256().digest_size * 2


def test_the_lan_search_finds_a_neighbour(lab: Lab, run: Run) -> None:
    """Our own broadcasts, between two hosts of one home and not into the next."""
    net = lab.internet()
    home, next_door = net.nat("home"), net.nat("next door")
    program = str(Path(__file__).with_name("lan_host.py"))
    serving, searching, far = home.host("serving"), home.host("searching"), next_door.host("far")
    run(serving, "ready", program, "serve", "3549", "peer")
    found = searching.run(sys.executable, program, "find", "3549", "peer", "10")
    assert found == f"found {serving.address}: peer 1 to an offer at {searching.address}\n"
    assert far.run(sys.executable, program, "find", "3549", "peer", "0.3") == "not found: -109\n"


def test_the_trace_tells_what_became_of_a_packet(lab: Lab, agent: Start) -> None:
    net = lab.internet()
    nat = net.nat("nat")
    inside, server_host = agent(nat.host("inside")), net.host("server")
    server = agent(server_host)
    server.heard(7000)
    assert net.trace(True) == []
    inside.send(4000, (server_host.address, 7000))
    net.settle()
    server.send(7001, (nat.address, 4000))
    net.settle()
    left, arrived, dropped = net.trace(False)
    assert left.endswith("leaves nat, from 192.168.1.2:4000")
    assert f"inside: UDP {nat.address}:4000 > {server_host.address}:7000 ttl 57 29" in arrived
    assert arrived.endswith("arrives at server")
    assert dropped.endswith("dropped: not let in by nat")
    inside.send(4000, (server_host.address, 7000))
    net.settle()
    assert net.trace(False) == []


def test_what_is_wrong_is_said(lab: Lab) -> None:
    net = lab.internet()
    net.nat("nat")
    with pytest.raises(ValueError, match="no such mapping"):
        NatType("wrong")
    with pytest.raises(ValueError, match="no such router"):
        net.kernel_nat("router", random="somewhat")
    with pytest.raises(ValueError, match="has no address"):
        net.host("nowhere", addresses=0)
    with pytest.raises(ValueError, match="KeyError"):
        net.ask("cut", name="nobody", on=True)


def test_two_labs_at_once(lab: Lab, tmp_path: Path, agent: Start) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = Lab(folder)
    try:
        ends = [agent(each.internet().host("host")) for each in (lab, other)]
        for end in ends:
            end.heard(4000)
            end.send(4000, ("203.0.113.1", 4000))
        assert [end.heard(4000) for end in ends] == [[("x", "203.0.113.1", 4000)]] * 2
    finally:
        other.close()


def test_an_internet_that_breaks_down_fails_the_test(tmp_path: Path, lab: Lab) -> None:
    """And all is removed in any case."""
    folder = tmp_path / "other"
    folder.mkdir()
    other = Lab(folder)
    namespaces = [other.host("switched").namespace]
    net = other.internet()
    namespaces += [net.nat("nat").host("inside").namespace, net.kernel_nat("router").namespace]
    assert all(Path("/run/netns", name).exists() for name in namespaces)
    net.process.kill()
    with pytest.raises((RuntimeError, BrokenPipeError)):
        net.counters()
    with pytest.raises(RuntimeError, match="the internet ended with status -9"):
        other.close()
    assert not any(Path("/run/netns", name).exists() for name in namespaces)
