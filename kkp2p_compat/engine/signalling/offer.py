"""The texts of offer and answer: what a caller wants of a channel, and what the callee says to it.

Both are JSON objects that travel through a track of the cloud or a LAN search.  What may lead to a
direct connection is in their "direct" part (``direct_offer``); the rest is here.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ... import _base64url, _codes
from ..._errors import BadPacket, NotSupported
from ...control.wire import MAX_SEEN, number_untrusted
from ...traversal.candidates import is_private, may_be_peer
from .direct_offer import DirectOffer, parse_id_untrusted

__all__ = [
    "Offer",
    "encode_text",
    "parse_direct_answer_untrusted",
    "parse_offer_untrusted",
    "vouched_untrusted",
]

PUBLIC_KEY_BYTES = 32  # X25519, RFC 7748


class Offer(NamedTuple):
    """What a caller wants."""

    channel_type: int
    mode: int
    encrypt: int
    desc: int
    key: bytes | None
    direct: DirectOffer | None = None
    restarts: int | None = None  # our id of a connection for which only a new path is wanted
    needs_tcp: bool = False  # then: also one over TCP to a relay, to compare what they carry


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
    if "direct" in fields:
        direct = DirectOffer.parse_untrusted(fields["direct"])
    elif channel_type != _codes.KKP2P_TCP_CHANNEL or mode != _codes.CONNECT_RELAY or encrypt:
        raise NotSupported(f"channel_type {channel_type}, connect_mode {mode}, encrypt {encrypt}")
    return Offer(channel_type, mode, encrypt, desc, key, direct)


def _parse_restart_untrusted(fields: dict[str, Any]) -> Offer:
    connection_id = parse_id_untrusted(fields["restart"])
    direct = DirectOffer.parse_untrusted(fields.get("direct"))
    key = _decode_key_untrusted(fields.get("key"))
    mode = _codes.CONNECT_P2P
    if "mode" in fields:
        mode = number_untrusted(fields, "mode", 0, 2)
    needs_tcp = fields.get("tcp") is True
    return Offer(_codes.KKP2P_TCP_CHANNEL, mode, 0, 0, key, direct, connection_id, needs_tcp)


def parse_direct_answer_untrusted(answer: str) -> tuple[bytes, DirectOffer]:
    """The callee's public key, and its direct part; NotSupported without that."""
    fields = _from_text_untrusted(answer)
    if "direct" not in fields:
        raise NotSupported("the peer cannot be met directly")
    direct = DirectOffer.parse_untrusted(fields["direct"])
    return _decode_key_untrusted(fields.get("key")), direct


def vouched_untrusted(seen: object) -> frozenset[str] | None:
    """The IP addresses at which the track sees the other side of a call; the first is that of its
    control connection.  None: the track cannot tell, being an old one or in a private network.
    """
    if not isinstance(seen, list) or not 0 < len(seen) <= MAX_SEEN:
        return None
    if not all(isinstance(ip, str) and may_be_peer(ip, 1) for ip in seen) or is_private(seen[0]):
        return None
    return frozenset(seen)


def encode_text(**fields: Any) -> str:
    """Bytes as base64url; what is None is left out."""
    told = {
        name: _base64url.encode(value) if isinstance(value, bytes) else value
        for name, value in fields.items()
        if value is not None
    }
    return json.dumps(told, separators=(",", ":"))


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
