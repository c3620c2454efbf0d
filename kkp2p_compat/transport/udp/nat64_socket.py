"""An IPv6 socket whose remote addresses are IPv4 ones, which the network's NAT64 translates.

So a host that has IPv6 only takes part in everything that is done by IPv4, as one behind a NAT: in
RFC 6877's words this is the translator on the customer's side, for one program.
"""

from __future__ import annotations

import errno
import socket
from logging import Logger

from ..._address import Address
from ..._nat64 import DISCOVERY_ADDRESSES, Nat64
from .batch_socket import MAX_REMEMBERED, BatchSocket, Target
from .first_hop import first_hop_datagram_bytes

__all__ = ["Nat64Socket"]


class Nat64Socket(BatchSocket):
    """As BatchSocket.  What does not come by the NAT64 is counted, and dropped."""

    def __init__(self, nat64: Nat64, log: Logger, number: int = 0) -> None:
        super().__init__(socket.AF_INET6, log, number=number)
        self._nat64 = nat64
        self.datagram_bytes = first_hop_datagram_bytes((nat64.outward(DISCOVERY_ADDRESSES[0]), 9))
        self._inner: dict[str, str | None] = {}

    def _resolve(self, address: Address) -> Target | None:
        try:
            outer = self._nat64.outward(address[0])
        except OSError:
            self._count(OSError(errno.EAFNOSUPPORT, "not an IPv4 address"), address)
            return None
        found = super()._resolve((outer, *address[1:]))
        if found is not None:
            self._targets[address] = found
        return found

    def receive(self) -> tuple[bytes, int, Address] | None:
        received = super().receive()
        if received is None:
            return None
        data, segment_bytes, source = received
        if source[0] not in self._inner:
            if len(self._inner) >= MAX_REMEMBERED:
                self._inner.clear()
            self._inner[source[0]] = self._nat64.inward(source[0])
        inner = self._inner[source[0]]
        if inner is None:
            self._count(OSError(errno.EADDRNOTAVAIL, "not from the NAT64"), source)
            return None
        return data, segment_bytes, (inner, *source[1:])
