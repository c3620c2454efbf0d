"""A connection that moves between addresses: nothing is lost, repeated or measured wrongly."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from helpers.sim.drive import Peer
from helpers.sim.pair import Pair, SidePath, Transfer, mbit_per_s
from helpers.sim.simnet import Conditions
from kkp2p_compat._codes import KKP2P_UDP_CHANNEL
from kkp2p_compat.transport.udp.events import PathChanged, PathProved, PathSilent, PathUnproved

NEAR = Conditions(rate_bytes_per_s=mbit_per_s(20), queue_bytes=4e6, delay_s=0.02)
FAR = replace(NEAR, delay_s=0.06)
SIZE = 3_000_000


def _prove(pair: Pair, path: SidePath) -> float:
    """The caller asks; how long the answer took, as it says."""
    pair.caller.connection.probe_path(path.of_callee, pair.network.now)
    pair.caller.drive()
    seen = len(pair.caller.events)
    pair.run(lambda: any(isinstance(event, PathProved) for event in pair.caller.events[seen:]), 5.0)
    proved = pair.caller.events[-1]
    assert isinstance(proved, PathProved)
    assert proved.address == path.of_callee
    return proved.rtt_s


def _move(pair: Pair, path: SidePath, lossless: bool = True) -> None:
    assert pair.caller.connection.move_to(path.of_callee, pair.network.now, lossless=lossless)
    pair.caller.drive()


def _midway(pair: Pair, up: int = SIZE, down: int = SIZE) -> Transfer:
    transfer = pair.start(up, down)
    pair.run(lambda: transfer.at_callee.received + transfer.at_caller.received > (up + down) // 3)
    return transfer


def _addresses(pair: Pair) -> tuple[object, object]:
    return pair.caller.connection.address, pair.callee.connection.address


def test_an_address_is_asked_without_being_used() -> None:
    pair = Pair("ask", NEAR)
    far = pair.add_path(FAR)
    transfer = _midway(pair)
    before = _addresses(pair)
    assert _prove(pair, far) == pytest.approx(0.12, abs=0.02)
    pair.run(lambda: transfer.done, 60)
    assert _addresses(pair) == before
    pair.finish()


def test_an_address_that_does_not_answer_is_told() -> None:
    pair = Pair("dumb", NEAR)
    far = pair.add_path(FAR)
    far.blackout(0.0, 1e9)
    assert not pair.caller.connection.move_to(far.of_callee, pair.network.now, lossless=True)
    pair.caller.connection.probe_path(far.of_callee, pair.network.now)
    pair.caller.drive()
    assert pair.run(lambda: PathUnproved(far.of_callee) in pair.caller.events, 10) < 5.0
    assert not pair.caller.connection.move_to(far.of_callee, pair.network.now, lossless=True)


@pytest.mark.parametrize("ways", [(SIZE, 0), (0, SIZE), (SIZE, SIZE)])
@pytest.mark.parametrize("to", [NEAR, FAR], ids=["nearer", "farther"])
def test_a_lossless_move_repeats_nothing(to: Conditions, ways: tuple[int, int]) -> None:
    pair = Pair(f"{to.delay_s} {ways}", replace(FAR if to is NEAR else NEAR))
    other = pair.add_path(to)
    transfer = _midway(pair, *ways)
    _prove(pair, other)
    lost_before = [side.connection.packer.lost_packets for side in (pair.caller, pair.callee)]
    dropped = sum(link.counts["queue full"] for link in pair.network.links)
    at = pair.network.now
    _move(pair, other)
    pair.run(lambda: PathChanged(other.of_caller) in pair.callee.events, 1.0)
    pair.run(None, 0.5)
    lost = [side.connection.packer.lost_packets for side in (pair.caller, pair.callee)]
    assert sum(link.counts["queue full"] for link in pair.network.links) == dropped
    assert lost == lost_before
    for reader in (transfer.at_caller, transfer.at_callee):
        times = [when for when, _ in reader.progress if at - 0.1 < when < at + 0.4]
        gaps = [after - before for before, after in pairwise(times)]
        assert max(gaps, default=0.0) < 0.15
    pair.run(lambda: transfer.done, 60)
    for side in (pair.caller, pair.callee):
        assert not side.connection.paths.left.stays
    assert _addresses(pair) == (other.of_callee, other.of_caller)
    pair.finish()


def test_the_round_trip_of_the_new_path_is_its_own() -> None:
    """However the acknowledgements of the old one come in."""
    pair = Pair("own", FAR)
    near = pair.add_path(NEAR)
    transfer = _midway(pair, 4 * SIZE, 0)
    _prove(pair, near)
    _move(pair, near)
    pair.run(None, 1.0)
    rtt = pair.caller.connection.recovery.rtt
    assert 0.04 <= rtt.min_s < 0.05
    model = pair.caller.connection.path.controller.model  # type: ignore[attr-defined]
    assert 0.04 <= model.min_rtt_s < 0.05
    pair.run(lambda: transfer.done, 60)
    pair.finish()


def test_losses_on_the_old_path_are_repaired_over_the_new() -> None:
    pair = Pair("lossy", replace(NEAR, loss=0.1))
    far = pair.add_path(FAR)
    transfer = _midway(pair)
    _prove(pair, far)
    _move(pair, far)
    pair.there.blackout(pair.network.now - 1, 1e9)
    pair.run(lambda: transfer.done, 60)
    pair.network.links.remove(pair.there)
    pair.finish()


def test_a_move_from_a_dead_path_sends_all_again_at_once() -> None:
    pair = Pair("dead", NEAR)
    far = pair.add_path(FAR)
    transfer = _midway(pair, SIZE, 0)
    for link in (pair.there, pair.back):
        link.blackout(pair.network.now, 1e9)
    died_at = pair.network.now
    took = pair.run(lambda: PathSilent() in pair.caller.events, 5.0)
    assert took < 0.4
    _prove(pair, far)
    _move(pair, far, lossless=False)
    received = transfer.at_callee.received
    pair.run(lambda: transfer.at_callee.received > received, 1.0)
    assert pair.network.now - died_at < 0.6
    pair.run(lambda: transfer.done, 60)
    assert pair.caller.events.count(PathSilent()) == 1


def test_a_little_all_the_time_finds_a_dead_path_as_soon() -> None:
    """Each packet puts off the probe time-out: nothing else would tell before the window is used
    up."""
    pair = Pair("little", NEAR)
    caller = pair.caller.connection
    stream_id = caller.streams.open(KKP2P_UDP_CHANNEL, 0, 1)
    pair.callee.on_offer = lambda offer: pair.callee.connection.streams.accept(offer.stream_id)
    pair.caller.drive()

    def tick() -> None:
        if PathSilent() not in pair.caller.events:
            caller.streams.send_message(stream_id, b"tick")
            pair.caller.drive()
            pair.network.after(1 / 60, tick)

    pair.run(None, 1.0)
    tick()
    pair.run(None, 2.0)
    assert PathSilent() not in pair.caller.events
    for link in (pair.there, pair.back):
        link.blackout(pair.network.now, 1e9)
    assert pair.run(lambda: PathSilent() in pair.caller.events, 5.0) < 0.4


def test_a_path_that_is_taken_again_is_known() -> None:
    pair = Pair("again", NEAR)
    far = pair.add_path(FAR)
    _midway(pair, 12 * SIZE, 0)
    first = pair.caller.connection.path
    home = pair.caller.connection.address
    _prove(pair, far)
    _move(pair, far)
    pair.run(None, 5.0)
    assert pair.caller.connection.path is not first
    pair.caller.connection.probe_path(home, pair.network.now)
    pair.caller.drive()
    pair.run(None, 0.2)
    pair.caller.connection.move_to(home, pair.network.now, lossless=True)
    pair.caller.drive()
    assert pair.caller.connection.path is first
    assert first.mtu.size == 1472
    _prove(pair, far)
    _move(pair, far)
    pair.run(None, 61.0)  # what was learnt is too old by now
    pair.caller.connection.probe_path(home, pair.network.now)
    pair.caller.drive()
    pair.run(None, 0.2)
    pair.caller.connection.move_to(home, pair.network.now, lossless=True)
    assert pair.caller.connection.path is not first


def test_a_search_that_finds_the_path_in_use_leaves_it_proved() -> None:
    """So that it may be gone home to."""
    pair = Pair("found again", NEAR)
    far = pair.add_path(FAR)
    caller = pair.caller.connection
    home = caller.address
    caller.try_path(home, pair.network.now)
    pair.caller.drive()
    pair.run(lambda: any(isinstance(event, PathProved) for event in pair.caller.events), 1.0)
    _prove(pair, far)
    _move(pair, far)
    assert caller.move_to(home, pair.network.now, lossless=True)


def test_both_decide_at_once_and_agree_on_the_callers_path() -> None:
    pair = Pair("split", NEAR)
    one, other = pair.add_path(NEAR), pair.add_path(FAR)
    transfer = _midway(pair)
    for side, address in ((pair.caller, one.of_callee), (pair.callee, other.of_caller)):
        side.connection.probe_path(address, pair.network.now)
        side.drive()
    pair.run(None, 0.2)
    _move(pair, one)
    assert pair.callee.connection.move_to(other.of_caller, pair.network.now, lossless=True)
    pair.callee.drive()
    pair.run(lambda: _addresses(pair) == (one.of_callee, one.of_caller), 3.0)
    pair.run(lambda: transfer.done, 30)
    assert _addresses(pair) == (one.of_callee, one.of_caller)
    pair.finish()


def _ping(side: Peer) -> None:
    side.connection.ping()
    side.drive()


def _moves(side: Peer) -> list[PathChanged]:
    return [event for event in side.events if isinstance(event, PathChanged)]


def test_who_asks_about_the_peers_old_path_stays_when_the_peer_comes() -> None:
    """The answer of the old path is later than what the peer has sent by the new one."""
    pair = Pair("apart", NEAR, apart=replace(NEAR, delay_s=0.01))
    near = pair.apart
    assert near is not None
    _prove(pair, near)
    _ping(pair.caller)
    pair.run(None, 0.02)
    _ping(pair.callee)
    _move(pair, near)
    pair.run(None, 0.5)
    assert _addresses(pair) == (near.of_callee, near.of_caller)
    assert _moves(pair.caller) == [PathChanged(near.of_callee)]
    assert not _moves(pair.callee)


def test_a_caller_waits_for_who_has_followed_to_the_path_before() -> None:
    """What it hears by the new path was sent before the callee had heard of the move."""
    pair = Pair("there and back", NEAR)
    far = pair.add_path(replace(NEAR, delay_s=0.15))
    home = pair.caller.connection.address
    _prove(pair, far)
    _move(pair, far)
    pair.run(None, 2.0)
    _ping(pair.callee)
    pair.run(None, 0.1)
    for address in (home, far.of_callee):
        assert pair.caller.connection.move_to(address, pair.network.now, lossless=True)
        pair.caller.drive()
    pair.run(None, 0.04)
    assert pair.callee.connection.address == pair.caller.address
    _ping(pair.callee)
    pair.run(None, 1.0)
    assert _addresses(pair) == (far.of_callee, far.of_caller)
    assert _moves(pair.caller) == [
        PathChanged(each) for each in (far.of_callee, home, far.of_callee)
    ]


def test_two_that_follow_each_other_at_once_do_not_swap_for_ever() -> None:
    pair = Pair("swap", NEAR)
    one, other = pair.add_path(NEAR), pair.add_path(NEAR)
    transfer = _midway(pair)
    for side, paths in (
        (pair.caller, (one.of_callee, other.of_callee)),
        (pair.callee, (one.of_caller, other.of_caller)),
    ):
        for address in paths:
            side.connection.probe_path(address, pair.network.now)
        side.drive()
    pair.run(None, 0.2)
    ends = {_addresses(pair), *((path.of_callee, path.of_caller) for path in (one, other))}
    _move(pair, one)
    assert pair.callee.connection.move_to(other.of_caller, pair.network.now, lossless=True)
    for side in (pair.caller, pair.callee):
        side.connection.paths.settling = False  # as when both have decided long ago
        side.drive()
    pair.run(None, 1.0)
    assert _addresses(pair) in ends
    for side in (pair.caller, pair.callee):
        assert sum(isinstance(event, PathChanged) for event in side.events) <= 4
    pair.run(lambda: transfer.done, 30)
    pair.finish()


def test_a_path_may_carry_larger_datagrams_than_another() -> None:
    wide = ("198.51.100.100", 2000)
    pair = Pair("wide", NEAR, datagram_limit=lambda address: 9000 if address == wide else 1472)
    jumbo = pair.add_path(replace(NEAR, mtu_bytes=9028))
    transfer = _midway(pair, 4 * SIZE, 0)
    assert pair.caller.connection.path.mtu.size == 1472
    _prove(pair, jumbo)
    _move(pair, jumbo)
    pair.run(None, 1.0)
    assert pair.caller.connection.path.mtu.size == 9000
    pair.run(lambda: transfer.done, 60)


def test_no_message_is_lost_by_a_lossless_move() -> None:
    pair = Pair("messages", FAR)
    near = pair.add_path(NEAR)
    caller = pair.caller.connection
    stream_id = caller.streams.open(KKP2P_UDP_CHANNEL, 0, 1)
    pair.callee.on_offer = lambda offer: pair.callee.connection.streams.accept(offer.stream_id)
    pair.caller.drive()
    pair.run(None, 1.0)
    sent: list[bytes] = []

    def tick() -> None:
        if len(sent) < 1200:
            sent.append(b"%d " % len(sent) * 300)
            caller.streams.send_message(stream_id, sent[-1])
            pair.caller.drive()
            pair.network.after(0.005, tick)

    home = caller.address
    tick()
    for round_ in range(5):
        for address in (near.of_callee, home):
            caller.probe_path(address, pair.network.now)
            pair.caller.drive()
            pair.run(None, 0.3 + 0.01 * round_)
            caller.move_to(address, pair.network.now, lossless=True)
            pair.caller.drive()
    pair.run(lambda: len(sent) == 1200, 10.0)
    pair.run(None, 1.0)
    assert sorted(pair.callee.messages) == sorted(sent)
