"""Links that outlive their path: what is done when a peer is not heard any more.

A path dies when an address changes, a NAT forgets its mapping, or a router restarts.  If packets
from the new address get through, the connection itself follows them.  If they do not, because NATs
let in only addresses that they know, both sides must look for a path again, as in an ICE restart
(RFC 8445 section 2.4): the side that called calls again, and its offer names the connection.  Keys,
channels and data on their way stay.  The new address counts once the peer has answered a challenge
from there under the connection's keys, so a stranger who calls in another's name moves nothing.
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
from .peer_link import PeerLink

__all__ = ["Roaming"]

# Our choices.
CALL_S = 8.0  # how long one search for a new path may take
CHECK_EVERY_S = 1.0  # at most
PROVE_S = 1.0  # how long the peer has to be heard on a path that was found
RELAY_S = 1.0  # the way over a relay that is ready has so long before any call
# Between two searches: random, as all the peers behind a router move at once, and growing.
PAUSE_FIRST_S = 0.1
PAUSE_SPREAD_S = 0.4
PAUSE_MOST_S = 1.5


class Roaming:
    """``redial`` looks for new paths to a link's peer, also over TCP if its last argument says so;
    ``check_cloud`` asks if the cloud is there.

    The side that was called does not look: it is called again.
    """

    def __init__(
        self,
        redial: Callable[[PeerLink, float, bool], object],
        check_cloud: Callable[[], object],
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:
        self._redial = redial
        self._check_cloud = check_cloud
        self._log = log
        self._spawn = spawn
        self._random = SystemRandom()
        self._searches: dict[PeerLink, gevent.Greenlet[..., Any]] = {}
        self._seeking: dict[PeerLink, gevent.Greenlet[..., Any]] = {}
        self._checked_at: dict[str, float] = {}

    def handle_suspected(self, link: PeerLink) -> None:
        """The peer has not been heard for a while."""
        self._check("suspected")  # if it is our network, the cloud has lost us, too
        if link.info.is_caller and link not in self._searches:
            self._log.info("%s: not heard any more: looking for another path", link.name)
            self._searches[link] = self._spawn(self._search, link)

    def handle_recovered(self, link: PeerLink) -> None:
        """The peer was heard again."""
        self.handle_closed(link)
        self._check("heard")  # what died in an outage is found now, and not when it is needed

    def handle_closed(self, link: PeerLink) -> None:
        for search in (self._searches.pop(link, None), self._seeking.pop(link, None)):
            if search is not None:
                search.kill(block=False)

    def seek(self, link: PeerLink, needs_tcp: bool) -> None:
        """The peer is heard, but a better path, or a second one, is wanted: call once."""
        if link not in self._seeking and link not in self._searches:
            self._seeking[link] = self._spawn(self._seek, link, needs_tcp)

    def _seek(self, link: PeerLink, needs_tcp: bool) -> None:
        try:
            self._redial(link, CALL_S, needs_tcp)
        except KKP2PError as error:
            self._log.info("%s: no better path yet: %s", link.name, error)
        finally:
            self._seeking.pop(link, None)

    def _check(self, why: str) -> None:
        """Once for all links: hundreds of them die and recover together."""
        now = time.monotonic()
        if now - self._checked_at.get(why, -CHECK_EVERY_S) >= CHECK_EVERY_S:
            self._checked_at[why] = now
            self._check_cloud()

    def _search(self, link: PeerLink) -> None:
        if link.paths.has_second:
            gevent.sleep(RELAY_S)
        pauses = Backoff(self._random, PAUSE_FIRST_S, PAUSE_MOST_S, PAUSE_SPREAD_S)
        while link.closed is None:
            try:
                self._redial(link, CALL_S, False)
            except KKP2PError as error:
                self._log.info("%s: no other path yet: %s", link.name, error)
            else:
                gevent.sleep(PROVE_S)  # being heard ends this greenlet
            gevent.sleep(pauses.next())
