"""Who we are for the cloud, and the calls that it brings.

Runs in the engine's hub.  Each call is answered by a greenlet of its own, that its caller's cancel
ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from logging import Logger
from typing import Any, NamedTuple

import gevent
from gevent.event import AsyncResult

from ..._errors import KKP2PError, NotAllowed, TimedOut
from ..._io import time_limit
from ..._peer_id import is_peer_id
from ...control.callers import Callers
from ...control.client import CloudClient
from ...control.link import Link
from ...control.refusals import FAULT, reason_for
from ...control.wire import MAX_BUDGET_MS, Message, encode, number_untrusted
from ..channels.acceptor import Acceptor
from ..links.link_table import LinkTable
from ..links.pins import PLAIN, Pins
from ..paths.relay_paths import RelayAccess
from ..runtime.shares import Shares, stranger_at
from ..signalling.offer import Offer, parse_offer_untrusted, vouched_untrusted
from .callee import Callee, IncomingCall
from .cloud_call import RelayPlaces, answer_call

__all__ = ["IncomingCalls"]

# Our choices.
MAX_ANSWERING = 2048  # offers that are being answered, or refused
VERDICT_S = 3.0  # how long join_net waits for the cloud's word


class _Caller(NamedTuple):
    """Who calls, as the cloud says."""

    peer_id: str  # that the cloud vouches for; "" for a stranger
    share: str  # whose part of our room the call takes up
    is_far_stranger: bool  # no account, and in another network

    @classmethod
    def of(cls, message: Message) -> _Caller:
        """An old track does not tell where a stranger is, who then does not count as far away."""
        named, seen = message.get("from"), message.get("seen")
        peer_id = str(named) if is_peer_id(named) else ""
        share = peer_id or stranger_at(seen[0] if isinstance(seen, list) and seen else None)
        is_far = "seen" in message and message.get("same_network") is not True
        return cls(peer_id, share, is_far and not peer_id)

    @property
    def name(self) -> str:
        """For the log."""
        return repr(self.peer_id) if self.peer_id else "a stranger"


class _CloudCall(IncomingCall):
    """A call that came by a track."""

    can_decline = True
    can_trickle = True
    has_relay = True

    def __init__(
        self,
        link: Link,
        message: Message,
        offer: Offer,
        own_id: str,
        caller: _Caller,
        budget_s: float,
    ) -> None:
        super().__init__(
            offer,
            str(message["offer"]),
            own_id,
            caller.name,
            budget_s,
            caller.share,
            caller.peer_id,
            message["call"],
            caller.is_far_stranger,
        )
        self._link = link
        self._message = message

    def answer(self, text: str) -> None:
        self._link.send(encode("answer", call=self.call_id, answer=text))

    def trickle(self, text: str) -> None:
        self._link.trickle(self.call_id, text)

    @property
    def relays(self) -> RelayAccess:
        return RelayPlaces(self._message, self._link, is_caller=False)


class IncomingCalls:
    """``join`` logs in; ``handle_message`` takes what the cloud says of calls."""

    def __init__(
        self,
        callers: Callers,
        callee: Callee,
        acceptor: Acceptor,
        links: LinkTable,
        pins: Pins,
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:
        self._callers = callers
        self._callee = callee
        self._acceptor = acceptor
        self._links = links
        self._pins = pins
        self._log = log
        self._spawn = spawn
        self._peer_id = ""
        self._shares = Shares()  # of those that are being answered
        self._answering: dict[tuple[Link, str], gevent.Greenlet[..., Any]] = {}
        self._meeting: dict[tuple[Link, str], IncomingCall] = {}  # of those, what may be direct

    @property
    def busy(self) -> bool:
        return bool(self._answering)

    # Who we are.

    def join(self, client: CloudClient, peer_id: str, secret: str) -> None:
        """Log in, and wait a moment for the verdict; logging in goes on without it."""
        verdict = client.login(peer_id, secret)
        if peer_id != self._peer_id:
            self._retire()
        self._peer_id = peer_id
        try:
            verdict.get(timeout=VERDICT_S)
        except gevent.Timeout:
            self._log.error("%s: the cloud does not answer; logging in goes on", peer_id)
            verdict.rawlink(self._handle_late_verdict)

    def _handle_late_verdict(self, verdict: AsyncResult[None]) -> None:
        if verdict.exception is not None:
            self.handle_login_lost(verdict.exception)

    def handle_login_lost(self, error: KKP2PError) -> None:
        """The cloud ended our login for good: accept says so, once."""
        self._retire()
        if not self._acceptor.queue.put(error):
            self._log.error("%s: nobody accepts: %s", self._peer_id, error)

    def _retire(self) -> None:
        """Who calls, or has just called, the peer that we were does not mean us any more."""
        self._links.retire(self._peer_id)
        for answering in self._answering.values():
            answering.kill(block=False)

    def close(self) -> None:
        gevent.killall(list(self._answering.values()))

    # What the cloud says.

    def handle_message(self, link: Link, message: Message) -> None:
        """An offer, what its caller trickles, or the news that the caller gave up.

        Or that a peer is gone with which a call has connected us once.
        """
        op = message["op"]
        if op == "gone":
            self._handle_gone(message)
            return
        key = link, message["call"]
        if op == "offer" and key not in self._answering:
            self._handle_offer(link, message)
        elif op == "cancel" and key in self._answering:
            self._answering[key].kill(block=False)
        elif op == "trickle" and key in self._meeting:
            meeting = self._meeting[key].meeting
            if meeting is not None:
                meeting.handle_text_untrusted(message.get("text"))

    def _handle_gone(self, message: Message) -> None:
        peer_id, calls = message.get("peer"), message.get("calls")
        self._links.handle_gone(
            peer_id if isinstance(peer_id, str) else "",
            calls if isinstance(calls, list) else [],
            message.get("back") is True,
        )

    def _handle_offer(self, link: Link, message: Message) -> None:
        caller = _Caller.of(message)
        if not self._shares.has_room(MAX_ANSWERING, caller.share, bool(caller.peer_id)):
            self._decline(link, message, "busy")
            return
        key = link, message["call"]
        greenlet = self._spawn(self._answer, link, message, caller)
        self._answering[key] = greenlet
        self._shares.enter(caller.share)
        greenlet.rawlink(lambda _: self._handle_answered(key, caller.share))

    def _handle_answered(self, key: tuple[Link, str], share: str) -> None:
        del self._answering[key]
        self._shares.leave(share)

    def _answer(self, link: Link, message: Message, caller: _Caller) -> None:
        try:
            if not self._callers.allow(caller.peer_id):  # an old track lets everybody through
                raise NotAllowed
            offer = parse_offer_untrusted(message.get("offer"))
            budget_s = number_untrusted(message, "ms", 1, MAX_BUDGET_MS) / 1000
            if offer.direct is None:
                self._accept_relayed(link, message, offer, caller, budget_s)
            else:
                self._meet(link, message, offer, caller, budget_s)
        except KKP2PError as error:
            # Not an error of ours: any stranger can make as many of these as the cloud lets pass.
            self._log.info("%s: a call from %s failed: %s", self._peer_id, caller.name, error)
            self._decline(link, message, reason_for(error))
        except Exception:  # noqa: BLE001 - logged; the caller may have another way
            self._log.exception("bug in the answer to a call from %s", caller.name)
            self._decline(link, message, FAULT)

    def _accept_relayed(
        self, link: Link, message: Message, offer: Offer, caller: _Caller, budget_s: float
    ) -> None:
        self._pins.check_unproven(caller.peer_id, PLAIN)
        # Who has not been at the relay may never come there: his place is taken when he has.
        is_there = bool(caller.peer_id) or message.get("shown") is True
        with (
            self._acceptor.place(self._peer_id, caller.peer_id, held=is_there),
            time_limit(budget_s, TimedOut("the caller did not come to the relay")),
        ):
            stream = answer_call(link, message, offer)
        self._acceptor.take(stream, self._peer_id, caller.peer_id, caller.name, caller.share)

    def _meet(
        self, link: Link, message: Message, offer: Offer, caller: _Caller, budget_s: float
    ) -> None:
        if offer.restarts is None:
            # Only to refuse early: what the caller opens takes a place of its own.
            self._acceptor.check(self._peer_id, caller.peer_id)
        assert offer.direct is not None
        asked = replace(offer.direct, vouched=vouched_untrusted(message.get("seen")))
        offer = offer._replace(direct=asked)
        key = link, message["call"]
        call = _CloudCall(link, message, offer, self._peer_id, caller, budget_s)
        self._meeting[key] = call
        try:
            self._callee.answer(call)
        finally:
            del self._meeting[key]

    def _decline(self, link: Link, message: Message, reason: str) -> None:
        try:
            link.send(encode("decline", call=message["call"], reason=reason))
        except KKP2PError as error:
            self._log.error("%s: cannot decline: %s", self._peer_id, error)
