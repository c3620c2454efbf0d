"""Calls on the tracks where a peer may be, and those that are a TCP connection through a relay.

Runs in the engine's hub.  Both sides go to the relay while offer and answer are under way, so a
relayed call takes about three round trips.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator

import gevent

from ... import _codes
from ..._address import HostPort
from ..._errors import BadPacket, CallRefused, KKP2PError, LinkLost, PeerOffline
from ..._sentence import Sentence, said
from ..._structs import connect_ctx_t
from ...control.backoff import Backoff
from ...control.client import CloudClient
from ...control.link import Link
from ...control.nearness import permitted
from ...control.outgoing import OutgoingCall
from ...control.refusals import show
from ...control.resolver import addresses_of
from ...control.way_out import DIRECT
from ...control.wire import MAX_BUDGET_MS, Message, encode
from ...transport.relay import MAX_SPOTS, Visit, parse_places_untrusted, sort_spots
from ...traversal.nat import NatBehaviour
from ...traversal.turn_server import TurnServer
from ..links.streams import OpenStream, SplicedStream
from ..paths.path_kind import PathKind
from ..runtime.timeline import Timeline
from ..signalling.offer import Offer, encode_text
from .turn_place import turn_servers_untrusted

__all__ = ["RelayPlaces", "answer_call", "call_peer", "is_spliced", "make_call"]

# Our choices.
RESOLVE_TIMEOUT_S = 5  # for a relay that has a name
# Between two tries of a call that was put off, random and growing: see Backoff.
AGAIN_FIRST_S = 0.25
AGAIN_SPREAD_S = 1.0
AGAIN_MOST_S = 2.0

# Why a call gets no relay.
_NO_RELAY = {
    "limit": Sentence("the account that pays has used up its relay bytes of the day"),
    "none": Sentence("no relay lives"),
}

_random = random.Random()


def is_spliced(ctx: connect_ctx_t) -> bool:
    """Whether the channel is a TCP connection through the relay, as it is."""
    return (
        ctx.connect_mode == _codes.CONNECT_RELAY
        and ctx.channel_type == _codes.KKP2P_TCP_CHANNEL
        and not ctx.encrypt_data
    )


def make_call(
    client: CloudClient, ctx: connect_ctx_t, budget_s: float, why_relay: str
) -> OpenStream:
    """Call a peer by the relay; raises PeerOffline, CallRefused, CloudUnreachable or LinkLost."""
    offer = encode_text(
        type=ctx.channel_type, mode=_codes.CONNECT_RELAY, encrypt=0, desc=ctx.connect_desc
    )
    timeline = Timeline()

    def go(link: Link, call: OutgoingCall) -> None:
        timeline.step("called")
        call.at_relay = RelayPlaces.of_caller(call, link).visit()
        timeline.step("relay")

    with call_peer(client, ctx.peer_id, offer, budget_s, go) as (link, call):
        call.answer.get()  # first, because a refusal comes here and not by the relay
        timeline.step("answer")
        with contextlib.closing(RelayPlaces.of_caller(call, link).visit()) as visit:
            with contextlib.suppress(BadPacket):  # a stranger's word, which is only shown
                timeline.peer_nat = NatBehaviour.parse_untrusted(call.peer_nat)
            visit.pair()
            timeline.step("paired")
            call.met(PathKind.FRAMED.word)
            sock = visit.take()
    return SplicedStream(sock, ctx.connect_desc, why_relay, timeline)


@contextlib.contextmanager
def call_peer(
    client: CloudClient,
    peer_id: str,
    offer: str,
    budget_s: float,
    meanwhile: Callable[[Link, OutgoingCall], object] = lambda link, call: None,
) -> Iterator[tuple[Link, OutgoingCall]]:
    """A call on the first of the tracks where the peer may be that knows the peer.

    The body runs when the call is answered or has failed: until then a track may want it made
    again, or is lost, and it is made by another.  ``meanwhile`` is called once the track has named
    the relay.  When the body fails, the callee is told that the call is cancelled.
    """
    offline = PeerOffline("no track of the peer lives")
    deadline = time.monotonic() + budget_s
    for link, call in _tries(client, peer_id, offer, deadline):
        has_failed = True
        try:
            call.relay.wait()
            if isinstance(call.relay.exception, PeerOffline):
                offline = call.relay.exception
                continue
            if call.relay.successful():
                if call.must_show and not call.answer.ready():
                    _show(client, link, call)
                meanwhile(link, call)
                call.answer.wait()
            if _may_be_made_again(link, call) and time.monotonic() + AGAIN_MOST_S < deadline:
                continue
            yield link, call
            has_failed = False
            return
        finally:
            if call.at_relay is not None:
                call.at_relay.close()  # first: the link may be broken, too
            if not call.relay.ready():  # the track answers at once, whatever the callee does
                gevent.spawn(link.check_alive)
            link.calls.forget(call, cancel=has_failed)
    raise offline


def _tries(
    client: CloudClient, peer_id: str, offer: str, deadline: float
) -> Iterator[tuple[Link, OutgoingCall]]:
    """One on each track; where it is put off, or its link breaks, another after a pause."""
    pauses = Backoff(_random, AGAIN_FIRST_S, AGAIN_MOST_S, AGAIN_SPREAD_S)
    links = iter(client.links_to(peer_id))
    while (link := next(links, None)) is not None:
        again = True
        while again:
            left_ms = int(1000 * (deadline - time.monotonic()))
            call = link.calls.make(peer_id, offer, min(max(left_ms, 1), MAX_BUDGET_MS))
            yield link, call
            again = _may_be_made_again(link, call)
            if again:
                client.log.info("%s: called again soon: %s", peer_id, call.answer.exception)
                gevent.sleep(pauses.next())
            if again and link.closed.is_set():
                links, again = iter(client.links_to(peer_id)), False


def _may_be_made_again(link: Link, call: OutgoingCall) -> bool:
    """The cloud could not carry it: who the callee is, and what it says, is not known yet."""
    return call.is_put_off or (link.closed.is_set() and call.answer.exception is not None)


def _show(client: CloudClient, link: Link, call: OutgoingCall) -> None:
    """Be at the relay: a callee is handed only few calls of strangers that were not there yet.

    Where that fails the call waits for its turn among those few.
    """
    try:
        visit = RelayPlaces.of_caller(call, link).visit(wants_receipt=True)
        try:
            link.calls.show(call, visit.read_receipt())
        except BaseException:
            visit.close()
            raise
        call.at_relay = visit
    except (LinkLost, CallRefused) as error:
        client.log.info("the call waits for its turn: no receipt of the relay: %s", error)


class RelayPlaces:
    """What the track's ``message`` says of the relays of a call: where, and our token."""

    def __init__(self, message: Message, link: Link, *, is_caller: bool) -> None:
        self._message = message
        self._link = link
        self._is_caller = is_caller
        self._way_out = DIRECT  # once they are looked up: the one that knows their names
        self._call: OutgoingCall | None = None
        self._places: tuple[list[HostPort], bytes] | None = None

    @classmethod
    def of_caller(cls, call: OutgoingCall, link: Link) -> RelayPlaces:
        places = cls(call.relay.get(), link, is_caller=True)
        places._call = call
        return places

    def places(self) -> tuple[list[HostPort], bytes]:
        """Numeric addresses in the order of both sides, and the token.  May wait for the DNS;
        raises LinkLost or BadPacket.
        """
        if self._places is None:
            self._places = self._look_up()
        return self._places

    def _look_up(self) -> tuple[list[HostPort], bytes]:
        message, reached = self._message, self._link.reached
        way_out = self._link.way_out
        reason = message.get("no_relay")
        if reason is not None:
            known = _NO_RELAY.get(reason) if isinstance(reason, str) else None
            raise LinkLost(
                "relay: the cloud gives none for this call: {why}", why=known or show(reason)
            )
        places, token = parse_places_untrusted(message.get("relay"), message.get("relays"), reached)
        spots: list[HostPort] = []
        problem = LinkLost("relay: no address")
        for host, port in places:
            try:
                addresses = _addresses(host, reached[0])
            except KKP2PError as error:
                problem = LinkLost("relay: {why}", why=said(error))
            else:
                spots += [(address, port) for address in sort_spots(addresses, token)]
                way_out = way_out.knowing(dict.fromkeys(addresses, host))
        if not spots:
            raise problem
        self._way_out = way_out
        return spots[:MAX_SPOTS], token

    def visit(self, wants_receipt: bool = False) -> Visit:
        """At one of them by TCP, the token shown; the one that the call has made, if there is one.

        ``wants_receipt``: its ``read_receipt`` follows.
        """
        if self._call is not None and self._call.at_relay is not None:
            there: Visit = self._call.at_relay
            self._call.at_relay = None
            return there
        spots, token = self.places()
        visit = Visit(spots, token, self._is_caller, wants_receipt, self._way_out.connect)
        try:
            visit.begin()
        except BaseException:
            visit.close()
            raise
        return visit

    @property
    def has_turn(self) -> bool:
        return self._message.get("turn") is not None

    def turn_servers(self) -> list[TurnServer]:
        """May wait for the DNS; raises BadPacket or LinkLost."""
        return turn_servers_untrusted(self._message, self._link.reached[0])


def _addresses(host: str, cloud_ip: str) -> list[str]:
    """Of a relay that a cloud has named; most are where the cloud is."""
    if host == cloud_ip:
        return [host]
    return permitted(host, addresses_of(host, RESOLVE_TIMEOUT_S), cloud_ip)


def answer_call(link: Link, message: Message, offer: Offer) -> OpenStream:
    """Accept an offer: go to the relay, answer, wait for the caller; raises KKP2PError."""
    places = RelayPlaces(message, link, is_caller=False)
    with contextlib.closing(places.visit()) as visit:
        link.send(encode("answer", call=message.get("call"), answer="{}"))
        visit.pair()
        return SplicedStream(visit.take(), offer.desc)
