"""One attempt to reach a peer, as those see it who wait for it."""

from __future__ import annotations

from typing import Any, cast

import gevent
import pytest

from kkp2p_compat._errors import KKP2PError, LinkLost, NoPath
from kkp2p_compat.engine.calls.attempts import Attempt, State
from kkp2p_compat.engine.links.prepared_relay import PreparedRelay
from kkp2p_compat.engine.links.streams import OpenStream


class Stream(OpenStream):
    def __init__(self) -> None:
        super().__init__(0, 0, "relay", "")
        self.is_given_up = False

    def give_up(self) -> None:
        self.is_given_up = True


class Relay:
    """``on_take`` runs while the relay is told."""

    def __init__(self, error: KKP2PError | None = None) -> None:
        self._error = error
        self.on_take = lambda: None

    def take(self) -> None:
        self.on_take()
        if self._error is not None:
            raise self._error


def take_relay(attempt: Attempt, relay: Relay) -> Stream:
    stream = Stream()
    attempt.take_relay(cast(PreparedRelay, relay), lambda sock: stream)
    return stream


@pytest.fixture
def attempt() -> Attempt:
    attempt = Attempt(60.0)
    attempt.search()
    return attempt


@pytest.mark.parametrize("when", ["before", "while the relay is taken"])
def test_nobody_waits_for_the_relay(attempt: Attempt, when: str) -> None:
    """It would be the relay's turn, so those who come later do not wait for the path either."""
    first: gevent.Greenlet[..., Any] = gevent.spawn(attempt.wait_first)
    gevent.sleep(0)
    relay, made = Relay(), Stream()
    if when == "before":
        first.kill()
    else:
        relay.on_take = first.kill
    with pytest.raises(NoPath):
        attempt.take_relay(cast(PreparedRelay, relay), lambda sock: made)
    assert attempt.state is State.RELAYED
    assert made.is_given_up == (when != "before")
    attempt.settle(LinkLost())
    assert attempt.state is State.FAILED


def test_a_relay_that_breaks(attempt: Attempt) -> None:
    """Then the path is all that is left, and everybody waits for it."""
    with pytest.raises(LinkLost):
        take_relay(attempt, Relay(LinkLost()))
    assert attempt.state is State.SEARCHING
    taken = take_relay(attempt, Relay())
    assert attempt.wait_first() is taken
    with pytest.raises(NoPath):
        attempt.wait()
