"""Servers of which an address, or a whole host, is lost: names, relays and peers on real hosts.

Times are printed, not asserted (``pytest -rP``).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import roaming
from helpers.redis_server import need_redis
from helpers.support import ROOT, SECRET
from kkp2p_compat.testing.hosts import Host
from kkp2p_compat.testing.internet import Internet
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import Run, output_of, start_redis, wait_for
from programs import PORT, start_cloud
from roaming import since_text

net = roaming.net  # fixture
LIMIT_S = 240

ECHO_PEER = str(ROOT / "tests" / "helpers" / "echo_peer.py")
FRESH_CALLS = str(Path(__file__).with_name("fresh_calls.py"))
ROAM_PEER = roaming.PEER
ROAMING = [word for n in range(4) for word in ("--account", f"peer{n}:{roaming.SECRET}")]
# Until the program ends, this host's /etc/hosts is the file of that name in its folder.
WITH_HOSTS = 'mount --bind hosts /etc/hosts && exec "$0" "$@"'


def know(host: Host, **names: str) -> None:
    """In place, as a bind mount follows the file and not its name."""
    lines = [f"{ip} {name}" for name, ips in names.items() for ip in ips.split()]
    (host.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))


def run_with_hosts(run: Run, host: Host, line: str | None, *command: str) -> subprocess.Popen[str]:
    arguments = ("-m", "sh", "-c", WITH_HOSTS, sys.executable, *command)
    return run(host, line, *arguments, program="unshare")


def drop(host: Host, table: str, rule: str) -> None:
    """What comes in and matches the rule, without a word."""
    chain = f"type filter hook input priority filter; policy accept; {rule} drop;"
    host.run("nft", "-f", "-", stdin=f"table {table} lost {{\nchain in {{ {chain} }}\n}}\n")


def calls_of(process: subprocess.Popen[str], count: int) -> list[float]:
    """How long each took, in ms; all were connected, and heard an echo."""
    said = output_of(process, LIMIT_S).splitlines()
    results = [line.split() for line in said if line.startswith("call ")]
    assert [words[1] for words in results] == ["0"] * count, said
    assert said.count("echo 1") == count
    return sorted(float(words[3]) for words in results)


def test_a_cloud_whose_ipv6_goes_nowhere(lab: Lab, run: Run) -> None:
    internet = lab.internet()
    cloud = internet.host("cloud", ipv6=True)
    start_cloud(lab, run, "--listen", f"[::]:{PORT}", host=cloud)
    drop(cloud, "ip6", f"tcp dport {PORT}")
    run(internet.host("callee"), "joined", ECHO_PEER, "server", PORT, "peer", SECRET, cloud.address)
    caller = internet.host("caller", ipv6=True)
    know(caller, **{"cloud.test": f"{cloud.address6} {cloud.address}"})
    process = run_with_hosts(run, caller, None, FRESH_CALLS, "cloud.test", PORT, "peer", "2", "20")
    took_ms = calls_of(process, 20)
    print(f"median {took_ms[10]:.0f} ms, 19th of 20 {took_ms[18]:.0f} ms")


class Movers:
    """Two peers with an account and a caller, who know the cloud by names."""

    def __init__(self, net: Internet, run: Run, login: str, first: int, cloud: Host) -> None:
        self.login = login
        self.callees = [f"peer{first}", f"peer{first + 1}"]
        names = [*self.callees, f"caller of {self.callees[0]}"]
        self.homes = [net.nat(f"{name}'s nat").host(name) for name in names]
        self.find_at(cloud)
        *peers, self.caller = (
            run_with_hosts(run, home, "ready", ROAM_PEER, login, PORT) for home in self.homes
        )
        for name, peer in zip(self.callees, peers, strict=True):
            tell(peer, f"join {name} {roaming.SECRET}")
            wait_for(peer, "joined 0")
        tell(self.caller, f"call {self.callees[1]} 1")
        assert wait_for(self.caller, "^call ").startswith("call 0 1")
        wait_for(peers[1], "^accepted")
        for side in (self.caller, peers[1]):  # or that channel would keep the CPUs from the others
            tell(side, "quiet")

    def find_at(self, cloud: Host) -> None:
        for home in self.homes:
            know(home, **dict.fromkeys(self.login.split("|"), cloud.address))

    def meet(self) -> bool:
        """Whether the caller gets through to the peer that it has no connection with."""
        return said_of_a_new_call(self.caller, self.callees[0]).startswith("call 0 1")


def test_a_cloud_that_moves(net: Internet, lab: Lab, run: Run) -> None:
    """The names say where to; the old host is gone without a word.  Login and STUN follow.

    Peers that know one name and such that know two, at once, as each takes a minute.
    """
    clouds = [net.host(f"cloud{number}") for number in range(2)]
    for cloud in clouds:
        start_cloud(lab, run, "--beat-s", "2", *ROAMING, host=cloud)
    logins = ["cloud.test", "one.test|two.test"]
    left = [Movers(net, run, login, 2 * n, clouds[0]) for n, login in enumerate(logins)]
    for movers in left:
        movers.find_at(clouds[1])
    net.cut(clouds[0])
    since = time.monotonic()
    while left:
        assert time.monotonic() - since < 150
        time.sleep(1)
        for movers in left[:]:
            if movers.meet():
                print(f"{movers.login}: p2p by the new cloud", since_text(since))
                left.remove(movers)


def said_of_a_new_call(caller: subprocess.Popen[str], peer_id: str) -> str:
    """In auto mode a call would take the relay while our addresses are not known."""
    tell(caller, f"call {peer_id} 1 5000")
    return wait_for(caller, "^call ")


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def start_fleet(lab: Lab, run: Run, cloud: Host, relays: list[Host], *options: str) -> None:
    """A track with Redis on one host, and relays on the others."""
    need_redis()
    directory = ("--directory", start_redis(run, cloud))
    for host in relays:
        role = ("--role", "relay", "--listen", "0.0.0.0:3082", *directory, *options)
        run(host, "3082", "-m", "kkp2p_compat", "cloud", *role)
    start_cloud(lab, run, "--role", "track", *directory, host=cloud)


def test_a_relay_that_swallows_packets(net: Internet, lab: Lab, run: Run) -> None:
    """Fresh calls.  The track does not know, for the relay tells Redis that it lives."""
    relays = [net.host(f"relay{number}") for number in range(2)]
    cloud = net.host("cloud")
    start_fleet(lab, run, cloud, relays)
    run(net.host("callee"), "joined", ECHO_PEER, "server", PORT, "peer", SECRET, cloud.address)
    drop(relays[1], "ip", "tcp dport 3082")
    process = run(net.host("caller"), None, FRESH_CALLS, cloud.address, PORT, "peer", "2", "40")
    took_ms = calls_of(process, 40)
    print(f"median {took_ms[20]:.0f} ms, most {took_ms[-1]:.0f} ms")


@pytest.mark.parametrize("lost", ["none", "one for the caller", "one for the callee", "one"])
def test_two_relays_of_one_name(net: Internet, lab: Lab, run: Run, lost: str) -> None:
    """The two sides' resolvers list them in different orders, and may not reach the same ones."""
    relays = [net.host(f"relay{number}") for number in range(2)]
    ips = [relay.address for relay in relays]
    cloud, callee, caller = (net.host(name) for name in ("cloud", "callee", "caller"))
    know(callee, **{"relay.test": " ".join(ips)})
    know(caller, **{"relay.test": " ".join(ips[::-1])})
    start_fleet(lab, run, cloud, relays, "--advertise", "relay.test")
    server = (ECHO_PEER, "server", PORT, "peer", SECRET, cloud.address)
    run_with_hosts(run, callee, "joined", *server)
    sources = {"one for the caller": caller.address, "one for the callee": callee.address}
    if lost != "none":
        source = f"ip saddr {sources[lost]}" if lost in sources else ""
        drop(relays[0], "ip", f"{source} tcp dport 3082")
    count = 12
    process = run_with_hosts(
        run, caller, None, FRESH_CALLS, cloud.address, PORT, "peer", "2", str(count)
    )
    took_ms = calls_of(process, count)
    print(f"{lost}: median {took_ms[count // 2]:.0f} ms, most {took_ms[-1]:.0f} ms")


