"""Addresses: ours to tell, the peer's to try."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.nat_simulation import HOST_IP
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal.candidates import (
    MAX_CANDIDATES,
    Candidate,
    family_of,
    host_candidates,
    is_private,
    may_be_peer,
    outer_candidate,
    parse_untrusted,
    plausible,
    reflexive_priority,
)

PORTS = {int(socket.AF_INET): 4000, int(socket.AF_INET6): 6000}


def own(*addresses: str, ports: dict[int, int] = PORTS) -> list[Candidate]:
    return host_candidates(ports, addresses)


def test_priorities() -> None:
    """RFC 8445 section 5.1.2.1: 2^24 * 126 + 2^8 * local preference + 255."""
    assert own("192.0.2.2", "10.0.0.2", "2001:db8::2", "fd00::2") == [
        ("host", (126 << 24) + (65535 << 8) + 255, "2001:db8::2", 6000),
        ("host", (126 << 24) + (65534 << 8) + 255, "fd00::2", 6000),
        ("host", (126 << 24) + (65533 << 8) + 255, "192.0.2.2", 4000),
        ("host", (126 << 24) + (65532 << 8) + 255, "10.0.0.2", 4000),
    ]


def test_reflexive_priorities() -> None:
    mine = own("2001:db8::2", "192.0.2.2")
    six, four = (reflexive_priority(mine, family) for family in (socket.AF_INET6, socket.AF_INET))
    assert six == (110 << 24) + (65535 << 8) + 255
    assert four == (110 << 24) + (65534 << 8) + 255
    assert 0 < reflexive_priority([], socket.AF_INET) < four


def test_outer_candidates() -> None:
    """Host before mapped before what a check teaches before srflx, whatever the family."""
    mine = own("2001:db8::2", "192.0.2.2", "10.0.0.2")
    mapped = outer_candidate("mapped", ("203.0.113.1", 5000), mine)
    assert mapped == ("mapped", (120 << 24) + (65534 << 8) + 255, "203.0.113.1", 5000)
    six, four = (outer_candidate("srflx", (ip, 9), mine) for ip in ("2001:db8:1::1", "203.0.113.1"))
    assert six.priority == (100 << 24) + (65535 << 8) + 255
    assert four.priority == (100 << 24) + (65534 << 8) + 255
    reflexive = reflexive_priority(mine, socket.AF_INET)
    assert mine[-1].priority > mapped.priority > reflexive > six.priority > four.priority
    assert outer_candidate("srflx", ("203.0.113.1", 9), []).priority > 0
    listed = [*mine, mapped, six, four]
    assert parse_untrusted([candidate.text for candidate in listed]) == listed


def test_private_addresses() -> None:
    for ip in ("10.1.2.3", "100.64.0.1", "169.254.1.1", "127.0.0.1", "fd00::1", "::1"):
        assert is_private(ip), ip
    for ip in ("100.128.0.1", "192.0.2.1", "2001:db8::1"):
        assert not is_private(ip), ip


def test_addresses_that_nobody_else_could_use_are_left_out() -> None:
    listed = own("fe80::1%eth0", "fe80::1", "192.0.2.2", "0.0.0.0", "224.0.0.1", "192.0.2.2", "x")
    assert [c.address for c in listed] == ["192.0.2.2"]


def test_loopback_only_if_there_is_nothing_else() -> None:
    assert [c.address for c in own("127.0.0.1", "::1")] == ["::1", "127.0.0.1"]
    assert [c.address for c in own("127.0.0.1", "::1", "10.0.0.1")] == ["10.0.0.1"]
    assert [c.address for c in own("127.0.0.1", "::1", "fe80::1%eth0")] == ["::1", "127.0.0.1"]
    assert own() == []


def test_families_without_a_socket_are_left_out() -> None:
    only_four = {int(socket.AF_INET): 4000}
    listed = own("192.0.2.2", "fd00::2", ports=only_four)
    assert [c.text for c in listed] == [f"host {listed[0].priority} 192.0.2.2 4000"]


def test_many_addresses() -> None:
    many = [f"10.0.{n}.1" for n in range(50)] + [f"fd00::{n}" for n in range(1, 50)]
    listed = own(*many)
    assert len(listed) < MAX_CANDIDATES
    assert {family_of(c.address) for c in listed} == set(PORTS)
    assert parse_untrusted([c.text for c in listed]) == listed


def test_of_this_host() -> None:
    listed = host_candidates(PORTS)
    assert listed, "this host has not even a loopback interface"
    assert parse_untrusted([c.text for c in listed]) == listed
    assert [c.priority for c in listed] == sorted((c.priority for c in listed), reverse=True)
    for candidate in listed:
        assert plausible(candidate.address, listed)
        with socket.socket(family_of(candidate.address), socket.SOCK_DGRAM) as probe:
            probe.bind((candidate.address, 0))  # it is this host's


CANDIDATES = st.builds(
    lambda kind, priority, ip, port: Candidate(kind, priority, str(ip), port),
    st.sampled_from(["host", "mapped", "srflx"]),
    st.integers(1, 2**31 - 1),
    st.ip_addresses().filter(lambda ip: may_be_peer(str(ip), 1)),
    st.integers(1, 65535),
)


@given(st.lists(CANDIDATES, max_size=MAX_CANDIDATES, unique_by=lambda c: (c.address, c.port)))
def test_round_trip(candidates: list[Candidate]) -> None:
    assert parse_untrusted([c.text for c in candidates]) == candidates


FIELDS = ["host", "", "0", "1", "70000", "-1", "10.0.0.1", "255.255.255.255", "::1", "fe80::1", "x"]
TEXTS = st.lists(st.sampled_from(FIELDS), min_size=3, max_size=5).map(" ".join)


@given(st.lists(st.text(max_size=90) | TEXTS) | st.integers())
def test_any_text(texts: object) -> None:
    try:
        found = parse_untrusted(texts)
    except BadPacket:
        return
    assert all(may_be_peer(c.address, c.port) for c in found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host 1 10.0.0.1",
        "host 1 10.0.0.1 1 1",
        "host 1  10.0.0.1 1",
        7,
        None,
        [],
        "host 0 10.0.0.1 1",
        "host 2147483648 10.0.0.1 1",
        "host -1 10.0.0.1 1",
        "host 1 10.0.0.1 65536",
        "host 1 10.0.0.1 +1",
        "host 1 10.0.0.1 1.0",
        "host 1 10.0.0.1 ",
        "host 1 10.0.0 1",
        "host 1 10.0.0.1/8 1",
        "host 1 example.org 1",
        "host 1 fe80::1%eth0 1",
        "host 1 10.0.0.01 1",
        "host 1 10.0.0.1 \u0661",
        f"host 1 10.0.0.1 {'0' * 80}1",
        "host 1 [::1] 1",
        "host 1 10.0.0.1 1\n",
    ],
)
def test_malformed(text: object) -> None:
    with pytest.raises(BadPacket):
        parse_untrusted(["host 1 10.0.0.1 1", text])


@pytest.mark.parametrize("texts", [None, {}, "host 1 10.0.0.1 1", ["host 1 10.0.0.1 1"] * 33])
def test_not_a_list_or_too_long(texts: object) -> None:
    with pytest.raises(BadPacket):
        parse_untrusted(texts)


@pytest.mark.parametrize(
    "text",
    [
        "host 1 224.0.0.1 1",
        "host 1 ff02::1 1",
        "host 1 255.255.255.255 1",
        "host 1 0.0.0.0 1",
        "host 1 0.1.2.3 1",
        "host 1 240.0.0.1 1",
        "host 1 :: 1",
        "host 1 fe80::1 1",
        "host 1 ::ffff:10.0.0.1 1",
        "host 1 ::ffff:127.0.0.1 1",
        "host 1 10.0.0.1 0",
        "relay 1 10.0.0.1 1",
        "prflx 1 10.0.0.1 1",
        "tomorrow 1 10.0.0.1 1",
    ],
)
def test_left_out(text: str) -> None:
    assert parse_untrusted([text, "host 9 192.0.2.1 5"]) == [Candidate("host", 9, "192.0.2.1", 5)]


def test_a_repeated_address_counts_once() -> None:
    texts = ["host 9 fd00:0::1 5", "host 7 fd00::1 5", "host 8 fd00::1 6"]
    assert [c.text for c in parse_untrusted(texts)] == ["host 9 fd00::1 5", "host 8 fd00::1 6"]


@pytest.mark.parametrize(
    ("ours", "address", "expected"),
    [
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "10.0.0.1", True),  # another address of this host, come up just now
        (["10.0.0.1"], "127.0.0.1", False),
        (["10.0.0.1"], "192.168.0.1", True),
        (["10.0.0.1"], "192.0.2.1", True),
        (["192.0.2.1"], "10.0.0.1", False),
        (["192.0.2.1"], "100.64.0.1", False),
        (["192.0.2.1"], "169.254.169.254", False),
        (["192.0.2.1"], "198.51.100.1", True),
        (["192.0.2.1", "2001:db8::1"], "fd00::1", False),
        (["10.0.0.1", "fd00::1"], "fd00:1::1", True),
        (["10.0.0.1"], "2001:db8::1", False),  # no IPv6 here
        (["::1"], "127.0.0.1", False),
        ([], "192.0.2.1", False),
    ],
)
def test_plausible(ours: list[str], address: str, expected: bool) -> None:
    assert plausible(address, own(*ours)) is expected


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
