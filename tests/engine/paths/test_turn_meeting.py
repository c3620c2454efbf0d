"""What the two sides of a call make of a TURN server; whole calls are in tests/system."""

from __future__ import annotations

from typing import Any, cast

import gevent
import pytest

from helpers.support import PATIENCE_S
from kkp2p_compat._errors import BadPacket, LinkLost, NoPath
from kkp2p_compat.engine.paths import turn_meeting
from kkp2p_compat.engine.paths.turn_meeting import TurnMeeting
from kkp2p_compat.traversal.credentials import Credentials


def side(is_caller: bool) -> TurnMeeting:
    nothing = cast(Any, None)
    return TurnMeeting(nothing, nothing, nothing, nothing, is_caller, print, print)


@pytest.mark.parametrize(
    "place",
    [
        None,
        "203.0.113.9:5",
        [],
        ["203.0.113.9"],
        ["203.0.113.9", "5"],
        ["a b", 5],
        ["203.0.113.9", 0],
        [5, 5],
        ["203.0.113.9", 5, 6],
    ],
)
def test_a_relayed_address_that_is_none(place: object) -> None:
    with pytest.raises(BadPacket):
        side(is_caller=False).hear_untrusted(place)


def test_a_caller_is_told_none() -> None:
    with pytest.raises(BadPacket):
        side(is_caller=True).hear_untrusted(["203.0.113.9", 5])


def test_a_callee_that_hears_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_meeting, "MEET_S", 0.01)

    class Means:
        class own:
            @staticmethod
            def candidates() -> list[Any]:
                return []

    callee = side(is_caller=False)
    callee._means = cast(Any, Means)
    with gevent.Timeout(PATIENCE_S), pytest.raises(NoPath, match="in time"):
        callee.meet(lambda: [], print)


def test_a_caller_without_a_server() -> None:
    caller = side(is_caller=True)

    class Means:
        endpoint = log = None

    caller._means = cast(Any, Means)
    with pytest.raises(LinkLost, match="no TURN server"):
        caller.meet(lambda: [], print)


def test_credentials_of_both_sides() -> None:
    made = Credentials.derive(b"k" * 32, "turn caller")
    assert Credentials.parse_untrusted(made.ufrag, made.password) == made
    assert made == Credentials.derive(b"k" * 32, "turn caller")
    others = [
        Credentials.derive(b"k" * 32, "turn callee"),
        Credentials.derive(b"l" * 32, "turn caller"),
    ]
    for other in others:
        assert other.ufrag != made.ufrag
        assert other.password != made.password
