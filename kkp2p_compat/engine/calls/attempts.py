"""Attempts to reach a peer directly: the one that is going on, and what became of earlier ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gevent.event import AsyncResult

from ..._errors import KKP2PError, NotSupported
from ..links.peer_link import PeerLink
from ..links.prepared_relay import PreparedRelay
from ..links.streams import RelayedStream
from ..runtime.timeline import Timeline

__all__ = ["Attempt", "Memory"]

# Our choices.
BLOCKED_S = 60.0  # in auto mode: how long a peer that could not be met counts as such
MAX_REMEMBERED = 1024  # peers


class Attempt:
    """One way to a peer, that a first connect began and others wait for.

    In auto mode the first one may get a relayed connection of it; the others make their own then.
    """

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.link: AsyncResult[PeerLink] = AsyncResult()  # for the others
        self.relay_taken = False
        self.why_relay = "no path within the head start"
        self._first: AsyncResult[PeerLink | RelayedStream] = AsyncResult()
        self._wanted = True  # by the first one

    def wait(self) -> PeerLink | RelayedStream:
        """What the first one gets."""
        try:
            return self._first.get()
        except BaseException:
            self._wanted = False
            if self._first.successful() and isinstance(self._first.value, RelayedStream):
                self._first.value.give_up()
            raise

    def take_relay(self, relay: PreparedRelay, make: Callable[[Any], RelayedStream]) -> None:
        """The head start is over: the first one goes by the relay, if it still waits."""
        self.relay_taken = True  # or would be: the others need not wait for a path either
        self._see_if_wanted()
        try:
            connection = make(relay.take())
        except KKP2PError:
            self.relay_taken = False
            raise
        try:
            self._see_if_wanted()  # still
        except NotSupported:
            connection.give_up()
            raise
        self.timeline.step("relay taken")
        connection.how = f"relay: {self.why_relay}; {self.timeline.summary}"
        connection.reason, connection.timeline = self.why_relay, self.timeline
        self._first.set(connection)
        self.link.set_exception(NotSupported("the relay was faster"))

    def _see_if_wanted(self) -> None:
        if not self._wanted:
            raise NotSupported("nobody waits for it any more")

    def settle(self, result: PeerLink | KKP2PError) -> None:
        """The attempt is over."""
        for waiting in (self.link, self._first):
            if waiting.ready():
                continue
            if isinstance(result, KKP2PError):
                waiting.set_exception(result)
            else:
                waiting.set(result)


class Memory:
    """By peer: which plan led to it, and that it could not be met a moment ago."""

    def __init__(self) -> None:
        self._worked: dict[str, str] = {}
        self._blocked: dict[str, tuple[float, str]] = {}

    def succeeded(self, peer_id: str, plan: str) -> None:
        self._blocked.pop(peer_id, None)
        self._worked.pop(peer_id, None)
        self._worked[peer_id] = plan
        _bound(self._worked)

    def failed(self, peer_id: str, reason: str) -> None:
        self._worked.pop(peer_id, None)
        self._blocked.pop(peer_id, None)
        self._blocked[peer_id] = time.monotonic() + BLOCKED_S, reason
        _bound(self._blocked)

    def worked(self, peer_id: str) -> str:
        """The kind of the plan that did; empty: none is known."""
        return self._worked.get(peer_id, "")

    def blocked(self, peer_id: str) -> str:
        """Why not to try now; empty: nothing is known against it."""
        until, reason = self._blocked.get(peer_id, (0.0, ""))
        return reason if until > time.monotonic() else ""

    def forget_blocked(self) -> None:
        """The network has changed."""
        self._blocked.clear()


def _bound(table: dict[str, Any]) -> None:
    while len(table) > MAX_REMEMBERED:
        del table[next(iter(table))]
