"""What a peer id is."""

from __future__ import annotations

import re

from ._codes import MAX_PEER_ID

__all__ = ["is_peer_id"]

_PEER_ID = re.compile(rf"[!-~]{{1,{MAX_PEER_ID}}}")


def is_peer_id(value: object) -> bool:
    """1 to 32 printable ASCII characters without spaces."""
    return isinstance(value, str) and _PEER_ID.fullmatch(value) is not None
