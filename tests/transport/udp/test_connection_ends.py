"""How a connection ends: in order, by silence, by a breach; and how it stays alive until then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.sim.drive import Peer
from helpers.sim.pair import Pair, mbit_per_s
from helpers.sim.simnet import Conditions
from kkp2p_compat._codes import KKP2P_TCP_CHANNEL
from kkp2p_compat._errors import LinkLost

PATH = Conditions(rate_bytes_per_s=mbit_per_s(100), delay_s=0.02)


def _sent(pair: Pair) -> int:
    return pair.there.counts["sent"] + pair.back.counts["sent"]


def _close(pair: Pair, peer: Peer) -> None:
    peer.connection.close(0, "that is all", pair.network.now)
    peer.drive()


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_an_orderly_close(loss: float) -> None:
    pair = Pair("close", replace(PATH, loss=loss))
    pair.transfer(100_000, 100_000)
    _close(pair, pair.caller)
    pair.run(lambda: pair.caller.closed and pair.callee.closed, 5)
    assert isinstance(pair.callee.closed, LinkLost)
    assert "that is all" in str(pair.callee.closed)
    before = _sent(pair)
    pair.run(None, 120)
    assert _sent(pair) == before


def test_both_close_at_once() -> None:
    pair = Pair("both", PATH)
    pair.transfer(1000)
    _close(pair, pair.caller)
    _close(pair, pair.callee)
    pair.run(lambda: pair.caller.closed and pair.callee.closed, 5)


def test_a_close_that_nobody_hears_ends_both_all_the_same() -> None:
    pair = Pair("unheard", PATH)
    pair.transfer(1000)
    pair.there.change(loss=1.0)
    _close(pair, pair.caller)
    pair.run(lambda: pair.caller.closed, 5)
    idle = pair.callee.connection.settings.idle_timeout_s
    assert pair.run(lambda: pair.callee.closed, 2 * idle) <= idle + 1


def test_a_close_outlasts_a_burst_of_losses_while_the_peer_sends() -> None:
    """All that was on its way when it was sent must not use up the repetitions."""
    pair = Pair("burst", PATH)
    transfer = pair.start(0, 10_000_000)
    pair.run(lambda: transfer.at_caller.received > 1_000_000)
    now = pair.network.now
    pair.there.blackout(now, now + PATH.delay_s)
    _close(pair, pair.caller)
    pair.run(lambda: pair.caller.closed, 5)
    pair.run(lambda: pair.callee.closed, 1)
    assert "that is all" in str(pair.callee.closed)


@pytest.mark.parametrize("arrived", [0, 1, 50_000, 400_000, 799_999])
def test_a_close_in_mid_transfer_is_never_a_clean_end(arrived: int) -> None:
    pair = Pair(arrived, PATH)
    transfer = pair.start(800_000)
    pair.run(lambda: transfer.at_callee.received >= arrived)
    _close(pair, pair.caller)  # the driver fails on an end before the last byte
    pair.run(lambda: pair.callee.closed, 5)
    assert transfer.at_callee.done == (transfer.at_callee.received == 800_000)


@pytest.mark.parametrize("busy", [True, False], ids=["in mid-transfer", "with nothing to do"])
def test_a_peer_that_falls_silent_is_dead_after_the_idle_time_out(busy: bool) -> None:
    pair = Pair(busy, PATH, idle_timeout_s=30.0)
    pair.transfer(100_000)
    if busy:
        transfer = pair.start(10_000_000, 10_000_000)
        pair.run(lambda: transfer.at_callee.received > 1_000_000)
    now = pair.network.now
    pair.there.blackout(now, now + 1e9)
    pair.back.blackout(now, now + 1e9)
    took = pair.run(lambda: pair.caller.closed and pair.callee.closed, 60)
    assert 29 < took < 31.5
    assert isinstance(pair.caller.closed, LinkLost)
    before = _sent(pair)
    pair.run(None, 60)
    assert _sent(pair) == before


def test_time_outs_while_the_socket_takes_nothing_pile_nothing_up() -> None:
    pair = Pair("stuck", PATH)
    pair.transfer(1000)
    connection, now = pair.caller.connection, pair.network.now
    for _ in range(100):
        connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    while connection.poll_transmit(now) is not None:
        pass  # lost
    for _ in range(1000):
        now += 0.01
        connection.handle_timer(now)
    assert len(connection.packer.control) <= 200
    assert connection.recovery.pto_count == 1


def test_a_time_out_of_hours() -> None:
    pair = Pair("hours", PATH, idle_timeout_s=4000.0)
    pair.transfer(1000)
    pair.there.filter = pair.back.filter = lambda packet: []
    pair.start(1000)
    assert pair.run(lambda: pair.caller.closed, 5000) > 3900


def test_it_lives_while_nothing_is_done_for_ten_minutes() -> None:
    pair = Pair("idle", PATH, keepalive_s=10.0)
    pair.transfer(100_000)
    pair.run(None, 5)
    gaps: list[float] = []
    last = pair.network.now

    def note(packet: bytes) -> list[bytes]:
        nonlocal last
        gaps.append(pair.network.now - last)
        last = pair.network.now
        return [packet]

    pair.there.filter = note
    before = _sent(pair)
    pair.run(None, 600)
    assert pair.caller.closed is None
    assert pair.callee.closed is None
    assert max(gaps) < 20  # what NATs keep a binding for
    assert _sent(pair) - before <= 60 * 4 + 20  # each side asks once in ten seconds
    pair.transfer(100_000, 100_000)


def test_a_ping_is_answered_and_costs_two_packets() -> None:
    pair = Pair("ping", PATH)
    pair.transfer(1000)
    pair.run(None, 5)
    before = _sent(pair)
    pair.caller.connection.ping()
    pair.caller.drive()
    pair.run(None, 1)
    assert _sent(pair) - before == 2


def test_commands_after_the_end_do_nothing() -> None:
    pair = Pair("after", PATH)
    transfer = pair.start(1_000_000)
    pair.run(lambda: transfer.at_callee.received > 0)
    _close(pair, pair.caller)
    pair.run(lambda: pair.caller.closed and pair.callee.closed, 5)
    for peer in (pair.caller, pair.callee):
        connection, number = peer.connection, transfer.stream_id
        assert connection.streams.writable_bytes(number) == 0
        assert connection.streams.peek(number) == []
        if peer is pair.callee:
            assert not connection.streams.at_end(number)  # of what the caller sent, that is
        connection.streams.finish(number)
        connection.streams.reset(number, 1)
        connection.streams.stop(number)
        connection.ping()
        connection.close(0, "", pair.network.now)
        connection.handle_timer(pair.network.now)
        assert connection.poll_event() is None
        assert connection.poll_transmit(pair.network.now) is None
        assert connection.next_timer() is None


# Doubts: somebody says that the peer is gone.


def _doubt(pair: Pair) -> bool:
    taken = pair.caller.connection.doubt(pair.network.now)
    pair.caller.drive()
    return taken


@pytest.mark.parametrize("busy", [True, False], ids=["in mid-transfer", "with nothing to do"])
def test_a_peer_that_is_gone_is_known_to_be_two_seconds_after_the_word(busy: bool) -> None:
    pair = Pair(busy, PATH)
    pair.transfer(100_000)
    if busy:
        transfer = pair.start(10_000_000, 10_000_000)
        pair.run(lambda: transfer.at_callee.received > 1_000_000)
    now = pair.network.now
    pair.there.blackout(now, now + 1e9)
    pair.back.blackout(now, now + 1e9)
    assert _doubt(pair)
    assert pair.run(lambda: pair.caller.closed, 60) < 2
    assert "gone" in str(pair.caller.closed)


PATHS = {
    "lan": PATH,
    "loss": replace(PATH, loss=0.3),
    "far": replace(PATH, delay_s=0.4),
    "a radio link with a long queue": Conditions(rate_bytes_per_s=mbit_per_s(2), delay_s=0.1),
}


@pytest.mark.parametrize("conditions", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("busy", [True, False], ids=["in mid-transfer", "with nothing to do"])
def test_no_word_cuts_a_peer_that_lives(conditions: Conditions, busy: bool) -> None:
    """Said every second, as a lying cloud may."""
    pair = Pair(f"{conditions} {busy}", conditions)
    pair.transfer(1000)
    if busy:
        pair.start(20_000_000, 20_000_000)
    for _ in range(60):
        _doubt(pair)
        pair.run(None, 1)
        assert pair.caller.closed is None
    assert pair.callee.closed is None


def test_words_cost_a_question_in_ten_seconds() -> None:
    pair = Pair("words", PATH)
    pair.transfer(1000)
    pair.run(None, 60)  # the search for the path's MTU
    before = _sent(pair)
    taken = 0
    for _ in range(6000):
        taken += _doubt(pair)
        pair.run(None, 0.01)
    assert taken in (6, 7)
    assert _sent(pair) - before <= 2 * taken + 24  # and what keeps a path open


def test_an_outage_that_ends_before_the_questions_do_cuts_nothing() -> None:
    pair = Pair("outage", PATH)
    pair.transfer(1000)
    now = pair.network.now
    pair.there.blackout(now, now + 1.2)
    _doubt(pair)
    pair.run(None, 30)
    assert pair.caller.closed is None
    pair.transfer(100_000)


def test_the_word_that_it_is_back_ends_a_doubt() -> None:
    pair = Pair("back", PATH)
    pair.transfer(1000)
    now = pair.network.now
    pair.there.blackout(now, now + 5)
    _doubt(pair)
    pair.run(None, 1)
    pair.caller.connection.trust()
    pair.run(None, 30)
    assert pair.caller.closed is None
    pair.transfer(100_000)


def test_packets_that_were_on_their_way_are_no_sign_of_life() -> None:
    pair = Pair("on their way", replace(PATH, delay_s=0.2))
    transfer = pair.start(1000, 10_000_000)
    pair.run(lambda: transfer.at_caller.received > 1_000_000)
    now = pair.network.now
    pair.there.blackout(now, now + 1e9)  # what the peer has sent comes yet
    _doubt(pair)
    pair.run(None, 0.1)
    pair.back.blackout(pair.network.now, 1e9)
    assert pair.run(lambda: pair.caller.closed, 60) < 3
