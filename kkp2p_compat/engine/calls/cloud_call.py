"""Calling a peer over the cloud: offers, answers, and the connections that go by the relay.

Runs in the engine's hub.  Both sides go to the relay while offer and answer are under way, so a
relayed connection takes about three round trips.  What comes out is a RelayedStream; what is made
of it (a descriptor for the application, or a proxied stream) is the business of others.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import gevent

from ... import _base64url, _codes
from ..._errors import BadPacket, CallRefused, KKP2PError, LinkLost, NotSupported, PeerOffline
from ..._structs import connect_ctx_t
from ...control.client import CloudClient
from ...control.link import Link
from ...control.nearness import permitted
from ...control.outgoing import OutgoingCall
from ...control.resolver import addresses_of
from ...control.wire import MAX_BUDGET_MS, MAX_SEEN, Message, encode, number_untrusted
from ...transport.relay import MAX_SPOTS, Visit, parse_places_untrusted, sort_spots
from ...transport.sealed import derive_keys, make_private_key
from ...traversal.candidates import is_private, may_be_peer
from ...traversal.nat import NatBehaviour
from ..links.streams import RelayedStream, relayed_stream
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer, parse_id_untrusted

__all__ = [
    "Offer",
    "answer_call",
    "call_peer",
    "encode_text",
    "go_as_caller",
    "go_to_relay",
    "make_call",
    "may_be_relayed",
    "parse_answer_untrusted",
    "parse_direct_answer_untrusted",
    "parse_offer_untrusted",
    "vouched_untrusted",
]

T = TypeVar("T")

RESOLVE_TIMEOUT_S = 5  # our choice: for a relay that has a name
PUBLIC_KEY_BYTES = 32  # X25519, RFC 7748


@dataclass(frozen=True)
class Offer:
    """What a caller wants."""

    channel_type: int
    mode: int
    encrypt: int
    desc: int
    key: bytes | None
    direct: DirectOffer | None = None
    restarts: int | None = None  # an id of ours: only a new path for that connection is wanted


def may_be_relayed(ctx: connect_ctx_t) -> bool:
    """Whether a path is looked for, and the relay is a way, too: it carries streams only."""
    return ctx.connect_mode == _codes.CONNECT_AUTO and ctx.channel_type == _codes.KKP2P_TCP_CHANNEL


def make_call(client: CloudClient, ctx: connect_ctx_t, budget_s: float) -> RelayedStream:
    """Call a peer by the relay; raises PeerOffline, CallRefused, CloudUnreachable,
    LinkLost, or NotSupported (to encrypt, as ``make_private_key``).
    """
    private = make_private_key() if ctx.encrypt_data else None
    offer = encode_text(
        type=ctx.channel_type, mode=_codes.CONNECT_RELAY, encrypt=ctx.encrypt_data,
        desc=ctx.connect_desc, key=private and private.public_key().public_bytes_raw(),
    )  # fmt: skip

    timeline = Timeline()

    def finish(link: Link, call: OutgoingCall) -> RelayedStream:
        call.relay.get()
        timeline.step("called")
        visit = go_as_caller(call, link)
        timeline.step("relay")
        try:
            answer = call.answer.get()  # first, because a refusal comes here and not by the relay
            timeline.step("answer")
            with contextlib.suppress(BadPacket):  # a stranger's word, which is only shown
                timeline.peer_nat = NatBehaviour.parse_untrusted(call.peer_nat)
            visit.pair()
            timeline.step("paired")
            keys = None
            if private is not None:
                public = parse_answer_untrusted(answer)
                keys = derive_keys(private, public, offer, answer)
        except BaseException:
            visit.close()  # first: the link may be broken, too
            raise
        made = relayed_stream(visit.take(), ctx.connect_desc, keys)
        made.timeline = timeline
        return made

    return call_peer(client, ctx.peer_id, offer, budget_s, finish)


def call_peer(
    client: CloudClient, peer_id: str, offer: str, budget_s: float,
    finish: Callable[[Link, OutgoingCall], T],
) -> T:  # fmt: skip
    """Call on the tracks where the peer may be, until one has it; what ``finish`` makes of it."""
    offline = PeerOffline("no track of the peer lives")
    budget_ms = min(max(int(budget_s * 1000), 1), MAX_BUDGET_MS)
    for link in client.links_to(peer_id):
        call = link.call(peer_id, offer, budget_ms)
        met = False
        try:
            call.relay.wait()
            if call.must_show and not call.answer.ready():
                _show(client, link, call)
            made = finish(link, call)
            met = True
            return made
        except PeerOffline as error:
            offline = error
        finally:
            if call.at_relay is not None:
                call.at_relay.close()  # first: the link may be broken, too
            if not call.relay.ready():  # the track answers at once, whatever the callee does
                gevent.spawn(link.check_alive)
            link.forget(call, cancel=not met)
    raise offline


def _show(client: CloudClient, link: Link, call: OutgoingCall) -> None:
    """Be at the relay: a callee is handed only few calls of strangers that were not there yet.

    Where that fails the call waits for its turn among those few.
    """
    try:
        visit = go_to_relay(call.relay.get(), link, is_caller=True, wants_receipt=True)
        try:
            link.show(call, visit.read_receipt())
        except BaseException:
            visit.close()
            raise
        call.at_relay = visit
    except (LinkLost, CallRefused) as error:
        client.log.info("the call waits for its turn: no receipt of the relay: %s", error)


def go_as_caller(call: OutgoingCall, link: Link) -> Visit:
    """As ``go_to_relay``, unless the call has been there already."""
    visit: Visit | None = call.at_relay
    call.at_relay = None
    return visit or go_to_relay(call.relay.get(), link, is_caller=True)


def go_to_relay(
    message: Message, link: Link, *, is_caller: bool, wants_receipt: bool = False
) -> Visit:
    """A visit that has shown its token; ``message``: of the track, with our place.

    ``wants_receipt``: its ``read_receipt`` follows.
    """
    places, token = parse_places_untrusted(
        message.get("relay"), message.get("relays"), link.reached
    )
    spots: list[tuple[str, int]] = []
    problem = LinkLost("relay: no address")
    for host, port in places:
        try:
            addresses = _addresses(host, link.reached[0])
        except KKP2PError as error:
            problem = LinkLost(f"relay: {error}")
        else:
            spots += [(address, port) for address in sort_spots(addresses, token)]
    if not spots:
        raise problem
    visit = Visit(spots[:MAX_SPOTS], token, is_caller, wants_receipt)
    try:
        visit.begin()
    except BaseException:
        visit.close()
        raise
    return visit


def _addresses(host: str, cloud_ip: str) -> list[str]:
    """Of a relay that a cloud has named; most are where the cloud is."""
    if host == cloud_ip:
        return [host]
    return permitted(host, addresses_of(host, RESOLVE_TIMEOUT_S), cloud_ip)


def answer_call(link: Link, message: Message, offer: Offer, own_text: str) -> RelayedStream:
    """Accept an offer: go to the relay, answer, wait for the caller; raises KKP2PError."""
    visit = go_to_relay(message, link, is_caller=False)
    try:
        keys = None
        answer = "{}"
        if offer.encrypt:
            if offer.key is None:
                raise BadPacket("an offer to encrypt without a key")
            private = make_private_key()
            answer = encode_text(key=private.public_key().public_bytes_raw())
            theirs, ours = derive_keys(private, offer.key, own_text, answer)
            keys = ours, theirs
        link.send(encode("answer", call=message.get("call"), answer=answer))
        visit.pair()
    except BaseException:
        visit.close()
        raise
    return relayed_stream(visit.take(), offer.desc, keys)


def parse_offer_untrusted(text: object) -> Offer:
    """The offer in an offer message; raises BadPacket, or NotSupported for what we cannot do."""
    fields = _from_text_untrusted(text)
    if "restart" in fields:
        return _parse_restart_untrusted(fields)
    channel_type = number_untrusted(fields, "type", 0, 2)
    mode = number_untrusted(fields, "mode", 0, 2)
    encrypt = number_untrusted(fields, "encrypt", 0, 1)
    desc = number_untrusted(fields, "desc", -(2**31), 2**31 - 1)
    key = _decode_key_untrusted(fields["key"]) if "key" in fields else None
    direct = None
    if "direct" in fields and mode != _codes.CONNECT_RELAY:
        direct = DirectOffer.parse_untrusted(fields["direct"])
    elif channel_type != _codes.KKP2P_TCP_CHANNEL or mode == _codes.CONNECT_P2P:
        raise NotSupported(f"channel_type {channel_type}, connect_mode {mode}")
    return Offer(channel_type, mode, encrypt, desc, key, direct)


def _parse_restart_untrusted(fields: dict[str, Any]) -> Offer:
    connection_id = parse_id_untrusted(fields["restart"])
    direct = DirectOffer.parse_untrusted(fields.get("direct"))
    key = _decode_key_untrusted(fields.get("key"))
    mode, kind = _codes.CONNECT_P2P, _codes.KKP2P_TCP_CHANNEL
    return Offer(kind, mode, 0, 0, key, direct, connection_id)


def parse_answer_untrusted(answer: str) -> bytes:
    """The callee's public key."""
    return _decode_key_untrusted(_from_text_untrusted(answer).get("key"))


