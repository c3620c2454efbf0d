"""What an access line does to the packets that pass it: it may drop them; sans-IO."""

from __future__ import annotations

from random import Random
from typing import Any

from .._bucket import Bucket
from .nat import UDP
from .packet import Packet

__all__ = ["Access"]

POLICER_BURST_S = 0.1  # our choice, as routers are often set: what its rate carries in this time
POLICER_BURST_BYTES = 15_000  # our choice: and ten full packets at least


class Access:
    """The line of a host or a NAT.  ``set`` changes it; each direction is policed by itself."""

    def __init__(self, random: Random) -> None:
        self.cut = False
        self.udp = True
        self.delay_s: float | None = None
        """One way, to the core; None: as all."""
        self.loss = 0.0
        """Chance of a packet, in each direction."""
        self.mtu = 0
        """Bytes of an IP packet; larger ones are dropped, and nobody is told.  0: no limit."""
        self.udp_bps = 0.0
        """A policer drops UDP beyond this many bits a second, IP headers included.  0: none."""
        self._random = random
        self._buckets: tuple[Bucket, Bucket] | None = None  # out, in; None: yet to be made

    def set(self, fields: dict[str, Any]) -> None:
        """Any of ``delay_s``, ``loss``, ``mtu`` and ``udp_bps``, from now on."""
        for name, value in fields.items():
            if name not in ("delay_s", "loss", "mtu", "udp_bps"):
                raise ValueError(f"a line has no {name}")
            setattr(self, name, value)
        self._buckets = None

    def refusal(self, packet: Packet, inward: bool, now: float) -> str:
        """Why a packet does not pass; "" if it does."""
        if self.cut:
            return "cut"
        size = len(packet.data)
        if packet.protocol == UDP:
            if not self.udp:
                return "UDP is blocked"
            if self.udp_bps and not self._police(size, inward, now):
                return "policed"
        if self.mtu and size > self.mtu:
            return "too large"
        if self.loss and self._random.random() < self.loss:
            return "lost"
        return ""

    def _police(self, size: int, inward: bool, now: float) -> bool:
        if self._buckets is None:
            rate = self.udp_bps / 8
            burst = max(rate * POLICER_BURST_S, POLICER_BURST_BYTES)
            self._buckets = Bucket(rate, burst, now), Bucket(rate, burst, now)
        bucket = self._buckets[inward]
        if bucket.level(now) < size:
            return False
        bucket.spend(now, size)
        return True
