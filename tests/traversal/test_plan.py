"""Which plan two sides make of their NATs: the same, whoever calls."""

from __future__ import annotations

import itertools

import pytest

from kkp2p_compat.traversal.candidates import Candidate
from kkp2p_compat.traversal.nat import BLOCKED, UNKNOWN, NatBehaviour
from kkp2p_compat.traversal.plan import KINDS, Plan, Side, make_plan

EIM, ADM, APDM = "endpoint-independent", "address-dependent", "address-and-port-dependent"
OPEN, FIREWALLED = NatBehaviour("none", EIM, "preserved"), NatBehaviour("none", APDM, "preserved")
FULL, RESTRICTED = NatBehaviour(EIM, EIM, "preserved"), NatBehaviour(EIM, ADM, "preserved")
PORT_RESTRICTED = NatBehaviour(EIM, APDM, "preserved")
NOT_TESTED = NatBehaviour(EIM, "unknown", "preserved")
SEQUENTIAL = NatBehaviour(APDM, APDM, "sequential", 1)
PRESERVING = NatBehaviour(APDM, APDM, "preserved")
BY_ADDRESS = NatBehaviour(ADM, APDM, "sequential", -2)
RANDOM = NatBehaviour(APDM, APDM, "random")
SYMMETRIC = NatBehaviour(APDM, APDM)
ALL = [
    OPEN,
    FIREWALLED,
    FULL,
    RESTRICTED,
    PORT_RESTRICTED,
    NOT_TESTED,
    SEQUENTIAL,
    PRESERVING,
    BY_ADDRESS,
    RANDOM,
    SYMMETRIC,
    UNKNOWN,
    BLOCKED,
]


def side(nat: NatBehaviour, host: str, *more: tuple[str, str]) -> Side:
    listed = [Candidate("host", 9, host, 4000)]
    return Side(nat, listed + [Candidate(kind, 5, ip, 4000) for kind, ip in more])


def plan_of(caller: NatBehaviour, callee: NatBehaviour, remembered: str = "") -> Plan:
    """Of two in different private networks behind different addresses."""
    return make_plan(
        side(caller, "10.0.0.2", ("srflx", "203.0.113.1")),
        side(callee, "10.0.1.2", ("srflx", "203.0.113.2")),
        remembered,
    )


@pytest.mark.parametrize(
    ("one", "other", "kind", "one_does", "other_does"),
    [
        (FULL, FULL, "punch", "check", "check"),
        (PORT_RESTRICTED, RESTRICTED, "punch", "check", "check"),
        (PORT_RESTRICTED, PORT_RESTRICTED, "punch", "check", "check"),
        (FIREWALLED, PORT_RESTRICTED, "punch", "check", "check"),
        (OPEN, RANDOM, "direct", "check", "check"),
        (FULL, RANDOM, "punch", "check", "check"),
        (RESTRICTED, RANDOM, "punch", "check", "check"),
        (RESTRICTED, SEQUENTIAL, "punch", "check", "check"),
        (PORT_RESTRICTED, SEQUENTIAL, "predict", "aim", "predict"),
        (PORT_RESTRICTED, PRESERVING, "predict", "aim", "predict"),
        (PORT_RESTRICTED, BY_ADDRESS, "predict", "aim", "predict"),
        (FIREWALLED, SEQUENTIAL, "predict", "aim", "predict"),
        (PORT_RESTRICTED, RANDOM, "birthday", "sweep", "spread"),
        (PORT_RESTRICTED, SYMMETRIC, "birthday", "sweep", "spread"),
        (FIREWALLED, RANDOM, "birthday", "sweep", "spread"),
        (NOT_TESTED, RANDOM, "birthday", "sweep", "spread"),
        (SEQUENTIAL, SEQUENTIAL, "predict", "predict+aim", "predict+aim"),
        (SEQUENTIAL, BY_ADDRESS, "predict", "predict+aim", "predict+aim"),
        (SEQUENTIAL, RANDOM, "relay", "check", "check"),
        (RANDOM, RANDOM, "relay", "check", "check"),
        (SYMMETRIC, SEQUENTIAL, "predict", "predict+aim", "predict+aim"),
        (UNKNOWN, RANDOM, "punch", "check", "check"),
        (UNKNOWN, UNKNOWN, "punch", "check", "check"),
        (OPEN, BLOCKED, "relay", "check", "check"),
        (BLOCKED, BLOCKED, "relay", "check", "check"),
    ],
)
def test_pairs(
    one: NatBehaviour, other: NatBehaviour, kind: str, one_does: str, other_does: str
) -> None:
    plan = plan_of(one, other)
    assert (plan.kind, plan.caller_does, plan.callee_does) == (kind, one_does, other_does)
    plan = plan_of(other, one)
    assert (plan.kind, plan.caller_does, plan.callee_does) == (kind, other_does, one_does)


