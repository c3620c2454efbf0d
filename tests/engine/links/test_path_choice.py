"""Two sides that choose between simulated paths: they agree, lose nothing, and do not flap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from helpers.sim.choosing import Choosing, longest_pause_s
from helpers.sim.pair import SidePath, mbit_per_s
from helpers.sim.simnet import Conditions
from kkp2p_compat.engine.links.path_choice import FOLLOWERS, MAX_OPTIONS, Sign, State
from kkp2p_compat.engine.links.path_option import ChoiceSettings
from kkp2p_compat.engine.paths.path_kind import PathKind

RATE = mbit_per_s(2.5)
RELAY = Conditions(rate_bytes_per_s=RATE, queue_bytes=80_000, delay_s=0.03)
DIRECT = replace(RELAY, delay_s=0.02)
LONG = 400_000_000  # longer than any run here
QUICK = ChoiceSettings(hold_most_s=4.0, ask_most_s=2.0)  # for many moves in a short time
HOUR = 3600.0


def _why(choosing: Choosing) -> list[str]:
    return [str(move) for move in choosing.pair.caller.choice.moves]


def test_the_table_names_all_states_and_signs() -> None:
    assert {state for state, _ in FOLLOWERS} == set(FOLLOWERS.values()) == set(State)
    assert {sign for _, sign in FOLLOWERS} == set(Sign)


@pytest.mark.parametrize("ways", [(LONG, 0), (0, LONG), (LONG, LONG)])
def test_the_relay_is_left_for_a_direct_path_at_once(ways: tuple[int, int]) -> None:
    fast = {"rate_bytes_per_s": mbit_per_s(8), "queue_bytes": 300_000}
    choosing = Choosing(f"up {ways}", PathKind.LANE, replace(RELAY, **fast))
    transfer = choosing.pair.start(*ways)
    choosing.pair.run(None, 6.0)
    since = choosing.network.now
    sides = choosing.pair.caller, choosing.pair.callee
    lost = [side.connection.packer.lost_packets for side in sides]
    direct = choosing.add(PathKind.DIRECT, replace(DIRECT, **fast))
    assert choosing.run_until_uses(direct, 5.0) < 0.25
    choosing.pair.run(None, 1.0)
    for reader, size in zip((transfer.at_callee, transfer.at_caller), ways, strict=True):
        assert not size or longest_pause_s(reader, since, choosing.network.now) < 0.05
    assert [side.connection.packer.lost_packets for side in sides] == lost


@pytest.mark.parametrize("ways", [(LONG, 0), (0, LONG)])
def test_a_silent_death_is_found_and_the_path_taken_again(ways: tuple[int, int]) -> None:
    choosing = Choosing(f"death {ways}", PathKind.LANE, RELAY)
    direct = choosing.add(PathKind.DIRECT, DIRECT)
    transfer = choosing.pair.start(*ways)
    reader = transfer.at_callee if ways[0] else transfer.at_caller
    choosing.run_until_uses(direct, 5.0)
    choosing.pair.run(None, 6.0)
    died_at = choosing.network.now
    direct.blackout(died_at, died_at + 5.0)
    choosing.run_until_uses(choosing.first, 5.0)
    choosing.pair.run(None, 0.5)
    assert longest_pause_s(reader, died_at - 0.1, choosing.network.now) < 0.5
    choosing.run_until_uses(direct, 20.0)
    assert choosing.network.now - died_at > 5.0


def test_one_way_death_moves_both() -> None:
    for name in ("there", "back"):
        choosing = Choosing(f"one way {name}", PathKind.LANE, RELAY)
        direct = choosing.add(PathKind.DIRECT, DIRECT)
        choosing.pair.start(LONG, LONG)
        choosing.run_until_uses(direct, 5.0)
        choosing.pair.run(None, 1.0)
        getattr(direct, name).blackout(choosing.network.now, choosing.network.now + HOUR)
        assert choosing.run_until_uses(choosing.first, 5.0) < 1.0
        choosing.pair.run(None, 30.0)
        assert choosing.uses(choosing.first)


def _liar(path: SidePath) -> None:
    """It passes what is small, as questions and answers about the path are."""
    for link in (path.there, path.back):
        link.filter = lambda packet: [packet] if len(packet) < 130 else []


def test_a_path_that_lies_is_tried_seldom() -> None:
    choosing = Choosing("liar", PathKind.LANE, RELAY)
    direct = choosing.add(PathKind.DIRECT, DIRECT)
    _liar(direct)
    transfer = choosing.pair.start(LONG)
    choosing.pair.run(None, 120.0)
    assert choosing.moves_within(60.0) <= 14
    caller = choosing.pair.caller.choice
    assert caller.moves[-1].at < choosing.network.now - 20
    # It carries most of what the relay alone would.
    assert transfer.at_callee.received > 0.8 * 120 * RATE


def test_asymmetric_loss_is_borne() -> None:
    choosing = Choosing("loss", PathKind.LANE, RELAY)
    direct = choosing.add(PathKind.DIRECT, replace(DIRECT, loss=0.1), DIRECT)
    transfer = choosing.pair.start(3_000_000, 3_000_000)
    choosing.pair.run(lambda: transfer.done, 120.0)
    assert choosing.moves_within(60.0) <= 6  # the relay is measured, too
    assert choosing.uses(direct) or choosing.uses(choosing.first)


def test_a_relay_that_dies_is_left_for_another() -> None:
    choosing = Choosing("relays", PathKind.LANE, RELAY)
    other = choosing.add(PathKind.FRAMED, RELAY)
    transfer = choosing.pair.start(LONG)
    choosing.pair.run(None, 2.0)
    assert choosing.uses(choosing.first)
    died_at = choosing.network.now
    choosing.first.blackout(died_at, HOUR + died_at)
    choosing.run_until_uses(other, 2.0)
    choosing.pair.run(None, 0.5)
    assert longest_pause_s(transfer.at_callee, died_at - 0.1, choosing.network.now) < 0.5


def test_many_dead_candidates_do_not_keep_a_dying_path_from_being_left() -> None:
    """More than are asked at once."""
    choosing = Choosing("many", PathKind.LANE, RELAY)
    other = choosing.add(PathKind.FRAMED, RELAY)
    for _ in range(16):
        choosing.add(PathKind.DIRECT, DIRECT).blackout(0.0, HOUR)
    choosing.pair.start(LONG)
    choosing.pair.run(None, 20.0)
    died_at = choosing.network.now
    choosing.first.blackout(died_at, died_at + HOUR)
    assert choosing.run_until_uses(other, 60.0) < 1.0


def test_a_path_that_is_withdrawn_is_left_at_once() -> None:
    choosing = Choosing("withdrawn", PathKind.FRAMED, RELAY)
    other = choosing.add(PathKind.TURN, RELAY)
    choosing.run_until_uses(other, 2.0)
    choosing.pair.start(LONG)
    choosing.pair.run(None, 1.0)
    caller = choosing.pair.caller
    caller.choice.withdraw(other.of_callee, choosing.network.now)
    caller.drive()
    assert choosing.run_until_uses(choosing.first, 2.0) < 0.3
    choosing.pair.run(None, 10.0)
    assert choosing.uses(choosing.first)


def test_a_path_that_is_withdrawn_and_offered_again_is_as_good_as_before() -> None:
    """As that of a relay which has answered nothing for some seconds."""
    choosing = Choosing("offered again", PathKind.LANE, RELAY)
    choosing.pair.run(None, 1.0)
    now = choosing.network.now
    choosing.first.blackout(now, now + 7.0)
    choosing.withdraw(choosing.first)
    choosing.pair.run(None, 7.0)
    choosing.offer(choosing.first, PathKind.LANE)
    choosing.pair.run(None, 2.0)
    sides = choosing.pair.caller, choosing.pair.callee
    assert [side.choice.state for side in sides] == [State.SETTLED] * 2
    choosing.add(PathKind.FRAMED, RELAY)
    choosing.pair.run(None, 5.0)
    assert choosing.uses(choosing.first)
    assert not [side.choice.moves for side in sides if side.choice.moves]


def test_fifty_moves_up_and_down_lose_nothing() -> None:
    choosing = Choosing("fifty", PathKind.LANE, replace(RELAY, queue_bytes=15_000), QUICK)
    direct = choosing.add(PathKind.DIRECT, replace(DIRECT, queue_bytes=15_000))
    transfer = choosing.pair.start(LONG, LONG)
    random = Random("periods")
    down: list[float] = []
    up: list[float] = []
    for _ in range(25):
        choosing.run_until_uses(direct, 60.0)
        arrived_at = choosing.network.now
        choosing.pair.run(None, random.uniform(1.0, 3.0))
        up.append(longest_pause_s(transfer.at_callee, arrived_at - 0.3, arrived_at + 0.5))
        died_at = choosing.network.now
        direct.blackout(died_at, died_at + random.uniform(1.0, 3.0))
        choosing.run_until_uses(choosing.first, 60.0)
        choosing.pair.run(None, 0.5)
        down.append(longest_pause_s(transfer.at_callee, died_at - 0.1, choosing.network.now))
    assert len(choosing.pair.caller.choice.moves) >= 50
    assert sorted(up)[len(up) // 2] < 0.05
    assert sorted(down)[len(down) // 2] < 0.5
    # All bytes were compared as they arrived.
    assert transfer.at_callee.received > 2_000_000
    assert transfer.at_caller.received > 2_000_000


def test_messages_survive_all_moves_to_the_direct_path() -> None:
    choosing = Choosing("game", PathKind.LANE, RELAY, QUICK)
    direct = choosing.add(PathKind.DIRECT, DIRECT)
    direct.blackout(0.0, choosing.network.now + 2.0)
    stream_id = choosing.open_messages()
    sent = choosing.send_every(stream_id, 1 / 60, 1200)
    choosing.run_until_uses(direct, 20.0)
    choosing.pair.run(lambda: len(sent) == 1200, 60.0)
    choosing.pair.run(None, 1.0)
    assert sorted(choosing.pair.callee.messages) == sent


def test_a_channel_of_few_messages_leaves_a_dead_path_soon() -> None:
    choosing = Choosing("pings", PathKind.LANE, RELAY)
    direct = choosing.add(PathKind.DIRECT, DIRECT)
    stream_id = choosing.open_messages()
    sent = choosing.send_every(stream_id, 1 / 60, 1000)
    choosing.run_until_uses(direct, 5.0)
    choosing.pair.run(None, 1.0)
    died_at = choosing.network.now
    direct.blackout(died_at, died_at + HOUR)
    assert choosing.run_until_uses(choosing.first, 5.0) < 0.5
    choosing.pair.run(lambda: len(sent) == 1000, 30.0)
    choosing.pair.run(None, 1.0)
    assert len(sent) - len(choosing.pair.callee.messages) < 0.5 * 60


POLICED = replace(DIRECT, rate_bytes_per_s=mbit_per_s(0.2), queue_bytes=6_000)


@pytest.mark.parametrize("ways", [(LONG, 0), (0, LONG)])
def test_a_policed_direct_path_is_measured_and_left(ways: tuple[int, int]) -> None:
    """The relay has been measured before; nothing has to be guessed."""
    choosing = Choosing(f"policer {ways}", PathKind.LANE, RELAY)
    transfer = choosing.pair.start(*ways)
    reader = transfer.at_callee if ways[0] else transfer.at_caller
    choosing.pair.run(None, 5.0)
    direct = choosing.add(PathKind.DIRECT, POLICED)
    choosing.run_until_uses(direct, 2.0)
    took = choosing.pair.run(lambda: choosing.uses(choosing.first), 20.0)
    assert took < 8.0
    choosing.pair.run(None, 120.0)
    assert choosing.moves_within(60.0) <= 4
    assert reader.received > 0.7 * 120 * RATE


def test_throttled_udp_is_found_by_trying_tcp() -> None:
    """The direct path and the relay by UDP carry a tenth; nothing else was measured before."""
    choosing = Choosing("throttled", PathKind.DIRECT, POLICED)
    lane = choosing.add(PathKind.LANE, replace(POLICED, delay_s=0.03))
    framed = choosing.add(PathKind.FRAMED, RELAY)
    choosing.pair.start(LONG)
    choosing.run_until_uses(framed, 60.0)
    choosing.pair.run(None, 10.0)
    caller = choosing.pair.caller.choice
    assert caller.is_udp_throttled
    assert [move.after for move in caller.moves[:2]] == [lane.of_callee, choosing.first.of_callee]
    assert "instead of 0.2 Mbit/s" in _why(choosing)[-1]
    choosing.pair.run(None, 80.0)
    assert choosing.uses(framed)


def test_a_trial_whose_home_is_withdrawn_is_over() -> None:
    choosing = Choosing("no home", PathKind.LANE, POLICED)
    framed = choosing.add(PathKind.FRAMED, POLICED)
    transfer = choosing.pair.start(LONG)
    caller = choosing.pair.caller.choice
    choosing.pair.run(lambda: caller.state is State.TRYING, 20.0)
    now = choosing.network.now
    choosing.first.blackout(now, now + HOUR)
    choosing.withdraw(choosing.first)
    assert caller.state is State.SETTLED
    assert "is kept: the path before has ended" in _why(choosing)[-1]
    choosing.pair.run(None, 10.0)
    assert choosing.uses(framed)
    assert [move.after for move in caller.moves] == [framed.of_callee] * 2
    assert longest_pause_s(transfer.at_callee, now, choosing.network.now) < 0.5


def test_a_trials_home_does_not_make_room() -> None:
    choosing = Choosing("home stays", PathKind.LANE, POLICED)
    choosing.add(PathKind.FRAMED, POLICED)
    choosing.pair.start(LONG)
    caller = choosing.pair.caller.choice
    choosing.pair.run(lambda: caller.state is State.TRYING, 20.0)
    for number in range(MAX_OPTIONS):
        caller.offer(("203.0.113.1", 1000 + number), PathKind.TURN, choosing.network.now)
    choosing.run_until_uses(choosing.first, 10.0)


def test_a_dead_candidate_keeps_nothing_from_being_tried() -> None:
    choosing = Choosing("dead candidate", PathKind.LANE, replace(POLICED, delay_s=0.03))
    dead = choosing.add(PathKind.DIRECT, DIRECT)
    dead.blackout(0.0, HOUR)
    framed = choosing.add(PathKind.FRAMED, RELAY)
    choosing.pair.start(LONG)
    choosing.run_until_uses(framed, 60.0)


def test_a_path_that_carried_much_and_is_dead_keeps_nothing_from_being_tried() -> None:
    choosing = Choosing("dead relay", PathKind.LANE, RELAY)
    framed = choosing.add(PathKind.FRAMED, RELAY)
    choosing.pair.start(LONG)
    choosing.pair.run(None, 5.0)
    now = choosing.network.now
    direct = choosing.add(PathKind.DIRECT, POLICED)
    choosing.run_until_uses(direct, 2.0)
    choosing.first.blackout(now, now + HOUR)
    choosing.run_until_uses(framed, 60.0)


def test_what_does_not_answer_makes_room_before_what_was_not_asked() -> None:
    """As the relay was not, while the path in use is better."""
    choosing = Choosing("relay stays", PathKind.LANE, RELAY)
    relay = choosing.add(PathKind.FRAMED, RELAY)
    for _ in range(MAX_OPTIONS + 1):
        choosing.add(PathKind.DIRECT, DIRECT).blackout(0.0, HOUR)
        choosing.pair.run(None, 3.0)
    now = choosing.network.now
    choosing.first.blackout(now, now + HOUR)
    choosing.run_until_uses(relay, 10.0)


def test_what_was_wanted_and_makes_room_is_not_waited_for() -> None:
    choosing = Choosing("room", PathKind.LANE, replace(POLICED, delay_s=0.03))
    dead = choosing.add(PathKind.FRAMED, RELAY)
    dead.blackout(0.0, HOUR)
    choosing.pair.start(LONG)
    caller = choosing.pair.caller.choice
    choosing.pair.run(lambda: caller._wanted is not None, 20.0)
    for number in range(MAX_OPTIONS):
        caller.offer(("203.0.113.1", 1000 + number), PathKind.TURN, choosing.network.now)
    assert caller._wanted is None


def test_nothing_is_tried_where_the_path_is_good_or_nothing_waits() -> None:
    good = Choosing("good", PathKind.DIRECT, DIRECT)
    good.add(PathKind.LANE, RELAY)
    good.pair.start(LONG)
    good.pair.run(None, 30.0)
    idle = Choosing("idle", PathKind.DIRECT, POLICED)
    idle.add(PathKind.LANE, RELAY)
    stream_id = idle.open_messages()
    idle.send_every(stream_id, 0.1, 250)
    idle.pair.run(None, 30.0)
    assert not good.pair.caller.choice.moves
    assert not idle.pair.caller.choice.moves


def _flap(path: SidePath, random: Random, until: float) -> None:
    at = 0.0
    while at < until:
        dark, light = random.uniform(0.2, 8.0), random.uniform(0.2, 8.0)
        path.blackout(path.there.network.now + at, path.there.network.now + at + dark)
        at += dark + light


@pytest.mark.parametrize("seed", [0, 1])
def test_flapping_paths_make_few_moves(seed: int) -> None:
    choosing = Choosing(f"flap {seed}", PathKind.LANE, RELAY)
    paths = [choosing.add(PathKind.DIRECT, DIRECT), choosing.add(PathKind.TURN, RELAY)]
    random = Random(f"flaps {seed}")
    for path in paths:
        _flap(path, random, 180.0)
    transfer = choosing.pair.start(LONG, LONG)
    choosing.pair.run(None, 180.0)
    assert choosing.moves_within(60.0) <= 16
    assert min(transfer.at_callee.received, transfer.at_caller.received) > 8_000_000
    for path in paths:
        path.blackout(choosing.network.now, choosing.network.now + HOUR)
    choosing.run_until_uses(choosing.first, 30.0)


def _split(choosing: Choosing) -> bool:
    caller, callee = choosing.pair.caller.connection, choosing.pair.callee.connection
    at = {path.of_callee: path.of_caller for path in _paths(choosing)}
    return at.get(caller.address) != callee.address


def _paths(choosing: Choosing) -> list[SidePath]:
    pair = choosing.pair
    others = [
        SidePath(link, link, own, remote) for remote, (own, link) in pair.caller.routes.items()
    ]
    return [choosing.first, *others]


@pytest.mark.parametrize("seed", [0, 2])
def test_sides_with_other_opinions_agree_soon(seed: int) -> None:
    """Each direction of each path dies and comes back by itself."""
    choosing = Choosing(f"opinions {seed}", PathKind.FRAMED, RELAY)
    paths = [choosing.add(PathKind.DIRECT, DIRECT), choosing.add(PathKind.LANE, RELAY)]
    random = Random(f"opinions {seed}")
    for path in paths:
        for link in (path.there, path.back):
            at = choosing.network.now
            while at < choosing.network.now + 90.0:
                dark = random.uniform(0.5, 5.0)
                link.blackout(at, at + dark)
                at += dark + random.uniform(1.0, 10.0)
    transfer = choosing.pair.start(LONG, LONG)
    split_s = 0.0
    for _ in range(900):
        choosing.pair.run(None, 0.1)
        split_s += 0.1 * _split(choosing)
    assert split_s < 30.0
    assert min(transfer.at_callee.received, transfer.at_caller.received) > 3_000_000
    for path in paths:
        path.blackout(choosing.network.now, choosing.network.now + HOUR)
    choosing.run_until_uses(choosing.first, 10.0)


def test_who_follows_the_peer_away_at_once_does_not_take_it_for_a_measurement() -> None:
    choosing = Choosing("crossing", PathKind.FRAMED, RELAY)
    direct = choosing.add(PathKind.DIRECT, DIRECT)
    choosing.pair.start(LONG, LONG)
    choosing.run_until_uses(direct, 2.0)
    choosing.pair.run(None, 0.5)
    callee = choosing.pair.callee
    home = choosing.first.of_caller
    assert callee.connection.move_to(home, choosing.network.now, lossless=True)
    callee.drive()
    choosing.run_until_uses(choosing.first, 2.0)
    choosing.run_until_uses(direct, 10.0)


def test_the_peers_packets_from_elsewhere_move_nothing() -> None:
    """Someone who copies packets, and sends them first, from an address that answers nothing."""
    choosing = Choosing("copier", PathKind.LANE, RELAY)
    pair = choosing.pair
    pair.start(LONG)
    pair.run(None, 1.0)
    elsewhere = ("203.0.113.66", 666)
    deliver: Callable[..., None] = pair.network.deliver

    def copy(packet: bytes) -> list[bytes]:
        pair.network.after(0.001, lambda: deliver([(packet, elsewhere)], pair.callee.address))
        return [packet]

    pair.there.filter = copy
    pair.run(None, 10.0)
    assert choosing.uses(choosing.first)
    assert not pair.caller.choice.moves
    assert not pair.callee.choice.moves


@pytest.mark.parametrize("dead", [0, 16])
def test_another_network_forgets_what_was_learnt(dead: int) -> None:
    """However many are asked meanwhile that do not answer."""
    choosing = Choosing("network", PathKind.LANE, RELAY)
    direct = choosing.add(PathKind.DIRECT, DIRECT)
    for _ in range(dead):
        choosing.add(PathKind.DIRECT, DIRECT).blackout(0.0, HOUR)
    choosing.pair.start(LONG)
    choosing.run_until_uses(direct, 5.0)
    for _ in range(3):
        now = choosing.network.now
        direct.blackout(now, now + 1.0)
        choosing.run_until_uses(choosing.first, 5.0)
        choosing.pair.run(None, 1.0)
        choosing.pair.caller.choice.handle_network_changed(choosing.network.now)
        choosing.pair.caller.drive()
        assert choosing.run_until_uses(direct, 5.0) < 0.2
