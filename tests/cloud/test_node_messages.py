"""What comes from other nodes: a stranger's junk, a newer node's lines, and those of protocol 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.cloud_client import SEEN, time_passes, until
from helpers.shared_directory import Fleet, running_fleet
from kkp2p_compat.cloud import guests
from kkp2p_compat.cloud.directory import Presence
from kkp2p_compat.cloud.nodes import MAX_NODE_LINE_BYTES

OTHER = "0123456789abcdef"
BASE: dict[str, Any] = {"v": 1, "from": OTHER, "connection": 9}
CALL = {
    **BASE,
    "op": "call",
    "host": "127.0.0.1",
    "seen": SEEN,
    "message": {"op": "call", "call": 3, "to": "callee", "ms": 9000, "offer": "{}"},
}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with running_fleet() as made:
        yield made


def _hear(fleet: Fleet, line: object, node: int = 1) -> None:
    nodes = fleet.clouds[node].nodes
    assert nodes is not None
    nodes.handle_line_untrusted(line if isinstance(line, bytes) else json.dumps(line).encode())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 3000,
        b"{" + b" " * MAX_NODE_LINE_BYTES + b"}",
        {"op": "call"},
        {**CALL, "from": 7},
        {**CALL, "from": "x"},
        {**CALL, "host": None},
        {**CALL, "seen": "x"},
        {**CALL, "connection": -1},
        {**CALL, "message": []},
        {**CALL, "message": {"op": "call", "call": [], "to": {}}},
        {**CALL, "rtt": 3},
        {**CALL, "quota": "x"},
        {**CALL, "peer": "\n"},
        {**BASE, "op": "met", "calls": 3},
        {**BASE, "op": "tell", "message": {"op": "answer", "call": 1}},
        {**BASE, "op": "pass", "message": {"op": "login"}},
        {**BASE, "op": "gone", "peer": 1},
    ],
)
def test_junk_changes_nothing(fleet: Fleet, line: object, caplog: pytest.LogCaptureFixture) -> None:
    _hear(fleet, line)
    assert "a fault of ours" not in caplog.text
    assert fleet.calls == [0, 0]
    assert fleet.callee.ask("beat") == {"op": "beat"}


def test_a_node_cannot_answer_a_call_that_another_carries(fleet: Fleet) -> None:
    fleet.caller.call("callee", 1)
    offer = fleet.callee.receive()
    connection = fleet.sent("call")[0]["connection"]
    forged = {"op": "answer", "call": 1, "answer": "forged", "seen": SEEN}
    _hear(fleet, {**BASE, "op": "tell", "connection": connection, "message": forged}, 0)
    fleet.callee.send("answer", call=offer["call"], answer="yes")
    assert fleet.caller.receive()["answer"] == "yes"


def test_a_node_that_makes_up_callers_is_bounded_and_others_are_not(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guests, "MAX_OF_A_NODE", 3)
    heard: list[dict[str, Any]] = []
    _join(fleet, heard)
    for number in range(5):
        _hear(fleet, {**CALL, "connection": number})
    until(lambda: len(heard) == 5)
    refused = {"op": "declined", "call": 3, "reason": "limit", "again": True}
    assert [line["message"] for line in heard if line["connection"] > 2] == [refused] * 2
    assert [message["op"] for message in fleet.received(3)] == ["offer"] * 3
    assert f"over 3 callers of node {OTHER}" in caplog.text
    assert "1 more" not in caplog.text  # it is counted, and told later
    assert fleet.clouds[1].gate.counts.limits["other_nodes"] == 2
    assert fleet.caller.call("callee", 1)["op"] == "calling"  # of the first node
    assert fleet.callee.receive()["op"] == "offer"
    _hear(fleet, {**BASE, "op": "left", "connection": 0})
    assert fleet.callee.receive()["op"] == "cancel"
    time_passes(fleet.clouds[1], 1)
    _hear(fleet, {**CALL, "connection": 5})
    assert fleet.callee.receive()["op"] == "offer"


def test_a_caller_of_another_node_cannot_have_calls_without_end(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guests, "MAX_OF_A_NODE", 3)
    for number in range(5):
        _hear(fleet, {**CALL, "message": {**CALL["message"], "call": number}})
    offers = fleet.received(3)
    assert f"over 3 unanswered calls of node {OTHER}" in caplog.text
    assert fleet.calls == [0, 3]
    for offer in offers:
        fleet.callee.send("answer", call=offer["call"], answer="yes")
        fleet.received(0)
    time_passes(fleet.clouds[1], 1)
    _hear(fleet, {**CALL, "message": {**CALL["message"], "call": 9}})
    assert fleet.callee.receive()["op"] == "offer"


def test_nodes_that_are_made_up_are_bounded_together(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has one caller; as they do not live, nothing of them stays."""
    monkeypatch.setattr(guests, "MAX_IN_ALL", 3)
    track = fleet.clouds[1].track
    assert track is not None
    assert track._abroad is not None
    for number in range(5):
        _hear(fleet, {**CALL, "from": f"{number:016x}"})
    assert "over 3 callers of other nodes" in caplog.text
    for offer in fleet.received(3):
        fleet.callee.send("answer", call=offer["call"], answer="yes")
        fleet.received(0)
    assert len(track._abroad._guests) == 3
    time_passes(fleet.clouds[1], 20)  # more than the calls have
    assert len(track._abroad._guests) == 0
    assert len(track._calls.correspondents) == 0


