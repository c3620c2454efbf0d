"""IPv4 addresses on a host that has IPv6 only: the address by which a NAT64 translates there.

DNS64 does that for names.  For an address in numbers the host has to do it itself, with the prefix
that DNS64 gives away when it is asked for a name that has IPv4 addresses only (RFC 7050).  The
layout of the addresses is RFC 6052 section 2.2.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

__all__ = ["DISCOVERY_NAME", "has_route", "translated"]

DISCOVERY_NAME = "ipv4only.arpa"  # RFC 7050 section 2.2, and its addresses
_KNOWN = (IPv4Address("192.0.0.170").packed, IPv4Address("192.0.0.171").packed)

# RFC 6052 section 2.2: which bytes hold the IPv4 address, by the length of the prefix in bytes.
_PLACES = {
    12: (12, 13, 14, 15),
    8: (9, 10, 11, 12),
    7: (7, 9, 10, 11),
    6: (6, 7, 9, 10),
    5: (5, 6, 7, 9),
    4: (4, 5, 6, 7),
}


def has_route(ip: str) -> bool:
    """Whether this host can send anything to an IPv4 address; nothing is sent."""
    try:
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:  # another one (out of descriptors, say) is not for us to tell
        return error.errno != errno.EAFNOSUPPORT
    with probe:
        try:
            probe.connect((ip, 9))
        except OSError:
            return False
    return True


def translated(ip: str, answers: Sequence[str]) -> list[str]:
    """An IPv4 address as NAT64s have it; ``answers``: the addresses of DISCOVERY_NAME here."""
    found = []
    for answer in answers:
        if ":" not in answer:
            continue
        known = IPv6Address(answer.partition("%")[0]).packed
        for length, places in _PLACES.items():
            if bytes(known[place] for place in places) in _KNOWN:
                made = bytearray(16)
                made[:length] = known[:length]
                for place, value in zip(places, IPv4Address(ip).packed, strict=True):
                    made[place] = value
                found.append(str(IPv6Address(bytes(made))))
                break
    return list(dict.fromkeys(found))
