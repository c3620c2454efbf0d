"""What a peer id is."""

from __future__ import annotations

from ._codes import MAX_PEER_ID

__all__ = ["is_peer_id"]


def is_peer_id(value: object) -> bool:
    """1 to 32 printable ASCII characters without spaces."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PEER_ID:
        return False
    return all("!" <= char <= "~" for char in value)
