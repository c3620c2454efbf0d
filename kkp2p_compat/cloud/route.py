"""The route: tells on which track a peer is.  It computes that from its list of tracks alone.

Rendezvous hashing: of the tracks that are alive, a peer belongs to the one with the highest
SHA-256 of ``peer_id NUL host:port``.  Every route with the same list gives the same answer.
"""

from __future__ import annotations

import hashlib

from .._address import HostPort
from .._errors import BadPacket
from .._peer_id import is_peer_id
from ..control.wire import Message, encode
from .control_connection import ControlConnection, Service
from .directory import Node
from .limits import Gatekeeper
from .nodes import Nodes
from .prober import Prober

__all__ = ["Route", "rank"]


MAX_TRACKS = 16  # our choice: as many as a client takes


def rank(tracks: list[HostPort], peer_id: str) -> list[HostPort]:
    """The tracks, the one that a peer belongs to first."""

    def weight(track: HostPort) -> bytes:
        return hashlib.sha256(f"{peer_id}\0{track[0]}:{track[1]}".encode()).digest()

    return sorted(tracks, key=weight, reverse=True)


class Route(Service):
    """``start`` begins to look which tracks are alive; until it knows, all are."""

    def __init__(
        self,
        gate: Gatekeeper,
        tracks: list[HostPort],
        certificates: list[str],
        nodes: Nodes | None = None,
    ) -> None:
        """``nodes``: of the cloud, instead of a list of tracks: any of them serves any peer."""
        super().__init__({"beat": self._on_beat, "route": self._on_route})
        self._limits = gate.limits
        self._certificates = certificates  # SHA-256s of the tracks' ones
        self._tracks = Prober("track", tracks)
        self._nodes = nodes

    def start(self) -> None:
        self._tracks.start()

    def stop(self) -> None:
        self._tracks.stop()

    def _on_route(self, connection: ControlConnection, message: Message) -> None:
        peer_id = message.get("peer")
        if not is_peer_id(peer_id):
            raise BadPacket("peer is not a peer id")
        if self._nodes is not None:
            living = self._least_loaded(self._nodes)
            if not living:
                connection.finish(encode("bye", reason="unavailable"))
                return
            tracks = [(node.host, node.port) for node in living]
            certificates = [*dict.fromkeys(n.fingerprint for n in living if n.fingerprint)]
        else:
            # Never empty, for that means "right here".
            tracks, certificates = rank(self._tracks.alive, str(peer_id)), self._certificates
        connection.send(encode("track", tracks=tracks, certificates=certificates or None))
        connection.allow_quiet(self._limits.idle_s)

    def _least_loaded(self, nodes: Nodes) -> list[Node]:
        living = [each for each in nodes.others if each.serves_peers and not each.draining]
        return sorted(living, key=lambda each: each.load)[:MAX_TRACKS]

    def _on_beat(self, connection: ControlConnection, message: Message) -> None:
        connection.send(encode("beat"))
