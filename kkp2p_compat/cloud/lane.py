"""The relay by UDP: forwards packets between two peers that have shown the tokens of one call.

What a peer has sent in a row goes on in a row: a buffer that the kernel has joined leaves with one
system call.  Nothing is queued here; what finds no room is dropped, as any network would, and the
peers' congestion control notices.  Who may send where is lane_table.py's.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

from gevent.event import Event

from .._address import Address
from ..transport.udp.demultiplex import connection_id
from ..transport.udp.header import OVERHEAD_BYTES
from .lane_table import Answers, LaneTable
from .limits import Gatekeeper
from .udp_port import UdpPort
from .usage import Usage

__all__ = ["LaneRelay"]

log = logging.getLogger(__name__)


class LaneRelay:
    """Call order: ``sweep`` about once a second, ``close`` and ``wait`` at the end.

    ``bytes_forwarded`` and ``counts``: what it did, and what it did not and why.
    """

    def __init__(self, gate: Gatekeeper, key: bytes, usage: Usage, port: UdpPort) -> None:
        self.bytes_forwarded = 0
        self.table = LaneTable(gate, key, usage, time.monotonic())
        self._port = port
        self._empty = Event()
        self._empty.set()
        port.on_lane = self._on_lane
        port.on_packets = self._on_packets

    @property
    def counts(self) -> Counter[str]:
        return self.table.counts + self._port.counts

    def sweep(self, now: float) -> None:
        self._send(self.table.sweep(now, time.time()))

    def close(self) -> None:
        """Tell the peers to go elsewhere; what they send is still forwarded."""
        self._send(self.table.close())

    def wait(self, seconds: float) -> None:
        """Until all peers have left, or for so long."""
        if self.table.sessions and seconds > 0:
            log.info("relay: %d lanes have %g s to end", self.table.sessions, seconds)
            self._empty.wait(seconds)

    def _on_packets(self, data: bytes, segment_bytes: int, source: Address) -> None:
        if min(len(data), segment_bytes) < OVERHEAD_BYTES:
            self.table.counts["too short for a packet"] += 1
            return
        now, to = time.monotonic(), connection_id(data)
        target = self.table.route(source, to, len(data), now)
        if target is not None:
            if self._port.send(data, segment_bytes, target):
                self.bytes_forwarded += len(data)
            return
        self.table.counts["packets without a lane"] += 1
        who = self.table.who_untrusted(source, to, now)
        if who is not None:
            self._port.send(who, len(who), source)

    def _on_lane(self, data: bytes, segment_bytes: int, source: Address) -> None:
        now = time.monotonic()
        self._send(self.table.handle_untrusted(data, source, now, time.time()))

    def _send(self, answers: Answers) -> None:
        for data, address in answers:
            self._port.send(data, len(data), address)
        if self.table.sessions:
            self._empty.clear()
        else:
            self._empty.set()
