"""The route: tells on which track a peer is.  It computes that, and shares state with nobody.

Rendezvous hashing: of the tracks that are alive, a peer belongs to the one with the highest
SHA-256 of ``peer_id NUL host:port``.  Every route with the same list gives the same answer.
"""

from __future__ import annotations

import hashlib
import logging

import gevent
from gevent import socket

from .._errors import BadPacket
from ..control.wire import Message, encode
from .accounts import valid_peer_id
from .connection import Connection, Service
from .limits import Gatekeeper

__all__ = ["Address", "Route", "rank"]

log = logging.getLogger(__name__)

Address = tuple[str, int]

# Our choices, in seconds.
PROBE_EVERY_S = 3.0
PROBE_TIMEOUT_S = 2.0


def rank(tracks: list[Address], peer_id: str) -> list[Address]:
    """The tracks, the one that a peer belongs to first."""

    def weight(track: Address) -> bytes:
        return hashlib.sha256(f"{peer_id}\0{track[0]}:{track[1]}".encode()).digest()

    return sorted(tracks, key=weight, reverse=True)


class Route(Service):
    """``start`` begins to look which tracks are alive; until it knows, all are."""

    def __init__(self, gate: Gatekeeper, tracks: list[Address], certificates: list[str]) -> None:
        super().__init__({"beat": self._on_beat, "route": self._on_route})
        self._limits = gate.limits
        self._tracks = tracks
        self._certificates = certificates  # SHA-256s of the tracks' ones
        self._dead: set[Address] = set()
        self._probes: list[gevent.Greenlet[..., None]] = []

    def start(self) -> None:
        self._probes = [gevent.spawn(self._probe, track) for track in self._tracks]

    def stop(self) -> None:
        gevent.killall(self._probes)

    def _on_route(self, connection: Connection, message: Message) -> None:
        peer_id = message.get("peer")
        if not valid_peer_id(peer_id):
            raise BadPacket("peer is not a peer id")
        alive = [track for track in self._tracks if track not in self._dead]
        # With none alive: a list all the same, because an empty one means "right here".
        tracks, certificates = rank(alive or self._tracks, str(peer_id)), self._certificates
        connection.send(encode("track", tracks=tracks, certificates=certificates or None))
        connection.allow_quiet(self._limits.idle_s)

    def _on_beat(self, connection: Connection, message: Message) -> None:
        connection.send(encode("beat"))

    def _probe(self, track: Address) -> None:
        while True:
            try:
                with gevent.Timeout(PROBE_TIMEOUT_S, TimeoutError("no answer")):
                    socket.create_connection(track).close()
            except OSError as error:
                if track not in self._dead:
                    log.warning("track %s:%d is dead: %s", *track, error)
                self._dead.add(track)
            else:
                if track in self._dead:
                    log.warning("track %s:%d is alive again", *track)
                self._dead.discard(track)
            gevent.sleep(PROBE_EVERY_S)
