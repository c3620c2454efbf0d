"""Where the two sides of a call meet through a TURN server.

The caller allocates, and tells the callee its relayed address.  Then both run checks as for a
direct path, but with credentials of their own, so that neither search takes the other's path: the
caller from its relayed address to the callee's, the callee to the relayed one.  The checks open the
NATs and make the server's permissions, and show that packets pass both ways.

In mode 2 neither side shows the other an address of its own: both allocate, and the path leads from
one relayed address to the other.

Runs in the engine's hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gevent.event import AsyncResult

from ..._address import HostPort, host_port_untrusted
from ..._errors import BadPacket, NoPath
from ..._io import time_limit
from ...traversal.candidates import Candidate
from ...traversal.credentials import Credentials
from ...traversal.notes import Note
from ...traversal.turn_server import TurnServer
from ..signalling.direct_offer import DirectOffer
from ..signalling.keys import CallKeys
from ..signalling.own_side import OwnSide
from ..signalling.trickle import Trickle
from .path_finder import Path
from .path_kind import PathKind
from .puncher import Means
from .turn_allocation import TurnAllocation, allocate

__all__ = ["HiddenMeeting", "TurnMeeting"]

MEET_S = 5.0  # our choice: to allocate, to tell, and for the checks
PRIORITY = 1  # of the one candidate, which nothing is compared with


class TurnMeeting:
    """``meet`` in a greenlet; ``close`` in any case, and last, as the path ends with it."""

    def __init__(
        self,
        means: Means,
        ours: DirectOffer,
        theirs: DirectOffer,
        keys: CallKeys,
        is_caller: bool,
        note: Callable[[Note], object],
        tell: Callable[[dict[str, Any]], object],
        hides: bool = False,
    ) -> None:
        """``tell`` takes fields to the peer.  ``hides``: both sides their addresses."""
        self._means = means
        self._ours = ours
        self._theirs = theirs
        self._keys = keys
        self._is_caller = is_caller
        self._note = note
        self._tell = tell
        self._hides = hides
        self._told: AsyncResult[HostPort] = AsyncResult()
        self._allocation: TurnAllocation | None = None
        self._closed = False

    def hear_untrusted(self, place: object) -> None:
        """Where the peer says that it is reached; raises BadPacket."""
        is_wanted = self._hides or not self._is_caller
        if not isinstance(place, list) or len(place) != 2 or not is_wanted:
            raise BadPacket("not a relayed address")
        if not self._told.ready():
            self._told.set(host_port_untrusted(*place))

    def meet(
        self, servers: Callable[[], Sequence[TurnServer]], on_over: Callable[[int], object]
    ) -> Path:
        """The path; raises KKP2PError.  ``servers`` may wait; ``on_over``: as of TurnAllocation."""
        with time_limit(MEET_S, NoPath("TURN: no path in time")):
            if self._is_caller or self._hides:
                return self._allocate(servers(), on_over)
            return self._search(self._means.own.candidates(), [_candidate(self._told.get())])

    def _allocate(self, servers: Sequence[TurnServer], on_over: Callable[[int], object]) -> Path:
        made = allocate(self._means.endpoint, servers, self._means.log, on_over)
        self._allocation = made
        relayed = made.relayed
        if relayed is None or self._closed:
            made.close()
            raise NoPath("TURN: the allocation has ended")
        self._tell({"relayed": [*relayed]})
        theirs = [_candidate(self._told.get())] if self._hides else self._theirs.candidates
        return self._search([_candidate(relayed)], theirs, made.number)

    def _search(
        self, own: Sequence[Candidate], candidates: list[Candidate], number: int = 0
    ) -> Path:
        names = ("caller", "callee") if self._is_caller else ("callee", "caller")
        mine, other = (Credentials.derive(self._keys.trickle, f"turn {name}") for name in names)
        ours = replace(self._ours, credentials=mine)
        theirs = replace(self._theirs, credentials=other, candidates=candidates)
        finder = self._means.finder
        with finder.searching(ours, own, theirs, self._is_caller, self._note, number) as search:
            return search.found.get()._replace(kind=PathKind.TURN)

    def close(self) -> None:
        """May be called again."""
        self._closed = True
        if self._allocation is not None:
            self._allocation.close()


class HiddenMeeting:
    """Of the two sides of a call in mode 2: all that they tell each other is relayed addresses."""

    def __init__(
        self,
        means: Means,
        own_side: OwnSide,
        theirs: DirectOffer,
        keys: CallKeys,
        note: Callable[[Note], object],
        send: Callable[[str], object],
    ) -> None:
        """``send`` takes a trickled text to the peer."""
        self._log = means.log
        self._trickle = Trickle(keys.trickle, own_side.is_caller, send)
        self.turn = TurnMeeting(
            means,
            own_side.direct,
            theirs,
            keys,
            own_side.is_caller,
            note,
            self._trickle.send,
            hides=True,
        )

    def handle_text_untrusted(self, text: object) -> None:
        """What the peer trickled."""
        try:
            self.turn.hear_untrusted(self._trickle.open_untrusted(text).get("relayed"))
        except BadPacket as error:
            self._log.info("trickle: dropped: %s", error)


def _candidate(address: HostPort) -> Candidate:
    return Candidate("relay", PRIORITY, *address)
