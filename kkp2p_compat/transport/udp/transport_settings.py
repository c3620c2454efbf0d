"""What one side may choose for its own connections; the protocol does not ask for agreement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..._address import Address

__all__ = ["TransportSettings"]


@dataclass(frozen=True)
class TransportSettings:
    """Times are in seconds, sizes in bytes."""

    idle_timeout_s: float = 45.0  # of silence, after which the peer counts as dead
    keepalive_s: float = 10.0  # below the 20 s for which some NATs keep a binding
    congestion: str = "bbr"  # or "cubic"
    max_stream_window_bytes: int = 16 * 1024 * 1024
    max_data_window_bytes: int = 24 * 1024 * 1024
    max_datagram_bytes: int = 1472  # what path MTU discovery may find: 548 to 65507
    datagram_limit: Callable[[Address], int] | None = None  # the same, for paths that differ
    max_message_queue_bytes: int = 1024 * 1024  # of UDP channels, waiting to be sent
