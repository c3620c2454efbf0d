"""Which of the peer's packets have come, and when an acknowledgement is due.

A number is taken once: a packet that repeats one, or is too old to tell, is a replay.  An
acknowledgement is due at once for packets out of order and after some packets in order, else after
MAX_ACK_DELAY_S.  RFC 9000 section 13.2.2 suggests one for every second packet, and while a
connection is young, and the sender's window small, that is what it gets.  Later fewer are enough
(draft-ietf-quic-ack-frequency), and a packet with data carries no ACK for only a few packets: an
ACK takes both sides together as long as many packets of data do, and a request and its answer would
wait for it.
"""

from __future__ import annotations

import math
from collections import deque

from .frames import ACK_GAP_BYTES, ACK_HEADER, encode_ack
from .ranges import RangeSet
from .recovery import MAX_ACK_DELAY_S

__all__ = ["Received"]

YOUNG_PER_ACK = 2  # RFC 9000 section 13.2.2

# Our choices.
YOUNG_PACKETS = 200  # received; until then a connection is young
PER_ACK = 10  # packets
YOUNG_ACK_DELAY_RTTS = 1 / 8
MIN_ACK_GAP_S = 0.0005  # between ACKs for packets in order
ACK_GAP_RTTS, MAX_ACK_GAP_S = 1 / 8, 0.005  # the same while calm, if that is longer
CALM_PACKETS = 200  # in order; after so many since the last gap all is calm
REPORTS = 16  # ACKs that report a packet; if all are lost, it is sent again for nothing
KEPT_RANGES = 64  # of packet numbers; those below are forgotten, and count as replays
ACK_BYTES = ACK_HEADER.size + 32 * ACK_GAP_BYTES  # for the newest 33 ranges


class Received:
    """The packet numbers of one direction."""

    def __init__(self) -> None:
        self.ack_at = math.inf  # when an acknowledgement is due
        self.largest = -1
        self.heard_at = -1.0  # when the last of them came
        self._largest_at = 0.0
        self._acked_at = 0.0  # when the last ACK went
        self._numbers = RangeSet()
        self._reported = RangeSet()  # those that the next ACK reports
        self._largest_of_acks = deque([0] * REPORTS)  # what was the largest in the last ACKs
        self._floor = 0  # everything below is a replay
        self._calm_from = CALM_PACKETS
        self._unacknowledged = 0  # packets that ask for an acknowledgement

    @property
    def calm(self) -> bool:
        """Nothing was lost or reordered lately: the sender can do with fewer acknowledgements."""
        return self.largest >= self._calm_from

    def is_new(self, number: int) -> bool:
        return number > self.largest or (number >= self._floor and number not in self._numbers)

    def add(self, start: int, stop: int, now: float) -> None:
        """Packets ``start`` to ``stop`` - 1 have come; all of them are new."""
        self.heard_at = now
        gap = start != self.largest + 1
        if gap:
            self._calm_from = stop + CALM_PACKETS
        self._numbers.add(start, stop)
        self._reported.add(start, stop)
        if stop > self.largest:
            self.largest = stop - 1
            self._largest_at = now
        if len(self._numbers) > KEPT_RANGES:
            _, self._floor = self._numbers.pop_first()
        if len(self._reported) > KEPT_RANGES:  # no ACK is due for packets that ask for none
            self._reported.pop_first()
        if gap:  # the next packet that asks is answered at once
            self._unacknowledged = max(self._unacknowledged, PER_ACK - 1)
            self._acked_at = 0.0

    def want_ack(self, count: int, now: float, rtt_s: float) -> None:
        """``count`` of the packets that have come ask for an acknowledgement."""
        self._unacknowledged += count
        is_young = self.largest < YOUNG_PACKETS
        if is_young and self._unacknowledged >= YOUNG_PER_ACK:
            self.ack_at = now
        elif self._unacknowledged >= PER_ACK:
            gap_s = min(ACK_GAP_RTTS * rtt_s, MAX_ACK_GAP_S) if self.calm else 0.0
            self.ack_at = max(now, self._acked_at + max(gap_s, MIN_ACK_GAP_S))
        elif self.ack_at == math.inf:
            delay_s = YOUNG_ACK_DELAY_RTTS * rtt_s if is_young else MAX_ACK_DELAY_S
            self.ack_at = now + min(delay_s, MAX_ACK_DELAY_S)

    def hurry(self, now: float) -> None:
        """Acknowledge at once what has come."""
        if self._unacknowledged:
            self.ack_at = now

    def ack_goes_along(self, now: float) -> bool:
        """Whether a packet that is sent now should carry an acknowledgement."""
        if self.ack_at == math.inf:
            return False
        return now >= self.ack_at or self._unacknowledged >= PER_ACK or self.largest < YOUNG_PACKETS

    def report(self, now: float, room: int) -> bytes:
        """An ACK frame beside those that are due, of up to so many bytes, of all that has come."""
        return encode_ack(self._numbers, now - self._largest_at, room) if self._numbers else b""

    def report_again(self) -> None:
        """The next ACKs go another way: they may overtake the last ones, which may be lost, too."""
        self._reported = RangeSet(self._numbers)
        self._largest_of_acks = deque([0] * REPORTS)

    def take_ack(self, now: float) -> bytes:
        """An ACK frame, to be sent now."""
        self.ack_at = math.inf
        self._acked_at = now
        self._unacknowledged = 0
        frame = encode_ack(self._reported, now - self._largest_at, ACK_BYTES)
        self._largest_of_acks.append(self.largest)
        self._reported.drop_below(self._largest_of_acks.popleft())
        return frame