def test_every_pair_has_a_plan_that_fits_together() -> None:
    fitting = {
        ("check", "check"),
        ("predict", "aim"),
        ("spread", "sweep"),
        ("predict+aim", "predict+aim"),
    }
    for caller, callee in itertools.product(ALL, ALL):
        plan = plan_of(caller, callee)
        assert plan.kind in KINDS
        assert plan.reason
        parts = plan.caller_does, plan.callee_does
        assert parts in fitting or parts[::-1] in fitting
        assert (parts == ("check", "check")) == (plan.kind in ("direct", "punch", "relay"))


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (FIREWALLED, FIREWALLED, "neither has a NAT"),
        (FIREWALLED, PORT_RESTRICTED, "both have outside ports that do not change"),
    ],
)
def test_a_nat_is_only_spoken_of_where_there_is_one(
    one: NatBehaviour, other: NatBehaviour, reason: str
) -> None:
    assert plan_of(one, other).reason == plan_of(other, one).reason == reason


def test_a_forwarded_port_makes_it_direct() -> None:
    for nat in (RANDOM, SEQUENTIAL):
        forwarded = side(nat, "10.0.0.2", ("mapped", "203.0.113.1"))
        plan = make_plan(forwarded, side(RANDOM, "10.0.1.2"))
        assert (plan.kind, plan.reason) == ("direct", "the caller's router forwards a port")
    plan = make_plan(
        side(RANDOM, "10.0.0.2"), side(PORT_RESTRICTED, "10.0.1.2", ("mapped", "203.0.113.2"))
    )
    assert (plan.kind, plan.caller_does) == ("direct", "spread")
    assert plan.patience_s > 0, "the port that is forwarded is tried first"


def test_the_same_address_outside() -> None:
    plan = make_plan(
        side(RANDOM, "10.0.0.2", ("srflx", "203.0.113.1")),
        side(RANDOM, "10.0.0.3", ("srflx", "203.0.113.1")),
    )
    assert (plan.kind, plan.reason) == ("direct", "both are behind the same address")


def test_ipv6() -> None:
    plan = make_plan(
        side(RANDOM, "10.0.0.2", ("host", "2001:db8::1")),
        side(RANDOM, "10.0.1.2", ("host", "2001:db8:1::1")),
    )
    assert (plan.kind, plan.reason) == ("direct", "both have IPv6")
    plan = make_plan(
        side(RANDOM, "10.0.0.2", ("host", "fd00::1")), side(RANDOM, "10.0.1.2", ("host", "fd01::1"))
    )
    assert plan.kind == "relay", "private addresses of different networks"
    plan = make_plan(side(OPEN, "2001:db8::1"), side(OPEN, "192.0.2.1"))
    assert plan.kind == "relay"


@pytest.mark.parametrize(
    ("caller", "callee", "kind"),
    [
        ("192.168.1.2", "192.168.1.77", "direct"),
        ("192.168.1.2", "192.168.2.2", "relay"),
        ("2001:db8::1", "2001:db8::ffff", "direct"),
        ("2001:db8::1", "2001:db8:0:1::1", "relay"),
    ],
)
def test_no_way_out_but_perhaps_one_network(caller: str, callee: str, kind: str) -> None:
    assert make_plan(side(BLOCKED, caller), side(BLOCKED, callee)).kind == kind


def test_what_worked_the_last_time() -> None:
    at_once, later = plan_of(PORT_RESTRICTED, RANDOM), plan_of(PORT_RESTRICTED, RANDOM, "punch")
    assert (at_once.kind, at_once.patience_s) == ("birthday", 0)
    assert (later.kind, later.caller_does) == ("birthday", "sweep")
    assert later.patience_s > 0
    for remembered in KINDS:
        assert plan_of(PORT_RESTRICTED, FULL, remembered) == plan_of(PORT_RESTRICTED, FULL)
        assert plan_of(RANDOM, RANDOM, remembered).kind == "relay"


def test_the_callee_is_quiet_where_that_costs_nothing() -> None:
    for callee in (FULL, RESTRICTED, PORT_RESTRICTED):
        assert plan_of(PORT_RESTRICTED, callee).low_ttl_s > 0
        assert plan_of(FULL, callee).low_ttl_s == 0
    assert plan_of(RESTRICTED, SEQUENTIAL).low_ttl_s == 0, "the callee's must come first"
