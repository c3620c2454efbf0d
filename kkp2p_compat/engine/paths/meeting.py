"""Both sides of a call have spoken: look for a path between them.

The checks run on the endpoint's sockets, the puncher does what the plan says beyond them, and what
either side learns meanwhile is trickled to the other.  The same for both sides, and for the LAN,
where nothing can be trickled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from logging import Logger
from typing import Any

import gevent
from gevent.event import AsyncResult

from ..._errors import BadPacket
from ...transport.udp.endpoint import Endpoint
from ...traversal.candidates import Candidate, parse_untrusted
from ...traversal.plan import Side, make_plan
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer
from ..signalling.trickle import Trickle
from .own_addresses import OwnAddresses
from .path_finder import Path, PathFinder
from .puncher import Puncher

__all__ = ["Meeting"]


class Meeting:
    """Searches inside ``with``; ``found`` has the path.  ``send`` takes a text to the peer."""

    def __init__(
        self, finder: PathFinder, own: OwnAddresses, endpoint: Endpoint, *, is_caller: bool,
        ours: DirectOffer, theirs: DirectOffer, key: bytes, send: Callable[[str], object],
        timeline: Timeline, log: Logger, spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:  # fmt: skip
        caller, callee = (ours, theirs) if is_caller else (theirs, ours)
        self.plan = make_plan(
            Side(caller.nat, caller.candidates), Side(callee.nat, callee.candidates), caller.worked
        )
        self._finder = finder
        self._own = own
        self._endpoint = endpoint
        self._is_caller = is_caller
        self._ours = ours
        self._theirs = theirs
        self._trickle = Trickle(key, is_caller, send)
        self._timeline = timeline
        self._log = log
        self._spawn = spawn
        self.to_stranger = ours.to_stranger
        self._told = set(ours.candidates)
        self._stack = ExitStack()
        timeline.plan, timeline.own_nat, timeline.peer_nat = self.plan, ours.nat, theirs.nat
        timeline.note(f"the peer's NAT: {theirs.nat.text}")
        timeline.note(f"plan: {self.plan.kind}: {self.plan.reason}")

    def __enter__(self) -> Meeting:
        with ExitStack() as stack:
            self._search = stack.enter_context(
                self._finder.searching(
                    self._ours,
                    self._own.candidates(),
                    self._theirs,
                    self._is_caller,
                    self._timeline.note,
                )
            )
            self._puncher = Puncher(
                self._search, self.plan, self._is_caller, self._own, self._endpoint,
                self._trickle.send, self._log,
            )  # fmt: skip
            stack.callback(self._puncher.close)
            punching = self._spawn(self._puncher.run)
            stack.callback(punching.kill, block=False)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def take_path(self) -> Path:
        """Wait for the path.  A socket that is opened for it is the taker's from now on."""
        path = self.found.get()
        self._puncher.keep(path[0])
        return path

    @property
    def found(self) -> AsyncResult[Path]:
        return self._search.found

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Trickle those that the peer does not know yet."""
        fresh = [candidate for candidate in candidates if candidate not in self._told]
        if fresh and not self.found.ready():
            self._told.update(fresh)
            self._trickle.send({"candidates": [candidate.text for candidate in fresh]})

    def handle_text_untrusted(self, text: object) -> None:
        """What the peer trickled."""
        try:
            fields = self._trickle.open_untrusted(text)
            if "candidates" in fields:
                candidates = parse_untrusted(fields["candidates"])
                self._timeline.note(f"the peer has learnt {len(candidates)} more addresses")
                self._search.checks.add_candidates(candidates)
                self._search.poll()
            self._puncher.handle_fields_untrusted(fields)
        except BadPacket as error:
            self._timeline.note(f"dropped: {error}")
            self._log.info("trickle: dropped: %s", error)
