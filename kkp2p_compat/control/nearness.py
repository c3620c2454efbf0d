"""Where a server may send us: no nearer than where it is itself.

A cloud names relays and tracks, and we connect to what it names.  A false or hostile one must not
reach through us what it cannot reach itself: services of this host, of its network, or those that
a hoster keeps at link-local addresses.  What is checked is the very address that we connect to,
after any name was resolved.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from .._address import is_ip
from .._errors import LinkLost

__all__ = ["permitted"]

# From far to near; a server may name what is as far as itself, or farther.
_PUBLIC, _PRIVATE, _LINK_LOCAL, _LOOPBACK = range(4)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def permitted(host: str, addresses: Sequence[str], cloud_ip: str) -> list[str]:
    """Of a named host's addresses those to which a cloud at ``cloud_ip`` may send us.

    (A cloud behind a proxy that looked it up by its name is taken to be on the Internet.)
    Raises LinkLost if there is none.  If the host is an address itself that counts first: what we
    dial may be one that a NAT64 has for it, which does not show where it leads.
    """
    cloud = _plain(cloud_ip) if is_ip(cloud_ip) else None
    found = []
    if not is_ip(host) or _is_permitted(_plain(host), cloud):
        found = [address for address in addresses if _is_permitted(_plain(address), cloud)]
    if not found:
        raise LinkLost(f"{', '.join(addresses)}: not where a cloud at {cloud_ip} may send us")
    return found


def _is_permitted(address: _Address, cloud: _Address | None) -> bool:
    if address == cloud:
        return True
    is_nowhere = address.is_multicast or address.is_unspecified or address == _BROADCAST
    from_where = _PUBLIC if cloud is None else _nearness(cloud)
    return not is_nowhere and _nearness(address) <= from_where


def _plain(ip: str) -> _Address:
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _nearness(address: _Address) -> int:
    if address.is_loopback or address.is_unspecified:  # connecting to 0.0.0.0 is to loopback
        return _LOOPBACK
    if address.is_link_local:
        return _LINK_LOCAL
    is_site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return _PUBLIC if address.is_global and not is_site_local else _PRIVATE
