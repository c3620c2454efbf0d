"""The route: tells where a peer may log in and call, and which relays it may measure.

Any node with a track serves any peer, so its answer is the same for all: the nodes that live, the
least loaded one first.  A caller without a login hears of relays nowhere else.  It asks for each
peer that it calls: those that it is told stay the same while the same ones live, so that it does
not measure others each time.
"""

from __future__ import annotations

from random import Random

from ..control.wire import Message, encode
from .control_connection import ControlConnection, Service
from .limits import Gatekeeper
from .messages import peer_id_untrusted
from .nodes import Nodes, fingerprints
from .relays import to_measure

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
        relays = to_measure(self._nodes.others, Random(self._nodes.id))
        connection.send(
            encode("track", tracks=tracks, certificates=fingerprints(nodes) or None, relays=relays)
        )
        connection.allow_quiet(self._limits.idle_s)

    def _on_beat(self, connection: ControlConnection, message: Message) -> None:
        connection.send(encode("beat"))
