"""Calls through NATs of each kind, between real programs: what ``benchmarks nat`` measures, once.

Two tries are made where chance has a part (ports that are predicted or guessed), as each of them
may fail by right: the issue with that is the benchmark's to count.
"""

from __future__ import annotations

import pytest

from benchmarks.nat import Ends, Room
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run

DIRECT = [
    ("port-restricted", "port-restricted", "p2p srflx"),
    ("CGNAT", "address-restricted", "p2p srflx"),
    ("symmetric random", "full cone", "p2p srflx"),
    ("address-restricted", "symmetric random", "p2p prflx"),
    ("IPv6 only", "IPv6 only", "p2p IPv6 host"),
    ("same NAT", "same NAT", "p2p host"),
    ("UPnP router", "symmetric random", "p2p prflx"),
    ("symmetric random", "UPnP router", "p2p mapped"),
    ("UDP blocked", "UDP blocked", "p2p TCP"),
]
LUCKY = [
    ("symmetric sequential", "port-restricted"),
    ("symmetric sequential", "symmetric sequential"),
    ("port-restricted", "symmetric random"),
]
RELAYED = [
    ("symmetric random", "UDP blocked"),
    ("symmetric random", "symmetric sequential"),
    ("IPv6 only", "full cone"),
]


@pytest.mark.parametrize(("caller", "callee", "path"), DIRECT)
def test_a_path(lab: Lab, run: Run, caller: str, callee: str, path: str) -> None:
    if "UPnP router" in (caller, callee):
        need("nft", "miniupnpd")
    met = Room(lab, run).pair(caller, callee).meet(mode=1)
    assert (met["result"], met.get("path")) == (0, path), met


def test_linux_routers_that_take_strangers_packets(lab: Lab, run: Run) -> None:
    """Their connection tracking remembers a peer's packet that came first, and gives ours another
    port then: the callee's first packets must not get that far."""
    need("nft")
    room = Room(lab, run)
    made = [(room.net.kernel_nat(f"r{n}", input="accept").host(f"h{n}"), False) for n in (1, 2)]
    for _ in range(3):
        met = Ends(run, room.net, [room.cloud.address] * 2, made).meet(mode=1)
        assert (met["result"], met.get("path")) == (0, "p2p srflx"), met


@pytest.mark.parametrize(("caller", "callee"), LUCKY)
def test_a_path_by_guessing(lab: Lab, run: Run, caller: str, callee: str) -> None:
    ends = Room(lab, run).pair(caller, callee)
    met = ends.meet(mode=1)
    if met["result"] != 0:
        met = ends.meet(mode=1)
    assert met["result"] == 0, met
    assert met["path"].startswith("p2p")
    assert met["packets"] < 5000


@pytest.mark.parametrize("pair", [("UDP blocked", "public"), ("port-restricted", "UDP blocked")])
def test_tcp_comes_before_the_relay(lab: Lab, run: Run, pair: tuple[str, str]) -> None:
    met = Room(lab, run).pair(*pair).meet(mode=0)
    assert (met["result"], met.get("path")) == (0, "p2p TCP"), met


@pytest.mark.parametrize(("caller", "callee"), RELAYED)
def test_the_relay(lab: Lab, run: Run, caller: str, callee: str) -> None:
    met = Room(lab, run).pair(caller, callee).meet(mode=0)
    assert (met["result"], met.get("path")) == (0, "relay"), met
