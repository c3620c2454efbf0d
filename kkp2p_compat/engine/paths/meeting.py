"""Both sides of a call have spoken: look for a path between them.

The checks run on the endpoint's sockets, the puncher does what the plan says beyond them, and what
either side learns meanwhile is trickled to the other.  It is the same for both sides, and on the
LAN, where nothing can be trickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from gevent.event import AsyncResult

from ..._errors import BadPacket
from ..._sentence import Sentence, said
from ...traversal.candidates import Candidate, is_private, may_be_peer, parse_untrusted, plausible
from ...traversal.nat import BLOCKED
from ...traversal.plan import Plan, Side, make_plan
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer
from ..signalling.keys import CallKeys
from ..signalling.own_side import OwnSide
from ..signalling.trickle import Trickle
from .path_finder import Path
from .path_kind import PathKind
from .puncher import Means, Puncher
from .tcp_meeting import TcpMeeting
from .turn_meeting import TurnMeeting

__all__ = ["Meeting", "Met"]

PUNCHED = Sentence("UDP is blocked, and TCP found a way through")
MAX_LIKELY = 6  # our choice


class Met(NamedTuple):
    """What a meeting has led to: all that a link to the peer is made of."""

    path: Path
    reason: str  # for it, in words
    plan: Plan
    keys: CallKeys
    ours: DirectOffer
    theirs: DirectOffer
    is_caller: bool
    timeline: Timeline


class Meeting:
    """Use it inside ``searching``; ``found`` is set when there is a path, then ``take`` it."""

    def __init__(
        self,
        means: Means,
        own_side: OwnSide,
        theirs: DirectOffer,
        keys: CallKeys,
        timeline: Timeline,
        send: Callable[[str], object],
    ) -> None:
        """``send`` takes a trickled text to the peer."""
        ours = own_side.direct
        caller, callee = (ours, theirs) if own_side.is_caller else (theirs, ours)
        self.plan = make_plan(
            Side(caller.nat, caller.candidates), Side(callee.nat, callee.candidates), caller.worked
        )
        self.to_stranger = ours.to_stranger
        self.keys = keys
        self._means = means
        self._is_caller = own_side.is_caller
        self._ours = ours
        self._theirs = theirs
        self._trickle = Trickle(keys.trickle, own_side.is_caller, send)
        self._timeline = timeline
        self.turn = TurnMeeting(
            means, ours, theirs, keys, self._is_caller, timeline.add, self._trickle.send
        )
        self._tcp = TcpMeeting(means, keys, self._is_caller, self.to_stranger, self._trickle.send)
        self._told = set(ours.candidates)
        timeline.plan, timeline.own_nat, timeline.peer_nat = self.plan, ours.nat, theirs.nat
        timeline.note("the peer's NAT: {nat}", theirs.nat.text)
        timeline.note("plan: {kind}: {reason}", self.plan.kind, self.plan.reason)

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Look for a path inside the body."""
        means = self._means
        with means.finder.searching(
            self._ours, means.own.candidates(), self._theirs, self._is_caller, self._timeline.add
        ) as self._search:
            self._puncher = Puncher(
                means, self._search, self.plan, self._is_caller, self._trickle.send
            )
            punching = means.spawn(self._puncher.run)
            if BLOCKED.mapping in (self._ours.nat.mapping, self._theirs.nat.mapping):
                self._tcp.begin(self.found)
            try:
                yield
            finally:
                punching.kill(block=False)
                self._puncher.close()
                self._tcp.close()

    def finish(self) -> None:
        """Where the plan knows no way: wait until TCP has led to a path, or not."""
        self._tcp.finish()

    def take(self) -> Met:
        """Wait for the path.  An extra socket that was opened for it is the taker's from now on."""
        path = self.found.get()
        self._puncher.keep(path.address)
        self._tcp.keep(path.address)
        self._timeline.step("path")
        return self.by(path, PUNCHED if path.kind is PathKind.TCP else self.plan.reason)

    def by(self, path: Path, reason: str) -> Met:
        """A result with a path that was found otherwise; ``reason``: for that one."""
        return Met(
            path,
            reason,
            self.plan,
            self.keys,
            self._ours,
            self._theirs,
            self._is_caller,
            self._timeline,
        )

    @property
    def likely(self) -> list[Candidate]:
        """The peer's addresses that are worth asking later: those at which the cloud has seen it,
        and those of a network that we are in, too.
        """
        own, seen = self._means.own.candidates(), self._theirs.vouched
        return [
            candidate
            for candidate in self._theirs.candidates
            if may_be_peer(candidate.address, candidate.port)
            and plausible(candidate.address, own)
            and (seen is None or candidate.address in seen or is_private(candidate.address))
        ][:MAX_LIKELY]

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
                self._timeline.note("the peer has learnt {count} more addresses", len(candidates))
                self._search.checks.add_candidates(candidates)
                self._search.poll()
            if "relayed" in fields:
                self.turn.hear_untrusted(fields["relayed"])
            if "tcp" in fields:
                self._tcp.hear_untrusted(fields["tcp"])
            self._puncher.handle_fields_untrusted(fields)
        except BadPacket as error:
            self._timeline.note("dropped: {why}", said(error))
            self._means.log.info("trickle: dropped: %s", error)
