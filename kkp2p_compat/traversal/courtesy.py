"""What all calls of an engine together may send to addresses that have not answered yet.

Anybody can call a peer and make it probe addresses of third parties: each call has bounds of its
own, but there can be thousands of them.  So every request of every call is judged here first, and
what is over the limits is not sent; to the checks it looks like a packet that was lost.

- To one ip (IPv4 address, IPv6 /64): PER_IP at once, then PER_IP_PER_S.  So a victim gets 50
  packets of 152 bytes a second in the long run, 61 kbit/s, however often peers are called.
- In all: IN_ALL at once, then IN_ALL_PER_S; and the same once more for addresses from which a check
  came: otherwise a caller that names many victims could block every other call.

The limit of an ip that has answered a check of ours starts anew: the peer that was meant is there.
Only an answer counts, as it repeats random bytes of ours: requests can come from a forged address.
"""

from __future__ import annotations

import secrets
import socket

from .._bucket import Bucket
from .candidates import family_of

__all__ = ["Courtesy"]

# Our choices.
PER_IP = 3000  # a whole birthday or prediction, or 500 peers behind one NAT that call at once
PER_IP_PER_S = 50.0
IN_ALL = 10_000  # 1,000 calls at once to peers with a few addresses each
IN_ALL_PER_S = 1000.0  # 1.2 Mbit/s
SLOTS = 4096  # ips share one by chance: a full table would have to forget the level of some

_NETWORK_BYTES = 8  # of an IPv6 address: what one host or home has


class Courtesy:
    """Of one engine.  Time is in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.refused = 0  # requests that were not sent
        self._salt = secrets.token_bytes(8)  # so that nobody else knows which ips share a slot
        self._by_ip: dict[int, Bucket] = {}
        self._in_all: dict[bool, Bucket] = {}

    def may_send(self, ip: str, heard: bool, now: float) -> bool:
        """Whether one more request may go there.  ``heard``: a check came from the address."""
        one = self._by_ip.setdefault(self._slot(ip), Bucket(PER_IP_PER_S, PER_IP, now))
        every = self._in_all.setdefault(heard, Bucket(IN_ALL_PER_S, IN_ALL, now))
        if one.level(now) < 1 or every.level(now) < 1:
            self.refused += 1
            return False
        one.take(now)
        every.take(now)
        return True

    def met(self, ip: str) -> None:
        """A check was answered from there."""
        self._by_ip.pop(self._slot(ip), None)

    def _slot(self, ip: str) -> int:
        packed = socket.inet_pton(family_of(ip), ip)
        return hash(self._salt + packed[:_NETWORK_BYTES]) % SLOTS
