"""The end of a connection: which cue moves it where, and how often the peer is told."""

from __future__ import annotations

import itertools

import pytest

from kkp2p_compat._errors import BadPacket, LinkLost
from kkp2p_compat.transport.udp.frames import Close, parse_untrusted
from kkp2p_compat.transport.udp.lifecycle import CLOSE_PACKETS, FOLLOWERS, Cue, Lifecycle, Phase


def test_only_a_connection_that_closes_has_told_its_peer() -> None:
    """Everything else may come at any time: each pair has a row, or is a bug of ours."""
    missing = set(itertools.product(Phase, Cue)) - set(FOLLOWERS)
    assert missing == {(Phase.OPEN, Cue.TOLD), (Phase.CLOSED, Cue.TOLD)}


def test_nothing_leads_back() -> None:
    order = list(Phase)
    for (before, _), after in FOLLOWERS.items():
        assert order.index(after) >= order.index(before)


def test_a_cue_that_cannot_come_raises_and_changes_nothing() -> None:
    lifecycle = Lifecycle()
    with pytest.raises(KeyError):
        lifecycle.move(Cue.TOLD)
    assert lifecycle.phase is Phase.OPEN


@pytest.mark.parametrize(("cue", "times"), [(Cue.CLOSE, CLOSE_PACKETS), (Cue.BREACH, 1)])
def test_the_peer_is_told_so_often(cue: Cue, times: int) -> None:
    lifecycle = Lifecycle()
    lifecycle.begin_close(cue, 7, LinkLost("why"), 1.0)
    assert lifecycle.close_at == 1.0
    frames = list(iter(lambda: lifecycle.next_close(1.0, 0.5), None))
    assert [parse_untrusted(frame) for frame in frames] == [[Close(7, "why")]] * times
    assert lifecycle.close_at == 1.5


def test_what_comes_later_does_not_change_the_reason() -> None:
    lifecycle, first = Lifecycle(), LinkLost("first")
    lifecycle.begin_close(Cue.CLOSE, 0, first, 1.0)
    lifecycle.begin_close(Cue.BREACH, 1, BadPacket("second"), 1.5)
    assert lifecycle.error is first
    assert lifecycle.close_at == 1.0


def test_a_peer_that_goes_on_sending_is_told_again_after_a_round_trip() -> None:
    lifecycle = Lifecycle()
    lifecycle.begin_close(Cue.CLOSE, 0, LinkLost("why"), 1.0)
    lifecycle.next_close(1.0, 4.0)
    lifecycle.handle_packet(1.9, 1.0)  # it was sent before the peer could have heard
    assert lifecycle.close_at == 5.0
    lifecycle.handle_packet(2.0, 1.0)
    assert lifecycle.close_at == 2.0
