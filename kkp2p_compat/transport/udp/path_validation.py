"""Follow a peer whose address changes (RFC 9000 section 9).

A genuine packet from elsewhere proves nothing: whoever can copy a packet can send it from where he
likes.  So the new address is asked to return eight random bytes (PATH_CHALLENGE), and everything
else goes on to the old one until it has.
"""

from __future__ import annotations

from .events import Address

__all__ = ["PathCheck"]

MAX_CHALLENGES = 5  # our choice, as all below: how often one address is asked


class PathCheck:
    """One address that is being tried."""

    def __init__(self, address: Address, token: bytes, now: float, interval_s: float) -> None:
        self.address = address
        self.token = token
        self.next_at = now
        self.searched = False  # for, because the old path is dead
        self._interval_s = interval_s
        self._sent = 0

    def poll(self, now: float) -> bool:
        """Whether to send a challenge now."""
        if now < self.next_at or self.failed:
            return False
        self._sent += 1
        self.next_at = now + self._interval_s
        self._interval_s *= 2
        return True

    @property
    def failed(self) -> bool:
        return self._sent >= MAX_CHALLENGES

    def proved_by(self, token: bytes) -> bool:
        return token == self.token
