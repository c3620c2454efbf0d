"""A peer's side of a lane, against a relay that says what the test wants it to say."""

from __future__ import annotations

import pytest

from kkp2p_compat._address import Address
from kkp2p_compat.transport import lane_wire as wire
from kkp2p_compat.transport import relay_wire
from kkp2p_compat.transport.udp.demultiplex import key_of
from kkp2p_compat.transport.udp.lane import (
    PARTNER_S,
    RETRY_S,
    SHOW_EVERY_S,
    WHO_EVERY_S,
    LaneClient,
    LaneState,
)

SPOT = ("192.0.2.1", 3080)
KEY = b"k" * 32
TOKEN = relay_wire.make_token(KEY, bytes(16), relay_wire.CALLER, 1_700_000_000)
LOCAL, REMOTE = 0x1122334455667788, 0xFFEEDDCCBBAA0099
COOKIE, OTHER_COOKIE = b"a cookie of 16 B", b"b cookie of 16 B"
ID = key_of(LOCAL)


class Bench:
    """A lane and its clock."""

    def __init__(self, cookie: bytes | None = None) -> None:
        self.now = 100.0
        self.lane = LaneClient(SPOT, TOKEN, LOCAL, self.now, cookie)

    def sent(self) -> list[wire.Show]:
        """What left since the last time; each is genuine."""
        shows = []
        while (transmit := self.lane.poll_transmit()) is not None:
            data, address = transmit
            assert address == SPOT
            shows.append(wire.parse_show_untrusted(data))
            assert wire.verify_show_untrusted(KEY, shows[-1]).session == bytes(16)
            assert shows[-1].connection_id == ID
        return shows

    def hear(self, data: bytes, source: Address = SPOT) -> bool:
        return self.lane.handle_datagram_untrusted(data, source, self.now)

    def tell(self, status: int, receipt: bytes = b"") -> None:
        assert self.hear(wire.make_state(ID, status, receipt))

    def go_on(self) -> float:
        """To the next deadline; how long that was."""
        deadline = self.lane.next_timer()
        assert deadline is not None
        passed, self.now = deadline - self.now, deadline
        self.lane.handle_timer(self.now)
        return round(passed, 6)


def paired() -> Bench:
    bench = Bench(COOKIE)
    bench.sent()
    bench.tell(relay_wire.PAIRED)
    return bench


def test_from_nothing_to_paired() -> None:
    bench = Bench()
    lane = bench.lane
    assert [show.cookie for show in bench.sent()] == [wire.NO_COOKIE]
    assert bench.hear(wire.make_cookie(ID, COOKIE))
    assert [show.cookie for show in bench.sent()] == [COOKIE]
    assert (lane.state, lane.status, lane.cookie) == (LaneState.SHOWING, None, COOKIE)
    bench.tell(relay_wire.HERE, b"receipt of 16 By")
    assert (lane.state, lane.receipt) == (LaneState.HERE, b"receipt of 16 By")
    bench.tell(relay_wire.PAIRED)
    assert (lane.state, lane.receipt) == (LaneState.PAIRED, b"receipt of 16 By")
    assert bench.sent() == []


def test_a_cookie_that_is_known_saves_a_round_trip() -> None:
    bench = Bench(COOKIE)
    assert [show.cookie for show in bench.sent()] == [COOKIE]


def test_a_relay_that_answers_nothing_is_asked_on() -> None:
    bench = Bench()
    assert tuple(bench.go_on() for _ in RETRY_S) == RETRY_S
    assert bench.lane.state is LaneState.SILENT
    assert [bench.go_on() for _ in range(3)] == [SHOW_EVERY_S] * 3
    assert len(bench.sent()) == 1, "one that was not sent is not sent twice"
    bench.tell(relay_wire.PAIRED)
    assert bench.lane.state is LaneState.PAIRED


def test_a_lane_that_works_stays_alive() -> None:
    bench = paired()
    for _ in range(3):
        assert bench.go_on() == SHOW_EVERY_S
        assert len(bench.sent()) == 1
        bench.tell(relay_wire.PAIRED)
    assert bench.go_on() == SHOW_EVERY_S
    assert bench.go_on() == RETRY_S[0], "no answer this time"
    assert bench.lane.state is LaneState.PAIRED


