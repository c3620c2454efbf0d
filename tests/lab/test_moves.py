"""Channels that move between paths while they are used: what ``benchmarks moves`` measures, once.

Every byte and message is checked, and no time is: those are the benchmark's.
"""

from __future__ import annotations

import pytest

from benchmarks.moves import EVENTS, Moving, Scene, bear, survive
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import Run


@pytest.fixture
def scene(lab: Lab, run: Run) -> Scene:
    return Scene(lab, run)


def test_a_stream_and_messages_move(scene: Scene) -> None:
    """To the direct path when the wall falls, back to the relay when it rises, and again."""
    moving = Moving(scene)
    for up in (False, True, False):
        moving.move(up, "")
        for channel in moving.channels:
            channel.hears(20)
    moving.end()


@pytest.mark.parametrize("event", [event for event in EVENTS if "cut" not in event])
def test_a_relayed_channel_survives(scene: Scene, event: str) -> None:
    survive(scene, event, 0)


@pytest.mark.parametrize(
    ("network", "mode"),
    [
        ("UDP blocked at the caller", 0),
        ("UDP blocked at both", 2),
        ("MTU 1280 to the relays; a wall", 0),
    ],
)
def test_a_network_that_is_bad(scene: Scene, network: str, mode: int) -> None:
    """A stream and messages get through, by whatever path."""
    for kind, *_ in bear(scene, network, mode, stay_s=1.0):
        print(kind)
