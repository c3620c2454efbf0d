"""Where the cloud sees a peer: what it can vouch for when two peers tell each other addresses.

A control connection shows one address.  Its peer's UDP may leave from another: from an IPv4 one
beside an IPv6 connection, or through a carrier's NAT that has several.  So the STUN responder's
answers carry a *ticket*, which the peer hands to its track: the cloud's own word, under the key
that track and relay share.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
import struct
from collections.abc import Sequence

from .. import _base64url
from .._errors import BadPacket
from ..control.wire import MAX_TICKETS
from ..traversal.candidates import is_private
from ..traversal.stun import TICKET_BYTES
from .counting import address_key

__all__ = ["make_ticket", "plain_ip", "same_network", "seen_by_stun_untrusted"]

TICKET_S = 1800  # our choice: peers ask anew every ten minutes
_EXPIRY = struct.Struct("!I")  # Unix s


def make_ticket(key: bytes, ip: str, now: float) -> bytes:
    """That a STUN request came from this IPv4 address: TICKET_BYTES bytes.  ``now``: Unix s."""
    return _ticket(key, ip, _EXPIRY.pack(int(now) + TICKET_S))


def _ticket(key: bytes, ip: str, expiry: bytes) -> bytes:
    covered = b"seen" + expiry + socket.inet_pton(socket.AF_INET, ip)
    return expiry + hmac.digest(key, covered, "sha256")[: TICKET_BYTES - _EXPIRY.size]


def seen_by_stun_untrusted(key: bytes, pairs: object, now: float) -> list[str]:
    """The addresses of those of ``pairs`` (each an IPv4 address and a ticket) that we made."""
    if not isinstance(pairs, list) or len(pairs) > MAX_TICKETS:
        raise BadPacket(f"seen is not a list of at most {MAX_TICKETS} pairs")
    found = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise BadPacket("seen has an entry that is not a pair of an address and a ticket")
        ip, ticket = pair[0], _base64url.decode_untrusted(pair[1], TICKET_BYTES, "a ticket")
        expiry = ticket[: _EXPIRY.size]
        try:
            genuine = _ticket(key, ip, expiry)
        except (OSError, ValueError) as error:
            raise BadPacket("seen has an address that is not an IPv4 one") from error
        if hmac.compare_digest(ticket, genuine) and now <= _EXPIRY.unpack(expiry)[0]:
            found.append(ip)
    return found


def plain_ip(host: str) -> str:
    """A numeric address as peers write it: without a scope, and IPv4 as such."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def same_network(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two peers are seen at one address (IPv6: /64), or in the cloud's own network.

    A private address that we see is of no NAT between us: such a peer is in our own network.
    """
    if set(map(address_key, one)) & set(map(address_key, other)):
        return True
    return is_private(one[0]) and is_private(other[0])
