"""How large a datagram the path carries (DPLPMTUD, RFC 8899).

Starts at BASE_BYTES, which RFC 9000 section 14 asks of every path, and tries larger sizes by
packets that carry nothing but padding.  When packets of the size found stop arriving while small
ones still do, or nothing arrives at all, it falls back to the base (a black hole).
"""

from __future__ import annotations

__all__ = ["BASE_BYTES", "MtuSearch"]

BASE_BYTES = 1200  # RFC 9000 section 14.1, RFC 8899 section 5.1.2 (BASE_PLPMTU)
MAX_PROBES = 3  # RFC 8899 section 5.1.2: losses of one size before it counts as too large
RAISE_S = 600.0  # RFC 8899 section 5.1.1 (PMTU_RAISE_TIMER)

# Our choices.
COMMON_BYTES = (1472, 1452, 1432, 1400, 1352, 1280)  # Ethernet IPv4/IPv6, PPPoE, tunnels
BLACK_HOLE_LOSSES = 12  # packets above the base lost, none acknowledged between
BLACK_HOLE_S = 3.0  # and for so long: a queue that overflows loses many at once, but not for long
RETRY_S = 5.0  # after a black hole, which may have been a dead path


class MtuSearch:
    """``size`` is what may be sent now, in bytes of UDP payload."""

    def __init__(self, largest: int, now: float) -> None:
        self.size = BASE_BYTES
        self._largest = largest
        self._sizes: list[int] = []  # still to try, the largest first
        self._probes = 0  # lost ones of the size that is tried
        self._probing = False
        self._losses_in_a_row = 0
        self._acked_at = now  # a packet above the base
        self._search_at = now
        self._begin()

    def _begin(self) -> None:
        sizes = {self._largest, *COMMON_BYTES}
        self._sizes = sorted((s for s in sizes if self.size < s <= self._largest), reverse=True)
        self._probes = 0

    def next_time(self) -> float | None:
        """When ``poll_probe`` has something new; None: not before an answer comes."""
        return None if self._probing else self._search_at

    def poll_probe(self, now: float) -> int | None:
        """The size of a probe to send now."""
        if self._probing or now < self._search_at:
            return None
        if not self._sizes:
            self._begin()
            if not self._sizes:
                self._search_at = now + RAISE_S
                return None
        self._probing = True
        return self._sizes[0]

    def handle_probe_acked(self, size: int, now: float) -> bool:
        """True: ``size`` grew."""
        if size not in self._sizes:
            return False  # the search was given up meanwhile
        self._probing = False
        self.size = size
        self.handle_acked(size, now)
        self._settle(now)
        return True

    def handle_probe_lost(self, size: int, now: float) -> None:
        if self._sizes[:1] != [size]:
            return  # the search was given up meanwhile
        self._probing = False
        self._probes += 1
        if self._probes >= MAX_PROBES:
            del self._sizes[:1]
            self._probes = 0
        if not self._sizes:
            self._settle(now)

    def _settle(self, now: float) -> None:
        self._sizes = []
        self._search_at = now + RAISE_S

    def handle_acked(self, packet_bytes: int, now: float) -> None:
        if packet_bytes > BASE_BYTES:
            self._losses_in_a_row = 0
            self._acked_at = now

    def handle_lost(self, packet_bytes: int, count: int, now: float) -> bool:
        """``count`` packets of this size were lost; True: fell back to the base."""
        if packet_bytes <= BASE_BYTES or self.size == BASE_BYTES:
            return False
        self._losses_in_a_row += count
        if self._losses_in_a_row < BLACK_HOLE_LOSSES or now < self._acked_at + BLACK_HOLE_S:
            return False
        self.fall_back(now)
        return True

    def fall_back(self, now: float) -> None:
        self.size = BASE_BYTES
        self._losses_in_a_row = 0
        self._probing = False
        self._sizes = []
        self._search_at = now + RETRY_S
