"""Follow a peer whose address changes (RFC 9000 sections 8.2 and 9).

A genuine packet from another address proves nothing: whoever can copy a packet can send it from
anywhere.  So the new address is asked to return eight random bytes (PATH_CHALLENGE), and everything
else goes on to the old address until it has.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..._address import Address
from .frames import TOKEN_BYTES, PathChallenge, PathResponse, encode

if TYPE_CHECKING:
    from random import Random

__all__ = ["PathCheck", "PathValidation"]

# Our choices.
MAX_CHALLENGES = 5  # how often one address is asked
MAX_PATH_RESPONSES = 4  # waiting to be sent


class PathCheck:
    """One address that is being tried."""

    def __init__(self, address: Address, token: bytes, now: float, interval_s: float) -> None:
        self.address = address
        self.token = token
        self.next_at = now
        self.searched = False  # connectivity checks have found it, because the old path is dead
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


class PathValidation:
    """Answers the peer's challenges, and tries one new address of the peer at a time."""

    def __init__(self, random: Random) -> None:
        self.check: PathCheck | None = None
        self._random = random
        self.responses: deque[tuple[Address, bytes]] = deque()  # to be sent

    def try_address(
        self, address: Address, now: float, interval_s: float, *, searched: bool = False
    ) -> None:
        """``searched``: see PathCheck; then an address that did not answer is asked again."""
        check = self.check
        if check is None or check.address != address or (searched and check.failed):
            token = self._random.randbytes(TOKEN_BYTES)
            check = self.check = PathCheck(address, token, now, interval_s)
        if searched:
            check.searched = True

    def handle_challenge(self, token: bytes, address: Address) -> None:
        if len(self.responses) < MAX_PATH_RESPONSES:
            self.responses.append((address, encode(PathResponse(token))))

    def handle_response(self, token: bytes, address: Address) -> PathCheck | None:
        """The check that this answer ends: the peer is at that address."""
        check = self.check
        if check is None or (check.token, check.address) != (token, address):
            return None
        self.check = None
        return check

    def expire(self, now: float) -> None:
        """Forget an address that has not answered, when the last challenge has had its time."""
        if self.check is not None and self.check.failed and now >= self.check.next_at:
            self.check = None

    def poll(self, now: float) -> tuple[Address, bytes] | None:
        """Where to send which frame now, in a packet of its own."""
        if self.responses:
            return self.responses.popleft()
        check = self.check
        if check is not None and check.poll(now):
            return check.address, encode(PathChallenge(check.token))
        return None
