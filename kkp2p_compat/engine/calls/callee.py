"""The callee's side of a meeting: answer a call, look for the path, and be found on the LAN.

Runs in the engine's hub.  What comes of a call is a link that the caller opens channels on, or in
auto mode a relayed connection that the caller has taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import AsyncResult

from ... import _codes
from ..._address import Address
from ..._errors import BadPacket, EngineClosed, KKP2PError, NotAllowed, NotSupported, TimedOut
from ..._io import time_limit
from ...transport.relay import Visit
from ...traversal import lan
from ..channels.accept_queue import KEPT_PART
from ..links.peer_link import LinkInfo, PeerLink
from ..links.prepared_relay import PreparedRelay
from ..links.streams import RelayedStream, relayed_stream
from ..paths.meeting import Meeting
from ..paths.path_finder import Path
from ..runtime.timeline import Timeline
from ..signalling.keys import CallKeys
from ..signalling.offer import Offer, parse_offer_untrusted
from ..signalling.own_side import Half

if TYPE_CHECKING:
    from ..direct import Direct

__all__ = ["Callee", "Incoming", "share_of"]

# Our choices.
LOOK_S = 0.5  # how long a caller whose path is dead waits for what STUN says of our addresses
MAX_LINKS = 8192  # that peers made; more are declined
MAX_MEETING = 2048  # calls of others whose path is being looked for
ANSWER_GRACE_S = 2.0  # for the callee of a call whose time is over, if the caller was just in time
RELAY_GRACE_S = 3.0  # for the callee that has a path, if the caller has just taken the relay
LAN_MEETING_S = 10.0  # for the callee of a LAN search, which does not know the caller's budget


def share_of(most: int, has_account: bool) -> int:
    """How many of what calls take up may be taken when this caller comes: a part is kept for
    callers with an account, whatever strangers do.
    """
    return most if has_account else most - most // KEPT_PART


class Incoming:
    """A call that we answer, as its carrier has it: the cloud, or a LAN search.

    ``answer`` and ``trickle`` take a text to the caller; on the LAN there is no trickle.
    ``meeting`` is set when the caller may trickle.  ``go_to_relay`` makes the connection that has
    shown its token, and ``relayed`` gets it if the caller takes it; None where there is no relay.
    ``caller_id``: of a caller that has logged in, if the cloud vouches for it; else "".
    ``to_stranger``: the caller need not know addresses of ours that the world does not see.
    ``call_id``: what the track calls it; "" on the LAN.
    """

    def __init__(
        self, offer: Offer, text: str, own_id: str, name: str, budget_s: float,
        answer: Callable[[str], object], trickle: Callable[[str], object] | None = None,
        go_to_relay: Callable[[], Visit] | None = None,
        relayed: Callable[[RelayedStream], object] | None = None, caller_id: str = "",
        call_id: str = "", to_stranger: bool = False,
    ) -> None:  # fmt: skip
        self.offer = offer
        self.text = text
        self.own_id = own_id
        self.name = name
        self.budget_s = budget_s
        self.answer = answer
        self.trickle = trickle
        self.go_to_relay = go_to_relay
        self.relayed = relayed
        self.caller_id = caller_id
        self.call_id = call_id
        self.to_stranger = to_stranger
        self.meeting: Meeting | None = None


class Callee:
    """``answer`` takes a call, ``join_lan`` lets others find us."""

    def __init__(self, direct: Direct) -> None:
        self._direct = direct
        self._engine = direct.engine
        self._log = direct.engine.log
        self._responder: lan.Responder | None = None
        self._lan_id = ""
        self._answering: set[gevent.Greenlet[..., Any]] = set()  # searches

    def answer(self, call: Incoming) -> None:
        """Answer, and wait for the path; raises KKP2PError."""
        offer, asked = call.offer, call.offer.direct
        if asked is None or offer.key is None:
            raise BadPacket("a direct offer without a key")
        underlay = self._direct.underlay()
        moved = self._find_link(offer.restarts)
        trusted = bool(call.caller_id)
        full = moved is None and len(self._direct.links) >= share_of(MAX_LINKS, trusted)
        if full or len(underlay.finder) >= share_of(MAX_MEETING, trusted):
            raise NotSupported("too many connections with peers")  # but the relay is a way
        if moved is not None:
            underlay.own.make_sure(LOOK_S)
        if call.trickle is None:
            half = Half(underlay.own.host_candidates(), asked=asked)
            answer = half.fit(half.answer)
        else:
            half = Half(
                underlay.own.candidates(call.to_stranger), underlay.own.nat, asked=asked,
                to_stranger=call.to_stranger,
            )  # fmt: skip
            answer = half.answer()
        keys = half.keys(offer.key, call.text, answer)
        timeline = Timeline()
        late = TimedOut("no path to the caller was found")

        def met(path: Path) -> None:
            if moved is not None:
                self._log.info("%s: looks for us: trying %s port %d", moved.name, *path[0][:2])
                moved.try_path(path[0])
                moved.note_call(call.call_id)
                return
            info = LinkInfo(
                name=call.name,
                own_id=call.own_id,
                is_lan=call.trickle is None,
                caller_id=call.caller_id,
                timeline=timeline,
                plan=meeting.plan,
                ours=half.direct,
                theirs=asked,
            )
            self._direct.add_link(info, keys, path).note_call(call.call_id)

        with underlay.meeting(half, asked, keys, timeline, call.trickle) as meeting:
            call.meeting = meeting
            call.answer(answer)
            timeline.step("answered")
            with time_limit(call.budget_s + ANSWER_GRACE_S, late):
                self._wait_for_caller(meeting, call, keys, met)

    def _find_link(self, connection_id: int | None) -> PeerLink | None:
        """The one that a caller wants to find a new path for."""
        if connection_id is None:
            return None
        for link in self._direct.links:
            if link.local_id == connection_id:
                return link
        raise NotSupported("there is no such connection here")

    def _wait_for_caller(
        self, meeting: Meeting, call: Incoming, keys: CallKeys, met: Callable[[Path], object]
    ) -> None:
        """Until there is a path, or none is looked for; the caller may take the relay meanwhile."""
        offer, relayed = call.offer, call.relayed
        races = offer.mode == _codes.CONNECT_AUTO and offer.channel_type == _codes.KKP2P_TCP_CHANNEL
        if not races or call.go_to_relay is None or relayed is None:
            met(meeting.take().path)
            return
        hopeless = meeting.plan.kind == "relay"
        relay = PreparedRelay(self._engine.thread.spawn, call.go_to_relay, is_caller=False)
        try:
            if hopeless:
                relay.hurry()
            gevent.wait([meeting.found, relay.ready], count=1)
            is_met = meeting.found.ready()
            if is_met:
                met(meeting.take().path)
                if relay.begun:
                    relay.ready.wait(RELAY_GRACE_S)
            if relay.ready.successful():
                sealed = keys.sealed if offer.encrypt else None
                relayed(relayed_stream(relay.take(), offer.desc, sealed))
            if not is_met and not (hopeless and relay.ready.successful()):
                met(meeting.take().path)
        finally:
            relay.close()

    def join_lan(self, peer_id: str) -> None:
        """Be found on the LAN under this id, instead of any other."""
        self._direct.underlay()
        self.leave_lan()
        if peer_id != self._lan_id:
            self._direct.retire(self._lan_id)
            self._stop_answering()
        self._lan_id = peer_id
        responder = lan.Responder(
            peer_id, self._engine.conf.lan_search_port,
            lambda text, source: self._answer_search(peer_id, text, source), self._log,
        )  # fmt: skip
        responder.start()
        self._responder = responder
        self._log.warning("%s: found on the LAN by port %d", peer_id, responder.port)

    def leave_lan(self) -> None:
        responder, self._responder = self._responder, None
        if responder is not None:
            responder.close()

    def close(self) -> None:
        self.leave_lan()
        self._stop_answering()

    def _stop_answering(self) -> None:
        for answering in self._answering:
            answering.kill(block=False)

    def _answer_search(self, peer_id: str, text: str, source: Address) -> str | None:
        offer = parse_offer_untrusted(text)
        answered: AsyncResult[str] = AsyncResult()
        name = f"{source[0]} (LAN)"

        def answer() -> None:
            try:
                if not self._engine.callers.allow(None):
                    raise NotAllowed("callers on the LAN have no account")
                self.answer(Incoming(offer, text, peer_id, name, LAN_MEETING_S, answered.set))
            except KKP2PError as error:
                if not answered.ready():
                    answered.set_exception(error)
                self._log.info("%s: not met: %s", name, error)

        def ended(greenlet: gevent.Greenlet[..., Any]) -> None:
            self._answering.discard(greenlet)
            if not answered.ready():  # it was stopped
                answered.set_exception(EngineClosed())

        greenlet = self._engine.thread.spawn(answer)
        self._answering.add(greenlet)
        greenlet.rawlink(ended)
        return answered.get()
