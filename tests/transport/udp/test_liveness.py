"""Whether the peer is there: suspicion by its table, and doubt beside it."""

from __future__ import annotations

import itertools
import math

import pytest

from kkp2p_compat.transport.udp.liveness import (
    DOUBT_AGAIN_S,
    FOLLOWERS,
    MOST_PATIENCE,
    PATIENT_S,
    QUESTIONS,
    SUSPECT_PTOS,
    SUSPECT_S,
    Hearing,
    Liveness,
    Sign,
)
from kkp2p_compat.transport.udp.recovery import RoundTrip

NOW = 1000.0


@pytest.fixture
def rtt() -> RoundTrip:
    made = RoundTrip()
    made.update(0.1, 0.0)
    return made


def test_a_wait_ends_only_where_one_began() -> None:
    missing = set(itertools.product(Hearing, Sign)) - set(FOLLOWERS)
    assert missing == set(
        itertools.product((Hearing.HEARD, Hearing.SUSPECTED), (Sign.ANSWERED, Sign.UNANSWERED))
    )


def test_a_wait_that_nobody_began_raises_and_changes_nothing() -> None:
    liveness = Liveness(NOW)
    with pytest.raises(KeyError):
        liveness.handle_wait_over(answered=True)
    assert liveness.hearing is Hearing.HEARD


def test_a_path_is_suspected_after_the_wait_or_the_third_time_out(rtt: RoundTrip) -> None:
    liveness = Liveness(NOW)
    liveness.handle_probe_timeout(1, NOW, rtt)
    assert liveness.suspect_at == NOW + SUSPECT_S
    liveness.handle_probe_timeout(SUSPECT_PTOS, NOW + 0.5, rtt)
    assert liveness.suspect_at == NOW + 0.5
    assert liveness.handle_wait_over(answered=False)
    assert (liveness.hearing, liveness.suspect_at) == (Hearing.SUSPECTED, math.inf)


def test_what_was_acknowledged_meanwhile_is_not_suspected(rtt: RoundTrip) -> None:
    liveness = Liveness(NOW)
    liveness.handle_probe_timeout(1, NOW, rtt)
    assert not liveness.handle_wait_over(answered=True)
    assert (liveness.hearing, liveness.suspect_at) == (Hearing.HEARD, math.inf)


def test_one_packet_ends_a_suspicion_but_not_the_wait(rtt: RoundTrip) -> None:
    liveness = Liveness(NOW)
    assert not liveness.handle_packet(NOW, rtt, by_path=True)
    liveness.handle_probe_timeout(1, NOW, rtt)
    assert not liveness.handle_packet(NOW, rtt, by_path=True)
    liveness.handle_wait_over(answered=False)
    liveness.handle_probe_timeout(1, NOW + 5, rtt)  # nothing new: it is suspected already
    assert liveness.suspect_at == math.inf
    assert liveness.handle_packet(NOW + 6, rtt, by_path=False)
    assert liveness.hearing is Hearing.WAITING
    assert liveness.suspect_at == NOW + 6 + SUSPECT_S


def test_a_path_that_was_only_slow_is_suspected_later_for_a_while(rtt: RoundTrip) -> None:
    liveness, now, waited = Liveness(NOW), NOW, []
    for _ in range(5):
        liveness.handle_probe_timeout(1, now, rtt)
        liveness.handle_probe_timeout(SUSPECT_PTOS, now + 0.5, rtt)
        waited.append(liveness.suspect_at - now)
        now = liveness.suspect_at
        assert liveness.handle_wait_over(answered=False)
        assert liveness.handle_packet(now, rtt, by_path=True)
        assert not liveness.handle_wait_over(answered=True)
    assert waited == [0.5, 2, 4, MOST_PATIENCE, MOST_PATIENCE]
    now += PATIENT_S
    liveness.handle_probe_timeout(1, now, rtt)
    assert liveness.suspect_at == now + SUSPECT_S


def test_a_doubt_that_nobody_answers_finds_the_peer_gone(rtt: RoundTrip) -> None:
    liveness, now = Liveness(NOW), NOW
    assert liveness.begin_doubt(NOW, 7, rtt)
    doubt = liveness.doubt
    assert doubt is not None
    asked = 0
    while not doubt.over(now):
        assert not liveness.is_gone(now)
        asked += doubt.poll(now)
        now = doubt.next_at
    assert asked == QUESTIONS
    assert liveness.is_gone(now)
    assert liveness.doubt is None


def test_only_what_was_sent_since_answers_a_doubt(rtt: RoundTrip) -> None:
    liveness = Liveness(NOW)
    liveness.begin_doubt(NOW, 7, rtt)
    liveness.handle_acked(6)
    assert liveness.doubt is not None
    liveness.handle_acked(7)
    assert liveness.doubt is None
    assert not liveness.begin_doubt(NOW + DOUBT_AGAIN_S / 2, 9, rtt)
    assert liveness.begin_doubt(NOW + DOUBT_AGAIN_S, 9, rtt)
