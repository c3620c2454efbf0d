"""Ask addresses whether the peer is there (RFC 9000 sections 8.2 and 9).

A genuine packet from another address proves nothing: whoever can copy a packet can send it from
anywhere.  So an address is asked to return eight random bytes (PATH_CHALLENGE), and everything else
goes on to the old one until it has.  The same question finds out whether an address is fit to be
used later, and how long its round trip is; several may be asked at once.

Each challenge has bytes of its own, so that it is known which one an answer belongs to.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from ..._address import Address
from .acks import Received
from .frames import TOKEN_BYTES, PathChallenge, PathResponse, encode

if TYPE_CHECKING:
    from random import Random

__all__ = ["MAX_CHECKS", "PathCheck", "PathValidation"]

# Our choices.
MAX_CHECKS = 8  # addresses that are asked at once
MAX_CHALLENGES = 5  # how often one address is asked
MAX_INTERVAL_S = 0.5  # between two challenges
ANSWER_ACK_BYTES = 80  # an answer is at most three times as long as its question
MAX_PATH_RESPONSES = 8  # waiting to be sent


class PathCheck:
    """One address that is asked."""

    def __init__(self, address: Address, now: float, interval_s: float) -> None:
        self.address = address
        self.rtt_s = math.inf  # when it has answered
        self._sent_at: dict[bytes, float] = {}  # by what is to come back
        self.begin(now, interval_s)

    def begin(self, now: float, interval_s: float) -> None:
        """Ask at once, and as often as if it had not been asked before."""
        self.next_at = now
        self._interval_s = min(interval_s, MAX_INTERVAL_S)
        self._left = MAX_CHALLENGES

    def challenge(self, token: bytes, now: float) -> bytes:
        self._left -= 1
        self._sent_at[token] = now
        if len(self._sent_at) > MAX_CHALLENGES:
            del self._sent_at[next(iter(self._sent_at))]
        self.next_at = now + self._interval_s
        self._interval_s = min(2 * self._interval_s, MAX_INTERVAL_S)
        return encode(PathChallenge(token))

    def answered_by(self, token: bytes, now: float) -> bool:
        sent_at = self._sent_at.get(token)
        if sent_at is None:
            return False
        self.rtt_s = now - sent_at
        return True

    @property
    def failed(self) -> bool:
        """It has been asked often enough; the last challenge has until ``next_at``."""
        return not self._left


class PathValidation:
    """Answers the peer's challenges, and asks addresses of the peer.

    ``followed``: the peer sends from there, so we move there when it answers.  ``searched``: the
    same, as connectivity checks have found it, because the old path is dead.  What any other
    address answers is only told.
    """

    def __init__(self, random: Random) -> None:
        self.checks: dict[Address, PathCheck] = {}
        self.next_at = math.inf  # a challenge is due, or an address has not answered
        self.followed: Address | None = None  # until the peer is heard on the path in use
        self.searched: Address | None = None
        self.responses: deque[tuple[Address, bytes]] = deque()  # to be sent
        self._random = random

    def ask(self, address: Address, now: float, interval_s: float) -> None:
        """Ask it (again); of too many the one that was asked first is forgotten, but none to which
        we are to move.

        ``interval_s``: how long an answer may take.
        """
        check = self.checks.pop(address, None)
        if check is not None:
            check.begin(now, interval_s)
        else:
            if len(self.checks) >= MAX_CHECKS:
                wanted = self.followed, self.searched
                del self.checks[next(each for each in self.checks if each not in wanted)]
            check = PathCheck(address, now, interval_s)
        self.checks[address] = check
        self._arm()

    def follow(self, address: Address, now: float, interval_s: float) -> None:
        """The peer seems to be there.  Only one at a time: a copier of packets may make us ask."""
        before, self.followed = self.followed, address
        if before is not None and before not in (address, self.searched):
            self.forget(before)
        if address not in self.checks:
            self.ask(address, now, interval_s)

    def search(self, address: Address, now: float, interval_s: float) -> None:
        """Connectivity checks have found it."""
        self.followed, self.searched = None, address
        self.ask(address, now, interval_s)

    def forget(self, address: Address) -> None:
        if self.checks.pop(address, None) is not None:
            self._arm()
        if address == self.searched:
            self.searched = None

    def handle_challenge(self, token: bytes, address: Address) -> None:
        if len(self.responses) < MAX_PATH_RESPONSES:
            self.responses.append((address, encode(PathResponse(token))))

    def handle_response(self, token: bytes, address: Address, now: float) -> PathCheck | None:
        """The check that this answer ends: the peer is at that address."""
        check = self.checks.get(address)
        if check is None or not check.answered_by(token, now):
            return None
        self.forget(address)
        if address == self.followed:
            self.followed = None
        return check

    def expire(self, now: float) -> list[PathCheck]:
        """Forget addresses that have not answered, when the last challenge has had its time."""
        over = [check for check in self.checks.values() if check.failed and now >= check.next_at]
        for check in over:
            self.forget(check.address)
        return over

    def poll(self, now: float, received: Received) -> tuple[Address, bytes] | None:
        """Where to send which frames now, in a packet of their own.

        An answer says what has come, too: if the peer asks because its path is dead, it then sends
        no more again than it has to.
        """
        if self.responses:
            address, frame = self.responses.popleft()
            return address, frame + received.report(now, ANSWER_ACK_BYTES)
        for check in self.checks.values():
            if now >= check.next_at and not check.failed:
                frame = check.challenge(self._random.randbytes(TOKEN_BYTES), now)
                self._arm()
                return check.address, frame
        return None

    def _arm(self) -> None:
        self.next_at = min((check.next_at for check in self.checks.values()), default=math.inf)
