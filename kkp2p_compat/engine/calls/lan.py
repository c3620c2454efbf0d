"""Calls over the LAN: a search carries offer and answer, and there is no relay and no trickle.

Runs in the engine's hub.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import Logger
from typing import Any

import gevent
from gevent.event import AsyncResult

from ... import _codes
from ..._address import Address
from ..._errors import EngineClosed, KKP2PError, NotAllowed, NotSupported, TimedOut
from ..._io import time_limit
from ..._structs import connect_ctx_t
from ...control.callers import Callers
from ...traversal import lan
from ..links.link_table import LinkTable
from ..links.peer_link import PeerLink
from ..links.pins import UNPROVEN, Pins
from ..paths.meeting import Met
from ..paths.network import Network
from ..runtime.shares import stranger_at
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer
from ..signalling.keys import CallKeys
from ..signalling.offer import parse_direct_answer_untrusted, parse_offer_untrusted
from ..signalling.own_side import OwnSide
from .attempts import Attempt
from .callee import Callee, IncomingCall
from .caller import FIRST_LOOK_S
from .remote import Take

__all__ = ["LanCallee", "LanCaller"]

MEETING_S = 10.0  # our choice: the callee does not know the caller's budget


class LanCaller:
    """``meet`` reaches a peer that answers a search; ``redial`` finds a new path for a link."""

    def __init__(self, port: int, network: Network, pins: Pins, log: Logger) -> None:
        """``port``: lan_search_port."""
        self._port = port
        self._network = network
        self._pins = pins
        self._log = log

    def meet(
        self, ctx: connect_ctx_t, deadline: float, attempt: Attempt, worked: str, take: Take
    ) -> str:
        """See Meet.  ``worked`` does not matter: on the LAN there is one plan."""
        budget_s = attempt.deadline(deadline) - time.monotonic()
        own = self._network.underlay().own
        own_side = OwnSide(own.host_candidates(), proves=self._pins.proves)
        offer = own_side.fit(lambda: own_side.offer(ctx, _codes.CONNECT_P2P))
        met = self._meet(ctx.peer_id, own_side, offer, budget_s, attempt.timeline, is_new=True)
        take(met)
        return met.plan.kind

    def redial(self, link: PeerLink, budget_s: float) -> None:
        own = self._network.underlay().own
        own.make_sure(FIRST_LOOK_S)
        own_side = OwnSide(own.host_candidates())
        theirs = link.info.met.theirs
        offer = own_side.fit(lambda: own_side.restart(theirs.connection_id, _codes.CONNECT_P2P))
        met = self._meet(link.info.peer_id, own_side, offer, budget_s, Timeline())
        link.paths.offer(met.path)

    def _meet(
        self,
        peer_id: str,
        own_side: OwnSide,
        offer: str,
        budget_s: float,
        timeline: Timeline,
        *,
        is_new: bool = False,
    ) -> Met:
        """``is_new``: it is for a link of its own, so that the peer has to show who it is."""

        def take_untrusted(answer: str) -> tuple[DirectOffer, CallKeys]:
            public, theirs = parse_direct_answer_untrusted(answer)
            if is_new and not theirs.proves:
                self._pins.check_unproven(peer_id, UNPROVEN)
            return theirs, own_side.keys(public, offer, answer)

        deadline = time.monotonic() + budget_s
        found, _ = lan.search(peer_id, offer, self._port, budget_s, self._log, take_untrusted)
        timeline.step("answer")
        theirs, keys = found
        meeting = self._network.underlay().searches.meeting(
            f"{peer_id} (LAN)", own_side, theirs, keys, timeline, None
        )
        late = TimedOut("no path to the peer was found")
        with meeting as begun, time_limit(deadline - time.monotonic(), late):
            return begun.take()


class _LanCall(IncomingCall):
    """A call that came by a search."""

    def __init__(self, text: str, own_id: str, source: Address) -> None:
        name, offer = f"{source[0]} (LAN)", parse_offer_untrusted(text)
        super().__init__(offer, text, own_id, name, MEETING_S, stranger_at(source[0]))
        self.answered: AsyncResult[str] = AsyncResult()

    def answer(self, text: str) -> None:
        self.answered.set(text)
        gevent.sleep(0)  # it goes out now, and the caller begins while we do our part


class LanCallee:
    """``join`` lets others find us."""

    def __init__(
        self,
        port: int,
        callers: Callers,
        callee: Callee,
        links: LinkTable,
        network: Network,
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:
        self._port = port
        self._callers = callers
        self._callee = callee
        self._links = links
        self._network = network
        self._log = log
        self._spawn = spawn
        self._responder: lan.Responder | None = None
        self._own_id = ""
        self._answering: set[gevent.Greenlet[..., Any]] = set()

    def join(self, peer_id: str) -> None:
        """Be found on the LAN under this id, instead of any other."""
        if self._network.udp.is_off:
            raise NotSupported("the LAN is searched by UDP, which tcp_only excludes")
        self._network.underlay()
        self.leave()
        if peer_id != self._own_id:
            self._links.retire(self._own_id)
            self._stop_answering()
        self._own_id = peer_id
        responder = lan.Responder(
            peer_id,
            self._port,
            lambda text, source: self._answer(_LanCall(text, peer_id, source)),
            self._log,
        )
        responder.start()
        self._responder = responder
        self._log.warning("%s: found on the LAN by port %d", peer_id, responder.port)

    def leave(self) -> None:
        responder, self._responder = self._responder, None
        if responder is not None:
            responder.close()

    def close(self) -> None:
        self.leave()
        self._stop_answering()

    def _stop_answering(self) -> None:
        for answering in self._answering:
            answering.kill(block=False)

    def _answer(self, call: _LanCall) -> str:
        """The text of our answer; the path is looked for after that, too."""
        answered = call.answered

        def answer() -> None:
            try:
                if not self._callers.allow(None):
                    raise NotAllowed("callers on the LAN have no account")
                self._callee.answer(call)
            except KKP2PError as error:
                if not answered.ready():
                    answered.set_exception(error)
                self._log.info("%s: not met: %s", call.name, error)

        def ended(greenlet: gevent.Greenlet[..., Any]) -> None:
            self._answering.discard(greenlet)
            if not answered.ready():  # it was stopped
                answered.set_exception(EngineClosed())

        greenlet = self._spawn(answer)
        self._answering.add(greenlet)
        greenlet.rawlink(ended)
        return answered.get()
