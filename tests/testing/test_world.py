"""Packets of the lab: their checksums, what is refused, and that NATs are met at the right time."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.testing.nat import TCP, UDP, NatType
from kkp2p_compat.testing.packet import parse_untrusted
from kkp2p_compat.testing.world import World

ONE, OTHER = "203.0.113.1", "203.0.113.2"
OFFSETS = {UDP: 6, TCP: 16}


def ones_sum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def make(
    source: tuple[str, int],
    target: tuple[str, int],
    protocol: int = UDP,
    payload: bytes = b"x",
    ttl: int = 64,
    without_checksum: bool = False,
) -> bytes:
    """The slow way: all sums are computed."""
    ends = ip_address(source[0]).packed + ip_address(target[0]).packed
    size = 8 if protocol == UDP else 20
    transport = bytearray(struct.pack("!HH", source[1], target[1]) + bytes(size - 4) + payload)
    if protocol == UDP:
        struct.pack_into("!H", transport, 4, len(transport))
    if not without_checksum:
        pseudo = ends + struct.pack("!II", protocol, len(transport))
        checksum = 0xFFFF - ones_sum(pseudo + transport) or (0xFFFF if protocol == UDP else 0)
        struct.pack_into("!H", transport, OFFSETS[protocol], checksum)
    if len(ends) == 32:
        header = struct.pack("!IHBB", 6 << 28, len(transport), protocol, ttl) + ends
        return header + bytes(transport)
    start = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(transport), 1, 0x4000, ttl, protocol)
    checksum = 0xFFFF - ones_sum(start + ends)
    return start + struct.pack("!H", checksum) + ends + bytes(transport)


ips = st.integers(0x01000000, 0xDFFFFFFF).map(lambda number: str(ip_address(number)))
ends = st.tuples(ips, st.integers(1, 65535))


@given(ends, ends, ends, ends, st.sampled_from([UDP, TCP]), st.binary(max_size=9), st.booleans())
def test_checksums_after_a_translation_are_those_of_a_fresh_packet(
    source: tuple[str, int],
    target: tuple[str, int],
    new_source: tuple[str, int],
    new_target: tuple[str, int],
    protocol: int,
    payload: bytes,
    bare: bool,
) -> None:
    bare = bare and protocol == UDP
    packet = parse_untrusted(make(source, target, protocol, payload, 64, bare))
    packet.set_source(new_source)
    packet.set_target(new_target)
    assert packet.pass_routers(5)
    assert bytes(packet.data) == make(new_source, new_target, protocol, payload, 59, bare)
    assert not packet.pass_routers(59)


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_what_is_cut_short(protocol: int) -> None:
    for ip in (ONE, "2001:db8::1"):
        whole = make((ip, 1), (ip, 2), protocol)
        shortest = len(whole) - 1 - (2 if protocol == TCP else 0)
        for length in range(len(whole)):
            if length < shortest:
                with pytest.raises(BadPacket):
                    parse_untrusted(whole[:length])
            else:
                assert parse_untrusted(whole[:length]).target_port == 2
    for first in (0x44, 0x05, 0x75, 0x4F):
        with pytest.raises(BadPacket):
            parse_untrusted(bytes([first]) + make((ONE, 1), (OTHER, 2))[1:])


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    world = World()
    world.add_nat("nat", "", [ONE], "192.168.1.0/24", NatType())
    world.add_host("host", "nat", ["192.168.1.2"])
    for number in (0x45, 0x60):
        world.take("host", bytes([number]) + data, 0.0)
    assert world.due(0.0) == []


def test_a_later_fragment_has_no_ports() -> None:
    data = bytearray(make((ONE, 1), (OTHER, 2)))
    struct.pack_into("!H", data, 6, 0x2001)
    packet = parse_untrusted(data)
    assert (packet.ports_at, packet.source_port) == (0, 0)


def ends_of(data: bytes) -> tuple[str, int, str, int]:
    packet = parse_untrusted(data)
    return packet.source, packet.source_port, packet.target, packet.target_port


def test_packets_that_pass_each_other_both_get_in() -> None:
    """The NAT of the receiver is met when the packet is there, not when it was sent."""
    world = World(delay_s=0.05)
    for number, ip in enumerate((ONE, OTHER), 1):
        world.add_nat(f"nat{number}", "", [ip], f"192.168.{number}.0/24", NatType())
        world.add_host(f"host{number}", f"nat{number}", [f"192.168.{number}.2"])
    inner = [(f"192.168.{number}.2", 4000) for number in (1, 2)]
    world.take("host1", make(inner[0], (OTHER, 4000)), 10.0)
    world.take("host2", make(inner[1], (ONE, 4000)), 10.09)
    assert world.next_due() == pytest.approx(10.1)
    assert world.due(10.0999) == []
    ((name, data),) = world.due(10.1001)
    assert (name, ends_of(data)) == ("host2", (ONE, 4000, *inner[1]))
    ((name, data),) = world.due(10.2)
    assert (name, ends_of(data)) == ("host1", (OTHER, 4000, *inner[0]))
    assert world.flying() == 0
    # Too late: it is there before the other side has opened.
    world.take("host1", make((inner[0][0], 5000), (OTHER, 5000)), 20.0)
    world.take("host2", make((inner[1][0], 5000), (ONE, 5000)), 20.11)
    assert [name for name, _ in world.due(21.0)] == ["host1"]
    assert world.dropped == {("host1", "not let in by nat2"): 1}


def test_only_own_addresses_and_known_ones() -> None:
    world = World()
    world.add_host("one", "", [ONE])
    world.add_nat("nat", "", [OTHER], "192.168.1.0/24", NatType())
    for source, target in ((OTHER, ONE), (ONE, "203.0.113.9"), (ONE, "192.168.1.2")):
        world.take("one", make((source, 1), (target, 2)), 0.0)
    world.take("one", make((ONE, 1), ("255.255.255.255", 2)), 0.0)
    assert world.due(0.0) == []
    assert world.dropped == {
        ("one", "not from an address of its sender"): 1,
        ("one", "no such address"): 2,
        ("one", "to all of the internet"): 1,
    }
    with pytest.raises(ValueError, match="has been given to nat"):
        world.set_addresses("one", "", [OTHER])


def test_what_is_for_the_router_takes_no_port() -> None:
    world = World()
    world.add_nat("nat", "", [OTHER], "192.168.1.0/24", NatType())
    world.add_host("inside", "nat", ["192.168.1.2"])
    world.take("inside", make(("192.168.1.2", 1), ("192.168.1.1", 5351)), 0.0)
    assert world.bindings("nat") == []
    assert world.dropped == {("inside", "to the router itself"): 1}


def test_only_tcp_and_udp_pass_a_nat() -> None:
    world = World()
    world.add_host("one", "", [ONE])
    world.add_nat("nat", "", [OTHER], "192.168.1.0/24", NatType())
    world.add_host("inside", "nat", ["192.168.1.2"])
    echo = bytearray(make(("192.168.1.2", 1), (ONE, 2)))
    echo[9] = socket.IPPROTO_ICMP
    world.take("inside", bytes(echo), 0.0)
    struct.pack_into("!8s", echo, 12, ip_address(ONE).packed + ip_address(OTHER).packed)
    world.take("one", bytes(echo), 0.0)
    assert world.due(0.0) == []
    assert world.dropped == {
        ("inside", "no ports to translate"): 1,
        ("one", "no ports to translate"): 1,
    }
