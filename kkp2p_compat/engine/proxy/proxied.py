"""What whoever watches a proxy is told: of each connection of a TCP port, of each client of UDP.

Or of each channel that a peer opens, where they are published.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from ..._sentence import Sentence
from ...transport.udp.pipe import MessagePort
from ..links.streams import OpenStream
from ..runtime.timeline import Timeline

__all__ = ["STOPPED", "Proxied", "Watch", "ignore"]

STOPPED = Sentence("the proxy is stopped")
WAITED = Sentence("too many waited for the path to the peer")


class Proxied:
    """One channel.  Bytes and datagrams are the local program's."""

    def __init__(self, peer_id: str, name: str, port: int) -> None:
        self.peer_id = peer_id  # of the other side; "": a caller whom nobody vouches for
        self.name = name  # of this one, for people
        self.port = port  # the local program's
        self.target: str | None = None  # where it is published: which one
        self.began_at = time.monotonic()
        self.path = ""  # "p2p" or "relay", once it is connected
        self.address: tuple[str, int] | None = None  # the peer's, or the relay's
        self.reason = ""  # for that path
        self.set_up_s: float | None = None
        self.timeline: Timeline | None = None  # of the attempt that it came of
        self.bytes_sent = 0  # known when it is over
        self.bytes_received = 0
        self.datagrams_sent = 0  # of UDP
        self.datagrams_received = 0
        self.datagrams_lost: Counter[str] = Counter()  # by reason; known when it is over
        self.moves: list[str] = []  # from one path to another, as channel_stats tells them
        self.over = False
        self.problems: list[str] = []  # what broke it; none: it ended in order

    def take(self, stream: OpenStream) -> None:
        self.path, self.address, self.reason = stream.path, stream.address, stream.reason
        self.timeline, self.set_up_s = stream.timeline, stream.set_up_s

    def take_end(self, stream: OpenStream, port: MessagePort | None = None) -> None:
        """What is known of it when it is over."""
        if port is not None and port.dropped:
            self.datagrams_lost[WAITED] += port.dropped
        self.bytes_sent, self.bytes_received = stream.passed()
        self.moves = [move.text for move in stream.moves if move.at >= self.began_at]


# Called in the engine's hub, when a channel is open and when it is over; must not wait.
Watch = Callable[[Proxied], object]


def ignore(proxied: Proxied) -> None:
    """Nobody watches."""
