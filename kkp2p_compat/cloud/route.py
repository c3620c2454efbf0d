"""The route: tells where a peer may log in and call, and nothing else.

Any node with a track serves any peer, so its answer is the same for all: the nodes that live, the
least loaded one first.
"""

from __future__ import annotations

from ..control.wire import Message, encode
from .control_connection import ControlConnection, Service
from .limits import Gatekeeper
from .messages import peer_id_untrusted
from .nodes import Nodes, fingerprints

__all__ = ["Route"]

MAX_TRACKS = 16  # our choice: as many as a client takes


class Route(Service):
    def __init__(self, gate: Gatekeeper, nodes: Nodes) -> None:
        super().__init__({"beat": self._on_beat, "route": self._on_route})
        self._limits = gate.limits
        self._nodes = nodes

    def _on_route(self, connection: ControlConnection, message: Message) -> None:
        peer_id_untrusted(message, "peer")
        living = [node for node in self._nodes.others if node.serves_peers and not node.draining]
        if not living:
            connection.finish(encode("bye", reason="unavailable"))
            return
        nodes = sorted(living, key=lambda node: node.load)[:MAX_TRACKS]
        tracks = [(node.host, node.port) for node in nodes]
        connection.send(encode("track", tracks=tracks, certificates=fingerprints(nodes) or None))
        connection.allow_quiet(self._limits.idle_s)

    def _on_beat(self, connection: ControlConnection, message: Message) -> None:
        connection.send(encode("beat"))
