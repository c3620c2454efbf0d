"""For how long what arrives may be left in the socket, to be read in one go.

A turn of the event loop costs as much as dozens of packets, and where packets come one by one each
would have a turn of its own.  So while bulk arrives, the next turn may wait for a part of the round
trip: an acknowledgement that is late by so little does not matter to the sender, nor does data that
follow other data to the application.  It is what the kernel does for its own sake (delayed and
compressed ACKs, deferred interrupts), in the place where our cost is.

The rules:
- Only packets filled by one stream count as bulk.  Anything else, as a request, an answer, the end
  of a stream, an acknowledgement or a message, is read as soon as it comes, and so is what follows.
- An eighth of the smallest round trip at most, so that the sender has eight acknowledgements for
  each; thus never on short paths.
- No more packets than a small socket buffer holds, and where some were lost lately, no more than
  one acknowledgement is for: the sender may have a small window, and need each at once.
"""

from __future__ import annotations

import math

from .acks import PER_ACK, Received
from .frames import STREAM_HEADER
from .header import OVERHEAD_BYTES
from .mtu import MIN_BYTES
from .recovery import Recovery

__all__ = ["Gathering"]

# Our choices.
GATHER_RTTS = 1 / 8
MAX_GATHER_S = 0.005
MIN_GATHER_S = 0.001  # the event loop's timer is no finer
FULL_BYTES = MIN_BYTES - OVERHEAD_BYTES - STREAM_HEADER.size  # at least, in a packet that is full
BULK_PACKETS = 32  # in a row, before it is taken for bulk
MAX_PACKETS = 48  # a third of what fits into Linux's default buffer (net.core.rmem_default)
MIN_PACKETS = 3  # fewer in a turn are not worth to wait for


class Gathering:
    """Told of every packet, and asked once a turn."""

    def __init__(self, received: Received, recovery: Recovery) -> None:
        self._waited = False  # before what is read in this turn
        self._received = received
        self._recovery = recovery
        self._bulk = 0  # packets in a row
        self._bulk_before = 0  # at the last turn
        self._turn_at = 0.0
        self._is_interrupted = False

    def interrupt(self) -> None:
        """A packet has come that is not bulk."""
        self._bulk = self._bulk_before = 0
        self._is_interrupted = True

    def handle_packets(self, pieces: list[bytes]) -> None:
        """Packets have come that carry this, of one stream and in order, and nothing else."""
        if len(pieces[-1]) < max(len(pieces[0]), FULL_BYTES):
            self.interrupt()
        else:
            self._bulk += len(pieces)

    def wait_s(self, now: float) -> float:
        """For how long what comes next may be left unread, when all has been read that has come.

        0.0: read what comes next at once; infinite: nothing has come, so it does not matter.
        """
        if self._bulk == self._bulk_before and not self._is_interrupted:
            return math.inf
        waited, wait_s = self._waited, self._next_wait_s(now)
        self._waited = wait_s > 0.0
        if waited or self._waited:
            self._received.hurry(now)
        return wait_s

    def _next_wait_s(self, now: float) -> float:
        elapsed_s, self._turn_at = now - self._turn_at, now
        count, self._bulk_before = self._bulk - self._bulk_before, self._bulk
        is_bulk = self._bulk >= BULK_PACKETS and not self._is_interrupted
        self._is_interrupted = False
        rtt = self._recovery.rtt
        if not is_bulk or rtt.latest_s is None:
            return 0.0
        if self._waited and count < MIN_PACKETS:
            self._bulk = self._bulk_before = 0
            return 0.0
        packets = MAX_PACKETS if self._received.calm else PER_ACK
        wait_s = min(packets * elapsed_s / count, GATHER_RTTS * rtt.min_s, MAX_GATHER_S)
        return wait_s if wait_s >= MIN_GATHER_S else 0.0
