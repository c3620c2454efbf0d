"""One attempt to reach a peer, and what those who wait for it get.

Runs in the engine's hub.  A first connect begins the attempt; others that come meanwhile wait for
its link, too.  The attempt may go on when there is a link: over a relay, while a direct path is
still looked for.
"""

from __future__ import annotations

import enum
import time

from gevent.event import AsyncResult, Event

from ..._errors import KKP2PError, TimedOut
from ..links.peer_link import PeerLink
from ..runtime.timeline import Timeline

__all__ = ["Attempt", "State"]


class State(enum.Enum):
    """Of an attempt."""

    CALLING = "the peer has not answered yet"
    SEARCHING = "the peer has answered, and a path is looked for"
    MET = "there is a link"
    FAILED = "it is given up"


_FOLLOWERS = {
    # MET also without a search of its own: another attempt may be faster.
    State.CALLING: {State.SEARCHING, State.MET, State.FAILED},
    State.SEARCHING: {State.MET, State.FAILED},
    State.MET: set(),
    State.FAILED: set(),
}


class Attempt:
    """``search`` when the peer has answered, then ``settle``."""

    def __init__(self, longest_s: float, head_start_s: float, why_relay: str) -> None:
        """``head_start_s``: how long a direct path is waited for before a relay is taken, with
        ``why_relay`` as the reason.
        """
        self.state = State.CALLING
        self.why_relay = why_relay
        self.head_start_s = head_start_s
        self.timeline = Timeline()
        self.hurried = Event()  # somebody who waits has no time for the whole head start
        self._longest_s = longest_s
        self._link: AsyncResult[PeerLink] = AsyncResult()
        self._searching_since: float | None = None

    def _go(self, state: State) -> None:
        if state not in _FOLLOWERS[self.state]:
            raise ValueError(f"an attempt does not go from {self.state} to {state}")
        self.state = state

    def wait(self) -> PeerLink:
        """For those who want to open a channel."""
        return self._link.get()

    # For the one who makes the attempt.

    def deadline(self, wanted: float) -> float:
        """Until when it goes on, if the connect has time until ``wanted``."""
        return min(wanted, self.timeline.started_at + self._longest_s)

    @property
    def was_quick(self) -> bool:
        """Whether another attempt would have no better chance."""
        return self.timeline.elapsed_s < self._longest_s / 2

    def search(self) -> None:
        """The peer has answered."""
        self._go(State.SEARCHING)
        self._searching_since = time.monotonic()

    @property
    def searched_s(self) -> float:
        """How long a path has been looked for."""
        since = self._searching_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def is_over(self) -> bool:
        """Whether those who wait have got what they get."""
        return self._link.ready()

    def late(self) -> TimedOut:
        """The error for a time that is over now."""
        if self.state is State.CALLING:
            return TimedOut("the peer did not answer in time")
        return TimedOut("no path to the peer was found")

    def settle(self, outcome: PeerLink | KKP2PError) -> None:
        """There is a link, or there will be none."""
        if isinstance(outcome, KKP2PError):
            self._go(State.FAILED)
            self._link.set_exception(outcome)
        else:
            self._go(State.MET)
            self._link.set(outcome)
