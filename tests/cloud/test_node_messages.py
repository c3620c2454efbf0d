"""What comes from other nodes: a stranger's junk, a newer node's lines, and those of protocol 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.cloud_client import SEEN, until
from helpers.shared_directory import ACCOUNTS, Fleet, running_nodes
from kkp2p_compat.cloud.directory import Presence
from kkp2p_compat.cloud.nodes import MAX_NODE_LINE_BYTES

OTHER = "0123456789abcdef"
BASE: dict[str, Any] = {"v": 1, "from": OTHER, "connection": 9}
CALL = {
    **BASE, "op": "call", "host": "127.0.0.1", "seen": SEEN,
    "message": {"op": "call", "call": 3, "to": "callee", "ms": 9000, "offer": "{}"},
}  # fmt: skip


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with running_nodes(2, ACCOUNTS) as (shared, clouds):
        made = Fleet(shared, clouds)
        yield made
        for client in made.clients:
            client.close()
        until(made.is_clean)


def _hear(fleet: Fleet, line: object, node: int = 1) -> None:
    nodes = fleet.clouds[node].nodes
    assert nodes is not None
    nodes.handle_line_untrusted(line if isinstance(line, bytes) else json.dumps(line).encode())


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\xff", b"[]", b"[" * 3000, b"{" + b" " * MAX_NODE_LINE_BYTES + b"}",
        {"op": "call"}, {**CALL, "from": 7}, {**CALL, "from": "x"}, {**CALL, "host": None},
        {**CALL, "seen": "x"}, {**CALL, "connection": -1}, {**CALL, "message": []},
        {**CALL, "message": {"op": "call", "call": [], "to": {}}}, {**CALL, "rtt": 3},
        {**CALL, "quota": "x"}, {**CALL, "peer": "\n"}, {**BASE, "op": "met", "calls": 3},
        {**BASE, "op": "tell", "message": {"op": "answer", "call": 1}},
        {**BASE, "op": "pass", "message": {"op": "login"}}, {**BASE, "op": "gone", "peer": 1},
    ],
)  # fmt: skip
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


def test_a_call_to_a_node_of_protocol_1(fleet: Fleet) -> None:
    heard: list[dict[str, Any]] = []
    _join(fleet, heard)
    fleet.shared.presences["other"] = Presence("other", OTHER, 4, "s", 1)
    fleet.caller.send("call", call=1, to="other", ms=9000, offer="{}")
    until(lambda: heard)
    call = heard[0]
    assert (call["op"], call["v"], call["from"]) == ("call", 1, fleet.id(0))
    assert (call["host"], call["seen"]) == ("127.0.0.1", SEEN)
    assert {"op": "call", "call": 1, "to": "other", "offer": "{}"}.items() <= call[
        "message"
    ].items()
    tell = {**BASE, "op": "tell", "connection": call["connection"]}
    for message in ({"op": "calling", "call": 1}, {"op": "trickle", "call": 1, "text": "t"}):
        _hear(fleet, {**tell, "message": message}, 0)
        assert fleet.caller.receive() == message
    fleet.caller.send("cancel", call=1)
    until(lambda: len(heard) == 2)
    assert (heard[1]["op"], heard[1]["message"]) == ("pass", {"op": "cancel", "call": 1})


def _join(fleet: Fleet, heard: list[dict[str, Any]]) -> None:
    """A node that only keeps what it is told."""
    first = fleet.clouds[0].nodes
    assert first is not None
    node = first.living[first.id]
    fleet.shared.leases[OTHER] = type(node)(**{**vars(node), "id": OTHER}), float("inf")
    listener: Any = SimpleNamespace(on_line=lambda line: heard.append(json.loads(line)))
    fleet.shared.listeners[OTHER] = listener
