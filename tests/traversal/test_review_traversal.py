"""Networks that exist, and were once judged wrongly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from helpers.nat_simulation import EXTRA, HOST_IP, MAIN_PORT, SERVER, Simulation
from kkp2p_compat.testing.nat import (
    ADDRESS_AND_PORT_DEPENDENT,
    ADDRESS_DEPENDENT,
    FULL_CONE,
    PORT_RESTRICTED,
    Address,
    NatType,
)
from kkp2p_compat.traversal.candidates import (
    host_candidates,
    is_private,
    parse_untrusted,
    plausible,
)
from kkp2p_compat.traversal.nat import UNKNOWN, Discovery
from kkp2p_compat.traversal.routes import ipv4_gateways
from kkp2p_compat.traversal.stun import CHANGE_REQUEST, Kind, Message
from kkp2p_compat.traversal.stun import parse_untrusted as parse_stun_untrusted

PORTS = {2: 4000, 10: 4000}  # of AF_INET, AF_INET6
INNER = "10.0.0.5"  # of a cloud behind a 1:1 NAT


def discover(world: Simulation) -> Discovery:
    found = Discovery(
        [SERVER], port=MAIN_PORT, extra=EXTRA, local=[world.ip], now=world.now, random=Random(7)
    )
    world.run(found, lambda: found.done)
    return found


def change(world: Simulation, **told: Address) -> None:
    """Answers say this instead, the rest is as it was."""
    respond = world.respond

    def answer(data: bytes, source: Address, asked: Address) -> list[tuple[bytes, Address]]:
        return [(_changed(reply, told), sender) for reply, sender in respond(data, source, asked)]

    world.answered_by = answer


def _changed(reply: bytes, told: dict[str, Address]) -> bytes:
    message = parse_stun_untrusted(reply)
    if "other" in told and message.other is not None:
        told = {"other": (told["other"][0], message.other[1])}
    changed: Message = replace(message, **told)  # type: ignore[arg-type]
    return changed.encode(None)


@pytest.mark.parametrize("seen_at", ["192.168.1.1", "172.17.0.1", "198.51.100.7"])
def test_a_cloud_that_does_not_see_who_asks(seen_at: str) -> None:
    """Behind a router or a cluster that hides the source, or behind a NAT64, whose answers are of
    IPv4: UDP gets through, even if what it says of us is of no use."""
    world = Simulation(PORT_RESTRICTED)
    change(world, mapped=(seen_at, 5000) if seen_at != "198.51.100.7" else ("2001:db8::7", 5000))
    found = discover(world)
    assert found.verdict
    assert found.mapped == []
    assert found.behaviour == UNKNOWN


@pytest.mark.parametrize("filtering", [ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT])
def test_a_cloud_behind_a_1_to_1_nat(filtering: str) -> None:
    """As the large providers have it: it knows its inner address only, and tells that one."""
    world = Simulation(NatType(filtering=filtering), two_addresses=False)
    change(world, other=(INNER, 0))
    found = discover(world)
    assert found.behaviour.filtering == filtering
    assert all(to[0] != INNER for _, to, _ in world.sent)


def test_an_open_nat_and_a_cloud_behind_a_1_to_1_nat() -> None:
    """With one address it cannot show that a NAT is open to all."""
    world = Simulation(FULL_CONE, two_addresses=False)
    change(world, other=(INNER, 0))
    assert discover(world).behaviour.filtering == ADDRESS_DEPENDENT


def test_a_server_that_names_another_address_and_answers_from_none() -> None:
    """Its refusal comes from where it was asked, and says nothing of our NAT."""
    world = Simulation(FULL_CONE)
    respond = world.respond

    def answer(data: bytes, source: Address, asked: Address) -> list[tuple[bytes, Address]]:
        request = parse_stun_untrusted(data)
        if not (request.change_ip or request.change_port):
            return respond(data, source, asked)
        refusal = Message(
            Kind.ERROR, request.transaction_id, error=420, not_understood=(CHANGE_REQUEST,)
        )
        return [(refusal.encode(None), asked)]

    world.answered_by = answer
    assert discover(world).behaviour.filtering == "unknown"


@pytest.mark.parametrize("ip", ["192.0.0.2", "192.0.0.4", "198.18.0.1"])
def test_addresses_that_mean_something_on_their_host_only(ip: str) -> None:
    """Of 464XLAT and DS-Lite (RFC 7335); of VPN programs (RFC 2544).  A router that has one is
    behind another NAT."""
    assert is_private(ip)
    public = host_candidates(PORTS, ["203.0.113.5"])
    assert not plausible(ip, public)
    own = host_candidates(PORTS, [ip])
    assert [candidate.address for candidate in own] == [ip]  # how else is IPv4 reached from here?
    assert plausible("203.0.113.5", own)


def test_stable_ipv6_addresses_are_not_told_where_there_are_others() -> None:
    """RFC 8445 section 5.1.1.1: they would let everybody follow the device from network to
    network."""
    stable, private = "2001:db8::211:22ff:fe33:4455", "2001:db8::a1b2:c3d4:e5f6:1"
    elsewhere = "2001:db8:1:0:211:22ff:fe33:4455"
    for addresses, told in (
        ([private, stable, elsewhere, "10.0.0.2"], [private, elsewhere, "10.0.0.2"]),
        ([stable], [stable]),
        ([stable, private], [stable, private]),  # the system sends from it: no use to hide it
    ):
        assert [one.address for one in host_candidates(PORTS, addresses)] == told


@pytest.mark.parametrize(
    "ip", ["64:ff9b::c0a8:101", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "::a00:1"]
)
def test_ipv4_addresses_in_disguise_are_not_tried(ip: str) -> None:
    """A NAT64 of ours would carry our checks to hosts of the network behind it."""
    (candidate,) = parse_untrusted([f"host 5 {ip} 80"])
    assert not plausible(candidate.address, host_candidates(PORTS, ["2001:db8::5", HOST_IP]))


LAN = "eth0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0"  # default via 192.168.1.1
SECOND_LAN = "wlan0 00000000 0102A8C0 0003 0 0 600 00000000 0 0 0"
TUNNEL = "tun0 00000000 00000000 0001 0 0 50 00000000 0 0 0"
HALVES = [  # 0.0.0.0/1 and 128.0.0.0/1 by 10.8.0.1: how OpenVPN has its way
    "tun0 00000000 0100080A 0003 0 0 0 00000080 0 0 0",
    "tun0 00000080 0100080A 0003 0 0 0 00000080 0 0 0",
]


@pytest.mark.parametrize(
    ("lines", "gateways"),
    [
        ([LAN, SECOND_LAN], ["192.168.1.1", "192.168.2.1"]),
        ([LAN, TUNNEL], []),
        ([LAN, *HALVES], ["10.8.0.1"]),
        ([LAN, HALVES[0]], ["192.168.1.1"]),
    ],
)
def test_the_router_before_a_vpn_is_not_asked_for_ports(
    lines: list[str], gateways: list[str], tmp_path: Path
) -> None:
    """What it forwards would be answered by way of the VPN, and tell who hides behind that."""
    (tmp_path / "route").write_text("\n".join(["Iface Destination Gateway ...", *lines]))
    assert ipv4_gateways(tmp_path) == gateways
