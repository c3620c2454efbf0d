"""IPv4 addresses on a host that has IPv6 only: the address by which a NAT64 translates there.

DNS64 does that for names.  For an address in numbers the host has to do it itself, with the prefix
that DNS64 gives away when it is asked for a name that has IPv4 addresses only (RFC 7050).  The
layout of the addresses is RFC 6052 section 2.2.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["DISCOVERY_ADDRESSES", "DISCOVERY_NAME", "Nat64", "has_route", "nat64s_of"]

DISCOVERY_NAME = "ipv4only.arpa"  # RFC 7050 section 2.2, and its addresses
DISCOVERY_ADDRESSES = ("192.0.0.170", "192.0.0.171")
_KNOWN = [socket.inet_aton(ip) for ip in DISCOVERY_ADDRESSES]

# RFC 6052 section 2.2: which bytes hold the IPv4 address, by the length of the prefix in bytes.
_PLACES = {
    12: (12, 13, 14, 15),
    8: (9, 10, 11, 12),
    7: (7, 9, 10, 11),
    6: (6, 7, 9, 10),
    5: (5, 6, 7, 9),
    4: (4, 5, 6, 7),
}


class Nat64(NamedTuple):
    """What a NAT64 puts before IPv4 addresses: 4 to 8 bytes, or 12."""

    prefix: bytes

    def outward(self, ip: str) -> str:
        """Where the network has this IPv4 address.  OSError: it is none."""
        made = bytearray(16)
        made[: len(self.prefix)] = self.prefix
        for place, value in zip(
            _PLACES[len(self.prefix)], socket.inet_pton(socket.AF_INET, ip), strict=True
        ):
            made[place] = value
        return socket.inet_ntop(socket.AF_INET6, made)

    def inward(self, ip: str) -> str | None:
        """The IPv4 address that this IPv6 address stands for; None: it is another one's."""
        packed = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
        found = socket.inet_ntoa(bytes(packed[place] for place in _PLACES[len(self.prefix)]))
        return found if socket.inet_pton(socket.AF_INET6, self.outward(found)) == packed else None


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


def nat64s_of(answers: Sequence[str]) -> list[Nat64]:
    """``answers``: the addresses of DISCOVERY_NAME here."""
    found = []
    for answer in answers:
        if ":" not in answer:
            continue
        known = socket.inet_pton(socket.AF_INET6, answer.partition("%")[0])
        for length, places in _PLACES.items():
            if bytes(known[place] for place in places) in _KNOWN:
                found.append(Nat64(known[:length]))
                break
    return list(dict.fromkeys(found))
