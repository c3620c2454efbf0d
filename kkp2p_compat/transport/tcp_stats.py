"""What the kernel knows of a TCP connection: round trip, loss, rate, bytes.  Linux only.

For a channel whose bytes never pass through us.  ``passed`` counts what went before the channel
began (the hello to the relay and its answer), so that only the channel's own bytes are told.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .tcp import HasFileno, tcp_info, unread_bytes

__all__ = ["Passed", "TcpStats", "passed", "read"]

# struct tcp_info, since Linux 4.19.  Offsets: state 0, snd_mss 16, pmtu 60, rtt 68, snd_cwnd 80,
# total_retrans 100, pacing_rate 104, bytes_received 128, min_rtt 148, data_segs_out 156,
# delivery_rate 160, bytes_sent 200, bytes_retrans 208.
_INFO = struct.Struct("=B15xI40xI4xI8xI16xIQ16xQ12xI4xIQ32xQQ")
_PEER_ENDED = (6, 8, 9, 11)  # states after the peer's end of stream, which counts as a byte
_UNKNOWN = (2**32 - 1, 2**64 - 1)  # of min_rtt, of pacing_rate


class Passed(NamedTuple):
    """Bytes sent and received."""

    sent: int = 0
    received: int = 0


class TcpStats(NamedTuple):
    """0: not known yet."""

    rtt_s: float
    min_rtt_s: float
    loss: float  # fraction of the segments with data that were sent again
    pacing_bytes_per_s: float
    delivery_bytes_per_s: float
    window_bytes: int
    mtu_bytes: int
    passed: Passed  # what was repeated counts once


def read(sock: HasFileno | int) -> TcpStats | None:
    """What is known by now; None: this socket's kernel or kind tells nothing."""
    info = tcp_info(sock, _INFO)
    if info is None:
        return None
    state, mss, mtu, rtt_us, window, repeated, pacing, received, min_us, segments, rate, *sent = (
        info
    )
    return TcpStats(
        rtt_us / 1e6,
        0.0 if min_us in _UNKNOWN else min_us / 1e6,
        repeated / max(1, segments),
        0.0 if pacing in _UNKNOWN else float(pacing),
        float(rate),
        window * mss,
        mtu,
        Passed(sent[0] - sent[1], received - (state in _PEER_ENDED)),
    )


def passed(sock: HasFileno | int) -> Passed:
    """What we have written and read by now."""
    stats = read(sock)
    unread = unread_bytes(sock)
    if stats is None or unread is None:
        return Passed()
    return Passed(stats.passed.sent, stats.passed.received - unread)
