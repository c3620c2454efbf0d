"""Open streams to a peer that nobody uses yet, directly on a link or through the relay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..._structs import connect_ctx_t
from ...transport.sealed import DirectionKeys, Opener, Sealer
from ...transport.udp.events import ChannelOffered
from ..runtime.timeline import Timeline
from .peer_link import PeerLink

__all__ = ["DirectStream", "RelayedStream"]


@dataclass
class RelayedStream:
    """A stream to a peer that nobody uses yet.  Whoever takes it over closes ``sock``."""

    sock: Any  # gevent socket: TCP to the relay
    desc: int
    encrypt: int
    keys: tuple[DirectionKeys, DirectionKeys] | None = None  # (ours, the peer's) if sealed
    how: str = "relay"  # it was made, for the log
    reason: str = ""  # why it is not p2p; empty if the peer knows
    timeline: Timeline | None = None  # of the attempt that it came of, if we called
    set_up_s: float | None = None  # if we called

    @property
    def relay(self) -> tuple[str, int] | None:
        """The relay's address; None: the connection is broken already."""
        try:
            ip, port = self.sock.getpeername()[:2]
        except OSError:
            return None
        return ip, port

    def seal(self) -> tuple[Sealer, Opener]:
        if self.keys is None:
            raise ValueError("this connection is not sealed")
        return Sealer(self.keys[0]), Opener(self.keys[1])


class DirectStream:
    """An open channel on a link that nobody uses yet."""

    def __init__(self, link: PeerLink, stream_id: int, offered: ChannelOffered | connect_ctx_t):
        self.link = link
        self.how = link.describe_use()
        self.set_up_s: float | None = None  # if we called
        self.timeline = link.info.timeline
        self.reason = link.info.plan.reason
        self.stream_id = stream_id
        self.stream = link.connection.channels.get(stream_id)  # None: it is broken already
        self.channel_type = offered.channel_type
        self.encrypt = offered.encrypt_data
        self.desc = offered.desc if isinstance(offered, ChannelOffered) else offered.connect_desc
