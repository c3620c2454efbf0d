"""The role route: which nodes it names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from helpers.cloud_client import Client
from helpers.shared_directory import Shared, running_node
from kkp2p_compat.cloud.directory import Node
from kkp2p_compat.cloud.route import MAX_TRACKS
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.control.wire import MAX_TOLD_RELAYS

FAR = 1e9  # a lease that lasts
PRINT = "ab" * 32


def node(number: int, **fields: Any) -> Node:
    fields = {"host": f"192.0.2.{number}", "port": 3080, "fingerprint": PRINT, **fields}
    return Node(f"{number:016x}", **fields)


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
def route(shared: Shared) -> Iterator[Cloud]:
    with running_node("route", shared) as cloud:
        yield cloud


def told(route: Cloud, shared: Shared, *nodes: Node) -> dict[str, Any]:
    """Its answer when these live."""
    assert route.nodes is not None
    own = shared.leases[route.nodes.id]
    shared.leases = {route.nodes.id: own, **{each.id: (each, FAR) for each in nodes}}
    for _ in range(3):  # who is missed twice is gone
        route.nodes.take_turn()
    with Client(route.address) as client:
        return client.ask("route", v=1, peer="somebody")


def test_the_least_loaded_first(route: Cloud, shared: Shared) -> None:
    nodes = [node(1, load=0.5), node(2, load=0.1, fingerprint="cd" * 32), node(3, load=0.9)]
    answer = told(route, shared, *nodes)
    assert answer["tracks"] == [["192.0.2.2", 3080], ["192.0.2.1", 3080], ["192.0.2.3", 3080]]
    assert answer["certificates"] == ["cd" * 32, PRINT]
    answer = told(route, shared, replace(nodes[0], load=0.0), *nodes[1:])
    assert answer["tracks"][0] == ["192.0.2.1", 3080]


def test_only_living_nodes_where_peers_may_log_in(route: Cloud, shared: Shared) -> None:
    others = [
        node(2, draining=True),
        node(3, role="relay", host="", port=0, relay_host="192.0.2.3", relay_port=3080),
        node(4, role="route"),
    ]
    assert told(route, shared, node(1), *others)["tracks"] == [["192.0.2.1", 3080]]
    assert told(route, shared, node(5, role="track"), *others)["tracks"] == [["192.0.2.5", 3080]]
    assert told(route, shared, *others) == {"op": "bye", "reason": "unavailable"}


def test_no_more_than_a_client_takes(route: Cloud, shared: Shared) -> None:
    nodes = [node(number, load=number / 100) for number in range(1, 2 * MAX_TRACKS)]
    tracks = told(route, shared, *reversed(nodes))["tracks"]
    assert tracks == [[each.host, each.port] for each in nodes[:MAX_TRACKS]]


def test_callers_without_a_login_hear_of_relays(route: Cloud, shared: Shared) -> None:
    """The same ones each time, while the same ones live: a caller asks for each of its calls."""
    relays = [
        node(number, role="relay", host="", port=0, relay_host=f"192.0.2.{number}", relay_port=3080)
        for number in range(2, 2 + 2 * MAX_TOLD_RELAYS)
    ]
    assert "relays" not in told(route, shared, node(1), relays[0])  # there is nothing to choose
    two = told(route, shared, node(1), *relays[:2])["relays"]
    assert sorted(two) == [["192.0.2.2", 3080], ["192.0.2.3", 3080]]
    draining = replace(relays[2], draining=True)
    assert told(route, shared, node(1), draining, *relays[:2])["relays"] == two
    orders = (relays, relays[::-1], relays[3:] + relays[:3])
    answers = [told(route, shared, node(1), *each)["relays"] for each in orders]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == MAX_TOLD_RELAYS
    assert {place for place, _ in answers[0]} <= {relay.relay_host for relay in relays}


def test_what_it_does_not_serve(route: Cloud) -> None:
    with Client(route.address) as client:
        assert client.ask("beat") == {"op": "beat"}
        assert client.ask("route", v=1, peer="a b")["reason"] == "peer is not a peer id"
        assert client.ask("login", v=1, peer="peer", scram="x")["reason"] == "no such op here"
