"""The searches for paths to peers, and what they share.

Runs in the engine's hub.  Apart from the underlay, which has it made for the first search: an
engine that nobody calls needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger
from typing import Any

import gevent

from ...transport.udp.endpoint import Endpoint
from ...traversal.nat import BLOCKED, NatBehaviour
from ..runtime.log import PeerLog
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer
from ..signalling.keys import CallKeys
from ..signalling.own_side import OwnSide
from .birthdays import Birthdays
from .lanes import Lanes
from .meeting import Meeting
from .own_addresses import OwnAddresses
from .path_finder import PathFinder
from .puncher import Means
from .relay_paths import RelayAccess, RelayPaths
from .turn_meeting import HiddenMeeting
from .udp_use import UdpUse

__all__ = ["Searches"]


class Searches:
    """``finder`` runs the checks, ``lanes`` has our places on the lanes of relays."""

    def __init__(
        self,
        endpoint: Endpoint,
        own: OwnAddresses,
        udp: UdpUse,
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:
        self.lanes = Lanes(endpoint)
        self.finder = PathFinder(endpoint)
        self._udp = udp
        self._means = Means(endpoint, own, self.finder, Birthdays(), log, spawn)
        self._meetings: set[Meeting] = set()

    def _means_for(self, peer: str) -> Means:
        return self._means._replace(log=PeerLog(self._means.log, peer))

    def handle_addresses(self) -> None:
        """We know something new of our own."""
        for meeting in list(self._meetings):
            meeting.tell(self._means.own.candidates(meeting.to_stranger))

    @contextmanager
    def meeting(
        self,
        peer: str,
        own_side: OwnSide,
        theirs: DirectOffer,
        keys: CallKeys,
        timeline: Timeline,
        trickle: Callable[[str], object] | None,
    ) -> Iterator[Meeting]:
        """Look for a path inside the body.  ``peer``: who that is, for the log.  ``trickle``: how a
        text gets to the peer, if it can.
        """
        means = self._means_for(peer)
        meeting = Meeting(means, own_side, theirs, keys, timeline, trickle or _nowhere)
        with meeting.searching():
            self._meetings.add(meeting)
            try:
                if trickle is not None:
                    meeting.tell(self._means.own.candidates(meeting.to_stranger))
                yield meeting
            finally:
                self._meetings.discard(meeting)

    def hidden_meeting(
        self,
        peer: str,
        own_side: OwnSide,
        theirs: DirectOffer,
        keys: CallKeys,
        timeline: Timeline,
        trickle: Callable[[str], object],
    ) -> HiddenMeeting:
        """For a call in mode 2."""
        means = self._means_for(peer)
        return HiddenMeeting(means, own_side, theirs, keys, timeline.add, trickle)

    def relays(
        self,
        peer: str,
        access: RelayAccess,
        ids: tuple[int, int],
        is_caller: bool,
        peers_nat: NatBehaviour,
    ) -> RelayPaths:
        """The ways over relays.  ``ids``: of the connection, ours and the peer's."""
        means = self._means_for(peer)
        blocked = BLOCKED.mapping in (means.own.nat.mapping, peers_nat.mapping)
        return RelayPaths(
            means.endpoint,
            self.lanes,
            access,
            ids,
            is_caller,
            self._udp.is_good and not blocked,
            means.log,
            means.spawn,
        )


def _nowhere(text: str) -> None:
    """A LAN search carries nothing after the answer."""
