"""One attempt to reach a peer directly, and what those who wait for it get.

Runs in the engine's hub.  A first connect begins the attempt; others that come meanwhile wait for
its link.  In auto mode the first one may get a relayed stream instead, while the path is looked
for on; the others then make a relayed call of their own.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Any

from gevent.event import AsyncResult

from ..._errors import KKP2PError, NoPath, TimedOut
from ..links.peer_link import PeerLink
from ..links.prepared_relay import PreparedRelay
from ..links.streams import OpenStream
from ..runtime.timeline import Timeline

__all__ = ["Attempt", "State"]


class State(enum.Enum):
    """Of an attempt."""

    CALLING = "the peer has not answered yet"
    SEARCHING = "the peer has answered, and a path is looked for"
    RELAYED = "the relay is taken, and a path is still looked for"
    MET = "there is a link"
    FAILED = "it is given up"


_FOLLOWERS = {
    # MET also without a search of its own: another attempt may be faster.
    State.CALLING: {State.SEARCHING, State.MET, State.FAILED},
    State.SEARCHING: {State.RELAYED, State.MET, State.FAILED},
    State.RELAYED: {State.SEARCHING, State.MET, State.FAILED},  # SEARCHING: the relay broke
    State.MET: set(),
    State.FAILED: set(),
}


class Attempt:
    """``search`` and ``take_relay`` as it goes on, then ``settle``."""

    def __init__(self, longest_s: float) -> None:
        self.state = State.CALLING
        self._longest_s = longest_s
        self.timeline = Timeline()
        self.why_relay = "no path within the head start"
        self._link: AsyncResult[PeerLink] = AsyncResult()  # for the others
        self._first: AsyncResult[PeerLink | OpenStream] = AsyncResult()
        self._is_wanted = True  # by the first one
        self._searching_since: float | None = None

    def _go(self, state: State) -> None:
        if state not in _FOLLOWERS[self.state]:
            raise ValueError(f"an attempt does not go from {self.state} to {state}")
        self.state = state

    # For those who wait.

    def wait_first(self) -> PeerLink | OpenStream:
        """What the connect gets that began the attempt."""
        try:
            return self._first.get()
        except BaseException:
            self._is_wanted = False
            if self._first.successful() and isinstance(self._first.value, OpenStream):
                self._first.value.give_up()
            raise

    def wait(self) -> PeerLink:
        """What the others get."""
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

    def late(self) -> TimedOut:
        """The error for a time that is over now."""
        if self.state is State.CALLING:
            return TimedOut("the peer did not answer in time")
        return TimedOut("no path to the peer was found")

    def take_relay(self, relay: PreparedRelay, make: Callable[[Any], OpenStream]) -> None:
        """The head start is over: the first one uses the relay, if it still waits."""
        self._go(State.RELAYED)  # or would be: the others need not wait for a path either
        self._see_if_wanted()
        try:
            stream = make(relay.take())
        except KKP2PError:
            self._go(State.SEARCHING)
            raise
        try:
            self._see_if_wanted()  # still
        except NoPath:
            stream.give_up()
            raise
        self.timeline.step("relay taken")
        stream.how = f"relay: {self.why_relay}; {self.timeline.summary}"
        stream.reason, stream.timeline = self.why_relay, self.timeline
        self._first.set(stream)
        self._link.set_exception(NoPath("the relay was faster"))

    def _see_if_wanted(self) -> None:
        if not self._is_wanted:
            raise NoPath("nobody waits for it any more")

    def settle(self, outcome: PeerLink | KKP2PError) -> None:
        """The attempt is over."""
        failed = isinstance(outcome, KKP2PError)
        self._go(State.FAILED if failed else State.MET)
        for waiting in (self._link, self._first):
            if waiting.ready():
                continue
            if failed:
                waiting.set_exception(outcome)
            else:
                waiting.set(outcome)
