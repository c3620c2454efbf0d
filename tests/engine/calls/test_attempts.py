"""One attempt to reach a peer, as those see it who wait for it."""

from __future__ import annotations

from typing import cast

import gevent
import pytest

from kkp2p_compat._errors import LinkLost
from kkp2p_compat.engine.calls.attempts import Attempt, State
from kkp2p_compat.engine.links.peer_link import PeerLink


@pytest.fixture
def attempt() -> Attempt:
    return Attempt(60.0, 1.0, "no path within the head start")


def test_all_who_wait_get_the_link(attempt: Attempt) -> None:
    waiting = [gevent.spawn(attempt.wait) for _ in range(3)]
    attempt.search()
    link = cast(PeerLink, object())
    attempt.settle(link)
    assert all(one.get() is link for one in waiting)
    assert attempt.wait() is link
    assert (attempt.state, attempt.is_over) == (State.MET, True)


def test_all_who_wait_hear_why_there_is_none(attempt: Attempt) -> None:
    assert str(attempt.late()) == "the peer did not answer in time"
    attempt.search()
    assert str(attempt.late()) == "no path to the peer was found"
    attempt.settle(LinkLost("gone"))
    with pytest.raises(LinkLost, match="gone"):
        attempt.wait()
    with pytest.raises(ValueError, match="does not go"):
        attempt.search()
