"""Measure how fast the path delivers what we send.

Each flight (up to 64 packets that leave at one instant) takes a snapshot of what had been
delivered when it left.  When a piece of it is acknowledged, the bytes delivered since then over
the time since then are one sample of the path's delivery rate.

Rules:
- Sending faster than the path delivers, or acknowledgements that arrive bunched, must not look
  like bandwidth: the interval is the longer of the time it took to send and to acknowledge.
- A sample taken while the application had nothing to send says so; it bounds nothing from above.
- Pieces of one flight may be acknowledged at different times.  Each is a sample of its own.

Follows draft-ietf-ccwg-bbr, section "Delivery Rate Samples", with the flight as the packet, which
is what its section "Offload Mechanisms" recommends.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DeliveryRate", "RateSample", "Snapshot"]

# Our choice: an interval may fall short of the smallest round trip by the rounding of the clock.
CLOCK_ERROR_S = 1e-6


@dataclass(slots=True)
class Snapshot:
    """What had happened on the path when a flight left.

    ``delivered_at`` and ``first_sent_at`` are where the two intervals of a sample begin: the last
    acknowledgement before, and the sending of the newest flight it acknowledged.
    """

    sent_at: float
    size: int  # bytes of the flight
    in_flight: int  # bytes in flight with this flight
    delivered_bytes: int
    delivered_at: float
    first_sent_at: float
    lost_bytes: int
    is_app_limited: bool


@dataclass(slots=True)
class RateSample:
    """What one ACK frame says, by the newest flight it acknowledges."""

    bytes_per_s: float  # 0.0: the interval was too short to tell
    delivered: int  # bytes delivered over the interval
    prior_delivered: int  # all bytes delivered when that flight left
    total_delivered: int  # all bytes delivered by now
    lost: int  # bytes given up since that flight left
    in_flight: int  # bytes in flight when that flight left, with it
    sent_at: float
    is_app_limited: bool


class DeliveryRate:
    """The counters of one path.

    Order of calls: ``sent`` for each flight; for an ACK frame ``acked`` and ``lost`` for each
    piece, then ``sample`` once.  ``app_limited`` when there is room to send and nothing to send.
    """

    def __init__(self) -> None:
        self.delivered_bytes = 0
        self.lost_bytes = 0
        self.latest_bytes_per_s = 0.0  # of the last sample that could tell
        self._delivered_at = 0.0
        self._first_sent_at = 0.0
        self._limited_until = 0  # app-limited until so many bytes are delivered; 0: it is not
        self._newest: Snapshot | None = None  # of this ACK frame

    def sent(self, size: int, in_flight_before: int, now: float) -> Snapshot:
        """A flight of ``size`` bytes leaves; keep the snapshot with it."""
        if not in_flight_before:  # nothing on the way: the intervals begin here
            self._first_sent_at = self._delivered_at = now
        return Snapshot(
            now,
            size,
            in_flight_before + size,
            self.delivered_bytes,
            self._delivered_at,
            self._first_sent_at,
            self.lost_bytes,
            self._limited_until > 0,
        )

    def acked(self, snapshot: Snapshot, size: int, now: float) -> None:
        """``size`` bytes of a flight are acknowledged for the first time."""
        self.delivered_bytes += size
        self._delivered_at = now
        if self._newest is None or snapshot.sent_at >= self._newest.sent_at:
            self._newest = snapshot

    def lost(self, size: int) -> None:
        self.lost_bytes += size

    def app_limited(self, in_flight: int) -> None:
        """There is room to send and nothing to send: what is under way now cannot fill the path."""
        self._limited_until = max(self.delivered_bytes + in_flight, 1)

    def sample(self, now: float, min_rtt_s: float) -> RateSample | None:
        """The sample of this ACK frame; None when it acknowledged nothing new."""
        newest, self._newest = self._newest, None
        if self._limited_until and self.delivered_bytes > self._limited_until:
            self._limited_until = 0
        if newest is None:
            return None
        # Departure: the draft also moves this back for an older flight.  It only goes forward
        # here, so that a late packet does not stretch the interval of the next sample.
        self._first_sent_at = max(self._first_sent_at, newest.sent_at)
        interval_s = max(newest.sent_at - newest.first_sent_at, now - newest.delivered_at)
        delivered = self.delivered_bytes - newest.delivered_bytes
        reliable = interval_s > 0 and interval_s >= min_rtt_s - CLOCK_ERROR_S
        bytes_per_s = delivered / interval_s if reliable else 0.0
        self.latest_bytes_per_s = bytes_per_s or self.latest_bytes_per_s
        return RateSample(
            bytes_per_s=bytes_per_s,
            delivered=delivered,
            prior_delivered=newest.delivered_bytes,
            total_delivered=self.delivered_bytes,
            lost=self.lost_bytes - newest.lost_bytes,
            in_flight=newest.in_flight,
            sent_at=newest.sent_at,
            is_app_limited=newest.is_app_limited,
        )
