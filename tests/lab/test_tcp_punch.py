"""TCP hole punching between real hosts behind NATs, by IPv4 and IPv6, with UDP blocked."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest

from helpers.support import ROOT
from kkp2p_compat.testing import nat
from kkp2p_compat.testing.internet import Internet, InternetHost
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import CLOUD_PORT, Run, output_of, start_cloud, wait_for

PUNCHER = str(ROOT / "tests" / "lab" / "tcp_puncher.py")
ROUND_TRIP_S = 0.04
TRIES = 3  # each takes 20 s at most
LIMIT_S = 240
KINDS: dict[str, Callable[[Internet, str], InternetHost]] = {
    "public": lambda net, name: net.host(name, udp=False),
    "full cone": lambda net, name: net.nat(f"{name}-n", nat.FULL_CONE, udp=False).host(name),
    "port-restricted": lambda net, name: net.nat(f"{name}-n", nat.PORT_RESTRICTED, udp=False).host(
        name
    ),
    "symmetric": lambda net, name: net.nat(f"{name}-n", nat.SYMMETRIC_RANDOM, udp=False).host(name),
    "CGNAT": lambda net, name: net.nat(
        f"{name}-n", behind=net.nat(f"{name}-c", nat.PORT_RESTRICTED, udp=False)
    ).host(name),
    "IPv6 firewall": lambda net, name: net.host(name, ipv4=False, ipv6=True, firewall=True),
}


@pytest.fixture
def net(lab: Lab) -> Internet:
    return lab.internet(delay_s=ROUND_TRIP_S / 4)


@pytest.fixture
def cloud(net: Internet, run: Run) -> InternetHost:
    cloud = net.host("cloud", ipv6=True)
    start_cloud(run, cloud, "--listen", f"[::]:{CLOUD_PORT}")
    return cloud


def punch(run: Run, cloud: InternetHost, hosts: list[InternetHost]) -> list[dict[str, Any]]:
    """What becomes of it on both sides."""
    key = secrets.token_hex(32)
    places = [part for ip in (cloud.address, cloud.address6) for part in (ip, CLOUD_PORT)]
    ends = [
        run(host, None, PUNCHER, side, key, *places)
        for host, side in zip(hosts, ("caller", "callee"), strict=True)
    ]
    told = [wait_for(end, r"^\[") for end in ends]
    for end, line in zip(ends, reversed(told), strict=True):
        assert end.stdin is not None
        end.stdin.write(line)
        end.stdin.flush()
    results = [json.loads(wait_for(end, r"^\{")) for end in ends]
    for end in ends:
        output_of(end)
    return results


MET = [
    ("public", "public"),
    ("public", "symmetric"),
    ("full cone", "symmetric"),
    ("symmetric", "full cone"),
    ("port-restricted", "port-restricted"),
    ("CGNAT", "port-restricted"),
    ("IPv6 firewall", "IPv6 firewall"),
]


@pytest.mark.parametrize(("one", "other"), MET)
def test_they_meet(net: Internet, cloud: InternetHost, run: Run, one: str, other: str) -> None:
    hosts = [KINDS[one](net, "a"), KINDS[other](net, "b")]
    caller, callee = punch(run, cloud, hosts)
    assert (caller["said"], callee["said"]) == ("callee", "caller")


def test_behind_one_nat(net: Internet, cloud: InternetHost, run: Run) -> None:
    router = net.nat("router", nat.PORT_RESTRICTED, udp=False)
    hosts = [router.host("a"), router.host("b")]
    caller, _ = punch(run, cloud, hosts)
    assert caller["peer"][0] == hosts[1].address


def test_linux_routers(net: Internet, cloud: InternetHost, run: Run) -> None:
    """Connection tracking, and a SYN that comes too early: dropped, or answered by a reset.

    A router that has answered goes on to give our SYNs another port: where the processors are busy
    and the first ones cross badly, the attempt is lost, and the next one has a port of its own.
    """
    need("nft")
    for number, how in enumerate(("drop", "accept")):
        hosts = [
            net.kernel_nat(f"r{number}{end}", input=how).host(f"h{number}{end}") for end in "ab"
        ]
        met = [{"peer": None}] * 2
        for _ in range(TRIES):
            if None in (end["peer"] for end in met):
                met = punch(run, cloud, hosts)
        assert [end.get("said") for end in met] == ["callee", "caller"]


def test_where_it_is_hopeless(net: Internet, cloud: InternetHost, run: Run) -> None:
    hosts = [KINDS[kind](net, kind[0]) for kind in ("symmetric", "port-restricted")]
    assert punch(run, cloud, hosts) == [{"peer": None}] * 2
