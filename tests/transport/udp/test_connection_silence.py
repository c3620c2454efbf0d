"""When a path is suspected because nothing is heard by it, and when it is not."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.sim.pair import Pair, mbit_per_s
from helpers.sim.simnet import Conditions
from kkp2p_compat.transport.udp.events import PathChanged, PathSuspected

PATH = Conditions(rate_bytes_per_s=mbit_per_s(8), delay_s=0.02)
SIZE = 4_000_000  # seconds


def _dark(pair: Pair) -> None:
    now = pair.network.now
    for link in (pair.there, pair.back):
        link.blackout(now, now + 3600)


@pytest.mark.parametrize("rtt_s", [0.01, 0.3, 1.0])
def test_a_dead_path_is_suspected_soon_whatever_was_measured_before(rtt_s: float) -> None:
    """After a move, or under load, the estimate of the round trip is far too large.  The first
    probe time-out is of the PING that follows the last answer by two seconds, or of data."""
    pair = Pair(rtt_s, PATH)
    pair.transfer(SIZE // 4, SIZE // 4)
    _dark(pair)
    rtt = pair.caller.connection.recovery.rtt
    rtt.latest_s = None  # as if it were the first sample
    rtt.update(rtt_s, 0.0)
    pair.start(SIZE)
    took_s = pair.run(lambda: PathSuspected() in pair.caller.events, 60)
    assert took_s < 2.0 + rtt.pto_s + max(1.0, rtt.pto_s) + 0.5  # of the simulation's time


def test_a_path_found_at_the_address_that_we_have_is_a_new_one() -> None:
    """It is our own address that has changed: nothing that was known of the old path counts."""
    pair = Pair("same", PATH)
    transfer = pair.start(SIZE, SIZE)
    pair.run(None, 1.0)
    old = pair.caller.connection.path.controller
    pair.caller.connection.try_path(pair.callee.address, pair.network.now)
    pair.caller.drive()
    pair.run(lambda: pair.caller.connection.path.controller is not old, 1.0)
    pair.run(lambda: transfer.done, 60)
    assert not [event for event in pair.caller.events if isinstance(event, PathChanged)]
    pair.finish()


@pytest.mark.parametrize("begins_with", ["reading", "sending"])
def test_a_host_that_slept_suspects_a_path_that_died_meanwhile(begins_with: str) -> None:
    """What it reads first when it wakes up is old: not a round trip of half a minute."""
    pair = Pair("asleep", PATH)
    transfer = pair.start(SIZE, SIZE)
    pair.run(None, 1.0)
    caller = pair.caller
    kept: list[Any] = []
    caller.receive, caller.drive, awake = kept.append, lambda: None, (caller.receive, caller.drive)
    pair.network.hosts[caller.address] = kept.append
    now = pair.network.now
    pair.there.blackout(now, now + 40)
    pair.back.blackout(now + 0.1, now + 40)  # the callee's last packets are in the socket's buffer
    pair.run(None, 30.0)
    caller.receive, caller.drive = awake
    pair.network.hosts[caller.address] = caller.receive
    assert kept
    if begins_with == "sending":
        caller.drive()
    for packets in kept:
        caller.receive(packets)
    assert caller.connection.recovery.rtt.smoothed_s < 1.0
    pair.run(lambda: PathSuspected() in caller.events, 5.0)
    pair.run(lambda: transfer.done, 60)
    pair.finish()


@pytest.mark.parametrize("pause_s", [1.5, 2.0, 5.0])
def test_a_program_that_kept_the_interpreter_s_lock_suspects_nothing(pause_s: float) -> None:
    """The silence was its own: timers come before the answers that wait in the socket."""
    pair = Pair("lock kept", PATH)
    transfer = pair.start(SIZE, SIZE)
    pair.run(None, 1.0)
    caller, now = pair.caller, pair.network.now
    for link in (pair.there, pair.back):
        link.blackout(now, now + 0.5)
    pair.run(lambda: caller.connection.recovery.pto_count > 0, 0.5)
    kept: list[Any] = []
    caller.receive, caller.drive, awake = kept.append, lambda: None, (caller.receive, caller.drive)
    pair.network.hosts[caller.address] = kept.append
    pair.run(None, pause_s)
    caller.receive, caller.drive = awake
    pair.network.hosts[caller.address] = caller.receive
    caller.connection.handle_timer(pair.network.now)
    caller.drive()
    for packets in kept:
        caller.receive(packets)
    pair.run(lambda: transfer.done, 60)
    assert PathSuspected() not in caller.events
    pair.finish()
