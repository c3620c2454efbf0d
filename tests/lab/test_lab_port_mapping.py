"""Ports mapped by a real router: miniupnpd on Linux, by each of its three protocols."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gevent
import pytest

from helpers.support import PATIENCE_S
from kkp2p_compat.testing.internet import InternetHost, KernelNat
from kkp2p_compat.testing.lab import Lab, SwitchHost
from kkp2p_compat.testing.miniupnpd import PUBLIC, mappings, start_miniupnpd
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run, output_of, wait_for

PROGRAM = str(Path(__file__).with_name("mapped.py"))
PORT = 5555
LEASE_S = "4"  # as short as lets a renewal be seen; the real one is an hour

# Sends until an answer comes: a datagram may be lost, and a mapping takes a moment to be removed.
ASK = f"""
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(0.2)
    deadline = time.monotonic() + {PATIENCE_S}
    while time.monotonic() < deadline:
        sock.sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
        try:
            print(sock.recvfrom(100)[0].decode())
            break
        except TimeoutError:
            continue
"""


class Network:
    """A router that maps ports, a host behind it, and another one outside."""

    def __init__(self, lab: Lab, run: Run, **options: bool) -> None:
        need("miniupnpd", "nft")
        net = lab.internet(public=PUBLIC)
        self.outside: InternetHost = net.host("outside")
        self.router: KernelNat = net.kernel_nat("router")
        self.inside: SwitchHost = self.router.host("inside")
        start_miniupnpd(run, self.router, min_lease_s=1, **options)

    @property
    def mapped(self) -> list[tuple[int, str, int]]:
        return mappings(self.router)

    def reach(self) -> str:
        """What comes back from the mapped port when a host outside sends to it."""
        return self.outside.run(sys.executable, "-c", ASK, self.router.address, str(PORT)).strip()


def _start(run: Run, network: Network, *methods: str) -> subprocess.Popen[str]:
    return run(network.inside, "is .* outside, by", PROGRAM, str(PORT), LEASE_S, *methods)


@pytest.mark.parametrize("method", ["pcp", "nat-pmp", "upnp"])
def test_maps_renews_and_removes(lab: Lab, run: Run, method: str) -> None:
    if method == "upnp":
        pytest.importorskip("miniupnpc")
    network = Network(lab, run)
    process = _start(run, network, method)
    assert network.mapped == [(PORT, network.inside.address, PORT)]
    assert network.reach() == "hello"
    for _ in range(4):  # each at half the lease: the first one has ended by then
        wait_for(process, f"{method} at {network.router.inner_address} again")
    with gevent.Timeout(PATIENCE_S):  # that line is written before the router is asked
        while network.mapped != [(PORT, network.inside.address, PORT)]:
            gevent.sleep(0.1)
    assert network.reach() == "hello"
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert "closed" in output_of(process)
    assert network.mapped == []


def test_pcp_is_preferred(lab: Lab, run: Run) -> None:
    network = Network(lab, run)
    process = run(network.inside, "outside, by pcp", PROGRAM, str(PORT), LEASE_S)
    assert len(network.mapped) == 1
    process.terminate()


def test_upnp_where_there_is_nothing_else(lab: Lab, run: Run) -> None:
    pytest.importorskip("miniupnpc")
    network = Network(lab, run, pcp=False)
    process = run(network.inside, "outside, by upnp", PROGRAM, str(PORT), LEASE_S)
    assert network.reach() == "hello"
    process.terminate()


def test_two_hosts_get_two_ports(lab: Lab, run: Run) -> None:
    network = Network(lab, run)
    _start(run, network)
    other = network.router.host("other")
    run(other, "is .* outside, by", PROGRAM, str(PORT), LEASE_S)
    found = network.mapped
    assert {(ip, inside) for _, ip, inside in found} == {
        (network.inside.address, PORT),
        (other.address, PORT),
    }
    assert len({outside for outside, _, _ in found}) == 2


def test_a_lease_outlives_a_crash_by_its_time_only(lab: Lab, run: Run) -> None:
    network = Network(lab, run)
    process = _start(run, network)
    assert network.mapped
    process.kill()
    while network.mapped:  # for the time limit of a test at most
        gevent.sleep(0.1)


def test_a_router_behind_another_nat_maps_nothing(lab: Lab, run: Run) -> None:
    need("miniupnpd", "nft")
    net = lab.internet(public=PUBLIC)
    router = net.kernel_nat("router", behind=net.nat("carrier"))
    inside = router.host("inside")
    start_miniupnpd(run, router, min_lease_s=1)
    run(inside, "port mapping: none: .* refuses", PROGRAM, str(PORT), LEASE_S)
    assert mappings(router) == []
