"""How large a datagram the path carries (DPLPMTUD, RFC 8899).

The search starts at BASE_BYTES, which RFC 9000 section 14 asks of every path, or at what the first
hop takes if that is less.  A size is *confirmed* when a packet of that size arrives; until then the
packer pads what asks for an acknowledgement, so that a channel opens only where data will pass,
too.  Larger sizes are tried by packets that carry nothing but padding.

When packets of the size stop arriving while small ones still do, or nothing arrives at all, the
size falls back: to the base first, and from there step by step to MIN_BYTES, but only while small
packets arrive, because a dead path is not a narrow one.  (Departure: RFC 8899 section 5.2 knows one
smaller size; tunnels within tunnels leave many.)
"""

from __future__ import annotations

import math

__all__ = ["BASE_BYTES", "MIN_BYTES", "MtuSearch"]

BASE_BYTES = 1200  # RFC 9000 section 14.1, RFC 8899 section 5.1.2 (BASE_PLPMTU)
MIN_BYTES = 548  # in the IPv4 packet that every host accepts: 576, RFC 791 (MIN_PLPMTU)
MAX_PROBES = 3  # RFC 8899 section 5.1.2: losses of one size before it counts as too large
RAISE_S = 600.0  # RFC 8899 section 5.1.1 (PMTU_RAISE_TIMER)

# Our choices.
# Ethernet IPv4/IPv6, PPPoE, tunnels, tunnels in tunnels.
COMMON_BYTES = (1472, 1452, 1432, 1400, 1352, 1280, 1200, 1100, 1000, 900, 800, 700)
STEPS_DOWN = (1000, 800, MIN_BYTES)  # below the base
UNCONFIRMED_LOSSES = 2  # of a size that has never arrived
BLACK_HOLE_LOSSES = 12  # of a confirmed size, and none acknowledged between them
BLACK_HOLE_S = 3.0  # for at least so long: an overflowing queue loses many, but not for long
BLACK_HOLE_PTOS = 3  # or probe time-outs in a row while such a packet was on its way
RETRY_S = 5.0  # after a fallback, whose cause may have been a dead path


class MtuSearch:
    """``size`` is what may be sent now, in bytes of UDP payload."""

    def __init__(self, largest: int, now: float) -> None:
        self._base = min(BASE_BYTES, largest)
        self._set_size(self._base)
        self.confirmed = False
        self._largest = largest
        self._sizes: list[int] = []  # still to try, the largest first
        self._probes = 0  # of the size that is being tried, and lost
        self.next_at = (
            now  # ``poll_probe`` has something new; infinite: an answer has to come first
        )
        self._losses_in_a_row = 0
        self._timeouts_in_a_row = 0
        self._acked_at = now  # a packet above the size to fall back to
        self._small_pass = False  # small packets have arrived since the size was set
        self._begin()

    def _set_size(self, size: int) -> None:
        self.size = size
        # What to fall back to; 0: to nothing.
        self._smaller = next((step for step in (self._base, *STEPS_DOWN) if step < size), 0)

    def _begin(self) -> None:
        sizes = {self._largest, *COMMON_BYTES}
        self._sizes = sorted((s for s in sizes if self.size < s <= self._largest), reverse=True)
        self._probes = 0

    def resume(self, now: float) -> None:
        """Go on after a pause, in which nothing was told: a probe that was sent is sent again."""
        if self.next_at == math.inf:
            self.next_at = now
        self._losses_in_a_row = self._timeouts_in_a_row = 0
        self._acked_at = now

    def poll_probe(self, now: float) -> int | None:
        """The size of a probe to send now."""
        if now < self.next_at:
            return None
        if not self._sizes:
            self._begin()
            if not self._sizes:
                self.next_at = now + RAISE_S
                return None
        self.next_at = math.inf
        return self._sizes[0]

    def handle_probe_acked(self, size: int, now: float) -> bool:
        """True: ``size`` grew."""
        if size not in self._sizes:
            return False  # that search has been given up
        self._set_size(size)
        self.handle_acked(size, now)
        self._settle(now)
        return True

    def handle_probe_lost(self, size: int, now: float) -> None:
        if self._sizes[:1] != [size]:
            return  # that search has been given up
        self.next_at = now
        self._probes += 1
        if self._probes >= MAX_PROBES:
            del self._sizes[:1]
            self._probes = 0
        if not self._sizes:
            self._settle(now)

    def _settle(self, now: float) -> None:
        self._sizes = []
        self.next_at = now + RAISE_S

    def handle_acked(self, packet_bytes: int, now: float) -> None:
        if packet_bytes <= self._smaller:
            self._small_pass = True
            return
        self._losses_in_a_row = self._timeouts_in_a_row = 0
        self._acked_at = now
        if packet_bytes >= self.size:
            self.confirmed = True

    def handle_lost(self, packet_bytes: int, count: int, now: float) -> bool:
        """``count`` packets of this size were lost; True: ``size`` has become smaller."""
        if not self._tells(packet_bytes):
            return False
        self._losses_in_a_row += count
        if not self.confirmed:
            return self._losses_in_a_row >= UNCONFIRMED_LOSSES and self._fall_back(now)
        if self._losses_in_a_row < BLACK_HOLE_LOSSES or now < self._acked_at + BLACK_HOLE_S:
            return False
        return self._fall_back(now)

    def handle_timeout(self, packet_bytes: int, now: float) -> bool:
        """A probe time-out, with such a packet on its way; True: ``size`` has become smaller."""
        if not self._tells(packet_bytes):
            return False
        self._timeouts_in_a_row += 1
        if self._timeouts_in_a_row < BLACK_HOLE_PTOS:
            return False
        return (self.size > self._base or self._small_pass) and self._fall_back(now)

    def _tells(self, packet_bytes: int) -> bool:
        """Whether its loss says anything about the size: larger ones are from before a fallback."""
        return self._smaller < packet_bytes <= self.size

    def _fall_back(self, now: float) -> bool:
        if not self._smaller:
            return False
        self._set_size(self._smaller)
        self.confirmed = self._small_pass = False
        self._losses_in_a_row = self._timeouts_in_a_row = 0
        self._acked_at = now
        self._sizes = []
        self.next_at = now + RETRY_S
        return True
