"""What becomes of packets that were sent: acknowledged, lost, or not heard of.

Tells each who has to know: the streams, the path's congestion control and MTU, the packer that
sends again, and whoever watches whether the peer is there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..._address import Address
from ..._errors import BadPacket
from . import frames as f
from .events import EventQueue, PathSilent
from .liveness import Liveness
from .packing import Packer
from .paths import Paths
from .recovery import Flight, Recovery, carried

if TYPE_CHECKING:
    from .stream_table import StreamTable

__all__ = ["Outcomes"]


class Outcomes:
    """Of one connection."""

    def __init__(
        self,
        recovery: Recovery,
        paths: Paths,
        packer: Packer,
        streams: StreamTable,
        liveness: Liveness,
        events: EventQueue,
    ) -> None:
        self._recovery = recovery
        self._paths = paths
        self._packer = packer
        self._streams = streams
        self._liveness = liveness
        self._events = events

    def handle_ack(self, ack: f.Ack, address: Address, now: float) -> None:
        """BadPacket: the peer cannot have received that."""
        if ack.largest >= self._packer.next_number:
            raise BadPacket("an acknowledgement of what was never sent")
        self._liveness.handle_acked(ack.largest)
        recovery, paths = self._recovery, self._paths
        path = paths.current
        in_flight_before = recovery.in_flight
        is_same_way = address == path.address  # else it tells no round trip
        acked = recovery.handle_ack(ack.ranges, ack.delay_s if is_same_way else None, now)
        touched: dict[int, None] = {}  # streams
        if paths.left.stays:
            late, lost = paths.left.handle_ack(ack.ranges, now)
            self._tell_streams(late, touched)
            paths.repeat(lost)
        if acked:
            self._tell_streams(acked, touched)
            acked_bytes = 0
            newest = acked[0]
            for flight in acked:
                acked_bytes += path.handle_acked(flight, now)
                if flight.stop > newest.stop:
                    newest = flight
            tells_rtt = is_same_way and newest.stop - 1 == ack.largest
            rtt_s = recovery.rtt.latest_s if tells_rtt else None
            sent_at = newest.sent_at
            lost = path.digest(recovery, now, in_flight_before, acked_bytes, sent_at, rtt_s)
            paths.repeat(lost)
        if touched:
            self._streams.handle_acked(touched)

    def _tell_streams(self, acked: list[Flight], touched: dict[int, None]) -> None:
        """``touched`` gets the ids of those that carried something of it."""
        for stream, start, stop, fin in carried(acked):
            stream.handle_acked(start, stop, fin)
            touched[stream.stream_id] = None
        for flight in acked:
            for frame in flight.frames:
                self._packer.control_on_way -= 1
                self._streams.handle_frame_acked(frame)

    def handle_timer(self, now: float, is_late: bool) -> None:
        """Something is lost by time, or nothing was acknowledged for a probe time-out."""
        recovery, path, packer = self._recovery, self._paths.current, self._packer
        if recovery.loss_time < math.inf:
            self._paths.repeat(path.digest(recovery, now, recovery.in_flight))
            return
        if recovery.falls_silent(now):
            if is_late:  # what has come meanwhile is still to be read
                recovery.unanswered_since = now
                return
            recovery.call_silent()
            self._events.put(PathSilent())
            if recovery.pto_count:
                return  # the next probe time-out is still to come
        if packer.probes_left:
            return  # the last probe has not gone yet: the socket may be full
        recovery.pto_count += 1
        self._liveness.handle_probe_timeout(recovery.pto_count, now, recovery.rtt)
        packer.probe()
        oldest = recovery.oldest()
        if oldest is not None:
            path.handle_probe_timeout(oldest, now)
