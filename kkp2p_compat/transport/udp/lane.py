"""A peer's side of a lane: it shows its token to a relay's UDP port until the relay forwards.

From then on packets to ``spot`` reach the other side of the call, and packets from there are the
other side's: nothing is wrapped, so for a connection the relay is one more address.

Sans-IO: time is passed in, in seconds of a monotonic clock.  The rules:

- A SHOW leaves at once, again after RETRY_S, and then every SHOW_EVERY_S for as long as the lane
  lives, which keeps the NAT's mapping and the relay's binding.  While the other side is not there
  it leaves more often, as the word that it has come may have got lost.
- A relay that answers nothing makes the lane SILENT, one that refuses makes it REFUSED.  A silent
  one is asked on, as it may come back; a refusal is final.  With CLOSING a relay that shuts down
  refuses sides that it still serves for a while: those had better go elsewhere, and leave.
- An answer comes from the relay's address and names our connection id, or (WHO) the other side's:
  64 random bits that only somebody on the way has seen.
"""

from __future__ import annotations

from enum import Enum

from ..._address import Address
from ..._errors import BadPacket
from .. import lane_wire, relay_wire
from .demultiplex import key_of

__all__ = ["LaneClient", "LaneState"]

# Our choices.
RETRY_S = (0.2, 0.4, 0.8, 1.6, 3.2)  # after each SHOW without an answer; 6.2 s in all
SHOW_EVERY_S = 15.0  # under the 30 s for which the shortest-lived common NATs keep a mapping
PARTNER_S = (1.0, 2.0, 4.0, 8.0)  # between two SHOWs while the other side is not there
WHO_EVERY_S = 0.1  # an answer to WHO; more of them ask for what is on its way already
MAX_COOKIES = 3  # taken for one SHOW: our address may change in between, but not for ever

_BOUND = (relay_wire.PAIRED, relay_wire.HERE, relay_wire.CLOSING)  # the relay knows our address


class LaneState(Enum):
    SHOWING = "showing"  # there is no answer yet
    HERE = "waiting for the other side"
    PAIRED = "paired"
    SILENT = "without an answer"
    REFUSED = "refused"


class LaneClient:
    """Send all that ``poll_transmit`` gives after each other call; ``handle_timer`` is due at
    ``next_timer``.

    ``state`` and ``status`` (of relay_wire; None before the relay has told one) are what to watch.
    ``cookie`` is good for other lanes of the same socket at the same relay.  ``receipt`` proves to
    the track that we were at the relay.  ``remote_id``: set it when the other side's is known.
    """

    def __init__(
        self, spot: Address, token: bytes, local_id: int, now: float, cookie: bytes | None = None
    ) -> None:
        self.spot = spot
        self.state = LaneState.SHOWING
        self.status: int | None = None
        self.cookie = cookie
        self.receipt = b""
        self.remote_id: int | None = None
        self._token = token
        self._id = key_of(local_id)
        self._tries = 0  # without an answer
        self._answers = 0  # that said HERE, in a row
        self._is_bound = False
        self._cookies_left = 0
        self._shown_at = now
        self._next_at: float | None = now
        self._outgoing: bytes | None = None
        self.show_again(now)

    @property
    def reason(self) -> str:
        """Why it is refused, or what it is else."""
        if self.state is LaneState.REFUSED and self.status is not None:
            return relay_wire.status_text(self.status)
        return self.state.value

    def show_again(self, now: float) -> None:
        """The network has changed, or nothing comes through: ask whether the relay knows us."""
        if self._next_at is None:
            return
        self._tries = 0
        self._show(now)

    def leave(self) -> None:
        """The lane is not needed any more.  The relay is told once; else it would find out."""
        self._next_at = None
        self._outgoing = None
        if self._is_bound and self.cookie is not None:
            self._is_bound = False
            kind = lane_wire.LEAVE
            self._outgoing = lane_wire.make_show(self._token, self._id, self.cookie, kind)

    def handle_datagram_untrusted(self, data: bytes, source: Address, now: float) -> bool:
        """Whether it was for this lane.  Never raises."""
        if source != self.spot or self._next_at is None:
            return False
        try:
            answer = lane_wire.parse_answer_untrusted(data)
        except BadPacket:
            return False
        if answer.kind == lane_wire.WHO:
            return self._handle_who(answer.connection_id, now)
        if answer.connection_id != self._id:
            return False
        if answer.kind == lane_wire.COOKIE:
            self._handle_cookie(answer.cookie, now)
        else:
            self._handle_status(answer.status, now)
            self.receipt = answer.receipt or self.receipt
        return True

    def _handle_who(self, remote_id: bytes, now: float) -> bool:
        if self.remote_id is not None and remote_id != key_of(self.remote_id):
            return False
        if now - self._shown_at >= WHO_EVERY_S:
            self.show_again(now)
        return self.remote_id is not None  # else it may be for another lane as well

    def _handle_cookie(self, cookie: bytes, now: float) -> None:
        if cookie == self.cookie or self._cookies_left == 0:
            return  # what we have sent since is on its way
        self._cookies_left -= 1
        self.cookie = cookie
        self._send_show(now)

    def _handle_status(self, status: int, now: float) -> None:
        self.status = status
        self._tries = 0
        self._is_bound = status in _BOUND
        if status == relay_wire.PAIRED:
            self.state = LaneState.PAIRED
            self._answers = 0
            self._next_at = now + SHOW_EVERY_S
        elif status == relay_wire.HERE:
            self.state = LaneState.HERE
            waits = PARTNER_S[self._answers : self._answers + 1] or (SHOW_EVERY_S,)
            self._answers += 1
            self._next_at = now + waits[0]
        else:
            self.state = LaneState.REFUSED
            self._next_at = None

    def handle_timer(self, now: float) -> None:
        if self._next_at is not None and now >= self._next_at:
            self._show(now)

    def next_timer(self) -> float | None:
        return self._next_at

    def poll_transmit(self) -> tuple[bytes, Address] | None:
        data, self._outgoing = self._outgoing, None
        return None if data is None else (data, self.spot)

    def _show(self, now: float) -> None:
        if self._tries == len(RETRY_S):
            self.state = LaneState.SILENT
        self._cookies_left = MAX_COOKIES
        self._send_show(now)
        waits = RETRY_S[self._tries : self._tries + 1] or (SHOW_EVERY_S,)
        self._tries += 1
        self._next_at = now + waits[0]

    def _send_show(self, now: float) -> None:
        self._shown_at = now
        cookie = self.cookie or lane_wire.NO_COOKIE
        self._outgoing = lane_wire.make_show(self._token, self._id, cookie)
