"""CUBIC alone, with the sums beside the expected numbers."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from kkp2p_compat.transport.udp.congestion import Controller, Snapshot, Update, make_controller

SIZE = 1_000  # bytes of a datagram


def snapshot(sent_at: float, in_flight: int = SIZE, lost: int = 0) -> Snapshot:
    return Snapshot(sent_at, SIZE, in_flight, 0, sent_at, sent_at, lost, False)


class CubicRun:
    """A path on which nothing queues: every round trip takes 0.1 s."""

    def __init__(self) -> None:
        self.controller: Controller = make_controller("cubic", SIZE, 0.0, random.Random(1))
        self.now = 0.0

    def round(self, lost: int = 0, rtt_s: float = 0.1, acks: int = 1) -> int:
        """A window is sent, and acknowledged but for ``lost`` bytes; the new window."""
        sent_at, self.now = self.now, self.now + rtt_s
        window = self.controller.window_bytes
        for part in range(acks):
            size = (window - lost) // acks
            self.controller.update(
                Update(
                    self.now,
                    size,
                    [(snapshot(sent_at), lost)] if lost and part == 0 else [],
                    window,
                    window - size,
                    rtt_s,
                    rtt_s,
                    0.1,
                    None,
                    sent_at,
                )
            )
        return self.controller.window_bytes


def test_cubic_starts_with_ten_packets_and_doubles() -> None:
    run = CubicRun()
    assert run.controller.window_bytes == 10_000
    assert run.round() == 20_000
    assert run.round() == 40_000


def test_cubic_cuts_to_seven_tenths_once_a_round_trip() -> None:
    run = CubicRun()
    for _ in range(3):
        run.round()
    assert run.controller.window_bytes == 80_000
    assert run.round(lost=2_000) == 56_000  # 0.7 * 80,000
    sent_before = snapshot(run.now - 0.05)
    run.controller.update(
        Update(run.now + 0.05, 0, [(sent_before, SIZE)], 56_000, 55_000, None, 0.1, 0.1, None, None)
    )
    assert run.controller.window_bytes == 56_000


def test_cubic_comes_back_to_where_the_loss_was_in_the_time_of_its_curve() -> None:
    run = CubicRun()
    for _ in range(3):
        run.round()
    run.round(lost=2_000)
    # K = cbrt((80 - 56) / 0.4) = cbrt(60) = 3.91 s: at 0.1 s a round, 39 rounds.
    windows = [run.round() for _ in range(45)]
    assert windows == sorted(windows)
    assert windows[20] < 80_000  # flat, but below
    assert 78_000 < windows[38] < 82_000
    assert windows[44] > 80_000


def test_cubic_does_not_grow_a_window_that_is_not_used() -> None:
    run = CubicRun()
    run.controller.update(Update(0.1, SIZE, [], 2 * SIZE, SIZE, 0.1, 0.1, 0.1, None, 0.0))
    assert run.controller.window_bytes == 10_000


def test_cubic_leaves_slow_start_when_round_trips_grow() -> None:
    run = CubicRun()
    for _ in range(2):
        run.round(acks=8)
    before = run.controller.window_bytes
    # 20 ms longer than 100 ms, over the step of 12.5 ms.  That round still doubles for 8 of its
    # acknowledgements, the five after it grow by a quarter, and then it is over.
    windows = [run.round(rtt_s=0.12, acks=8) for _ in range(8)]
    assert windows[0] <= 2 * before
    assert all(b <= a * 1.3 for a, b in pairwise(windows))
    assert windows[7] < windows[6] * 1.05


def test_cubic_begins_again_after_persistent_congestion() -> None:
    run = CubicRun()
    run.round()
    run.controller.handle_persistent_congestion(run.now)
    assert run.controller.window_bytes == 2 * SIZE


def test_cubic_keeps_room_for_two_of_the_larger_packets() -> None:
    run = CubicRun()
    run.controller.handle_persistent_congestion(0.0)
    run.controller.set_datagram_bytes(1_400)
    assert run.controller.window_bytes == 2_800


def test_an_unknown_controller_is_refused() -> None:
    with pytest.raises(KeyError):
        make_controller("vegas", SIZE, 0.0, random.Random(1))