def parse_direct_answer_untrusted(answer: str) -> tuple[bytes, DirectOffer]:
    """The callee's public key, and its half of a direct connection; NotSupported without that."""
    fields = _from_text_untrusted(answer)
    if "direct" not in fields:
        raise NotSupported("the peer cannot be met directly")
    direct = DirectOffer.parse_untrusted(fields["direct"])
    return _decode_key_untrusted(fields.get("key")), direct


def vouched_untrusted(seen: object) -> frozenset[str] | None:
    """Where the track sees the other side of a call: ips, of which the first one's is its control
    connection's.  None: it cannot tell, as an old one, or one in a network of its own.
    """
    if not isinstance(seen, list) or not 0 < len(seen) <= MAX_SEEN:
        return None
    if not all(isinstance(ip, str) and may_be_peer(ip, 1) for ip in seen) or is_private(seen[0]):
        return None
    return frozenset(seen)


def encode_text(**fields: Any) -> str:
    for name, value in list(fields.items()):
        if isinstance(value, bytes):
            fields[name] = _base64url.encode(value)
        elif value is None:
            del fields[name]
    return json.dumps(fields, separators=(",", ":"))


def _from_text_untrusted(text: object) -> dict[str, Any]:
    try:
        fields = json.loads(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, RecursionError) as error:
        raise BadPacket("an offer or answer that is not JSON") from error
    if not isinstance(fields, dict):
        raise BadPacket("an offer or answer that is not an object")
    return fields


def _decode_key_untrusted(text: object) -> bytes:
    return _base64url.decode_untrusted(text, PUBLIC_KEY_BYTES, "a public key")
