"""Links that outlive their path: what is done when a peer is not heard any more.

A path dies when an address changes, a NAT forgets, a router starts anew.  Packets from a new
address are followed by the connection itself, where they get through.  Where they do not, because
the NATs let in only whom they know, both sides must look for a path again, like ICE does when it
restarts (RFC 8445 section 2.4): the side that called calls again, and the offer names the
connection.  The keys, the channels and what is on its way stay; the new address counts when the
peer has answered a challenge from there under the connection's keys, so a stranger who calls in
another's name moves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import Logger
from random import SystemRandom
from typing import Any

import gevent

from ..._errors import KKP2PError
from ...control.backoff import Backoff
from ..paths.path_finder import Path
from .peer_link import PeerLink

__all__ = ["Roaming"]

# Our choices.
CALL_S = 8.0  # how long one search for a new path may take
CHECK_EVERY_S = 1.0  # at most
PROVE_S = 1.0  # how long a found path has to bring the peer's voice
# Between two searches: drawn, as all the peers behind a router move at once, and growing.
PAUSE_FIRST_S = 0.1
PAUSE_SPREAD_S = 0.4
PAUSE_MOST_S = 1.5


class Roaming:
    """``redial`` looks for a new path to a link's peer; ``check_cloud`` if the cloud is there."""

    def __init__(
        self, redial: Callable[[PeerLink, float], Path], check_cloud: Callable[[], object],
        log: Logger, spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:  # fmt: skip
        self._redial = redial
        self._check_cloud = check_cloud
        self._log = log
        self._spawn = spawn
        self._random = SystemRandom()
        self._checked_at: dict[str, float] = {}

    def handle_suspected(self, link: PeerLink) -> None:
        """The peer has not been heard for a while."""
        self._check("suspected")  # if it is our network, the cloud has lost us, too
        if link.info.dials is not None and link.search is None:
            self._log.info("%s: not heard any more: looking for another path", link.name)
            link.search = self._spawn(self._search, link)

    def handle_end(self, link: PeerLink) -> None:
        """The peer was heard again, or the link is closed."""
        search, link.search = link.search, None
        if search is not None:
            search.kill(block=False)
        if link.closed is None:
            self._check("heard")  # what died in an outage is found now, and not when it is needed

    def _check(self, why: str) -> None:
        """Hundreds of links die and live together: once for all of them."""
        now = time.monotonic()
        if now - self._checked_at.get(why, -CHECK_EVERY_S) >= CHECK_EVERY_S:
            self._checked_at[why] = now
            self._check_cloud()

    def _search(self, link: PeerLink) -> None:
        pauses = Backoff(self._random, PAUSE_FIRST_S, PAUSE_MOST_S, PAUSE_SPREAD_S)
        while link.closed is None:
            try:
                address, _ = self._redial(link, CALL_S)
            except KKP2PError as error:
                self._log.info("%s: no other path yet: %s", link.name, error)
            else:
                self._log.info("%s: trying %s port %d", link.name, *address[:2])
                link.try_path(address)
                gevent.sleep(PROVE_S)  # being heard ends this greenlet
            gevent.sleep(pauses.next())