@pytest.mark.parametrize("who", ["callee", "caller"])
def test_a_peer_that_is_killed(net: Internet, lab: Lab, run: Run, who: str) -> None:
    cloud = net.host("cloud")
    start_cloud(lab, run, *ROAMING, host=cloud)
    callee, caller = (
        run(net.nat(f"{name}'s nat").host(name), "ready", ROAM_PEER, cloud.address, PORT)
        for name in ("callee", "caller")
    )
    tell(callee, f"join peer0 {roaming.SECRET}")
    wait_for(callee, "joined 0")
    tell(caller, "call peer0 1")
    assert wait_for(caller, "^call ").startswith("call 0 1")
    for peer in (callee, caller):
        wait_for(peer, "^moved")
    killed, left = (callee, caller) if who == "callee" else (caller, callee)
    killed.send_signal(signal.SIGKILL)
    since = time.monotonic()
    broken = wait_for(left, "^broken")
    print(f"the {who} was killed; the other side knows after", float(broken.split()[-1]) - since)


def test_a_proxy_that_is_started_before_the_network(lab: Lab, run: Run) -> None:
    """Its resolver is an address where nobody is; /etc/hosts then knows the name."""
    host = lab.host("cloud")
    start_cloud(lab, run, host=host)
    run(host, "joined", ECHO_PEER, "server", PORT, "peer", SECRET, host.address)
    early = lab.host("early")
    know(early)
    command = ("-m", "kkp2p_compat", "proxy", "127.0.0.1:8443", "peer", "--login", "cloud.test")
    process = run_with_hosts(run, early, "trying again", *command)
    know(early, **{"cloud.test": host.address})
    since = time.monotonic()
    wait_for(process, "listening on 127.0.0.1:8443 for peer")
    print("listens", since_text(since))
