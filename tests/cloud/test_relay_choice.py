"""Which relays a call is given: near to both peers, alive, and not busy."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.usage_support import make_usage
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.cloud.directory import Node
from kkp2p_compat.cloud.relays import ALIKE_MS, MAX_RELAYS, Relays, choose, round_trips_untrusted
from kkp2p_compat.control.wire import MAX_ROUND_TRIP_MS, MAX_TOLD_RELAYS

KEY = b"k" * 32


def relay(number: int, host: str = "", **fields: Any) -> Node:
    host = host or f"192.0.2.{number}"
    fields = {"relay_host": host, "relay_port": 3080, **fields}
    return Node(f"{number:016x}", **fields)


A, B, C, D = (relay(number) for number in (1, 2, 3, 4))


def with_nodes(living: Callable[[], list[Node]] | None) -> Relays:
    return Relays(KEY, make_usage(KEY), living)


def far(**ms: int) -> dict[str, int]:
    """What a peer has measured; ``a``: to A, and so on."""
    nodes = {"a": A, "b": B, "c": C, "d": D}
    return {f"{nodes[name].relay_host}:3080": value for name, value in ms.items()}


def first(relays: list[Node], *sides: dict[str, int]) -> list[Node]:
    """All that come first in one of many draws."""
    drawn = {choose(relays, sides, Random(seed))[0].id for seed in range(60)}
    return [node for node in relays if node.id in drawn]


def test_the_sum_of_both_round_trips_counts() -> None:
    caller, callee = far(a=5, b=60, c=100), far(a=200, b=50, c=100)
    assert first([A, B, C], caller, callee) == [B]
    assert [node.id for node in choose([A, B, C], [caller, callee], Random(1))] == [
        B.id,
        C.id,
        A.id,
    ]


def test_one_that_is_busy_counts_as_farther_away() -> None:
    caller, callee = far(a=20, b=40), far(a=20, b=40)
    assert first([A, B], caller, callee) == [A]
    busy = relay(1, load=0.9)
    assert first([busy, B], caller, callee) == [B]
    assert first([relay(1, load=0.5), B], caller, callee) == [relay(1, load=0.5)]


def test_those_that_are_alike_take_turns() -> None:
    side = far(a=20, b=21)
    assert ALIKE_MS > 2
    assert first([A, B], side, side) == [A, B]
    assert first([A, B]) == [A, B]  # nobody has measured anything


def test_what_was_not_measured_counts_as_the_median() -> None:
    side = far(a=10, b=100, c=190)
    assert first([A, D], side, {}) == [A]
    assert first([C, D], side, {}) == [D]


def test_what_was_not_measured_is_like_others_at_its_host_or_in_its_region() -> None:
    near, away, unknown = relay(1, region="here"), relay(2, region="there"), relay(9)
    side = {"192.0.2.1:3080": 5, "192.0.2.2:3080": 150, "192.0.2.50:3080": 60}
    for other in (relay(7, "192.0.2.1", relay_port=3081), relay(8, region="here")):
        assert first([near, other, away, unknown], side) == [near, other]
    assert first([relay(8, region="there"), away, unknown], side) == [unknown]


def test_the_next_ones_are_at_other_hosts() -> None:
    """A host that is gone takes all its relays with it."""
    same = [relay(number, "192.0.2.1", relay_port=4000 + number) for number in range(4)]
    side = {"192.0.2.1:4000": 1, "192.0.2.2:3080": 250}
    for seed in range(20):
        hosts = [node.relay_host for node in choose([*same, B], [side], Random(seed))]
        assert hosts == ["192.0.2.1", "192.0.2.2", "192.0.2.1"]
    assert len(choose(same, [side], Random(1))) == MAX_RELAYS


def test_ipv6() -> None:
    six, other = relay(1, "2001:db8::1"), relay(2, "2001:db8::2")
    assert first([six, other], {"[2001:db8::1]:3080": 200, "[2001:db8::2]:3080": 2}) == [other]


@given(
    st.lists(st.floats(0, 5), min_size=1, max_size=6),
    st.lists(st.dictionaries(st.integers(0, 9), st.integers(0, MAX_ROUND_TRIP_MS)), max_size=2),
)
def test_any_figures(loads: list[float], sides: list[dict[int, int]]) -> None:
    relays = [relay(number, load=load) for number, load in enumerate(loads)]
    told = [{f"192.0.2.{number}:3080": ms for number, ms in side.items()} for side in sides]
    chosen = choose(relays, told)
    assert len({node.id for node in chosen}) == len(chosen) == min(len(relays), MAX_RELAYS)
    assert all(node in relays for node in chosen)


def test_a_call_is_given_only_those_that_live_and_stay() -> None:
    nodes = [A, relay(2, draining=True), relay(3, relay_port=0)]
    relays = with_nodes(lambda: nodes)
    assert relays.near(far(b=1), far(b=1)) == [("192.0.2.1", 3080)]
    nodes.remove(A)
    assert relays.near({}, {}) == []


def test_several_behind_one_name_are_one_place() -> None:
    nodes = [relay(number, "relay.example") for number in (1, 2)]
    relays = with_nodes(lambda: [*nodes, A])
    assert sorted(relays.near({}, {})) == [("192.0.2.1", 3080), ("relay.example", 3080)]


def test_one_process_alone() -> None:
    relays = with_nodes(None)
    assert relays.near({}, {}) == [(None, None)]
    assert relays.told() is None


def test_peers_are_told_one_of_each_host_and_of_each_region() -> None:
    assert with_nodes(lambda: [A]).told() is None  # there is nothing to choose
    workers = [relay(number, "192.0.2.1", relay_port=4000 + number) for number in range(4)]
    assert with_nodes(lambda: workers).told() is None
    many = [relay(number, region="home") for number in range(10, 40)]
    away = relay(50, region="away")
    told = with_nodes(lambda: [*workers, *many, away]).told()
    assert told is not None
    assert len(told) == MAX_TOLD_RELAYS == len({host for host, _ in told})
    assert ["192.0.2.50", 3080] in told
    assert any(host == "192.0.2.1" for host, _ in told)


@pytest.mark.parametrize(
    "told",
    [
        [],
        "",
        5,
        {"192.0.2.1:3080": -1},
        {"192.0.2.1:3080": MAX_ROUND_TRIP_MS + 1},
        {"192.0.2.1:3080": 1.5},
        {"192.0.2.1:3080": True},
        {"192.0.2.1": 5},
        {"": 5},
        {"x:0": 5},
        {f"192.0.2.{number}:3080": 5 for number in range(MAX_TOLD_RELAYS + 1)},
        {"a" * 300 + ":1": 5},
    ],
)
def test_round_trips_that_cannot_be(told: object) -> None:
    with pytest.raises(BadPacket):
        round_trips_untrusted(told)


def test_round_trips_of_a_peer() -> None:
    assert round_trips_untrusted(None) == {}
    good = {"192.0.2.1:3080": 0, "[2001:db8::1]:3080": MAX_ROUND_TRIP_MS}
    assert round_trips_untrusted(good) == good
