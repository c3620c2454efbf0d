"""The callee's side of a meeting: answer a call, and look for the path.

Runs in the engine's hub.  What comes of a call is a link that the caller opens channels on, or in
auto mode a relayed stream that the caller has taken.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger
from typing import Any

import gevent

from ... import _codes
from ..._errors import BadPacket, NoPath, TimedOut
from ..._io import time_limit
from ...transport.relay import Visit
from ..channels.accept_queue import KEPT_PART
from ..links.link_table import LinkTable
from ..links.peer_link import LinkInfo, PeerLink
from ..links.streams import OpenStream, relayed_stream
from ..paths.meeting import Meeting, Met
from ..paths.network import Network
from ..paths.underlay import Underlay
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer
from ..signalling.offer import Offer
from ..signalling.own_side import OwnSide
from .pace import Pace
from .race import Race

__all__ = ["Callee", "IncomingCall", "share_of"]

# Our choices.
LOOK_S = 0.5  # how long a caller whose path is dead waits for what STUN says of our addresses
MAX_LINKS = 8192  # that peers made; more are declined
MAX_MEETING = 2048  # calls of others whose path is being looked for
ANSWER_GRACE_S = 2.0  # after the time of a call is over: the caller may have been just in time
RELAY_GRACE_S = 3.0  # when there is a path, but the caller may have just taken the relay


def share_of(most: int, has_account: bool) -> int:
    """How many of what calls take up may be taken when this caller comes: a part is kept for
    callers with an account, whatever strangers do.
    """
    return most if has_account else most - most // KEPT_PART


class IncomingCall:
    """A call that we answer.  What carries it, the cloud or a LAN search, makes a subclass.

    ``caller_id``: of a caller that has logged in, if the cloud vouches for it; else "".
    ``call_id``: what the track calls it; "" on the LAN.
    ``to_stranger``: the caller need not know addresses of ours that the world does not see.
    ``meeting`` is set when the caller may trickle.
    ``can_decline``: the caller hears of what fails before our answer, so that comes late.
    """

    can_decline = False
    can_trickle = False
    has_relay = False

    def __init__(
        self, offer: Offer, text: str, own_id: str, name: str, budget_s: float,
        caller_id: str = "", call_id: str = "", to_stranger: bool = False,
    ) -> None:  # fmt: skip
        self.offer = offer
        self.text = text
        self.own_id = own_id
        self.name = name
        self.budget_s = budget_s
        self.caller_id = caller_id
        self.call_id = call_id
        self.to_stranger = to_stranger
        self.meeting: Meeting | None = None

    def answer(self, text: str) -> None:
        """Take our answer to the caller."""
        raise NotImplementedError

    def trickle(self, text: str) -> None:
        """Take to the caller what we learn after the answer."""

    def go_to_relay(self) -> Visit:
        """A visit there that has shown its token."""
        raise NotImplementedError

    def relayed(self, stream: OpenStream) -> None:
        """The caller has taken the relay."""
        raise NotImplementedError


class Callee:
    """``answer`` takes a call."""

    def __init__(
        self, network: Network, links: LinkTable, log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:  # fmt: skip
        self._network = network
        self._links = links
        self._log = log
        self._spawn = spawn
        # Callers with an account have a pace of their own, whatever strangers do.
        self._paces = {has_account: Pace() for has_account in (False, True)}

    def answer(self, call: IncomingCall) -> None:
        """Answer, and wait for the path; raises KKP2PError."""
        offer, asked = call.offer, call.offer.direct
        if asked is None or offer.key is None:
            raise BadPacket("a direct offer without a key")
        underlay = self._network.underlay()
        moved = self._find_link(offer.restarts)
        self._see_if_there_is_room(underlay, moved, bool(call.caller_id))
        late = TimedOut("no path to the caller was found")
        with time_limit(call.budget_s + ANSWER_GRACE_S, late):
            self._paces[bool(call.caller_id)].wait()
            self._meet(call, offer.key, asked, underlay, moved)

    def _meet(
        self, call: IncomingCall, key: bytes, asked: DirectOffer, underlay: Underlay,
        moved: PeerLink | None,
    ) -> None:  # fmt: skip
        if moved is not None:
            underlay.own.make_sure(LOOK_S)
        own_side = _own_side(underlay, call, asked)
        answer = own_side.answer() if call.can_trickle else own_side.fit(own_side.answer)
        if not call.can_decline:
            call.answer(answer)
        keys = own_side.keys(key, call.text, answer)
        timeline = Timeline()
        trickle = call.trickle if call.can_trickle else None

        def take_path() -> None:
            met = meeting.take()
            if moved is None:
                link = self._links.add(_link_info(call, met))
            else:
                link = moved
                address = met.path[0]
                self._log.info("%s: looks for us: trying %s port %d", moved.name, *address[:2])
                moved.try_path(address)
            link.note_call(call.call_id)

        with underlay.meeting(own_side, asked, keys, timeline, trickle) as meeting:
            call.meeting = meeting
            if call.can_decline:
                call.answer(answer)
            timeline.step("answered")
            self._wait_for_caller(meeting, call, take_path)

    def _find_link(self, connection_id: int | None) -> PeerLink | None:
        """The one that a caller wants to find a new path for; None: it wants a new one."""
        if connection_id is None:
            return None
        link = self._links.find(connection_id)
        if link is None:
            raise NoPath("there is no such connection here")
        return link

    def _see_if_there_is_room(
        self, underlay: Underlay, moved: PeerLink | None, has_account: bool
    ) -> None:
        full = moved is None and len(self._links) >= share_of(MAX_LINKS, has_account)
        if full or len(underlay.finder) >= share_of(MAX_MEETING, has_account):
            raise NoPath("too many connections with peers")  # but the relay is a way

    def _wait_for_caller(
        self, meeting: Meeting, call: IncomingCall, take_path: Callable[[], object]
    ) -> None:
        """Until there is a path, or none is looked for; the caller may take the relay meanwhile."""
        offer = call.offer
        is_auto = offer.mode == _codes.CONNECT_AUTO
        if not (call.has_relay and is_auto and offer.channel_type == _codes.KKP2P_TCP_CHANNEL):
            take_path()
            return
        with Race(meeting, self._spawn, call.go_to_relay, is_caller=False) as race:
            relay = race.relay
            is_met = race.wait()
            if is_met:
                take_path()
                if relay.begun:
                    relay.ready.wait(RELAY_GRACE_S)
            if relay.ready.successful():
                sealed = meeting.keys.sealed if offer.encrypt else None
                call.relayed(relayed_stream(relay.take(), offer.desc, sealed))
            if not is_met and not (race.is_hopeless and relay.ready.successful()):
                take_path()


def _own_side(underlay: Underlay, call: IncomingCall, asked: DirectOffer) -> OwnSide:
    own = underlay.own
    if not call.can_trickle:
        return OwnSide(own.host_candidates(), asked=asked)
    return OwnSide(
        own.candidates(call.to_stranger), own.nat, asked=asked, to_stranger=call.to_stranger
    )


def _link_info(call: IncomingCall, met: Met) -> LinkInfo:
    return LinkInfo(
        name=call.name,
        own_id=call.own_id,
        is_lan=not call.has_relay,
        caller_id=call.caller_id,
        met=met,
    )
