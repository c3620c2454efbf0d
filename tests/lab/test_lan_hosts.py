"""The LAN search between real processes on hosts of their own, joined by a switch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.support import PATIENCE_S
from kkp2p_compat.testing.lab import Host, Lab
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run, output_of, wait_for

PROGRAM = str(Path(__file__).with_name("lan_host.py"))
ECHOED = str(Path(__file__).with_name("echoed.py"))
PORT = "3549"
# As ufw and firewalld have them, with the search port opened, or not.
WALL = """
table inet wall {
    chain in {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        %s
    }
}
"""
OPEN = f"udp dport {PORT} accept"
Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def serve(run: Run) -> Serve:
    """Start a program with responders on a host."""
    return lambda host, *peer_ids: run(host, "ready", PROGRAM, "serve", PORT, *peer_ids)


def look(host: Host, peer_id: str, seconds: float = PATIENCE_S) -> subprocess.Popen[str]:
    return host.python(PROGRAM, "find", PORT, peer_id, str(seconds))


def test_many_peers_on_several_hosts(lab: Lab, serve: Serve) -> None:
    """Four peers in three processes on one host, one on another; searched for from everywhere."""
    many, one, client = lab.host("many"), lab.host("one"), lab.host("client")
    peers = {"a": many, "b": many, "c": many, "d": many, "e": one}
    servers = [serve(many, "a"), serve(many, "b", "c"), serve(many, "d"), serve(one, "e")]
    searches = {(peer, host): look(host, peer) for peer in peers for host in (many, one, client)}
    for (peer, host), process in searches.items():
        # A host's own peers may be heard over lo first, or not.
        output = output_of(process).replace("127.0.0.1", host.address)
        assert output.startswith(f"found {peers[peer].address}: {peer} "), output
        assert output.endswith(f" to an offer at {host.address}\n")
    # Each peer was asked once for each search, however often a search was heard.
    for peer in peers:
        assert output_of(look(client, peer)).split(": ")[1].startswith(f"{peer} 4 to ")
    for server in servers:
        assert "for another peer" in output_of(server)
    assert output_of(look(client, "e", 0.3)) == "not found: -109\n"


def test_a_search_heard_in_three_networks_is_answered_once(lab: Lab, serve: Serve) -> None:
    home, client = lab.host("home"), lab.host("client")
    for number, host in enumerate((home, client), 1):
        for network in ("10.78.0", "10.79.0"):
            host.run("ip", "address", "add", f"{network}.{number}/24", "dev", "eth0")
    server = serve(home, "peer")
    for number in range(1, 6):
        output = output_of(look(client, "peer"))
        assert f": peer {number} to an offer at 10.7" in output
    assert "heard from another address of the same host before" in output_of(server)


def test_a_host_alone_finds_its_own_peers(lab: Lab, serve: Serve) -> None:
    """With lo only, with an interface that is down, and with a default route that leads nowhere."""
    host = lab.host("alone")
    host.run("ip", "route", "add", "default", "via", "10.77.0.99")
    serve(host, "peer")
    assert ": peer 1 to an offer" in output_of(look(host, "peer"))
    host.run("ip", "link", "set", "eth0", "down")
    search = output_of(look(host, "stranger", 0.4))
    assert search.count("cannot search 10.77.0.255: [Errno 101] Network is unreachable") == 1
    assert search.endswith("not found: -109\n")
    assert "found 127.0.0.1: peer 2 to an offer at 127.0.0.1\n" in output_of(look(host, "peer"))
    host.run("ip", "address", "flush", "dev", "eth0")
    assert output_of(look(host, "peer")) == "found 127.0.0.1: peer 3 to an offer at 127.0.0.1\n"


def test_an_interface_that_comes_up_during_the_search(lab: Lab, serve: Serve) -> None:
    home, client = lab.host("home"), lab.host("client")
    serve(home, "peer")
    client.run("ip", "address", "flush", "dev", "eth0")
    client.run("ip", "address", "add", "10.80.0.1/32", "dev", "eth0")
    searching = look(client, "peer")
    wait_for(searching, "no search on eth0: 10.80.0.1/32 has no broadcast address")
    client.run("ip", "address", "add", f"{client.address}/24", "dev", "eth0")
    assert output_of(searching) == f"found {home.address}: peer 1 to an offer at {client.address}\n"


def test_a_cable_that_is_plugged_in_during_the_search(lab: Lab, serve: Serve) -> None:
    home, client = lab.host("home"), lab.host("client")
    serve(home, "peer")
    home.unplug()
    assert output_of(look(client, "peer", 0.3)) == "not found: -109\n"
    searching = look(client, "peer")
    home.plug_in()
    assert output_of(searching) == f"found {home.address}: peer 1 to an offer at {client.address}\n"


def test_a_search_from_elsewhere_gets_no_answer(lab: Lab, serve: Serve) -> None:
    """Sent straight to the peer, from an address that is in none of its networks."""
    home, far = lab.host("home"), lab.host("far")
    home.run("ip", "route", "add", "10.88.0.9/32", "dev", "eth0")
    far.run("ip", "address", "add", "10.88.0.9/32", "dev", "eth0")
    server = serve(home, "peer")
    far.run(
        sys.executable,
        "-c",
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "s.bind(('10.88.0.9', 7));"
        "s.sendto(b'KKLS' + bytes([1, 1]) + bytes(16) + b'peer'.ljust(32, bytes(1)) + bytes(1002),"
        f"('{home.address}', {PORT}))",
    )
    told = "a search from 10.88.0.9:7 is dropped: not from a network of this host"
    wait_for(server, f"peer: LAN: {told}")
    assert output_of(look(far, "peer")).endswith(f"peer 1 to an offer at {far.address}\n")


@pytest.mark.parametrize("walled", ["caller", "callee", "caller and callee"])
def test_hosts_with_firewalls(lab: Lab, run: Run, serve: Serve, walled: str) -> None:
    """The search port is open; the ports of the connection are not, and change each time."""
    need("nft")
    hosts = {name: lab.host(name) for name in ("caller", "callee")}
    for name, host in hosts.items():
        if name in walled:
            host.run("nft", "-f", "-", stdin=WALL % OPEN)
    caller, callee = hosts.values()
    run(callee, "joined 0", ECHOED, "answer", "lan", PORT, "peer", "")
    serve(caller, "neighbour")  # other engines on the caller's host, before and behind it
    searching = caller.python(ECHOED, "call", "lan", PORT, "peer", "1", "100000", "20000")
    serve(caller, "another")
    assert output_of(searching) == "connect 0\nmode 1 the same\n"


def test_a_caller_whose_firewall_lets_no_answer_in(lab: Lab, serve: Serve) -> None:
    need("nft")
    caller, callee = lab.host("caller"), lab.host("callee")
    caller.run("nft", "-f", "-", stdin=WALL % "")
    serve(callee, "peer")
    assert output_of(look(caller, "peer", 1.0)) == "not found: -109\n"
