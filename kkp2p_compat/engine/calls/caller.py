"""Our calls over the cloud: to meet a peer, and to find new paths when one is dead.

Runs in the engine's hub.  An offer goes out, an answer comes back, and a ``Meeting`` looks for a
direct path.  In auto mode it has a head start over the relays, which both sides prepare meanwhile.
When that is over the first path of either kind makes the link; a direct one is looked for on, and
the link moves to it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import gevent

from ... import _codes
from ..._errors import NoPath, NotSupported, TimedOut
from ..._io import time_limit
from ..._sentence import Sentence, said
from ..._structs import connect_ctx_t
from ...control.client import CloudClient
from ...control.link import Link
from ...control.outgoing import OutgoingCall
from ...traversal.plan import Plan
from ..links.peer_link import PeerLink
from ..links.pins import UNPROVEN, Pins
from ..paths.meeting import Meeting, Met
from ..paths.network import Network
from ..paths.relay_paths import RelayPaths
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer
from ..signalling.keys import CallKeys
from ..signalling.offer import parse_direct_answer_untrusted, vouched_untrusted
from ..signalling.own_side import OwnSide
from .attempts import Attempt
from .cloud_call import RelayPlaces, call_peer
from .remote import Take

__all__ = ["FIRST_LOOK_S", "RELAY_PLAN", "CloudCaller"]

FIRST_LOOK_S = 0.5  # our choice: how long a call waits for what STUN says of our own addresses
RELAY_PLAN = Plan("relay", Sentence("the relay was asked for"), "check", "check")


class Spoken:
    """Offer and answer have been exchanged: what both sides know now."""

    def __init__(
        self,
        peer_id: str,
        own_side: OwnSide,
        offer: str,
        answer: str,
        link: Link,
        call: OutgoingCall,
    ) -> None:
        self.peer_id = peer_id
        public, theirs = parse_direct_answer_untrusted(answer)
        self.theirs: DirectOffer = replace(theirs, vouched=vouched_untrusted(call.peer_seen))
        self.keys: CallKeys = own_side.keys(public, offer, answer)
        self.own_side = own_side
        self.link = link
        self.call = call
        self.trickle = functools.partial(link.trickle, call.number)


class CloudCaller:
    """``meet`` reaches a peer; ``redial`` finds new paths for a link."""

    def __init__(self, client: CloudClient, network: Network, pins: Pins) -> None:
        self._client = client
        self._network = network
        self._pins = pins

    def meet(
        self, ctx: connect_ctx_t, deadline: float, attempt: Attempt, worked: str, take: Take
    ) -> str:
        """Offer, answer, search: see Meet.

        Raises NotSupported for what is missing on this host: it says nothing of the peer.
        """
        deadline = attempt.deadline(deadline)
        timeline = attempt.timeline
        own_side = self._own_side(ctx.connect_mode, deadline, worked, timeline)
        offer = own_side.offer(ctx, ctx.connect_mode)
        budget_s = deadline - time.monotonic()
        try:
            with (
                time_limit(budget_s, attempt.late),
                call_peer(self._client, ctx.peer_id, offer, budget_s) as (link, call),
            ):
                answer = call.answer.get()
                timeline.step("answer")
                attempt.search()
                spoken = Spoken(ctx.peer_id, own_side, offer, answer, link, call)
                if not spoken.theirs.proves:
                    self._pins.check_unproven(ctx.peer_id, UNPROVEN)
                if ctx.connect_mode == _codes.CONNECT_RELAY:
                    return self._meet_by_relay(spoken, timeline, take)
                with self._meeting(spoken, timeline) as meeting:
                    if ctx.connect_mode == _codes.CONNECT_P2P:
                        met = meeting.take()
                        call.met(met.path.kind.word)
                        take(met)
                    else:
                        self._meet_by_any(spoken, meeting, attempt, take)
                return meeting.plan.kind
        except NotSupported as error:  # by the peer
            if ctx.connect_mode == _codes.CONNECT_RELAY:
                raise
            raise NoPath(said(error)) from error

    def _own_side(self, mode: int, deadline: float, worked: str, timeline: Timeline) -> OwnSide:
        own, proves = self._network.underlay().own, self._pins.proves
        if mode == _codes.CONNECT_RELAY:
            return OwnSide([], own.nat, proves=proves)  # nobody needs to know our addresses
        own.ready.wait(max(0.0, min(FIRST_LOOK_S, (deadline - time.monotonic()) / 4)))
        timeline.step("own addresses")
        timeline.note("our NAT: {nat}", own.nat.text)
        return OwnSide(own.candidates(), own.nat, worked=worked, proves=proves)

    @contextmanager
    def _meeting(self, spoken: Spoken, timeline: Timeline) -> Iterator[Meeting]:
        """The search for a direct path to the peer that has answered."""
        meeting = self._network.underlay().searches.meeting(
            spoken.peer_id, spoken.own_side, spoken.theirs, spoken.keys, timeline, spoken.trickle
        )
        with meeting as begun:
            spoken.call.hear(begun.handle_text_untrusted)
            yield begun

    def _relays(self, spoken: Spoken) -> RelayPaths:
        access = RelayPlaces.of_caller(spoken.call, spoken.link)
        ids = spoken.own_side.direct.connection_id, spoken.theirs.connection_id
        return self._network.underlay().searches.relays(
            spoken.peer_id, access, ids, True, spoken.theirs.nat
        )

    def _meet_by_relay(self, spoken: Spoken, timeline: Timeline, take: Take) -> str:
        relays = self._relays(spoken)
        meeting = self._network.underlay().searches.hidden_meeting(
            spoken.peer_id, spoken.own_side, spoken.theirs, spoken.keys, timeline, spoken.trickle
        )
        spoken.call.hear(meeting.handle_text_untrusted)
        relays.use_turn(meeting.turn)
        try:
            relays.hurry()
            path = relays.ready.get()
        except BaseException:
            relays.close()
            raise
        timeline.step(path.kind.value)
        timeline.plan = RELAY_PLAN
        spoken.call.met(path.kind.word)
        met = Met(
            path,
            RELAY_PLAN.reason,
            RELAY_PLAN,
            spoken.keys,
            spoken.own_side.direct,
            spoken.theirs,
            True,
            timeline,
        )
        take(met).paths.take_relays(relays)
        spoken.call.settle()
        with suppress(TimedOut):  # a better one may be on its way
            relays.finish()
        return ""

    def _meet_by_any(self, spoken: Spoken, meeting: Meeting, attempt: Attempt, take: Take) -> None:
        """A direct path, or by a relay until there is one."""
        relays = self._relays(spoken)
        relays.use_turn(meeting.turn)
        is_hopeless = meeting.plan.kind == "relay"
        why_relay = meeting.plan.reason if is_hopeless else attempt.why_relay
        link: PeerLink | None = None
        try:
            if not is_hopeless and self._network.udp.is_good:
                gevent.wait([meeting.found, attempt.hurried], attempt.head_start_s, count=1)
            relays.hurry()
            gevent.wait([meeting.found, relays.ready], count=1)
            if not meeting.found.ready() and relays.ready.successful():
                path = relays.ready.get()
                attempt.timeline.step(path.kind.value)
                link = take(meeting.by(path, why_relay))
                link.paths.take_relays(relays)
                spoken.call.met(path.kind.word)
                spoken.call.settle()  # the track's word must not overtake the first packet
            if is_hopeless and not meeting.found.ready():
                relays.finish()
                meeting.finish()
                if not meeting.found.ready():
                    raise NoPath(meeting.plan.reason)
            met = meeting.take()
            spoken.call.met(met.path.kind.word)
            if link is None:
                relays.stand_by()
                link = take(met)
                link.paths.take_relays(relays)
            else:
                link.paths.offer(met.path)
        except (NoPath, TimedOut):
            if link is not None:
                link.paths.expect(meeting.likely)
            raise
        finally:
            if link is None:
                relays.close()

    def redial(self, link: PeerLink, budget_s: float, needs_tcp: bool) -> None:
        """New paths to the peer of a link that we made; all that are found are offered to it."""
        info, timeline = link.info, Timeline()
        own = self._network.underlay().own
        own.make_sure(FIRST_LOOK_S)  # a NAT that started anew tells nobody
        if info.mode == _codes.CONNECT_RELAY:
            own_side = OwnSide([], own.nat)
        else:
            own_side = OwnSide(own.candidates(), own.nat, worked=info.met.plan.kind)
        offer = own_side.restart(info.met.theirs.connection_id, info.mode, needs_tcp)
        with (
            time_limit(budget_s, TimedOut("no new path was found")),
            call_peer(self._client, info.peer_id, offer, budget_s) as (carrier, call),
        ):
            spoken = Spoken(info.peer_id, own_side, offer, call.answer.get(), carrier, call)
            if info.mode != _codes.CONNECT_P2P:
                access = RelayPlaces.of_caller(call, carrier)
                searches = self._network.underlay().searches
                relays = searches.relays(info.name, access, link.ids, True, spoken.theirs.nat)
                if needs_tcp:
                    relays.insist_on_tcp()
                relays.hurry()
                link.paths.take_relays(relays)
            if info.mode == _codes.CONNECT_RELAY:
                relays.ready.get()
                return
            with self._meeting(spoken, timeline) as meeting:
                if info.mode != _codes.CONNECT_P2P:
                    relays.use_turn(meeting.turn)
                link.paths.offer(meeting.take().path)
