"""Which of our packets arrived, which are lost, and how long a round trip takes.

Book-keeping is by *flights*: packets with consecutive numbers that were sent at one instant and
carry consecutive pieces of one stream, all of the same size.  An acknowledgement of a whole flight
is one step, however many packets it has; one of a part splits it.  A packet with anything else in
it is a flight of its own.

Follows RFC 9002 (sections 5 and 6, appendix A).  Departures: one packet number space, because our
handshake is over before the first packet; the reordering that a path shows raises the thresholds
of section 6.1, as RFC 8985 (RACK) does; the probe time-out stops doubling at MAX_PTO_S, so that a
path which was dead for seconds is used again soon after it comes back.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .ranges import RangeSet
from .streams import SendStream

__all__ = ["MAX_ACK_DELAY_S", "Flight", "Recovery", "RoundTrip", "carried"]

# Recommended by RFC 9002.
PACKET_THRESHOLD = 3  # 6.1.1: this many newer packets acknowledged
TIME_THRESHOLD = 9 / 8  # 6.1.2: or unacknowledged for this many round trips
GRANULARITY_S = 0.001  # 6.1.2
INITIAL_RTT_S = 0.333  # 6.2.2
PERSISTENT_CONGESTION_THRESHOLD = 3  # 7.6.1

# Our choices.
MAX_ACK_DELAY_S = 0.010  # what a peer may wait before it acknowledges; RFC 9000's default is 25 ms
MAX_PTO_S = 2.0
MAX_PTO_DOUBLINGS = 8  # more would be over MAX_PTO_S whatever the round trip is
MAX_PACKET_THRESHOLD = 256
MAX_TIME_THRESHOLD = 2.0
REMEMBERED_LOSSES = 16  # ranges of packets declared lost, to notice if they arrive after all
SILENT_PTOS = 2.0  # without an acknowledgement, also of the probe after the first of them
SILENT_S = 0.2  # at least: a busy host is no dead path


class Flight:
    """Packets ``first`` to ``stop`` - 1, each of ``packet_bytes``, sent at one instant.

    With a ``stream``: packet ``first`` + i carries ``chunk`` bytes from ``offset`` + i * ``chunk``,
    the last one up to ``data_stop``.  Without: one packet, with ``pieces`` of streams (stream,
    start, stop, fin) and control ``frames`` that are to be repeated if it is lost.
    """

    __slots__ = (
        "chunk",
        "data_stop",
        "first",
        "frames",
        "mtu_probe",
        "offset",
        "packet_bytes",
        "pieces",
        "sent_at",
        "size",
        "snapshot",
        "stop",
        "stream",
    )

    def __init__(
        self,
        first: int,
        stop: int,
        packet_bytes: int,
        sent_at: float,
        snapshot: Any = None,
        stream: SendStream | None = None,
        offset: int = 0,
        chunk: int = 0,
        data_stop: int = 0,
        *,
        pieces: Sequence[tuple[SendStream, int, int, bool]] = (),
        frames: Sequence[bytes] = (),
        mtu_probe: bool = False,
    ) -> None:
        self.first = first
        self.stop = stop
        self.packet_bytes = packet_bytes
        self.size = (stop - first) * packet_bytes
        self.sent_at = sent_at
        self.snapshot = snapshot
        self.stream = stream
        self.offset = offset
        self.chunk = chunk
        self.data_stop = data_stop
        self.pieces = pieces
        self.frames = frames
        self.mtu_probe = mtu_probe  # tests the path; its loss says nothing of congestion

    def part(self, first: int, stop: int) -> Flight:
        """The same packets, fewer of them."""
        if first == self.first and stop == self.stop:
            return self
        offset = self.offset + (first - self.first) * self.chunk
        return Flight(
            first,
            stop,
            self.packet_bytes,
            self.sent_at,
            self.snapshot,
            self.stream,
            offset,
            self.chunk,
            min(offset + (stop - first) * self.chunk, self.data_stop),
        )

    def tell_lost(self) -> None:
        if self.stream is not None:
            self.stream.handle_lost(self.offset, self.data_stop, False)
        for stream, start, stop, fin in self.pieces:
            stream.handle_lost(start, stop, fin)


def carried(flights: Iterable[Flight]) -> Iterator[tuple[SendStream, int, int, bool]]:
    """What of which streams (start, stop, fin); flights that go on where one ends are one piece."""
    stream, start, stop = None, 0, 0
    for flight in flights:
        if flight.stream is not None:
            if flight.stream is not stream or flight.offset != stop:
                if stream is not None:
                    yield stream, start, stop, False
                stream, start = flight.stream, flight.offset
            stop = flight.data_stop
        elif flight.pieces:
            yield from flight.pieces
    if stream is not None:
        yield stream, start, stop, False


class RoundTrip:
    """The estimate of the path's round trip (RFC 9002 section 5), in seconds."""

    def __init__(self) -> None:
        self.latest_s: float | None = None
        self.min_s = float("inf")
        self._estimate(INITIAL_RTT_S, INITIAL_RTT_S / 2)

    def _estimate(self, smoothed_s: float, variation_s: float) -> None:
        self.smoothed_s, self.variation_s = smoothed_s, variation_s
        # The probe time-out without backoff: section 6.2.1.
        self.pto_s = smoothed_s + max(4 * variation_s, GRANULARITY_S) + MAX_ACK_DELAY_S
        self.silent_s = max(SILENT_PTOS * self.pto_s, SILENT_S)

    @property
    def least_s(self) -> float:
        """The smallest, or as long as none is known, a guess."""
        return min(self.min_s, self.smoothed_s)

    def update(self, latest_s: float, ack_delay_s: float) -> None:
        first = self.latest_s is None
        self.latest_s = latest_s
        self.min_s = min(self.min_s, latest_s)
        if first:
            self._estimate(latest_s, latest_s / 2)
            return
        adjusted = latest_s
        if latest_s >= self.min_s + ack_delay_s:
            adjusted -= ack_delay_s
        difference_s = adjusted - self.smoothed_s
        self._estimate(
            self.smoothed_s + difference_s / 8,
            self.variation_s + (abs(difference_s) - self.variation_s) / 4,
        )


