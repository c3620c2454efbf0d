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


def test_a_relayed_channel_survives(scene: Scene) -> None:
    survive(scene, 0, *(event for event in EVENTS if "cut" not in event))


@pytest.mark.parametrize("network", ["UDP blocked at both", "MTU 1280 to the relays; a wall"])
def test_a_bad_network(scene: Scene, network: str) -> None:
    """A stream and messages get through, by whatever path."""
    bear(scene, 0, network, stay_s=1.0)
