"""Whole calls between peers behind all kinds of NATs: which meet, how soon, and at which cost.

The aims are those of docs/nat-traversal.rst.
"""

from __future__ import annotations

import itertools

import pytest

from helpers.punch_network import DELAY_S, World, call
from kkp2p_compat.testing.nat import (
    ADDRESS_AND_PORT_DEPENDENT,
    ADDRESS_DEPENDENT,
    ADDRESS_RESTRICTED,
    FIREWALL,
    FULL_CONE,
    PORT_RESTRICTED,
    SYMMETRIC_RANDOM,
    SYMMETRIC_SEQUENTIAL,
    NatType,
)
from kkp2p_compat.traversal import guesses, punch

STEADY: dict[str, NatType | str] = {
    "public": "public",
    "firewall": FIREWALL,
    "full cone": FULL_CONE,
    "address-restricted": ADDRESS_RESTRICTED,
    "port-restricted": PORT_RESTRICTED,
    "linux": "linux",
}
SEQUENTIAL: dict[str, NatType | str] = {
    "sequential": SYMMETRIC_SEQUENTIAL,
    "sequential, by -2": NatType(ADDRESS_AND_PORT_DEPENDENT, allocation="sequential", step=-2),
    "sequential, by address": NatType(ADDRESS_DEPENDENT, allocation="sequential"),
    "symmetric, preserving": NatType(ADDRESS_AND_PORT_DEPENDENT),
}
RANDOM: dict[str, NatType | str] = {
    "random": SYMMETRIC_RANDOM,
    "linux, fully random": "linux random",
    "carrier": "carrier",
}
ALL = STEADY | SEQUENTIAL | RANDOM
CONES = ["full cone", "address-restricted", "port-restricted", "linux"]


def sent(world: World) -> int:
    return world.caller.sent + world.callee.sent


def both_random(caller: str, callee: str) -> bool:
    """Both symmetric, one of them with random ports: nothing helps."""
    symmetric = all(name not in STEADY for name in (caller, callee))
    return symmetric and (caller in RANDOM or callee in RANDOM)


@pytest.mark.parametrize("caller", ALL)
@pytest.mark.parametrize("callee", ALL)
def test_every_pair(caller: str, callee: str) -> None:
    for seed in range(3):
        took_s, world = call(ALL[caller], ALL[callee], seed, busy=5)
        if both_random(caller, callee):
            assert (took_s, world.plan.kind) == (None, "relay")
            assert sent(world) < 100
            continue
        assert took_s is not None, f"{world.plan}, seed {seed}"
        assert sent(world) < 5000


@pytest.mark.parametrize("delays", [(0.001, 0.001), (0.02, 0.02), (0.01, 0.1), (0.15, 0.15)])
@pytest.mark.parametrize(("caller", "callee"), list(itertools.product(CONES, CONES)))
def test_cone_pairs_are_quick(caller: str, callee: str, delays: tuple[float, float]) -> None:
    took_s, _ = call(ALL[caller], ALL[callee], 1, delays=delays)
    to_cloud_s = 2 * (max(delays) + DELAY_S)
    assert took_s is not None
    assert took_s < 4 * to_cloud_s + 0.1


@pytest.mark.parametrize(("loss", "busy"), [(0.0, 0.0), (0.05, 10.0)])
@pytest.mark.parametrize("random_side", ["caller", "callee"])
def test_random_ports_against_port_restricted(random_side: str, loss: float, busy: float) -> None:
    """At least 95 % within 10 s, with under 5,000 packets."""
    kinds = [SYMMETRIC_RANDOM, PORT_RESTRICTED][:: 1 if random_side == "caller" else -1]
    met = 0
    for seed in range(40):
        took_s, world = call(kinds[0], kinds[1], seed, loss=loss, busy=busy)
        met += took_s is not None
        assert sent(world) < 5000
    assert met >= 38


@pytest.mark.parametrize("delays", [(0.02, 0.02), (0.1, 0.15)])
@pytest.mark.parametrize(("loss", "busy"), [(0.0, 0.0), (0.0, 10.0), (0.05, 30.0)])
def test_sequential_against_sequential(
    delays: tuple[float, float], loss: float, busy: float
) -> None:
    """At least 90 %, also while other hosts take ports."""
    met = 0
    for seed in range(30):
        kind = SYMMETRIC_SEQUENTIAL
        took_s, world = call(kind, kind, seed, loss=loss, busy=busy, delays=delays)
        met += took_s is not None
        assert sent(world) < 5000
    assert met >= 27


def test_sequential_ports_of_a_busy_carrier() -> None:
    """A hundred bindings a second on both sides: found by longer volleys."""
    kinds = SYMMETRIC_SEQUENTIAL, SYMMETRIC_SEQUENTIAL
    assert sum(call(*kinds, seed, busy=100)[0] is not None for seed in range(10)) >= 9


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_probes_are_lost(loss: float) -> None:
    for caller, callee in (
        ("port-restricted", "port-restricted"),
        ("port-restricted", "sequential"),
        ("sequential", "linux"),
        ("sequential", "sequential"),
        ("full cone", "random"),
    ):
        for seed in range(10):
            took_s, _ = call(ALL[caller], ALL[callee], seed, loss=loss)
            assert took_s is not None, f"{caller}, {callee}, seed {seed}"


def test_a_router_that_listens_needs_quiet_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives before the own packet is gone has the NAT choose another port: a birthday with
    such a router fails if every packet goes all the way.  (So the simulation knows that case.)"""

    def met() -> int:
        found = [call("linux random", "linux", seed)[0] for seed in range(6)]
        return sum(took_s is not None for took_s in found)

    assert met() == 6
    monkeypatch.setattr(guesses, "LOW_TTL", 64)
    monkeypatch.setattr(punch, "LOW_TTL", 64)
    assert met() <= 1


def test_the_callees_first_check_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves while the answer is on its way, so it would be at the caller's router first."""
    took_s, _ = call("linux", "linux", 1, delays=(0.01, 0.01))
    assert took_s is not None
    monkeypatch.setattr("kkp2p_compat.traversal.checks.LOW_TTL", 64)
    assert call("linux", "linux", 1, delays=(0.01, 0.01))[0] is None


def test_a_caller_that_is_late_finds_its_own_port_free() -> None:
    """The cloud is far away, or the machine is busy, and the callee has begun long ago."""
    assert call("linux", "linux", 1, delays=(0.01, 0.01), late_s=0.6)[0] is not None


def test_a_far_nat_that_quiet_packets_do_not_reach() -> None:
    """What the other side has probed is open, when the louder ones follow."""
    for seed in range(6):
        for caller, callee in (("carrier", "port-restricted"), ("linux", "carrier")):
            took_s, world = call(ALL[caller], ALL[callee], seed)
            assert took_s is not None
            assert sent(world) < 5000


def test_a_found_path_ends_the_probing() -> None:
    _, world = call(PORT_RESTRICTED, SYMMETRIC_RANDOM, 3)
    before = sent(world)
    world.run(20.0)
    world.now += 0
    assert sent(world) <= before + 12, "an answer or two, and the end of the nomination"
