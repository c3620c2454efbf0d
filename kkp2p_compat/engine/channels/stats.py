"""What is known of a channel: for ``channel_stats`` and the tools.

Runs in the engine's hub.  Nothing is measured on purpose: the transport counts anyway, by the
batch, and the kernel does for a relayed channel.
"""

from __future__ import annotations

import time

from ..._structs import channel_stats_t
from ...traversal.nat import UNKNOWN, NatBehaviour
from ..runtime.timeline import Timeline
from .kinds import Channel

__all__ = ["channel_stats"]


def channel_stats(channel: Channel, own_nat: NatBehaviour) -> channel_stats_t:
    """``own_nat``: as it is known now, in case that it was not yet when the peer was met."""
    stream = channel.stream
    timeline = stream.timeline or Timeline()
    if timeline.own_nat != UNKNOWN:
        own_nat = timeline.own_nat
    key = stream.peer_key
    return channel_stats_t(
        channel_id=channel.channel_id,
        reason=stream.reason,
        plan=timeline.plan.kind if timeline.plan else "",
        own_nat=own_nat.text,
        peer_nat=timeline.peer_nat.text,
        set_up_s=stream.set_up_s,
        steps=tuple(timeline.steps),
        age_s=time.monotonic() - channel.made_at,
        caller_id=channel.caller_id,
        moves=tuple(
            (move.at - channel.made_at, move.text)
            for move in stream.moves
            if move.at >= channel.made_at
        ),
        peer_fingerprint="" if key is None else key.fingerprint,
        peer_pinned=key is not None and key.is_pinned,
        **channel.stats(),
    )
