"""The callee's side of a meeting: answer a call, and look for the path.

Runs in the engine's hub.  What comes of a call is a link that the caller opens channels on.  By
which path, a direct one or one over a relay, is the caller's choice: it shows by its first packet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging import Logger

from gevent.event import Event

from ... import _codes
from ..._errors import BadPacket, NoPath, TimedOut
from ..._io import time_limit
from ..links.link_table import LinkTable
from ..links.peer_link import LinkInfo, PeerLink
from ..links.pins import UNPROVEN, Pins
from ..paths.meeting import Meeting, Met
from ..paths.network import Network
from ..paths.path_finder import Path
from ..paths.relay_paths import RelayAccess, RelayPaths
from ..paths.turn_meeting import HiddenMeeting, TurnMeeting
from ..paths.underlay import Underlay
from ..runtime.shares import share_of
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer
from ..signalling.offer import Offer
from ..signalling.own_side import OwnSide
from .caller import RELAY_PLAN
from .pace import Pace

__all__ = ["Callee", "IncomingCall"]

# Our choices.
LOOK_S = 0.5  # how long a caller whose path is dead waits for what STUN says of our addresses
MAX_LINKS = 8192  # that peers made; more are declined
MAX_MEETING = 2048  # calls of others whose path is being looked for
ANSWER_GRACE_S = 2.0  # after the time of a call is over: the caller may have been just in time


class IncomingCall:
    """A call that we answer.  What carries it, the cloud or a LAN search, makes a subclass.

    ``caller_id``: of a caller that has logged in, if the cloud vouches for it; else "".
    ``share``: whose part of our room it takes up.
    ``call_id``: what the track calls it; "" on the LAN.
    ``to_stranger``: the caller need not know addresses of ours that the world does not see.
    ``meeting`` is set when the caller may trickle.
    ``can_decline``: the caller hears of what fails before our answer, so that comes late.
    """

    can_decline = False
    can_trickle = False
    has_relay = False

    def __init__(
        self,
        offer: Offer,
        text: str,
        own_id: str,
        name: str,
        budget_s: float,
        share: str,
        caller_id: str = "",
        call_id: str = "",
        to_stranger: bool = False,
    ) -> None:
        self.offer = offer
        self.text = text
        self.own_id = own_id
        self.name = name
        self.budget_s = budget_s
        self.share = share
        self.caller_id = caller_id
        self.call_id = call_id
        self.to_stranger = to_stranger
        self.meeting: Meeting | HiddenMeeting | None = None

    def answer(self, text: str) -> None:
        """Take our answer to the caller."""
        raise NotImplementedError

    def trickle(self, text: str) -> None:
        """Take to the caller what we learn after the answer."""

    @property
    def relays(self) -> RelayAccess:
        """Those where the caller may be met."""
        raise NotImplementedError


class Callee:
    """``answer`` takes a call."""

    def __init__(self, network: Network, links: LinkTable, pins: Pins, log: Logger) -> None:
        self._network = network
        self._links = links
        self._pins = pins
        self._log = log
        # Callers with an account have a pace of their own, whatever strangers do.
        self._paces = {has_account: Pace() for has_account in (False, True)}

    def answer(self, call: IncomingCall) -> None:
        """Answer, and wait for the path; raises KKP2PError."""
        offer, asked = call.offer, call.offer.direct
        if asked is None or offer.key is None:
            raise BadPacket("a direct offer without a key")
        if offer.restarts is None and not asked.proves:
            self._pins.check_unproven(call.caller_id, UNPROVEN)
        underlay = self._network.underlay()
        moved = self._find_link(offer.restarts)
        self._see_if_there_is_room(underlay, moved, call)
        late = TimedOut("no path to the caller was found")
        with time_limit(call.budget_s + ANSWER_GRACE_S, late):
            self._paces[bool(call.caller_id)].wait()
            self._meet(call, offer.key, asked, underlay, moved)

    def _meet(
        self,
        call: IncomingCall,
        key: bytes,
        asked: DirectOffer,
        underlay: Underlay,
        moved: PeerLink | None,
    ) -> None:
        if moved is not None:
            underlay.own.make_sure(LOOK_S)
        own_side = _own_side(underlay, call, asked, self._pins.proves)
        answer = own_side.answer() if call.can_trickle else own_side.fit(own_side.answer)
        if not call.can_decline:
            call.answer(answer)
        keys = own_side.keys(key, call.text, answer)
        timeline = Timeline()
        search = _Search(call, own_side, underlay, moved)

        def take(met: Met) -> PeerLink:
            link = self._links.add(_link_info(call, met))
            link.note_call(call.call_id)
            return link

        with search.expecting():
            if call.offer.mode == _codes.CONNECT_RELAY:
                call.answer(answer)
                if moved is not None:  # it has the ways over relays, and needs nothing else
                    moved.note_call(call.call_id)
                    return
                call.meeting = underlay.searches.hidden_meeting(
                    call.name, own_side, asked, keys, timeline, call.trickle
                )
                search.use_turn(call.meeting.turn)
                search.wait_for_relay(
                    lambda path: take(
                        Met(path, "", RELAY_PLAN, keys, own_side.direct, asked, False, timeline)
                    )
                )
                return
            trickle = call.trickle if call.can_trickle else None
            with underlay.searches.meeting(
                call.name, own_side, asked, keys, timeline, trickle
            ) as meeting:
                call.meeting = meeting
                search.use_turn(meeting.turn)
                if call.can_decline:
                    call.answer(answer)
                timeline.step("answered")
                if moved is not None:
                    self._find_another(moved, meeting, call)
                else:
                    search.run(meeting, take)

    def _find_another(self, moved: PeerLink, meeting: Meeting, call: IncomingCall) -> None:
        """Another path of a link whose peer looks for us."""
        path = meeting.take().path
        self._log.info("%s: looks for us: trying %s port %d", moved.name, *path.address[:2])
        moved.paths.offer(path)
        moved.note_call(call.call_id)

    def _find_link(self, connection_id: int | None) -> PeerLink | None:
        """The one that a caller wants to find a new path for; None: it wants a new one."""
        if connection_id is None:
            return None
        link = self._links.find(connection_id)
        if link is None:
            raise NoPath("there is no such connection here")
        return link

    def _see_if_there_is_room(
        self, underlay: Underlay, moved: PeerLink | None, call: IncomingCall
    ) -> None:
        has_account, shares = bool(call.caller_id), self._links.shares
        full = moved is None and not shares.has_room(MAX_LINKS, call.share, has_account)
        if full or len(underlay.searches.finder) >= share_of(MAX_MEETING, has_account):
            raise NoPath("too many connections with peers")  # but the relay is a way


class _Search:
    """For the path that a caller takes to us."""

    def __init__(
        self, call: IncomingCall, own_side: OwnSide, underlay: Underlay, moved: PeerLink | None
    ) -> None:
        self._early = underlay.endpoint.early
        self._local_id = own_side.direct.connection_id
        self._news = Event()
        self._relays: RelayPaths | None = None
        self._is_taken = False  # the relays are a link's
        if not call.has_relay or call.offer.mode == _codes.CONNECT_P2P:
            return
        assert call.offer.direct is not None
        theirs = call.offer.direct
        ids = (self._local_id, theirs.connection_id) if moved is None else moved.ids
        relays = underlay.searches.relays(call.name, call.relays, ids, False, theirs.nat)
        self._relays = relays
        relays.on_path = lambda _: self._news.set()
        if moved is not None:
            if call.offer.needs_tcp:
                relays.insist_on_tcp()
            relays.hurry()
            self._give_relays(moved)

    def _give_relays(self, link: PeerLink) -> None:
        if self._relays is not None:
            self._is_taken = True
            link.paths.take_relays(self._relays)

    def use_turn(self, turn: TurnMeeting) -> None:
        if self._relays is not None:
            self._relays.use_turn(turn)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """What comes before the link is made is kept inside the body.  Ways over relays that no
        link has taken by its end are closed.
        """
        try:
            with self._early.expected(self._local_id, self._news.set):
                yield
        finally:
            if self._relays is not None and not self._is_taken:
                self._relays.close()

    def run(self, meeting: Meeting, take: Callable[[Met], PeerLink]) -> None:
        """Until there is a direct path, or none is looked for any more."""
        relays = self._relays
        if relays is None:
            take(meeting.take())
            return
        link: PeerLink | None = None
        is_hopeless = meeting.plan.kind == "relay"
        try:
            if is_hopeless:
                relays.hurry()
            meeting.found.rawlink(lambda _: self._news.set())
            path = self._wait(relays, meeting.found.ready)
            if path is None:
                relays.stand_by()
                self._give_relays(take(meeting.take()))
                return
            link = take(meeting.by(path, ""))
            self._give_relays(link)
            if is_hopeless:
                relays.finish()
                meeting.finish()
            if not is_hopeless or meeting.found.ready():
                link.paths.offer(meeting.take().path)
        except TimedOut:
            if link is None:
                raise
            link.paths.expect(meeting.likely)

    def wait_for_relay(self, take: Callable[[Path], PeerLink]) -> None:
        relays = self._relays
        if relays is None:
            raise NoPath("no relay leads here")
        relays.hurry()
        path = self._wait(relays, lambda: False)
        assert path is not None
        self._give_relays(take(path))
        with suppress(TimedOut):  # a better one may be on its way
            relays.finish()

    def _wait(self, relays: RelayPaths, is_found: Callable[[], bool]) -> Path | None:
        """Until the caller has taken a relay; None: ``is_found``."""
        while not is_found():
            taken = relays.paths.keys() & self._early.sources(self._local_id)
            if taken:
                return relays.paths[taken.pop()]
            self._news.clear()
            self._news.wait()
        return None


def _own_side(underlay: Underlay, call: IncomingCall, asked: DirectOffer, proves: bool) -> OwnSide:
    own = underlay.own
    if call.offer.mode == _codes.CONNECT_RELAY:  # nobody needs to know our addresses
        return OwnSide([], own.nat, asked=asked, proves=proves)
    if not call.can_trickle:
        return OwnSide(own.host_candidates(), asked=asked, proves=proves)
    return OwnSide(
        own.candidates(call.to_stranger),
        own.nat,
        asked=asked,
        to_stranger=call.to_stranger,
        proves=proves,
    )


def _link_info(call: IncomingCall, met: Met) -> LinkInfo:
    return LinkInfo(
        name=call.name,
        own_id=call.own_id,
        is_lan=not call.has_relay,
        mode=call.offer.mode,
        caller_id=call.caller_id,
        share=call.share,
        met=met,
    )
