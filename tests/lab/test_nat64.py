"""A host that has IPv6 only, behind a NAT64 (tayga) with DNS64, and peers that have IPv4 only."""

from __future__ import annotations

import ipaddress
import os
import shutil

import pytest

import roaming
from kkp2p_compat.testing.hosts import SwitchHost
from kkp2p_compat.testing.internet import Internet
from kkp2p_compat.testing.programs import Run, wait_for
from programs import PORT
from roaming import Cloud, MakePeer
from test_lost_servers import know, run_with_hosts, tell

net, cloud, make_peer = roaming.net, roaming.cloud, roaming.make_peer  # fixtures
cloud_options = roaming.cloud_options

pytestmark = pytest.mark.skipif(
    not shutil.which("tayga") and not os.environ.get("KKP2P_REQUIRE_LAB"),
    reason="there is no tayga",
)

PREFIX = "2001:db8:64::"
INSIDE = "2001:db8:6::"  # the network of the host
TAYGA = f"""
tun-device nat64
ipv4-addr 192.168.255.1
ipv6-addr 2001:db8:65::1
prefix {PREFIX}/96
dynamic-pool 192.168.255.0/24
"""


def translated(ip: str) -> str:
    """As DNS64 has it."""
    return str(ipaddress.IPv6Address(PREFIX) + int(ipaddress.IPv4Address(ip)))


@pytest.fixture
def host(net: Internet, run: Run) -> SwitchHost:
    """Its way into the world is a NAT64, of which it knows by DNS64."""
    router = net.kernel_nat("router")
    made = router.host("host")
    conf = router.folder / "tayga.conf"
    conf.write_text(f"{TAYGA}data-dir {router.folder}\n")
    router.run("tayga", "--mktun", "-c", str(conf))
    set_up = f"""
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
        ip link set nat64 up
        ip route add 192.168.255.0/24 dev nat64
        ip -6 route add {PREFIX}/96 dev nat64
        ip address add {INSIDE}1/64 dev lan0 nodad
    """
    router.run("sh", "-ec", set_up)
    made.run("ip", "-4", "address", "flush", "dev", "eth0")
    made.run("ip", "address", "add", f"{INSIDE}2/64", "dev", "eth0", "nodad")
    made.run("ip", "route", "add", "default", "via", f"{INSIDE}1")
    run(router, None, "-d", "-c", str(conf), program="tayga")
    return made


def test_p2p_with_peers_that_have_ipv4_only(
    net: Internet, host: SwitchHost, cloud: Cloud, make_peer: MakePeer, run: Run
) -> None:
    """One calls it, and it calls another one."""
    caller, callee = (
        make_peer(net.nat(f"{name}'s nat").host(name), peer_id)
        for name, peer_id in (("caller", ""), ("callee", "peer1"))
    )
    names = {"ipv4only.arpa": "192.0.0.170", "cloud.test": cloud.host.address}
    know(host, **{name: f"{translated(ip)} {ip}" for name, ip in names.items()})
    process = run_with_hosts(run, host, "ready", roaming.PEER, "cloud.test", PORT)
    tell(process, f"join peer0 {roaming.SECRET}")
    wait_for(process, "^joined 0")
    caller.call_until("peer0")
    tell(process, "call peer1 1")
    assert wait_for(process, "^call ").startswith("call 0 1")
    wait_for(process, "^moved")
    for peer in (caller, callee):
        peer.wait("moved")
    log = (host.folder / "kkp2p_engine.log").read_text()
    assert f"IPv4 addresses are reached through the NAT64 of {PREFIX}" in log, log
