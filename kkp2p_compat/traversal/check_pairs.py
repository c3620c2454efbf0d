"""What one call's checks know of each remote address.  (The kernel picks the local one.)"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..transport.udp.events import Address

__all__ = ["FIRST_INTERVAL_S", "Pair", "Probe", "text_of"]

FIRST_INTERVAL_S = 0.05  # our choice: to the first retransmission, then doubled (as 14.3 does)


class Pair:
    """A remote address, and what became of it."""

    __slots__ = (
        "address", "first_sent_at", "heard", "interval_s", "kind", "last_sent_at", "next_probe_at",
        "nominated", "priority", "probes", "round_trip_s", "valid",
    )  # fmt: skip

    def __init__(self, kind: str, address: Address, priority: int, now: float) -> None:
        self.kind = kind  # a candidate's, or "prflx": learnt
        self.address = address
        self.priority = priority
        self.probes = 0
        self.first_sent_at = math.inf
        self.last_sent_at = -math.inf
        self.next_probe_at = now
        self.interval_s = FIRST_INTERVAL_S
        self.heard = False  # an authenticated message came from there
        self.valid = False  # a check of ours was answered from there
        self.round_trip_s = 0.0
        self.nominated = False  # by the peer


class Probe(NamedTuple):
    address: Address
    sent_at: float  # s
    nominates: bool


def text_of(address: Address) -> str:
    """For people."""
    ip, port, *number = address
    by = f" by socket {number[0]}" if number else ""
    return (f"[{ip}]:{port}" if ":" in address[0] else f"{ip}:{port}") + by
