"""The routes of this host, as the kernel's tables have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from gevent import socket

from kkp2p_compat.traversal import routes
from kkp2p_compat.traversal.routes import DefaultRoute, default_routes, ipv4_gateways

V4, V6 = socket.AF_INET, socket.AF_INET6
# Of Linux 6.18.
ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
ppp0\t00000000\t00000000\t0001\t0\t0\t700\t00000000\t0\t0\t0
eth1\t00000000\t0100000A\t0002\t0\t0\t50\t00000000\t0\t0\t0
eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""
ZERO = "0" * 32
IPV6_ROUTE = f"""\
fd00{"0" * 28} 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     eth0
{ZERO} 00 {ZERO} 00 fe80{"0" * 27}1 00000400 00000003 00000000 00000003     eth0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
"""


def test_default_routes(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(ROUTE)
    (tmp_path / "ipv6_route").write_text(IPV6_ROUTE)
    assert default_routes(tmp_path) == [
        DefaultRoute(V4, "192.168.0.1", "eth0"),
        DefaultRoute(V4, "192.168.1.1", "wlan0"),
        DefaultRoute(V4, "", "ppp0"),
        DefaultRoute(V6, "fe80::1", "eth0"),
    ]


def test_no_files_no_routes(tmp_path: Path) -> None:
    assert default_routes(tmp_path) == []


def test_gateways_are_those_of_ipv4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "route").write_text(ROUTE)
    (tmp_path / "ipv6_route").write_text(IPV6_ROUTE)
    found = default_routes(tmp_path)
    monkeypatch.setattr(routes, "default_routes", lambda proc: found)
    assert routes.ipv4_gateways() == ["192.168.0.1", "192.168.1.1"]


ONE_LAN = "eth0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0"  # default via 192.168.1.1
SECOND_LAN = "wlan0 00000000 0102A8C0 0003 0 0 600 00000000 0 0 0"
TUNNEL = "tun0 00000000 00000000 0001 0 0 50 00000000 0 0 0"
HALVES = [  # 0.0.0.0/1 and 128.0.0.0/1 by 10.8.0.1: how OpenVPN has its way
    "tun0 00000000 0100080A 0003 0 0 0 00000080 0 0 0",
    "tun0 00000080 0100080A 0003 0 0 0 00000080 0 0 0",
]


@pytest.mark.parametrize(
    ("lines", "gateways"),
    [
        ([ONE_LAN, SECOND_LAN], ["192.168.1.1", "192.168.2.1"]),
        ([ONE_LAN, TUNNEL], []),
        ([ONE_LAN, *HALVES], ["10.8.0.1"]),
        ([ONE_LAN, HALVES[0]], ["192.168.1.1"]),
    ],
)
def test_the_router_before_a_vpn_is_not_asked_for_ports(
    lines: list[str], gateways: list[str], tmp_path: Path
) -> None:
    """What it forwards would be answered by way of the VPN, and tell who hides behind that."""
    (tmp_path / "route").write_text("\n".join(["Iface Destination Gateway ...", *lines]))
    assert ipv4_gateways(tmp_path) == gateways