@pytest.mark.parametrize("version", [1, 2])
def test_a_call_from_a_node_of_protocol_1_or_newer(fleet: Fleet, version: int) -> None:
    heard: list[dict[str, Any]] = []
    _join(fleet, heard)
    more = {} if version == 1 else {"v": 2, "new": {"deep": [1]}}
    if more:
        _hear(fleet, {**BASE, **more, "op": "unheard-of"})
    _hear(fleet, {**CALL, **more})
    offer = fleet.callee.receive()
    fleet.callee.send("answer", call=offer["call"], answer="yes")
    until(lambda: any(line["message"]["op"] == "answer" for line in heard))
    answer = next(line for line in heard if line["message"]["op"] == "answer")
    assert (answer["op"], answer["v"], answer["connection"]) == ("tell", 1, 9)
    assert answer["message"] == {"op": "answer", "call": 3, "answer": "yes", "seen": SEEN}
    trickle = {"op": "trickle", "call": 3, "text": "more"}
    _hear(fleet, {**BASE, **more, "op": "pass", "message": trickle})
    assert fleet.callee.receive() == {**trickle, "call": offer["call"]}
    _hear(fleet, {**BASE, **more, "op": "left"})


@pytest.mark.parametrize("version", [1, 2])
def test_a_call_to_a_node_of_protocol_1_or_newer(fleet: Fleet, version: int) -> None:
    """What it says that we do not know changes nothing; what the callee adds goes to the caller."""
    heard: list[dict[str, Any]] = []
    _join(fleet, heard, version)
    more = {} if version == 1 else {"v": 2, "new": {"deep": [1]}}
    fleet.shared.presences["other"] = Presence("other", OTHER, 4, "s", 1)
    fleet.caller.send("call", call=1, to="other", ms=9000, offer="{}")
    until(lambda: heard)
    call = heard[0]
    assert (call["op"], call["v"], call["from"]) == ("call", 1, fleet.id(0))
    assert (call["host"], call["seen"]) == ("127.0.0.1", SEEN)
    assert {"op": "call", "call": 1, "to": "other", "offer": "{}"}.items() <= call[
        "message"
    ].items()
    tell = {**BASE, **more, "op": "tell", "connection": call["connection"]}
    if more:
        _hear(fleet, {**tell, "op": "unheard-of"}, 0)
        _hear(fleet, {**tell, "message": {"op": "unheard-of", "call": 1}}, 0)
    extra = {"new": 1} if more else {}
    for message in (
        {"op": "calling", "call": 1, **extra},
        {"op": "trickle", "call": 1, "text": "t"},
        {"op": "answer", "call": 1, "answer": "yes", **extra},
        {"op": "trickle", "call": 1, "text": "u"},
    ):
        _hear(fleet, {**tell, "message": message}, 0)
        assert fleet.caller.receive() == message
    fleet.caller.send("cancel", call=1)
    until(lambda: len(heard) == 2)
    assert (heard[1]["op"], heard[1]["message"]) == ("pass", {"op": "cancel", "call": 1})


def _join(fleet: Fleet, heard: list[dict[str, Any]], protocol: int = 1) -> None:
    """A node that only keeps what it is told."""
    first = fleet.clouds[0].nodes
    assert first is not None
    node = first.living[first.id]
    fleet.shared.leases[OTHER] = replace(node, id=OTHER, protocol=protocol), float("inf")
    listener: Any = SimpleNamespace(on_line=lambda line: heard.append(json.loads(line)))
    fleet.shared.listeners[OTHER] = listener
