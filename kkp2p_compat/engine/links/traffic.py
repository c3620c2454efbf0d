"""What connections with peers have carried, by the path that they took.

A connection counts for itself, whatever its path: what is new since it was looked at last counts
for the path that it takes now.  They are looked at every few seconds, and at their end.
"""

from __future__ import annotations

from typing import NamedTuple

from ...transport.udp.peer_connection import PeerConnection

__all__ = ["Traffic", "TrafficTable"]


class Traffic(NamedTuple):
    """Bytes and packets."""

    sent: int = 0
    received: int = 0
    packets: int = 0  # sent
    lost: int = 0


class TrafficTable:
    """``look_at`` each now and then, and once more before ``forget``."""

    def __init__(self) -> None:
        self.by_path: dict[str, Traffic] = {}
        self._seen: dict[PeerConnection, Traffic] = {}

    def look_at(self, connection: PeerConnection, path: str) -> None:
        packer = connection.packer
        now = Traffic(
            packer.sent_bytes, connection.received_bytes, packer.next_number, packer.lost_packets
        )
        before = self._seen.get(connection, Traffic())
        self._seen[connection] = now
        total = self.by_path.get(path, Traffic())
        self.by_path[path] = Traffic(
            *(count + new - old for count, new, old in zip(total, now, before, strict=True))
        )

    def forget(self, connection: PeerConnection) -> None:
        self._seen.pop(connection, None)
