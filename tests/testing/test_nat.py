"""The lab's NAT, address by address."""

from __future__ import annotations

import itertools
import random

import pytest

from kkp2p_compat._address import HostPort
from kkp2p_compat.testing.nat import (
    ADDRESS_AND_PORT_DEPENDENT,
    ADDRESS_DEPENDENT,
    ALLOCATIONS,
    BEHAVIOURS,
    ENDPOINT_INDEPENDENT,
    FIREWALL,
    FULL_CONE,
    PORT_RESTRICTED,
    SYMMETRIC_RANDOM,
    SYMMETRIC_SEQUENTIAL,
    TCP,
    UDP,
    Nat,
    NatType,
)

OUTSIDE = "203.0.113.1"
INNER = ("192.168.1.2", 4000)
REMOTE = ("198.51.100.1", 7000)
SAME_IP = ("198.51.100.1", 7001)
OTHER_IP = ("198.51.100.2", 7000)


def make(nat_type: NatType, *ips: str) -> Nat:
    return Nat(nat_type, ips or (OUTSIDE,), random.Random(1))


def out(nat: Nat, remote: HostPort = REMOTE, inner: HostPort = INNER, now: float = 0.0) -> HostPort:
    outer = nat.outbound(UDP, inner, remote, now)
    assert outer is not None
    return outer


@pytest.mark.parametrize(
    ("mapping", "filtering", "allocation"),
    list(itertools.product(BEHAVIOURS, BEHAVIOURS, ALLOCATIONS)),
)
def test_each_kind_does_what_it_says(mapping: str, filtering: str, allocation: str) -> None:
    nat = make(NatType(mapping, filtering, allocation))
    outer = out(nat)
    assert outer[0] == OUTSIDE
    assert (outer[1] == INNER[1]) == (allocation == "preserved")
    # Who gets in, before anything was sent to them?
    heard = [nat.inbound(UDP, outer, who, 0.0) for who in (REMOTE, SAME_IP, OTHER_IP)]
    allowed = {ENDPOINT_INDEPENDENT: 3, ADDRESS_DEPENDENT: 2, ADDRESS_AND_PORT_DEPENDENT: 1}
    assert heard == [INNER] * allowed[filtering] + [None] * (3 - allowed[filtering])
    assert nat.dropped["filtered"] == 3 - allowed[filtering]
    # Which outside port does each of them see?
    ports = [out(nat, remote)[1] for remote in (REMOTE, SAME_IP, OTHER_IP, REMOTE)]
    different = {ENDPOINT_INDEPENDENT: 1, ADDRESS_DEPENDENT: 2, ADDRESS_AND_PORT_DEPENDENT: 3}
    assert len(set(ports)) == nat.made == different[mapping]
    assert ports[0] == ports[3] == outer[1]
    assert (ports[0] == ports[1]) == (mapping != ADDRESS_AND_PORT_DEPENDENT)
    if allocation != "random":
        assert sorted(set(ports)) == list(range(outer[1], outer[1] + different[mapping]))
    # Another inside host never shares a port with the first one.
    assert out(nat, inner=("192.168.1.3", INNER[1]))[1] not in ports
    assert nat.inbound(UDP, (OUTSIDE, 1), REMOTE, 0.0) is None
    assert nat.dropped["no binding"] == 1


@pytest.mark.parametrize("step", [1, 2, -1, -3, 7])
def test_sequential_ports_go_by_the_step(step: int) -> None:
    nat = make(NatType(ADDRESS_AND_PORT_DEPENDENT, allocation="sequential", step=step))
    ports = [out(nat, ("198.51.100.9", port))[1] for port in range(1, 50)]
    assert {after - before for before, after in itertools.pairwise(ports)} == {step}


def test_sequential_ports_go_round_and_skip_what_is_taken() -> None:
    nat = make(NatType(ADDRESS_AND_PORT_DEPENDENT, allocation="sequential", step=2, ports=(10, 15)))
    ports = [out(nat, ("198.51.100.9", port))[1] for port in range(1, 7)]
    assert sorted(ports) == [10, 11, 12, 13, 14, 15]
    assert nat.outbound(UDP, INNER, OTHER_IP, 0.0) is None
    assert nat.dropped["no free port"] == 1
    # TCP has ports of its own; and those of UDP are free again after their time.
    assert nat.outbound(TCP, INNER, OTHER_IP, 0.0) is not None
    assert nat.outbound(UDP, INNER, OTHER_IP, 120.0) is not None


def test_random_ports_are_seeded() -> None:
    def ports(seed: int) -> list[int]:
        nat = Nat(SYMMETRIC_RANDOM, [OUTSIDE], random.Random(seed))
        return [out(nat, ("198.51.100.9", port))[1] for port in range(1, 100)]

    assert ports(1) == ports(1) != ports(2)
    assert len(set(ports(1))) == 99
    assert max(ports(1)) - min(ports(1)) > 30_000


def test_every_random_port_is_found() -> None:
    nat = make(NatType(ADDRESS_AND_PORT_DEPENDENT, allocation="random", ports=(2000, 2999)))
    assert {out(nat, ("198.51.100.9", port))[1] for port in range(1, 1001)} == set(
        range(2000, 3000)
    )


