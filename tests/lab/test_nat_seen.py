"""Real hosts behind real NATs find out what those do, by asking a real cloud."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.support import ROOT
from kkp2p_compat.testing import nat
from kkp2p_compat.testing.internet import Internet, InternetHost
from kkp2p_compat.testing.lab import Host, Lab
from kkp2p_compat.testing.nat import NatType
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import CLOUD_PORT, Run, output_of, start_cloud

NAT_SEEN = str(ROOT / "tests" / "lab" / "nat_seen.py")
EIM, ADM, APDM = nat.ENDPOINT_INDEPENDENT, nat.ADDRESS_DEPENDENT, nat.ADDRESS_AND_PORT_DEPENDENT


@pytest.fixture
def net(lab: Lab) -> Internet:
    return lab.internet(delay_s=0.002)


@pytest.fixture
def cloud(net: Internet, run: Run) -> InternetHost:
    cloud = net.host("cloud", addresses=2, ipv6=True)
    start_cloud(run, cloud, "--listen", f"[::]:{CLOUD_PORT}", "--stun-address", cloud.addresses[1])
    return cloud


def ask(run: Run, server: str, *hosts: Host) -> list[dict[str, Any]]:
    """What each sees, all of them at the same time."""
    processes = [run(host, None, NAT_SEEN, server, CLOUD_PORT) for host in hosts]
    return [json.loads(output_of(process)) for process in processes]


def test_nats_of_every_kind(net: Internet, cloud: InternetHost, run: Run) -> None:
    types = [
        NatType(EIM, EIM, "preserved", hairpin=True),
        NatType(EIM, ADM, "sequential", 1),
        NatType(EIM, APDM, "random"),
        NatType(ADM, EIM, "sequential", -3),
        NatType(APDM, ADM, "preserved"),
        NatType(APDM, APDM, "sequential", 2),
        NatType(APDM, APDM, "random"),
    ]
    hosts = [net.nat(f"n{i}", one).host(f"h{i}") for i, one in enumerate(types)]
    for nat_type, seen in zip(types, ask(run, cloud.address, *hosts), strict=True):
        told = seen["nat"]
        assert (told["mapping"], told["filtering"]) == (nat_type.mapping, nat_type.filtering)
        assert told["allocation"] == nat_type.allocation
        if nat_type.allocation == "sequential":
            assert told["step"] == nat_type.step
        if EIM in (nat_type.mapping, nat_type.filtering):
            assert told["hairpin"] == nat_type.hairpin
        kinds = [kind for kind, _ in seen["candidates"]]
        assert kinds[:2] == ["host", "srflx"]


def test_without_a_nat(net: Internet, cloud: InternetHost, run: Run) -> None:
    """Open, behind a firewall, behind one that lets no UDP through, and by IPv6 alone."""
    opened, blocked = net.host("open"), net.host("blocked", udp=False)
    walled = net.host("walled", ipv4=False, ipv6=True, firewall=True)
    first, second = ask(run, cloud.address, opened, blocked)
    assert first["nat"] == {"mapping": "none", "filtering": EIM, "allocation": "preserved"}
    assert second["nat"] == {"mapping": "blocked"}
    (third,) = ask(run, cloud.address6, walled)
    assert third["nat"] == {"mapping": "none", "filtering": APDM, "allocation": "preserved"}
    assert [kind for kind, _ in third["candidates"]] == ["host"]


def test_a_nat_behind_a_cgnat(net: Internet, cloud: InternetHost, run: Run) -> None:
    cgnat = net.nat("cgnat", NatType(EIM, EIM, "random"))
    home = net.nat("home", nat.PORT_RESTRICTED, behind=cgnat)
    (seen,) = ask(run, cloud.address, home.host("inside"))
    assert seen["nat"]["mapping"] == EIM
    assert seen["nat"]["filtering"] == APDM
    assert seen["nat"]["allocation"] == "random"
    assert seen["candidates"][-1] == ["srflx", cgnat.address]


def test_linux_routers(net: Internet, cloud: InternetHost, run: Run) -> None:
    """Plain masquerade keeps ports where it can; fully random it is symmetric."""
    need("nft")
    hosts = [net.kernel_nat("plain").host("h0"), net.kernel_nat("mad", "fully-random").host("h1")]
    plain, mad = (seen["nat"] for seen in ask(run, cloud.address, *hosts))
    assert (plain["mapping"], plain["allocation"]) == (EIM, "preserved")
    assert (mad["mapping"], mad["allocation"]) == (APDM, "random")
    assert plain["filtering"] == mad["filtering"] == APDM
