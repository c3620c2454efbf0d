"""What one call's checks know of each remote address.  (The kernel picks the local one.)"""

from __future__ import annotations

import math
from typing import NamedTuple

from .._address import Address

__all__ = ["FIRST_INTERVAL_S", "Pair", "Probe"]

FIRST_INTERVAL_S = 0.05  # our choice: to the first retransmission; then it doubles, as in 14.3


class Pair:
    """A remote address, and what became of it."""

    __slots__ = (
        "address",
        "first_sent_at",
        "heard",
        "interval_s",
        "kind",
        "last_sent_at",
        "next_probe_at",
        "nominated",
        "priority",
        "probes",
        "round_trip_s",
        "valid",
    )

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
