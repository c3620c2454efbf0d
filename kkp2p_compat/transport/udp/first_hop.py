"""How large a datagram the first hop to an address takes, which this host knows."""

from __future__ import annotations

import socket

from ..._address import Address
from .mtu import MIN_BYTES

__all__ = ["first_hop_datagram_bytes"]

# Linux: asm-generic/in.h and in6.h; Python has no names for them.
_IP_MTU = 14
_IPV6_MTU = 24
_IPV4_HEADERS = 28  # with UDP's
_IPV6_HEADERS = 48
MAX_BYTES = 16_376  # our choice: four to a batch, on a loopback that would take one of 65,507


def first_hop_datagram_bytes(address: Address) -> int:
    """The largest UDP payload worth trying: by the first hop's MTU, or Ethernet's if unknown."""
    is_ipv6 = ":" in address[0]
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    headers = _IPV6_HEADERS if is_ipv6 else _IPV4_HEADERS
    mtu = 1500
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address[:2])
            if is_ipv6:
                mtu = probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
            else:
                mtu = probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    except OSError:
        pass  # no route now, or no such option here: the search for the path MTU copes
    return max(MIN_BYTES, min(mtu - headers, MAX_BYTES))