class Recovery:
    """The packets on their way.  ``handle_ack`` and ``detect_lost`` return flights, or parts."""

    def __init__(self) -> None:
        self.largest_acked = -1  # of the flights: another packet may have gone another way
        self._last_eliciting_at = 0.0
        self._measured_from = -math.inf  # what was sent earlier shows no round trip
        self._begin(RoundTrip())

    def _begin(self, rtt: RoundTrip) -> None:
        self.rtt = rtt
        self.in_flight = 0  # bytes that congestion control counts
        self.pto_count = 0
        self.loss_time = math.inf  # when a packet is lost by time, if nothing comes
        self.unanswered_since = math.inf  # something is on its way, and nothing was acknowledged
        self.silent = False  # for so long that the path was called silent
        self.flights: list[Flight] = []  # by packet number, ascending
        self._packet_threshold = PACKET_THRESHOLD
        self._time_threshold = TIME_THRESHOLD
        self._declared_lost = RangeSet()

    def leave_path(self, rtt: RoundTrip) -> Recovery:
        """Begin anew, on a path with this round trip; returns what is on its way over the old."""
        left = copy.copy(self)
        self._begin(rtt)
        return left

    def measure_from(self, now: float) -> None:
        """Answers to what was sent before ``now`` may have waited for us to read them."""
        self._measured_from = now

    def sent(self, flight: Flight) -> None:
        if not (self.flights or self.silent):
            self.unanswered_since = flight.sent_at
        self.flights.append(flight)
        self._last_eliciting_at = flight.sent_at
        if not flight.mtu_probe:
            self.in_flight += flight.size

    def handle_ack(
        self, ranges: Sequence[tuple[int, int]], ack_delay_s: float | None, now: float
    ) -> list[Flight]:
        """What is newly acknowledged by ``ranges`` (half-open, the highest first).

        ``ack_delay_s``: None if they have come over another path: they show no round trip, nor that
        this path carries anything back.
        """
        acked: list[Flight] = []
        flights = self.flights
        newest: Flight | None = None
        for start, stop in ranges:
            if not flights or stop <= flights[0].first:
                break  # this range and all below it were acknowledged before
            index = 0 if start <= flights[0].first else bisect_right(flights, start, key=_stop)
            begin, count = index, len(flights)
            replacement: list[Flight] = []
            while index < count:
                flight = flights[index]
                if flight.first >= stop:
                    break
                index += 1
                if flight.first < start or stop < flight.stop:
                    first, last = max(start, flight.first), min(stop, flight.stop)
                    if first > flight.first:
                        replacement.append(flight.part(flight.first, first))
                    if last < flight.stop:
                        replacement.append(flight.part(last, flight.stop))
                    flight = flight.part(first, last)
                acked.append(flight)
                if not flight.mtu_probe:
                    self.in_flight -= flight.size
            if index > begin:
                flights[begin:index] = replacement
                newest = newest or acked[-1]  # the ranges descend
        if self._declared_lost:
            self._notice_late(ranges)
        if newest is not None:
            largest = newest.stop - 1
            if (
                ack_delay_s is not None
                and largest == ranges[0][1] - 1
                and newest.sent_at >= self._measured_from
            ):
                self.rtt.update(now - newest.sent_at, min(ack_delay_s, MAX_ACK_DELAY_S))
            self.largest_acked = max(self.largest_acked, largest)
            self.pto_count = 0
            if ack_delay_s is not None:
                self.unanswered_since = now if flights else math.inf
                self.silent = False
        return acked

    def _notice_late(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Packets that were declared lost have arrived: the path reorders more than we knew."""
        late = False
        for first, last in list(self._declared_lost):
            # ``ranges`` descend: look at the highest one that begins below ``last``.
            index = bisect_left(ranges, 1 - last, key=_negated_start)
            if index < len(ranges) and ranges[index][1] > first:
                late = True
                self._declared_lost.subtract(first, last)
        if late:
            self._packet_threshold = min(2 * self._packet_threshold, MAX_PACKET_THRESHOLD)
            self._time_threshold = min(self._time_threshold + 1 / 8, MAX_TIME_THRESHOLD)

    def detect_lost(self, now: float) -> list[Flight]:
        """Give up what RFC 9002 section 6.1 calls lost; sets ``loss_time``."""
        self.loss_time = math.inf
        lost: list[Flight] = []
        flights = self.flights
        if not flights or flights[0].first >= self.largest_acked:
            return lost
        latest = self.rtt.latest_s or self.rtt.smoothed_s
        delay = max(self._time_threshold * max(latest, self.rtt.smoothed_s), GRANULARITY_S)
        by_number = self.largest_acked - self._packet_threshold + 1
        kept: list[Flight] = []
        index = 0
        for flight in flights:
            if flight.first >= self.largest_acked:
                break
            index += 1
            if flight.sent_at + delay <= now:
                until = min(flight.stop, self.largest_acked)
            else:
                until = max(flight.first, min(flight.stop, by_number))
                if until < min(flight.stop, self.largest_acked) and self.loss_time == math.inf:
                    self.loss_time = flight.sent_at + delay
            if until > flight.first:
                lost.append(flight.part(flight.first, until))
            if until < flight.stop:
                kept.append(flight.part(until, flight.stop))
        if lost:
            flights[:index] = kept
            for part in lost:
                if not part.mtu_probe:
                    self.in_flight -= part.size
                self._declared_lost.add(part.first, part.stop)
            while len(self._declared_lost) > REMEMBERED_LOSSES:
                self._declared_lost.pop_first()
        return lost

    def persistent_congestion(self, lost: Sequence[Flight]) -> bool:
        """Whether these losses span so long that nothing got through (RFC 9002 section 7.6)."""
        if self.rtt.latest_s is None:
            return False
        limit = PERSISTENT_CONGESTION_THRESHOLD * self.rtt.pto_s
        begin: Flight | None = None
        before: Flight | None = None
        for flight in lost:
            if begin is None or before is None or flight.first != before.stop:
                begin = flight
            before = flight
            if flight.sent_at - begin.sent_at > limit:
                return True
        return False

    def timer_at(self) -> float:
        """When a packet is lost by time, or else when a probe goes (RFC 9002 section A.8).

        Departure: a probe goes at the latest when the path is silent.  Who sends a little all the
        time puts off the probe time-out, which begins with the last packet, again and again.
        """
        if self.loss_time < math.inf:
            return self.loss_time
        if not self.flights:
            return math.inf
        pto_s = self.rtt.pto_s
        if self.pto_count:
            doubled_s = pto_s * 2 ** min(self.pto_count, MAX_PTO_DOUBLINGS)
            pto_s = max(pto_s, min(doubled_s, MAX_PTO_S))
        probe_at = self._last_eliciting_at + pto_s
        silent_at = self.unanswered_since + self.rtt.silent_s
        return probe_at if probe_at < silent_at else silent_at  # faster than min()

    def falls_silent(self, now: float) -> bool:
        """Whether it is time to call the path silent."""
        return now >= self.unanswered_since + self.rtt.silent_s

    def call_silent(self) -> None:
        self.unanswered_since = math.inf
        self.silent = True

    def oldest(self) -> Flight | None:
        """The oldest packet on its way."""
        for flight in self.flights:
            if not flight.mtu_probe:
                return flight.part(flight.first, flight.first + 1)
        return None

    def take_all(self) -> list[Flight]:
        """Give up all that is on its way."""
        flights, self.flights = self.flights, []
        self.in_flight = 0
        return flights


def _stop(flight: Flight) -> int:
    return flight.stop


def _negated_start(item: tuple[int, int]) -> int:
    return -item[0]
