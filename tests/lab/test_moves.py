"""Channels that move between paths while they are used: what ``benchmarks moves`` measures, once.

Every byte and message is checked, and no time is: those are the benchmark's.
"""

from __future__ import annotations

import pytest

from benchmarks.moves import CUT_S, EVENTS, FORGETFUL, KINDS, Moving, Scene, bear, survive
from helpers import coturn
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run

TURN_PORT = "3478"


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


def test_a_cut_after_which_the_nats_have_forgotten_all(lab: Lab, run: Run) -> None:
    scene = Scene(lab, run, FORGETFUL)
    survive(scene, 0, f"a cut of {CUT_S:.0f} s")


@pytest.mark.parametrize("mode", [0, 2])
def test_turn_through_nats(lab: Lab, run: Run, scene: Scene, mode: int) -> None:
    """A real coturn is the only way by UDP; in mode 2 with a relayed address for each side."""
    need("turnserver")
    server = scene.net.host("turn")
    secret = server.folder / "secret"
    secret.write_bytes(coturn.SECRET)
    place = ("-L", server.address, "-E", server.address, "-p", TURN_PORT)
    run(
        server, "General servers", *coturn.ONLY_UDP, *coturn.BY_SECRET, *place, program="turnserver"
    )
    scene.cloud.kill(scene.cloud.host)
    uri = f"turn:{server.address}:{TURN_PORT}"
    scene.cloud.start_track("--turn", uri, "--turn-secret", str(secret))
    for relay in scene.cloud.relays:
        scene.net.block_udp(relay)
    scene.wall(up=True)
    scene.start()
    channels = [scene.call(kind, mode, encrypt=mode // 2) for kind in KINDS]
    for channel in channels:
        channel.until("relay by TURN")
        channel.hears(100)
        channel.end()
