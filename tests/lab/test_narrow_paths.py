"""Links and routers that carry less than 1,200 bytes of UDP: tunnels in tunnels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.support import SECRET
from kkp2p_compat.testing.hosts import ip_batch
from kkp2p_compat.testing.lab import Host, Lab, SwitchHost
from kkp2p_compat.testing.link import joined
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run, output_of, wait_for
from programs import PORT, start_cloud
from transfers import WITHOUT_END, check_ends, start_pair

PROGRAM = str(Path(__file__).with_name("echoed.py"))
SIZE = 2 << 20
SILENCE = """
table ip silent {
    chain out { type filter hook output priority 0; icmp type destination-unreachable drop; }
}
"""
LONG, SHORT = "30000", "4000"  # milliseconds for connect


def set_mtu(host: Host, mtu: int, *devices: str) -> None:
    ip_batch(host.namespace, [f"link set {device} mtu {mtu}" for device in devices])


def call(run: Run, caller: Host, cloud: str, mode: int, size: int = SIZE, time: str = LONG) -> str:
    """What the caller prints."""
    command = (PROGRAM, "call", cloud, PORT, "peer", str(mode), str(size), time)
    return output_of(run(caller, None, *command))


@pytest.fixture
def pair(lab: Lab) -> Iterator[tuple[SwitchHost, SwitchHost]]:
    """Two hosts at the ends of one cable; the first has the cloud."""
    one, two = lab.host("one"), lab.host("two")
    with joined(one, two, None):
        yield one, two


def start_callee(lab: Lab, run: Run, host: Host, cloud: Host) -> None:
    start_cloud(lab, run, host=cloud)
    run(host, "joined 0", PROGRAM, "answer", cloud.address, PORT, "peer", SECRET)


@pytest.mark.parametrize("mtu", [1400, 1200, 1100, 600])
def test_a_narrow_link(lab: Lab, run: Run, pair: tuple[SwitchHost, SwitchHost], mtu: int) -> None:
    """Its MTU is known to the hosts."""
    one, two = pair
    for host in pair:
        set_mtu(host, mtu, "eth0")
    start_callee(lab, run, one, one)
    assert call(run, two, one.address, 1) == "connect 0\nmode 1 the same\n"
    # By p2p where there is time: auto may take the relay on a busy machine.
    assert re.fullmatch("connect 0\nmode [12] the same\n", call(run, two, one.address, 0))


def test_a_link_too_narrow_for_any_packet_of_ours(
    lab: Lab, run: Run, pair: tuple[SwitchHost, SwitchHost]
) -> None:
    """Checks pass, data would not: auto takes the relay, mode 1 fails within its time."""
    one, two = pair
    for host in pair:
        set_mtu(host, 500, "eth0")
    start_callee(lab, run, one, one)
    assert call(run, two, one.address, 1, time=SHORT) == "connect -109\n"
    assert call(run, two, one.address, 0) == "connect 0\nmode 2 the same\n"


class Routed:
    """A router between two hosts, with the cloud on it; it tells nobody what is too large."""

    def __init__(self, lab: Lab) -> None:
        self.router = lab.host("router")
        self.hosts = [lab.host(name) for name in ("one", "two")]
        self.router.pull_out()
        self.router.address = "10.91.1.1"
        for number, host in enumerate(self.hosts, 1):
            host.pull_out()
            host.address = f"10.91.{number}.2"
            ip_batch(
                self.router.namespace,
                [
                    f"link add eth{number} type veth peer name eth0 netns {host.namespace}",
                    f"address add 10.91.{number}.1/24 dev eth{number}",
                    f"link set eth{number} up",
                ],
            )
            ip_batch(
                host.namespace,
                [
                    f"address add {host.address}/24 dev eth0",
                    "link set eth0 up",
                    f"route add default via 10.91.{number}.1",
                ],
            )
        self.router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self.router.run("nft", "-f", "-", stdin=SILENCE)

    def narrow(self, mtu: int) -> None:
        set_mtu(self.router, mtu, "eth1", "eth2")


@pytest.fixture
def routed(lab: Lab) -> Routed:
    need("nft")
    return Routed(lab)


@pytest.mark.parametrize("mtu", [1200, 1000])
def test_a_narrow_router(lab: Lab, run: Run, routed: Routed, mtu: int) -> None:
    """Nobody knows its MTU, nor hears of it."""
    routed.narrow(mtu)
    one, two = routed.hosts
    start_callee(lab, run, one, routed.router)
    assert call(run, two, routed.router.address, 1) == "connect 0\nmode 1 the same\n"
    assert re.fullmatch("connect 0\nmode [12] the same\n", call(run, two, routed.router.address, 0))


def test_a_router_that_becomes_narrow(lab: Lab, run: Run, routed: Routed) -> None:
    """In mid-transfer, as when a route fails over to a tunnel."""
    one, two = routed.hosts
    start_cloud(lab, run, host=routed.router)
    receiver, sender = start_pair(run, routed.router, one, two, WITHOUT_END)
    wait_for(receiver, "^moved")
    routed.narrow(1000)
    # What is still in buffers may arrive yet.
    for _ in range(4):
        wait_for(receiver, "^moved")
    assert sender.stdin is not None
    print("enough", file=sender.stdin, flush=True)
    check_ends(receiver, sender)