def test_a_preserved_port_that_is_taken_is_the_next_free_one() -> None:
    nat = make(PORT_RESTRICTED)
    ports = [out(nat, inner=(f"192.168.1.{number}", 4000))[1] for number in range(2, 5)]
    assert ports == [4000, 4001, 4002]
    assert out(nat, inner=("192.168.1.2", 65535))[1] == 65535
    assert out(nat, inner=("192.168.1.3", 65535))[1] == 1024
    # Below the range there is nothing to keep.
    assert out(nat, inner=("192.168.1.3", 500))[1] >= 1024


@pytest.mark.parametrize("refresh_inbound", [False, True])
def test_time_outs(refresh_inbound: bool) -> None:
    nat = make(NatType(filtering=ENDPOINT_INDEPENDENT, refresh_inbound=refresh_inbound))
    outer = out(nat, now=0.0)
    assert out(nat, now=119.0) == outer
    assert nat.inbound(UDP, outer, OTHER_IP, 238.0) == INNER
    # Only where inbound packets refresh a binding does it live longer than its last outbound one.
    alive = nat.inbound(UDP, outer, OTHER_IP, 239.0) == INNER
    assert alive is refresh_inbound
    assert bool(nat.bindings(239.0)) is refresh_inbound


def test_a_permission_ends_by_itself() -> None:
    nat = make(PORT_RESTRICTED)
    outer = out(nat, REMOTE, now=0.0)
    assert out(nat, OTHER_IP, now=60.0) == outer
    assert nat.inbound(UDP, outer, REMOTE, 119.9) == INNER
    assert nat.inbound(UDP, outer, REMOTE, 120.0) is None
    assert nat.inbound(UDP, outer, OTHER_IP, 120.0) == INNER


def test_what_has_ended_takes_no_room() -> None:
    """Hours of ever new remotes: no more of them are remembered than two minutes have."""
    nat = make(PORT_RESTRICTED)
    symmetric = make(SYMMETRIC_SEQUENTIAL)
    for second in range(9_000):
        remote = (f"198.51.{second >> 8 & 255}.{second & 255}", 7000 + (second >> 16))
        for each in (nat, symmetric):
            out(each, remote, now=float(second))
    (binding,) = nat._by_key.values()
    assert len(binding.permitted) <= 130
    assert len(symmetric._by_key) == len(symmetric._by_outer) <= 130
    assert len(symmetric.bindings(8_999.0)) == 120


def test_tcp_has_another_time_out_that_both_ways_refresh() -> None:
    nat = make(PORT_RESTRICTED)
    outer = nat.outbound(TCP, INNER, REMOTE, 0.0)
    assert outer is not None
    assert nat.inbound(UDP, outer, REMOTE, 0.0) is None
    assert nat.inbound(TCP, outer, REMOTE, 7000.0) == INNER
    assert nat.inbound(TCP, outer, REMOTE, 14_000.0) == INNER
    assert nat.inbound(TCP, outer, REMOTE, 21_440.0) is None


def test_hairpin() -> None:
    other = ("192.168.1.3", 5000)
    for nat_type, expected in (
        (NatType(filtering=ENDPOINT_INDEPENDENT, hairpin=True), ((OUTSIDE, 4000), other)),
        (NatType(hairpin=True), None),  # filtered: the other one has not sent yet
        (FULL_CONE, None),
    ):
        nat = make(nat_type)
        outer = out(nat, inner=other)
        assert nat.hairpin(UDP, INNER, outer, 0.0) == expected
    nat = make(NatType(hairpin=True))
    mine, theirs = out(nat), out(nat, inner=other)
    assert nat.hairpin(UDP, other, mine, 0.0) is None
    assert nat.hairpin(UDP, INNER, theirs, 0.0) == (mine, other)
    assert nat.hairpin(UDP, other, mine, 0.0) == (theirs, INNER)


def test_a_reboot_forgets() -> None:
    nat = make(SYMMETRIC_SEQUENTIAL)
    outer = out(nat)
    nat.reboot(["203.0.113.77"])
    assert nat.inbound(UDP, outer, REMOTE, 0.0) is None
    assert out(nat)[0] == "203.0.113.77"


def test_several_outside_addresses_are_paired() -> None:
    nat = make(SYMMETRIC_RANDOM, "203.0.113.1", "203.0.113.2")
    seen = {
        inner: {out(nat, (f"198.51.100.{last}", 1), (inner, 4000))[0] for last in range(1, 9)}
        for inner in ("192.168.1.2", "192.168.1.3", "192.168.1.4")
    }
    assert list(seen.values()) == [{"203.0.113.1"}, {"203.0.113.2"}, {"203.0.113.1"}]


def test_a_firewall_translates_nothing() -> None:
    nat = make(FIREWALL)
    inner = ("2001:db8::2", 4000)
    assert nat.inbound(UDP, inner, REMOTE, 0.0) is None
    assert out(nat, REMOTE, inner) == inner
    assert nat.inbound(UDP, inner, REMOTE, 0.0) == inner
    assert nat.inbound(UDP, inner, SAME_IP, 0.0) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"mapping": "none of these"},
        {"filtering": "none"},
        {"allocation": "even"},
        {"step": 0},
        {"ports": (0, 9)},
        {"ports": (9, 8)},
        {"ports": (1, 65536)},
    ],
)
def test_what_is_no_type(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are for people
        NatType(**fields)  # type: ignore[arg-type]
