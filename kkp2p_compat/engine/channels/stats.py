"""What is known of a channel: for ``channel_stats``, the tools, and whoever looks for a fault.

Runs in the engine's hub.  Nothing is measured for it: the transport counts anyway, by the batch,
and of a relayed channel the kernel knows.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

from ..._errors import ParameterError
from ..._structs import channel_stats_t
from ...transport import tcp_stats
from ...transport.tcp_stats import Passed, TcpStats
from ...transport.udp.channel import Channel as Stream
from ...traversal.candidates import is_private
from ...traversal.nat import UNKNOWN
from ..links.peer_link import PeerLink
from ..runtime.timeline import Timeline
from .kinds import Channel, DirectChannel, RawChannel, SealedChannel

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = ["channel_stats", "link_fields", "relay_fields"]


def channel_stats(engine: Engine, channel_id: int) -> channel_stats_t:
    """Raises ParameterError for a channel that is not there (any more)."""
    channel = engine.channels.get(channel_id)
    if channel is None:
        raise ParameterError(f"no channel {channel_id}")
    if isinstance(channel, DirectChannel):
        fields = link_fields(channel.link, channel.stream)
    elif isinstance(channel, SealedChannel):
        stream = channel.stream
        passed = Passed(stream.bytes_sent, stream.bytes_received)
        fields = relay_fields(tcp_stats.read(channel.wire), passed, channel.relay)
    else:
        fields = _raw_fields(channel)
    timeline = channel.timeline or Timeline()
    own_nat = timeline.own_nat
    if own_nat == UNKNOWN:
        own_nat = engine.direct.nat
    return channel_stats_t(
        channel_id=channel_id,
        reason=channel.reason,
        plan=timeline.plan.kind if timeline.plan else "",
        own_nat=own_nat.text,
        peer_nat=timeline.peer_nat.text,
        set_up_s=channel.set_up_s,
        steps=tuple(timeline.steps),
        age_s=time.monotonic() - channel.made_at,
        caller_id=channel.caller_id,
        **fields,
    )


def link_fields(link: PeerLink, stream: Stream | None) -> dict[str, Any]:
    """Of a channel on a direct connection."""
    connection = link.connection
    packer, rtt, controller = connection.sent, connection.recovery.rtt, connection.controller
    ip, port = connection.address[:2]
    return {
        "path": "p2p",
        "address": (ip, port),
        "is_ipv6": link.is_ipv6,
        "is_lan": is_private(ip),
        "rtt_s": rtt.smoothed_s,
        "min_rtt_s": rtt.min_s if math.isfinite(rtt.min_s) else None,
        "loss": packer.lost_packets / max(1, packer.sent_packets),
        "pacing_bytes_per_s": controller.pacing_bytes_per_s,
        "delivery_bytes_per_s": connection.rate.latest_bytes_per_s,
        "window_bytes": controller.window_bytes,
        "mtu_bytes": connection.mtu.size,
        "bytes_sent": stream.bytes_sent if stream else 0,
        "bytes_received": stream.bytes_received if stream else 0,
        "connection_bytes_sent": packer.sent_bytes,
        "connection_bytes_received": connection.received_bytes,
    }


def relay_fields(
    stats: TcpStats | None, passed: Passed | None, address: tuple[str, int] | None
) -> dict[str, Any]:
    """Of a relayed channel; ``passed``: the application's bytes."""
    return {
        "path": "relay",
        "address": address,
        "is_ipv6": address is not None and ":" in address[0],
        "is_lan": False,
        "rtt_s": stats and stats.rtt_s,
        "min_rtt_s": stats and stats.min_rtt_s,
        "loss": stats and stats.loss,
        "pacing_bytes_per_s": stats and stats.pacing_bytes_per_s,
        "delivery_bytes_per_s": stats and stats.delivery_bytes_per_s,
        "window_bytes": stats and stats.window_bytes,
        "mtu_bytes": stats and stats.mtu_bytes,
        "bytes_sent": passed and passed.sent,
        "bytes_received": passed and passed.received,
        "connection_bytes_sent": None,
        "connection_bytes_received": None,
    }


def _raw_fields(channel: Channel) -> dict[str, Any]:
    """The application holds the socket; we look at it by a copy of the descriptor."""
    assert isinstance(channel, RawChannel)
    stats = passed = None
    duplicate = channel.duplicate_fd()
    if duplicate is not None:
        try:
            stats = tcp_stats.read(duplicate)
        finally:
            os.close(duplicate)
    if stats is not None:
        before = channel.before
        passed = Passed(stats.passed.sent - before.sent, stats.passed.received - before.received)
    return relay_fields(stats, passed, channel.relay)
