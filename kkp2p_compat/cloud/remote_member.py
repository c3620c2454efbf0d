"""Who is at another node, for the calls that two nodes carry together.

The node of the callee carries a call as any other; there the caller is a Member whose connection
is a ``RemoteConnection``.  On the node of the caller the callee is a ``Carrier``: the node that
carries the call.  So limits, time-outs and all else that holds for calls holds on both.
"""

from __future__ import annotations

import json
from typing import Any

from ..control.wire import Message
from .members import Call, Member
from .nodes import Nodes
from .settings import Limits

__all__ = ["Carrier", "RemoteConnection", "remote_caller"]


class RemoteConnection:
    """A caller's control connection, which another node has: number ``number`` there."""

    is_new = False  # its own node has taken care of that
    is_open = True

    def __init__(self, nodes: Nodes, node_id: str, number: int, host: str) -> None:
        self.node_id = node_id
        self.number = number
        self.host = host
        self.peer_id: str | None = None
        self._nodes = nodes

    def __str__(self) -> str:
        name = f"{self.host} ({self.peer_id})" if self.peer_id else self.host
        return f"{name} at node {self.node_id}"

    def has_room(self, line: bytes) -> bool:
        """Its own node knows, and decides."""
        return True

    def send(self, line: bytes) -> None:
        self._nodes.send(self.node_id, "tell", inner=line, connection=self.number)


def remote_caller(connection: RemoteConnection, limits: Limits) -> Member:
    here: Any = connection  # what a Member asks of one
    return Member(here, limits)


class Carrier(Member):
    """Another node, in the place of the callees of the calls that it carries for ours."""

    __slots__ = ("_nodes", "node_id")

    def __init__(self, nodes: Nodes, node_id: str, limits: Limits) -> None:
        there: Any = RemoteConnection(nodes, node_id, 0, "0.0.0.0")
        super().__init__(there, limits)
        self.node_id = node_id
        self._nodes = nodes

    def __str__(self) -> str:
        return f"node {self.node_id}"

    def send(self, line: bytes) -> None:
        """What the callee of a call would be told, by the name that the call has here."""
        message = json.loads(line)
        call = self.incoming.get(message["call"])
        if call is not None:
            self.pass_on(call, message)

    def pass_on(self, call: Call, message: Message) -> None:
        """What the caller says of a call."""
        inner = json.dumps({**message, "call": call.number}, separators=(",", ":")).encode()
        self._nodes.send(self.node_id, "pass", inner=inner, connection=call.caller.number)
