"""Run connectivity checks over the endpoint's sockets until a path is found.

Runs in the engine's hub: datagrams and timers drive the checks in callbacks, whoever wants the
path waits for it in a greenlet.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from random import SystemRandom
from typing import Any, NamedTuple

from gevent import get_hub
from gevent.event import AsyncResult

from ..._address import Address
from ...transport.udp.endpoint import Endpoint
from ...traversal.candidates import Candidate
from ...traversal.check_table import CheckTable
from ...traversal.checks import Checks
from ...traversal.courtesy import Courtesy
from ...traversal.notes import Note
from ..signalling.direct_offer import DirectOffer
from .driver import Driver
from .path_kind import PathKind

__all__ = ["Path", "PathFinder", "Search"]

STAY_S = 5.0  # our choice: after the end, as the peer may have missed our last answer


class Path(NamedTuple):
    """A way on which packets get through in both directions."""

    address: Address  # of the peer, or of the relay
    rtt_s: float | None  # None: it was not measured
    kind: PathKind = PathKind.DIRECT


class PathFinder:
    """``handle_stun`` takes the endpoint's STUN messages."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._table = CheckTable()
        self._courtesy = Courtesy()
        self._searches: dict[Checks, Search] = {}

    def __len__(self) -> int:
        return len(self._searches)

    @contextlib.contextmanager
    def searching(
        self,
        ours: DirectOffer,
        own: Sequence[Candidate],
        theirs: DirectOffer,
        controlling: bool,
        note: Callable[[Note], object],
        number: int = 0,
    ) -> Iterator[Search]:
        """Look for a path inside the body, which waits for it as long as it likes.

        ``own``: our candidates, whether told to the peer or not.  ``note`` gets what the checks do
        and learn.  ``number``: of the socket that all checks go by.
        """
        checks = Checks(
            controlling=controlling,
            local=ours.credentials,
            remote=theirs.credentials,
            local_candidates=own,
            candidates=theirs.candidates,
            vouched=theirs.vouched,
            now=time.monotonic(),
            random=SystemRandom(),
            courtesy=self._courtesy,
            number=number,
        )
        search = Search(checks, self._endpoint, note)
        self._table.add(checks)
        self._searches[checks] = search
        search.poll()
        try:
            yield search
        finally:
            if checks.selected is None:
                self._end(search)
            else:
                search.stay(lambda: self._end(search))

    def _end(self, search: Search) -> None:
        self._table.remove(search.checks)
        self._searches.pop(search.checks, None)
        search.close()

    def handle_stun(self, data: bytes, source: Address) -> None:
        checks = self._table.handle_datagram_untrusted(data, source, time.monotonic())
        if checks is not None:
            self._searches[checks].poll()

    def close(self) -> None:
        for search in list(self._searches.values()):
            self._end(search)


class Search(Driver):
    """The checks of one call, and their timer."""

    def __init__(self, checks: Checks, endpoint: Endpoint, note: Callable[[Note], object]) -> None:
        super().__init__(checks, endpoint, self._look)
        self.checks = checks
        self._note = note
        self.found: AsyncResult[Path] = AsyncResult()
        self._end_timer: Any = None

    def _look(self) -> None:
        """See what has come of the checks."""
        checks = self.checks
        for note in checks.notes:
            self._note(note)
        checks.notes.clear()
        if checks.selected is not None and not self.found.ready():
            self.found.set(Path(checks.selected, checks.round_trip_s or 0.0))

    def stay(self, end: Any) -> None:
        """The path is found: answer the peer's checks a little longer, then call ``end``."""
        self._end_timer = get_hub().loop.timer(STAY_S)
        self._end_timer.start(end)

    def close(self) -> None:
        super().close()
        if self._end_timer is not None:
            self._end_timer.close()
            self._end_timer = None
