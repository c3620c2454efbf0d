"""How a connection ends: open, closing while the peer is told, closed.

CLOSE is sent a few times, because each may be lost.  Meanwhile nothing else is sent, and what the
peer sends is not opened.  What comes a round trip after CLOSE or later shows that the peer has not
heard it, so the next one goes at once; what comes sooner was under way.  Where nobody is left to be
told, as the peer has closed or is dead, the end is immediate.

RFC 9000 section 10.2 is the model.  Departure: there is no draining period, because the endpoint
drops the packets of a connection that it does not know.
"""

from __future__ import annotations

import math
from enum import Enum

from ..._errors import KKP2PError, LinkLost
from .frames import encode_close

__all__ = [
    "CLOSE_NORMAL",
    "CLOSE_PROTOCOL_ERROR",
    "CLOSE_UNPROVEN",
    "FOLLOWERS",
    "Cue",
    "Lifecycle",
    "Phase",
]

# What CLOSE says: our choice, docs/protocol.rst.
CLOSE_NORMAL = 0
CLOSE_PROTOCOL_ERROR = 1
CLOSE_UNPROVEN = 3

CLOSE_PACKETS = 3  # our choice: how often CLOSE is sent, a probe time-out apart at most


class Phase(Enum):
    OPEN = "open"
    CLOSING = "closing"  # only CLOSE is sent
    CLOSED = "closed"  # nothing happens any more


class Cue(Enum):
    """What moves a connection on."""

    CLOSE = "we close it"
    BREACH = "the peer breaks the protocol"
    LOST = "the peer has closed it, or is dead"
    TOLD = "CLOSE has been sent often enough"


# A cue that leaves the phase as it is, is ignored; one that is missing here is a bug and raises.
FOLLOWERS = {
    (Phase.OPEN, Cue.CLOSE): Phase.CLOSING,
    (Phase.OPEN, Cue.BREACH): Phase.CLOSING,
    (Phase.OPEN, Cue.LOST): Phase.CLOSED,
    (Phase.CLOSING, Cue.CLOSE): Phase.CLOSING,
    (Phase.CLOSING, Cue.BREACH): Phase.CLOSING,
    (Phase.CLOSING, Cue.LOST): Phase.CLOSED,
    (Phase.CLOSING, Cue.TOLD): Phase.CLOSED,
    (Phase.CLOSED, Cue.CLOSE): Phase.CLOSED,
    (Phase.CLOSED, Cue.BREACH): Phase.CLOSED,
    (Phase.CLOSED, Cue.LOST): Phase.CLOSED,
}


class Lifecycle:
    """``phase``, and, while it is CLOSING, when the next CLOSE goes."""

    def __init__(self) -> None:
        self.phase = Phase.OPEN
        self.close_at = math.inf
        self.error: KKP2PError = LinkLost()  # that closes it
        self._frame = b""
        self._closes_left = 0
        self._told_at = math.inf  # when the last one went

    def move(self, cue: Cue) -> bool:
        """Whether this has changed the phase; KeyError for a cue that cannot come now."""
        before, self.phase = self.phase, FOLLOWERS[self.phase, cue]
        return self.phase is not before

    def begin_close(self, cue: Cue, code: int, error: KKP2PError, now: float) -> None:
        """Tell the peer why, unless it is being told already.

        A peer that breaks the protocol is told once: it may not deserve more.
        """
        if self.move(cue):
            self.error = error
            self.close_at = now
            self._frame = encode_close(code, str(error))
            self._closes_left = 1 if cue is Cue.BREACH else CLOSE_PACKETS

    def handle_packet(self, now: float, rtt_s: float) -> None:
        """The peer goes on sending."""
        if self._closes_left and now >= self._told_at + rtt_s:
            self.close_at = min(self.close_at, now)

    def next_close(self, now: float, pto_s: float) -> bytes | None:
        """The frame to send now, and again after ``pto_s``; None: it was sent often enough."""
        if not self._closes_left:
            return None
        self._closes_left -= 1
        self._told_at = now
        self.close_at = now + pto_s
        return self._frame
