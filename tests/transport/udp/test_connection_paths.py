"""A path that goes dark, changes, narrows or moves in mid-transfer only costs time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers.sim.pair import Pair, Transfer, mbit_per_s
from helpers.sim.simnet import Address, Conditions
from kkp2p_compat.transport.udp.events import (
    ChannelOpened,
    PathChanged,
    PathRecovered,
    PathSuspected,
)

PATH = Conditions(rate_bytes_per_s=mbit_per_s(8), delay_s=0.02)
SIZE = 800_000  # about a second


def _midway(pair: Pair, up: int = SIZE, down: int = SIZE) -> Transfer:
    transfer = pair.start(up, down)
    pair.run(lambda: transfer.at_callee.received + transfer.at_caller.received > (up + down) // 4)
    return transfer


@pytest.mark.parametrize("ways", ["there", "back", "there and back"])
@pytest.mark.parametrize("seconds", [0.1, 1, 5, 20])
def test_a_blackout(seconds: float, ways: str) -> None:
    pair = Pair(seconds, PATH)
    transfer = _midway(pair)
    now = pair.network.now
    for link in (pair.there, pair.back):
        if link.name in ways:
            link.blackout(now, now + seconds)
    took = pair.run(lambda: transfer.done, seconds + 30)
    assert took < seconds + 6  # soon after the light is back
    pair.finish()


def test_many_short_blackouts() -> None:
    pair = Pair("flicker", PATH)
    for number in range(100):
        start = pair.network.now + number * 0.25
        pair.there.blackout(start, start + 0.1)
        pair.back.blackout(start + 0.1, start + 0.15)
    pair.transfer(SIZE, SIZE, 60)
    pair.finish()


CHANGES: dict[str, dict[str, Any]] = {
    "100 times slower": {"rate_bytes_per_s": mbit_per_s(0.1), "queue_bytes": 50_000},
    "100 times faster": {"rate_bytes_per_s": mbit_per_s(800)},
    "half a second longer": {"delay_s": 0.52},
    "20 ms shorter": {"delay_s": 0.0005},
    "10 % loss": {"loss": 0.1},
    "a queue of five packets": {"queue_bytes": 7500},
    "reordering": {"reorder": 0.5, "reorder_s": 0.03},
    "MTU 1228": {"mtu_bytes": 1228},
    "MTU 1400": {"mtu_bytes": 1400},
    "MTU 1200": {"mtu_bytes": 1200},
    "MTU 576": {"mtu_bytes": 576},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_mid_transfer(change: str) -> None:
    pair = Pair(change, PATH)
    size = 150_000 if "slower" in change else SIZE
    transfer = _midway(pair, size, size)
    for link in (pair.there, pair.back):
        link.change(**CHANGES[change])
    pair.run(lambda: transfer.done, 120)
    pair.finish()


def test_a_path_that_changes_all_the_time() -> None:
    pair = Pair("restless", PATH)
    random = pair.network.random("changes")
    for number in range(60):
        for link in (pair.there, pair.back):
            link.change_at(
                pair.network.now + number * 0.3,
                rate_bytes_per_s=mbit_per_s(random.choice([0.5, 5, 50])),
                delay_s=random.choice([0.001, 0.05, 0.2]),
                loss=random.choice([0.0, 0.0, 0.05]),
                mtu_bytes=random.choice([1228, 1300, 1500]),
            )
    pair.transfer(SIZE, SIZE, 120)
    pair.finish()


def _largest_datagram(pair: Pair) -> int:
    """Of those that arrive while a transfer is under way."""
    sizes: list[int] = []

    def note(packet: bytes) -> list[bytes]:
        if len(packet) + 28 <= pair.there.conditions.mtu_bytes:
            sizes.append(len(packet))
        return [packet]

    pair.there.filter = note
    pair.transfer(300_000)
    pair.there.filter = None
    return max(sizes)


@pytest.mark.parametrize("mtu", [1228, 1280, 1380, 1428, 1480, 1500])
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_datagrams_become_as_large_as_the_path_allows(mtu: int, loss: float) -> None:
    pair = Pair(mtu, replace(PATH, mtu_bytes=mtu, loss=loss))
    pair.transfer(300_000)
    pair.run(None, 5.0)
    assert mtu * 0.93 - 28 <= _largest_datagram(pair) <= mtu - 28


@pytest.mark.parametrize("ways", ["there", "back", "there and back"])
@pytest.mark.parametrize("mtu", [576, 728, 1028, 1128, 1200])
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_a_path_narrower_than_the_base(mtu: int, ways: str, loss: float) -> None:
    """As through tunnels in tunnels: what is sent fits soon, and is no smaller than it must be."""
    pair = Pair(mtu, replace(PATH, loss=loss))
    for link in (pair.there, pair.back):
        if link.name in ways:
            link.change(mtu_bytes=mtu)
    assert pair.transfer(30_000, 30_000) < 5
    pair.run(None, 20.0)
    there = mtu if "there" in ways else 1500
    assert there * 0.93 - 28 <= _largest_datagram(pair) <= there - 28
    pair.finish()


@pytest.mark.parametrize("mtu", [576, 1100, 1228])
def test_what_the_first_hop_takes_is_not_exceeded(mtu: int) -> None:
    pair = Pair("known", PATH, max_datagram_bytes=mtu - 28)
    assert _largest_datagram(pair) == mtu - 28
    pair.finish()


def test_no_channel_opens_where_no_large_packets_pass() -> None:
    """In either direction: pings, checks and a bare OPEN would."""
    for name in ("there", "back"):
        pair = Pair(f"tiny {name}", PATH)
        getattr(pair, name).change(mtu_bytes=500)
        pair.start(1000)
        pair.run(None, 30.0)
        assert not [event for event in pair.caller.events if isinstance(event, ChannelOpened)]
        assert not pair.caller.closed
        getattr(pair, name).change(mtu_bytes=1500)
        pair.run(lambda pair=pair: ChannelOpened(0) in pair.caller.events, 10.0)


def test_a_dead_path_is_no_narrow_one() -> None:
    pair = Pair("dark", PATH)
    transfer = _midway(pair)
    now = pair.network.now
    for link in (pair.there, pair.back):
        link.blackout(now, now + 20)
    pair.run(None, 19.0)
    assert [side.connection.path.mtu.size for side in (pair.caller, pair.callee)] == [1200, 1200]
    pair.run(lambda: transfer.done, 30)
    pair.finish()


def test_a_path_that_narrows_and_widens_again() -> None:
    pair = Pair("narrow", PATH)
    pair.transfer(300_000)
    assert _largest_datagram(pair) == 1472
    pair.there.change(mtu_bytes=1300)
    assert pair.transfer(300_000) < 10
    pair.run(None, 10.0)
    assert 1200 <= _largest_datagram(pair) <= 1272
    pair.there.change(mtu_bytes=1500)
    pair.run(None, 700.0)  # RFC 8899: the path is tried again after ten minutes
    pair.transfer(300_000)
    assert _largest_datagram(pair) == 1472


def test_a_path_that_delivers_late_what_it_held_is_searched_again_soon() -> None:
    pair = Pair("held", PATH)
    held: list[bytes] = []

    def hold(packet: bytes) -> list[bytes]:
        held.append(packet)
        return []

    pair.there.filter = hold
    pair.start(2000)  # the first probe leaves, too
    pair.run(None, 5.0)  # probe time-outs in a row
    pair.there.filter = None
    assert any(len(packet) == 1472 for packet in held)
    pair.network.deliver([(packet, pair.caller.address) for packet in held], pair.callee.address)
    pair.run(None, 20.0)
    assert _largest_datagram(pair) == 1472


MOVES: dict[str, Address] = {
    "new port": ("192.0.2.1", 4321),
    "new address": ("203.0.113.77", 4321),
    "from IPv4 to IPv6": ("2001:db8::77", 4321),
}


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("who", ["the sender", "the receiver"])
@pytest.mark.parametrize("move", MOVES)
def test_a_peer_that_moves(move: str, who: str, loss: float) -> None:
    pair = Pair(move, replace(PATH, loss=loss))
    transfer = _midway(pair, *((SIZE, 0) if who == "the sender" else (0, SIZE)))
    pair.caller.move(MOVES[move])
    if who == "the receiver":
        # Nothing is known of the new address until something is sent from there.
        pair.run(None, 0.5)
    pair.run(lambda: transfer.done, 60)
    assert PathChanged(MOVES[move]) in pair.callee.events
    assert not [event for event in pair.caller.events if isinstance(event, PathChanged)]
    pair.transfer(100_000, 100_000, 20)
    pair.finish()


def test_a_peer_that_moves_again_and_again() -> None:
    pair = Pair("nomad", PATH)
    transfer = pair.start(SIZE, SIZE)
    for port in range(2000, 2005):
        pair.run(None, 0.3)
        pair.caller.move(("192.0.2.1", port))
    pair.run(lambda: transfer.done, 60)
    pair.finish()


def test_both_peers_move_one_after_the_other() -> None:
    pair = Pair("both", PATH)
    transfer = _midway(pair)
    pair.caller.move(("192.0.2.9", 1))
    pair.run(None, 1.0)
    pair.callee.move(("198.51.100.9", 2))
    pair.run(lambda: transfer.done, 60)
    pair.finish()


def test_a_move_while_nothing_is_sent_is_noticed_by_the_next_packet() -> None:
    pair = Pair("idle move", PATH)
    pair.transfer(1000)
    pair.caller.move(("192.0.2.9", 1))
    pair.transfer(50_000, 50_000, 10)
    assert PathChanged(("192.0.2.9", 1)) in pair.callee.events


def test_a_genuine_packet_from_an_address_that_does_not_answer_moves_nothing() -> None:
    pair = Pair("spoofed", PATH)
    transfer = _midway(pair)
    elsewhere: Address = ("203.0.113.66", 666)
    sent_there: list[int] = []
    pair.network.hosts[elsewhere] = lambda packets: sent_there.extend(
        len(packet) for packet, _ in packets
    )
    stolen: list[bytes] = []

    def steal(packet: bytes) -> list[bytes]:
        """The attacker is nearer: the stolen packet arrives from his address only."""
        if len(stolen) < 20:
            stolen.append(packet)
            pair.there.network.after(
                0.001, lambda: pair.network.deliver([(packet, elsewhere)], pair.callee.address)
            )
            return []
        return [packet]

    pair.there.filter = steal
    pair.run(lambda: transfer.done, 60)
    assert len(stolen) == 20
    assert not [event for event in pair.callee.events if isinstance(event, PathChanged)]
    # What he gets for it: challenges, never more than he sent (RFC 9000 section 8).
    assert 0 < sum(sent_there) <= 3 * sum(map(len, stolen))
    pair.finish()


# A path that is dead, and another that connectivity checks have found.


def _silenced(pair: Pair) -> None:
    now = pair.network.now
    for link in (pair.there, pair.back):
        link.blackout(now, now + 3600)


def test_a_dead_path_is_suspected_and_heard_again() -> None:
    """Whether one sends or only receives; once, until the peer is heard."""
    for up, down in ((SIZE, 0), (0, SIZE)):
        pair = Pair(f"suspect {up}", PATH)
        transfer = _midway(pair, up, down)
        now = pair.network.now
        for link in (pair.there, pair.back):
            link.blackout(now, now + 10)
        for side in (pair.caller, pair.callee):
            pair.run(lambda side=side: PathSuspected() in side.events, 5)
        pair.run(lambda transfer=transfer: transfer.done, 60)
        for side in (pair.caller, pair.callee):
            kinds = [type(e) for e in side.events if isinstance(e, PathSuspected | PathRecovered)]
            assert kinds == [PathSuspected, PathRecovered]
        pair.finish()


def test_nothing_is_suspected_on_an_idle_path() -> None:
    pair = Pair("idle", PATH)
    pair.transfer(1000, 1000)
    pair.run(None, 600)
    for side in (pair.caller, pair.callee):
        assert not any(isinstance(event, PathSuspected) for event in side.events)


@pytest.mark.parametrize("ports_only", [False, True])
@pytest.mark.parametrize("both_told", [True, False])
def test_both_peers_move_at_once(ports_only: bool, both_told: bool) -> None:
    """Neither can reach the other until new checks tell where it is; one that knows is enough."""
    pair = Pair(f"{ports_only} {both_told}", PATH)
    transfer = _midway(pair)
    callers, callees = ("192.0.2.1", 11), ("198.51.100.1", 22)
    if not ports_only:
        callers, callees = ("192.0.2.9", 1), ("198.51.100.9", 2)
    pair.caller.move(callers)
    pair.callee.move(callees)
    pair.run(lambda: PathSuspected() in pair.caller.events, 10)
    pair.run(None, 20.0)
    assert not transfer.done
    now = pair.network.now
    pair.caller.connection.try_path(callees, now)
    pair.caller.drive()
    if both_told:
        pair.callee.connection.try_path(callers, now)
        pair.callee.drive()
    pair.run(lambda: transfer.done, 30)
    assert PathChanged(callees) in pair.caller.events
    assert PathChanged(callers) in pair.callee.events
    pair.finish()


def test_a_path_that_is_the_old_one_again_is_used_at_once() -> None:
    pair = Pair("again", PATH)
    transfer = _midway(pair)
    now = pair.network.now
    for link in (pair.there, pair.back):
        link.blackout(now, now + 20)
    pair.run(None, 20.1)  # probe time-outs are two seconds apart by now
    for side, other in ((pair.caller, pair.callee), (pair.callee, pair.caller)):
        side.connection.try_path(other.address, pair.network.now)
        side.drive()
    pair.run(lambda: PathRecovered() in pair.caller.events, 0.2)
    pair.run(lambda: transfer.done, 20)
    pair.finish()


def test_an_address_that_did_not_answer_is_asked_again_when_checks_say_so() -> None:
    pair = Pair("asked again", PATH)
    transfer = _midway(pair)
    moved = "198.51.100.9", 2
    pair.callee.move(moved)
    pair.caller.move(("192.0.2.9", 1))
    connection, passes = pair.caller.connection, pair.there.filter
    pair.there.filter = lambda packet: []
    connection.try_path(moved, pair.network.now)
    pair.caller.drive()
    pair.run(lambda: not connection.paths.validation.checks, 60)
    pair.there.filter = passes
    connection.try_path(moved, pair.network.now)
    pair.caller.drive()
    pair.run(lambda: PathChanged(moved) in pair.caller.events, 1)
    pair.run(lambda: transfer.done, 30)
    pair.finish()


def test_a_path_that_is_dead_one_way_is_suspected_again_and_again() -> None:
    """The peer is heard, so whoever looks for another path is ended; but nothing arrives there."""
    pair = Pair("one way", PATH)
    transfer = _midway(pair)
    now = pair.network.now
    pair.there.blackout(now, now + 20)
    pair.run(lambda: pair.caller.events.count(PathSuspected()) > 2, 20)
    pair.run(lambda: transfer.done, 60)
    pair.finish()
