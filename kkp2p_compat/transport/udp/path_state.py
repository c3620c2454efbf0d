"""What is known of the path to the peer: the size of its datagrams, and how fast it delivers them.

A new path begins with a new one of these, because nothing that the old one has shown need be true
of it.  When a path is left, this is kept for a while, in case it is taken again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ..._address import Address
from .congestion import DeliveryRate, Pacer, Update, make_controller
from .mtu import MtuSearch
from .recovery import Flight, Recovery, RoundTrip

if TYPE_CHECKING:
    from random import Random

__all__ = ["Load", "PathState"]


class Load(NamedTuple):
    """What the path in use has carried, and whether it is all that holds up what waits."""

    delivered_bytes: int
    sent_packets: int
    lost_packets: int
    is_backlogged: bool


class PathState:
    def __init__(
        self,
        address: Address,
        rtt: RoundTrip,
        largest_datagram: int,
        congestion: str,
        now: float,
        random: Random,
    ) -> None:
        self.address = address  # of the peer
        self.rtt = rtt
        self.left_at = math.inf
        self.heard_at = now
        self.mtu = MtuSearch(largest_datagram, now)
        self.rate = DeliveryRate()
        self.controller = make_controller(congestion, self.mtu.size, now, random)
        self.pacer = Pacer(now)

    def resume(self, now: float) -> None:
        """It is taken again; how its last packets fared was not told."""
        self.mtu.resume(now)
        self.pacer = Pacer(now)

    def handle_acked(self, flight: Flight, now: float) -> int:
        """How many bytes of congestion control's this flight, or part of one, was."""
        if flight.mtu_probe:
            if self.mtu.handle_probe_acked(flight.packet_bytes, now):
                self._resize()
            return 0
        self.rate.acked(flight.snapshot, flight.size, now)
        self.mtu.handle_acked(flight.packet_bytes, now)
        return flight.size

    def digest(
        self,
        recovery: Recovery,
        now: float,
        in_flight_before: int,
        acked_bytes: int = 0,
        sent_at: float | None = None,
        rtt_s: float | None = None,
    ) -> list[Flight]:
        """Give up what is lost, and tell the controller of it and of what was acknowledged.

        The rest is as in Update.  Returns the flights that were lost, to be sent again.
        """
        given_up = recovery.detect_lost(now)
        lost = [flight for flight in given_up if not self._is_lost_probe(flight, now)]
        sample = self.rate.sample(now, recovery.rtt.min_s)
        if not acked_bytes and not lost:
            return lost
        update = Update(
            now=now,
            acked_bytes=acked_bytes,
            lost=[(flight.snapshot, flight.size) for flight in lost],
            in_flight_before=in_flight_before,
            in_flight=recovery.in_flight,
            rtt_s=rtt_s,
            smoothed_rtt_s=recovery.rtt.smoothed_s,
            min_rtt_s=recovery.rtt.min_s,
            sample=sample,
            sent_at=sent_at,
        )
        self.controller.update(update)
        if lost and recovery.persistent_congestion(given_up):
            self.controller.handle_persistent_congestion(now)
        return lost

    def _is_lost_probe(self, flight: Flight, now: float) -> bool:
        """Tell the search for the MTU; its own probes say nothing of congestion."""
        if flight.mtu_probe:
            self.mtu.handle_probe_lost(flight.packet_bytes, now)
            return True
        self.rate.lost(flight.size)
        if self.mtu.handle_lost(flight.packet_bytes, flight.stop - flight.first, now):
            self._resize()
        return False

    def handle_probe_timeout(self, oldest: Flight, now: float) -> None:
        """``oldest``: of what is on its way."""
        if self.mtu.handle_timeout(oldest.packet_bytes, now):
            self._resize()

    def _resize(self) -> None:
        self.controller.set_datagram_bytes(self.mtu.size)
