"""Where the cloud sees a peer: what it can vouch for when two peers tell each other addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from ..traversal.candidates import is_private
from .limits import address_key

__all__ = ["plain_ip", "same_network"]


def plain_ip(host: str) -> str:
    """A numeric address as peers write it: without a scope, and IPv4 as such."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def same_network(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two peers are seen at one address (IPv6: /64), or in the cloud's own network.

    Who has a private address here is not behind a NAT for us, so all of those are at home here.
    """
    if set(map(address_key, one)) & set(map(address_key, other)):
        return True
    return is_private(one[0]) and is_private(other[0])
