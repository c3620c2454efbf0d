"""Our calls over the cloud: to meet a peer, and to find a new path when one is dead.

Runs in the engine's hub.  An offer goes out, an answer comes back, and a ``Meeting`` looks for the
path.  In auto mode the path races against the relay: both sides prepare it meanwhile, and the
caller takes it when the path's head start is over.  The path is looked for on: the next channel
will be p2p.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from logging import Logger
from typing import Any

import gevent

from ..._errors import KKP2PError, NoPath, NotSupported, TimedOut
from ..._io import time_limit
from ..._structs import connect_ctx_t
from ...control.client import CloudClient
from ...control.link import Link
from ...control.outgoing import OutgoingCall
from ..links.peer_link import PeerLink
from ..links.streams import OpenStream, relayed_stream
from ..paths.meeting import Meeting, Met
from ..paths.network import Network
from ..paths.path_finder import Path
from ..runtime.engine_settings import EngineSettings
from ..runtime.timeline import Timeline
from ..signalling.offer import parse_direct_answer_untrusted, vouched_untrusted
from ..signalling.own_side import OwnSide
from .attempts import Attempt
from .cloud_call import call_peer, go_as_caller, may_be_relayed
from .race import Race

__all__ = ["FIRST_LOOK_S", "CloudCaller"]

FIRST_LOOK_S = 0.5  # our choice: how long a call waits for what STUN says of our own addresses


class CloudCaller:
    """``meet`` reaches a peer; ``redial`` finds a new path for a link."""

    def __init__(
        self, client: CloudClient, network: Network, settings: EngineSettings, log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:  # fmt: skip
        self._client = client
        self._network = network
        self._settings = settings
        self._log = log
        self._spawn = spawn

    def meet(self, ctx: connect_ctx_t, deadline: float, attempt: Attempt, worked: str) -> Met:
        """Offer, answer, search; ``worked``: the kind of plan that last led to this peer.

        Raises NotSupported for what is missing on this host: it says nothing of the peer.
        """
        deadline = attempt.deadline(deadline)
        own = self._network.underlay().own
        own.ready.wait(max(0.0, min(FIRST_LOOK_S, (deadline - time.monotonic()) / 4)))
        own_side = OwnSide(own.candidates(), own.nat, worked=worked)
        attempt.timeline.step("own addresses")
        attempt.timeline.note(f"our NAT: {own.nat.text}")
        try:
            return self._meet(ctx, own_side, deadline, attempt)
        except NotSupported as error:  # by the peer
            raise NoPath(str(error)) from error

    def _meet(self, ctx: connect_ctx_t, ours: OwnSide, deadline: float, attempt: Attempt) -> Met:
        offer = ours.offer(ctx, ctx.connect_mode)
        budget_s = deadline - time.monotonic()
        with (
            time_limit(budget_s, attempt.late),
            call_peer(self._client, ctx.peer_id, offer, budget_s) as (link, call),
        ):
            answer = call.answer.get()
            attempt.timeline.step("answer")
            attempt.search()
            with self._meeting(ours, offer, answer, link, call, attempt.timeline) as meeting:
                if may_be_relayed(ctx) and self._relay_must_do(
                    meeting, attempt, link, call, ctx, deadline
                ):
                    met = None
                else:
                    met = meeting.take()
        if met is None:
            raise NoPath(meeting.plan.reason)
        return met

    @contextmanager
    def _meeting(
        self, own_side: OwnSide, offer: str, answer: str, link: Link, call: OutgoingCall,
        timeline: Timeline,
    ) -> Iterator[Meeting]:  # fmt: skip
        """The search for a path to the peer that has answered."""
        public, theirs = parse_direct_answer_untrusted(answer)
        theirs = replace(theirs, vouched=vouched_untrusted(call.peer_seen))
        keys = own_side.keys(public, offer, answer)
        trickle = functools.partial(link.trickle, call)
        meeting = self._network.underlay().meeting(own_side, theirs, keys, timeline, trickle)
        with meeting as begun:
            call.hear(begun.handle_text_untrusted)
            yield begun

    def _relay_must_do(
        self, meeting: Meeting, attempt: Attempt, link: Link, call: OutgoingCall,
        ctx: connect_ctx_t, deadline: float,
    ) -> bool:  # fmt: skip
        """Race the path against the relay; True: there will be no path."""

        def relayed(sock: Any) -> OpenStream:
            sealed = meeting.keys.sealed if ctx.encrypt_data else None
            return relayed_stream(sock, ctx.connect_desc, sealed)

        go = functools.partial(go_as_caller, call, link)
        with Race(meeting, self._spawn, go, is_caller=True) as race:
            if race.is_hopeless:
                attempt.why_relay = meeting.plan.reason
            if race.wait_as_caller(self._settings.head_start_of(deadline)):
                return False
            try:
                attempt.take_relay(race.relay, relayed)
                call.settle()  # the track's word must not overtake the relay's
            except KKP2PError as error:
                attempt.timeline.note(f"no relay: {error}")
                self._log.info("%s: no relay: %s", ctx.peer_id, error)
        return race.is_hopeless and not meeting.found.ready()

    def redial(self, link: PeerLink, budget_s: float) -> Path:
        """A new path to the peer of a link that we made."""
        info, own = link.info, self._network.underlay().own
        own.make_sure(FIRST_LOOK_S)  # a NAT that started anew tells nobody
        own_side = OwnSide(own.candidates(), own.nat, worked=info.met.plan.kind)
        offer = own_side.restart(info.met.theirs.connection_id)
        with (
            time_limit(budget_s, TimedOut("no new path was found")),
            call_peer(self._client, info.peer_id, offer, budget_s) as (carrier, call),
            self._meeting(own_side, offer, call.answer.get(), carrier, call, Timeline()) as meeting,
        ):
            return meeting.take().path