def test_the_other_side_is_asked_for_more_often_at_first() -> None:
    bench = Bench(COOKIE)
    for wait_s in (*PARTNER_S, SHOW_EVERY_S, SHOW_EVERY_S):
        bench.tell(relay_wire.HERE)
        assert bench.go_on() == wait_s
    bench.tell(relay_wire.PAIRED)
    bench.tell(relay_wire.HERE)
    assert bench.lane.state is LaneState.HERE, "the other side has left"
    assert bench.go_on() == PARTNER_S[0]


@pytest.mark.parametrize(
    "status", [relay_wire.BAD, relay_wire.EXPIRED, relay_wire.LIMIT, relay_wire.CLOSING, 255]
)
def test_a_refusal_is_the_end(status: int) -> None:
    bench = Bench(COOKIE)
    bench.sent()
    bench.tell(status)
    lane = bench.lane
    assert (lane.state, lane.status) == (LaneState.REFUSED, status)
    assert lane.reason == relay_wire.status_text(status)
    assert lane.next_timer() is None
    lane.show_again(bench.now)
    assert not bench.hear(wire.make_state(ID, relay_wire.PAIRED))
    lane.leave()
    leaves = [wire.LEAVE] if status == relay_wire.CLOSING else []
    assert [show.kind for show in bench.sent()] == leaves, "that one still serves us"
    assert lane.state is LaneState.REFUSED


def test_who_is_answered_at_once_but_not_each() -> None:
    bench = paired()
    bench.lane.remote_id = REMOTE
    bench.now += 3
    for _ in range(10):
        assert bench.hear(wire.make_who(key_of(REMOTE)))
    assert len(bench.sent()) == 1
    bench.now += 2 * WHO_EVERY_S
    assert bench.hear(wire.make_who(key_of(REMOTE)))
    assert len(bench.sent()) == 1
    assert not bench.hear(wire.make_who(ID)), "of another lane at this relay"
    assert bench.lane.state is LaneState.PAIRED


def test_who_before_the_other_side_is_known() -> None:
    bench = paired()
    bench.now += 3
    assert not bench.hear(wire.make_who(key_of(REMOTE))), "it may be for another lane as well"
    assert len(bench.sent()) == 1


def test_a_changed_network() -> None:
    bench = paired()
    bench.now += 3
    bench.lane.show_again(bench.now)
    assert [show.cookie for show in bench.sent()] == [COOKIE]
    assert bench.hear(wire.make_cookie(ID, OTHER_COOKIE)), "the relay sees another address"
    assert [show.cookie for show in bench.sent()] == [OTHER_COOKIE]
    bench.tell(relay_wire.PAIRED)
    assert bench.lane.next_timer() == bench.now + SHOW_EVERY_S


def test_cookies_without_end_are_not_followed() -> None:
    bench = Bench()
    for number in range(100):
        bench.hear(wire.make_cookie(ID, b"%16d" % number))
        bench.hear(wire.make_cookie(ID, b"%16d" % number))
    shows = 0
    bench = Bench()
    for number in range(100):
        bench.hear(wire.make_cookie(ID, b"%16d" % number))
        shows += len(bench.sent())
    assert shows == 3


def test_leaving_is_said_once() -> None:
    bench = paired()
    bench.lane.leave()
    assert [(show.kind, show.cookie) for show in bench.sent()] == [(wire.LEAVE, COOKIE)]
    bench.lane.leave()
    assert (bench.sent(), bench.lane.next_timer()) == ([], None)
    assert not bench.hear(wire.make_state(ID, relay_wire.HERE))


def test_a_lane_that_never_had_a_cookie_just_goes() -> None:
    bench = Bench()
    bench.sent()
    bench.lane.leave()
    assert bench.sent() == []


def test_what_is_for_others_is_left_to_them() -> None:
    bench = Bench(COOKIE)
    bench.sent()
    state = wire.make_state(ID, relay_wire.PAIRED)
    for data, source in (
        (state, ("192.0.2.2", 3080)),
        (state, ("192.0.2.1", 3081)),
        (state, (*SPOT, 1)),
        (wire.make_state(key_of(REMOTE), relay_wire.BAD), SPOT),
        (wire.make_cookie(key_of(REMOTE), OTHER_COOKIE), SPOT),
        (wire.make_show(TOKEN, ID, COOKIE), SPOT),
        (state + b"!", SPOT),
        (b"KKLN", SPOT),
        (b"", SPOT),
    ):
        assert not bench.hear(data, source)
    assert (bench.lane.state, bench.sent()) == (LaneState.SHOWING, [])
    assert bench.lane.cookie == COOKIE
