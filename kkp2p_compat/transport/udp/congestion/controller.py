"""What a congestion controller is told, and what it answers.

The connection tells it about batches: one ``Update`` may stand for hundreds of packets.  Nothing in
this package opens a socket or reads a clock: ``now`` and the random source are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .delivery_rate import RateSample, Snapshot

__all__ = ["Controller", "Update", "initial_window", "quantum"]

INITIAL_WINDOW_PACKETS = 10  # RFC 9002 section 7.2
INITIAL_WINDOW_BYTES = 14_720  # RFC 9002 section 7.2
MIN_QUANTUM_PACKETS = 2  # draft-ietf-ccwg-bbr, Send Quantum
MAX_QUANTUM_BYTES = 65_536  # draft-ietf-ccwg-bbr, Send Quantum; what one UDP_SEGMENT call carries
QUANTUM_S = 0.001  # draft-ietf-ccwg-bbr, Send Quantum


@dataclass(slots=True)
class Update:
    """One ACK frame, or one expiry of the loss timer (then nothing is acknowledged).

    ``in_flight_before`` and ``in_flight`` are bytes before and after it.  ``rtt_s`` is the round
    trip of the newest packet it acknowledges, if that was newly acknowledged, ``sent_at`` when that
    packet left.  ``lost`` lists what is given up, oldest first, one entry for each unbroken run of
    packets of a flight.
    """

    now: float
    acked_bytes: int
    lost: list[tuple[Snapshot, int]]
    in_flight_before: int
    in_flight: int
    rtt_s: float | None
    smoothed_rtt_s: float
    min_rtt_s: float
    sample: RateSample | None
    sent_at: float | None


class Controller(Protocol):
    """Says how much may be in flight, and how fast it may leave.

    ``handle_sent`` comes before each flight, ``update`` after each ACK frame or loss-timer expiry;
    the answers are then read from the three attributes.
    """

    window_bytes: int
    pacing_bytes_per_s: float
    quantum_bytes: int  # how much may leave at one instant

    def update(self, update: Update) -> None: ...

    def handle_sent(self, now: float, size: int, in_flight_before: int) -> None: ...

    def handle_persistent_congestion(self, now: float) -> None:
        """RFC 9002 section 7.6: everything sent over a long time was lost."""

    def set_datagram_bytes(self, datagram_bytes: int) -> None:
        """The path MTU has changed."""


def initial_window(datagram_bytes: int) -> int:
    return min(
        INITIAL_WINDOW_PACKETS * datagram_bytes, max(2 * datagram_bytes, INITIAL_WINDOW_BYTES)
    )


def quantum(pacing_bytes_per_s: float, datagram_bytes: int) -> int:
    """How much may leave at one instant: about a millisecond's worth."""
    wanted = min(int(pacing_bytes_per_s * QUANTUM_S), MAX_QUANTUM_BYTES)
    return max(wanted, MIN_QUANTUM_PACKETS * datagram_bytes)
