"""Which packets a relay forwards by UDP: who is bound, for how long, and who never is."""

from __future__ import annotations

import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.usage_support import CountingDirectory, make_usage
from kkp2p_compat._address import Address
from kkp2p_compat.cloud.lane_table import (
    BINDING_S,
    COOKIE_EPOCH_S,
    SWEEPS,
    WHO_BURST,
    WHO_TOTAL_PER_S,
    LaneTable,
)
from kkp2p_compat.cloud.limits import Gatekeeper
from kkp2p_compat.cloud.settings import Limits
from kkp2p_compat.transport import lane_wire as wire
from kkp2p_compat.transport import relay_wire
from kkp2p_compat.transport.relay_wire import CALLEE, CALLER

KEY = b"k" * 32
UNIX = 1_700_000_000.0
EXPIRY = int(UNIX) + 40
A, A2, B, B2 = (
    ("198.51.100.1", 4001),
    ("198.51.100.7", 4002),
    ("203.0.113.2", 5001),
    ("203.0.113.9", 5002),
)
ID_A, ID_B = b"a" * 8, b"b" * 8


class World:
    """A table and its clocks."""

    def __init__(self, **limits: object) -> None:
        self.now = 1000.0
        self.gate = Gatekeeper(Limits(**limits))  # type: ignore[arg-type]
        self.directory = CountingDirectory()
        self.usage = make_usage(KEY, self.directory)
        self.table = LaneTable(self.gate, KEY, self.usage, self.now)

    @property
    def unix_now(self) -> float:
        return UNIX + self.now - 1000.0

    def hear(self, data: bytes, source: Address) -> list[tuple[wire.Answer, Address]]:
        answers = self.table.handle_untrusted(data, source, self.now, self.unix_now)
        return [(wire.parse_answer_untrusted(data), to) for data, to in answers]

    def show(
        self,
        side: int,
        source: Address,
        connection_id: bytes = b"",
        session: int = 1,
        kind: int = wire.SHOW,
        cookie: bytes | None = None,
    ) -> list[tuple[wire.Answer, Address]]:
        """What is answered to a side that has its cookie."""
        connection_id = connection_id or (ID_A, ID_B)[side]
        token = relay_wire.make_token(KEY, bytes([session]) * 16, side, EXPIRY)
        if cookie is None:
            ((answer, to),) = self.hear(
                wire.make_show(token, connection_id, wire.NO_COOKIE, kind), source
            )
            assert (answer.kind, to) == (wire.COOKIE, source)
            cookie = answer.cookie
        return self.hear(wire.make_show(token, connection_id, cookie, kind), source)

    def statuses(
        self, side: int, source: Address, connection_id: bytes = b"", session: int = 1
    ) -> list[tuple[int, Address]]:
        answers = self.show(side, source, connection_id, session)
        assert all(answer.kind == wire.STATE for answer, _ in answers)
        return [(answer.status, to) for answer, to in answers]

    def pair(self, session: int = 1, a: Address = A, b: Address = B) -> None:
        id_a, id_b = bytes([session]) * 8, bytes([session + 100]) * 8
        assert self.statuses(CALLEE, b, id_b, session) == [(relay_wire.HERE, b)]
        paired = [(relay_wire.PAIRED, a), (relay_wire.PAIRED, b)]
        assert self.statuses(CALLER, a, id_a, session) == paired

    def route(self, source: Address, connection_id: bytes, size: int = 100) -> Address | None:
        return self.table.route(source, connection_id, size, self.now)

    def sweep(self) -> list[tuple[wire.Answer, Address]]:
        """As often as every session needs to be looked at."""
        answers = [
            each for _ in range(SWEEPS) for each in self.table.sweep(self.now, self.unix_now)
        ]
        return [(wire.parse_answer_untrusted(data), to) for data, to in answers]


HERE_A, HERE_B = [(relay_wire.HERE, A)], [(relay_wire.HERE, B)]


# As it is meant.


@pytest.mark.parametrize("first", [CALLER, CALLEE])
def test_two_sides(first: int) -> None:
    world = World()
    places = {CALLER: A, CALLEE: B}
    assert world.statuses(first, places[first]) == [(relay_wire.HERE, places[first])]
    assert world.route(A, ID_B) is None
    assert world.route(B, ID_A) is None
    paired = [(relay_wire.PAIRED, places[1 - first]), (relay_wire.PAIRED, places[first])]
    assert world.statuses(1 - first, places[1 - first]) == paired
    assert world.route(A, ID_B) == B
    assert world.route(B, ID_A) == A
    assert (world.table.sessions, world.table.paired) == (1, 1)
    assert world.statuses(first, places[first]) == [paired[1]], "only who asks is told again"


def test_the_receipt_is_the_one_that_the_track_knows() -> None:
    answers = World().show(CALLER, A)
    assert answers[0][0].receipt == relay_wire.make_receipt(KEY, bytes([1]) * 16)


def test_both_sides_behind_one_address() -> None:
    world = World()
    world.statuses(CALLER, A)
    assert world.statuses(CALLEE, A) == [(relay_wire.PAIRED, A), (relay_wire.PAIRED, A)]
    assert world.route(A, ID_A) == world.route(A, ID_B) == A


def test_by_which_of_our_addresses_a_side_came_is_part_of_where_it_is() -> None:
    world = World()
    homed: Address = (*A, 7)
    world.statuses(CALLER, homed)
    world.statuses(CALLEE, B)
    assert world.route(B, ID_A) == homed
    assert world.route(A, ID_B) is None


def test_a_side_moves() -> None:
    """A NAT has forgotten its mapping, or the network has changed."""
    world = World()
    world.statuses(CALLER, A)
    world.statuses(CALLEE, B)
    assert world.statuses(CALLEE, B2) == [(relay_wire.PAIRED, B2), (relay_wire.PAIRED, A)]
    assert world.route(A, ID_B) == B2
    assert world.route(B2, ID_A) == A
    assert world.route(B, ID_A) is None
    assert world.statuses(CALLER, A2) == [(relay_wire.PAIRED, A2), (relay_wire.PAIRED, B2)]
    assert (world.route(B2, ID_A), world.route(A, ID_B)) == (A2, None)
    assert world.table.paired == 1


def test_a_side_moves_after_its_token_has_expired() -> None:
    world = World()
    world.statuses(CALLER, A)
    world.statuses(CALLEE, B)
    while world.unix_now <= EXPIRY + 2 * BINDING_S:
        world.now += BINDING_S / 2
        assert world.route(A, ID_B) == B
        assert world.route(B, ID_A) == A
        assert world.sweep() == []
    assert world.statuses(CALLER, A2)[0] == (relay_wire.PAIRED, A2)
    assert world.route(B, ID_A) == A2


def test_a_side_has_another_connection() -> None:
    world = World()
    world.statuses(CALLER, A)
    world.statuses(CALLEE, B)
    assert world.statuses(CALLER, A, b"another.")[0] == (relay_wire.PAIRED, A)
    assert world.route(B, b"another.") == A
    assert world.route(B, ID_A) is None


def test_a_side_leaves_and_comes_back() -> None:
    world = World()
    world.statuses(CALLER, A)
    world.statuses(CALLEE, B)
    ((answer, to),) = world.show(CALLEE, B, kind=wire.LEAVE)
    assert (answer.status, answer.connection_id, to) == (relay_wire.HERE, ID_A, A)
    assert world.route(A, ID_B) is None
    assert world.show(CALLEE, B, kind=wire.LEAVE) == []
    assert world.statuses(CALLEE, B2) == [(relay_wire.PAIRED, B2), (relay_wire.PAIRED, A)]
    for side, place in ((CALLEE, B2), (CALLER, A)):
        world.show(side, place, kind=wire.LEAVE)
    assert (world.table.sessions, world.table.paired) == (0, 0)
    assert world.show(CALLER, A, kind=wire.LEAVE) == []


def test_what_is_said_when_the_relay_closes() -> None:
    world = World()
    world.statuses(CALLER, A)
    world.statuses(CALLEE, B)
    told = [(wire.parse_answer_untrusted(data), to) for data, to in world.table.close()]
    assert [(answer.status, to) for answer, to in told] == [
        (relay_wire.CLOSING, A),
        (relay_wire.CLOSING, B),
    ]
    assert world.route(A, ID_B) == B, "until they are elsewhere"
    assert world.statuses(CALLEE, B2)[0] == (relay_wire.PAIRED, B2)
    assert world.statuses(CALLER, A, session=2) == [(relay_wire.CLOSING, A)]


# Time.


def test_a_binding_that_is_not_used_ends() -> None:
    world = World()
    world.statuses(CALLER, A)
    world.statuses(CALLEE, B)
    world.now += BINDING_S / 2
    assert world.route(A, ID_B) == B
    world.now += BINDING_S / 2 + 1
    ((answer, to),) = world.sweep()
    assert (answer.status, answer.connection_id, to) == (relay_wire.HERE, ID_A, A)
    assert world.route(A, ID_B) is None, "a packet keeps its sender's side alive only"
    world.now += BINDING_S
    assert world.sweep() == []
    assert world.table.sessions == 0
    assert not world.gate.lane_sessions.counts + world.gate.lane_callees.counts


def test_a_token_that_has_expired_binds_nobody() -> None:
    world = World()
    world.statuses(CALLER, A)
    world.now += EXPIRY - UNIX + 1
    assert world.statuses(CALLEE, B) == [(relay_wire.EXPIRED, B)], "it was not bound itself"
    assert world.statuses(CALLER, A2) == [(relay_wire.HERE, A2)]
    world.now += BINDING_S + 1
    world.sweep()
    assert world.statuses(CALLER, A2) == [(relay_wire.EXPIRED, A2)]


def test_a_cookie_is_good_for_a_while() -> None:
    world = World()
    world.now = COOKIE_EPOCH_S * 10
    first = world.table.make_cookie(A, world.now)
    world.now += COOKIE_EPOCH_S
    token = relay_wire.make_token(KEY, bytes(16), CALLER, 2**32 - 1)
    show = wire.make_show(token, ID_A, first)
    assert world.hear(show, A)[0][0].status == relay_wire.HERE
    world.now += COOKIE_EPOCH_S
    assert world.hear(show, A)[0][0].kind == wire.COOKIE
    assert world.table.sessions == 1, "it stays where it is meanwhile"


# Those who are not meant.


def test_a_cookie_is_of_one_address_and_one_relay() -> None:
    world, other = World(), World()
    cookie = world.table.make_cookie(A, world.now)
    for source in (A2, (A[0], A[1] + 1), (*A, 1)):
        assert world.show(CALLER, source, cookie=cookie)[0][0].kind == wire.COOKIE
    assert other.show(CALLER, A, cookie=cookie)[0][0].kind == wire.COOKIE
    assert world.show(CALLER, A, cookie=wire.NO_COOKIE)[0][0].kind == wire.COOKIE
    assert world.table.sessions == other.table.sessions == 0


def test_a_third_party_is_never_a_target() -> None:
    """Somebody with two good tokens writes a victim's address into what it sends."""
    world, victim = World(), ("192.0.2.200", 53)
    world.statuses(CALLER, A)
    own_cookie = world.table.make_cookie(A, world.now)
    to_victim = 0
    for cookie in (wire.NO_COOKIE, own_cookie, random.Random(1).randbytes(16)):
        for answer, to in world.show(CALLEE, victim, cookie=cookie):
            assert (answer.kind, to) == (wire.COOKIE, victim)
            to_victim += 1
    assert world.route(A, ID_B) is None
    assert to_victim == 3, "one short answer to each, and nothing that was meant for it"


def test_who_overhears_cannot_take_a_side_over() -> None:
    """It has seen all that the callee has sent, and may send from its own address and others."""
    world, thief = World(), ("192.0.2.66", 666)
    world.statuses(CALLER, A)
    token = relay_wire.make_token(KEY, bytes([1]) * 16, CALLEE, EXPIRY)
    cookie = world.table.make_cookie(B, world.now)
    overheard = wire.make_show(token, ID_B, cookie)
    assert world.hear(overheard, B)[0][0].status == relay_wire.PAIRED
    assert world.hear(overheard, thief)[0][0].kind == wire.COOKIE
    own = world.table.make_cookie(thief, world.now)
    moved = overheard[:13] + own + overheard[29:]
    assert world.hear(moved, thief)[0][0].status == relay_wire.BAD
    leave = overheard[:4] + bytes([wire.LEAVE]) + overheard[5:]
    assert world.hear(leave, B)[0][0].status == relay_wire.BAD
    assert world.hear(overheard, B)[0][0].status == relay_wire.PAIRED, "repeated: all as it is"
    assert (world.route(A, ID_B), world.route(B, ID_A)) == (B, A)
    assert world.route(thief, ID_A) is None


def test_forged_tokens() -> None:
    world = World()
    cookie = world.table.make_cookie(A, world.now)
    genuine = relay_wire.make_token(KEY, bytes(16), CALLER, EXPIRY)
    for token in (
        relay_wire.make_token(b"another key of a relay", bytes(16), CALLER, EXPIRY),
        bytes([genuine[0], CALLEE]) + genuine[2:],
        genuine[:2] + b"\xff\xff\xff\xff" + genuine[6:],
        bytes(54),
    ):
        ((answer, to),) = world.hear(wire.make_show(token, ID_A, cookie), A)
        assert (answer.status, to) == (relay_wire.BAD, A)
    assert world.table.sessions == 0


def test_a_session_cannot_take_the_packets_of_another() -> None:
    """Two peers of A, one of whom says that it has the other's connection id."""
    world = World()
    world.statuses(CALLER, A)
    world.statuses(CALLEE, B)
    world.statuses(CALLER, A, b"to thief", session=2)
    assert world.statuses(CALLEE, B2, ID_B, session=2) == [(relay_wire.BAD, B2)]
    assert world.statuses(CALLEE, B2, b"the thief's"[:8], session=2)[0][0] == relay_wire.PAIRED
    assert world.statuses(CALLEE, B2, ID_B, session=2) == [(relay_wire.BAD, B2)]
    assert world.route(A, ID_B) == B
    assert world.route(A, b"the thie") == B2


@pytest.mark.parametrize("source", [A, A2])
def test_another_call_for_the_same_connection(source: Address) -> None:
    """The two look for new paths: the new session takes the place of the old one."""
    world = World()
    world.statuses(CALLER, A)
    world.statuses(CALLEE, B)
    assert world.statuses(CALLER, source, session=2) == [(relay_wire.HERE, source)]
    paired = [(relay_wire.PAIRED, B), (relay_wire.PAIRED, source)]
    assert world.statuses(CALLEE, B, session=2) == paired
    assert (world.route(source, ID_B), world.route(B, ID_A)) == (B, source)
    assert world.table.sessions == world.table.paired == 1
    world.show(CALLER, A, kind=wire.LEAVE)  # of the old one: it is over
    assert world.route(source, ID_B) == B
    assert source == A or world.route(A, ID_B) is None


def test_two_sides_with_all_the_same() -> None:
    world = World()
    world.statuses(CALLER, A, ID_A)
    assert world.statuses(CALLEE, A, ID_A) == [(relay_wire.BAD, A)]


@pytest.mark.parametrize(
    "source", [("255.255.255.255", 5), ("224.0.0.1", 5), ("0.0.0.0", 5), ("192.0.2.1", 0)]
)
def test_nobody_to_answer(source: Address) -> None:
    world = World()
    token = relay_wire.make_token(KEY, bytes(16), CALLER, EXPIRY)
    cookie = world.table.make_cookie(source, world.now)
    assert world.hear(wire.make_show(token, ID_A, cookie), source) == []
    assert world.table.who_untrusted(source, ID_A, world.now) is None


def test_a_relay_takes_nothing_from_another() -> None:
    """So two relays, each made to believe that it serves the other, cannot keep each other busy."""
    world = World()
    for data in (
        wire.make_cookie(ID_A, bytes(16)),
        wire.make_state(ID_A, 0),
        wire.make_state(ID_A, 0, A16),
        wire.make_who(ID_A),
        b"KKLN",
        b"",
    ):
        assert world.hear(data, A) == []
    assert world.table.counts.total() == 6


A16 = b"receipt of 16 By"


# Limits.


def test_packets_of_nobody_get_few_answers() -> None:
    world = World()
    answers = [world.table.who_untrusted(A, ID_B, world.now) for _ in range(100)]
    assert len([each for each in answers if each]) == WHO_BURST
    assert answers[0] == wire.make_who(ID_B)
    hosts = [f"198.{one}.{two}.9" for one in range(18, 60) for two in range(100)]
    answers = [world.table.who_untrusted((host, 9), ID_B, world.now) for host in hosts]
    assert len([each for each in answers if each]) == WHO_TOTAL_PER_S - WHO_BURST


def test_shows_of_an_address_are_limited() -> None:
    world = World(lane_per_s=10.0, burst_s=2.0)
    for _ in range(30):
        world.hear(wire.make_who(ID_A), A)
    assert world.table.counts["over the limit of an address"] == 10
    assert world.statuses(CALLER, A2) == [(relay_wire.HERE, A2)], "others are not held up"
    world.now += 1
    assert world.statuses(CALLER, A) == [(relay_wire.HERE, A)]


def test_a_flood_from_forged_addresses_is_limited_and_harms_nobody_who_is_bound() -> None:
    world = World(lane_total_per_s=5.0)
    world.statuses(CALLER, A)
    cookie = world.table.make_cookie(A, world.now)
    token = relay_wire.make_token(KEY, bytes(16), CALLER, EXPIRY)
    show = wire.make_show(token, ID_A, wire.NO_COOKIE)
    answered = sum(len(world.hear(show, (f"192.0.2.{low}", 9))) for low in range(1, 200))
    assert answered == 4
    assert world.show(CALLER, A, cookie=cookie)[0][0].status == relay_wire.HERE
    assert world.show(CALLER, A2, cookie=world.table.make_cookie(A2, world.now)) != []


def test_sessions_in_all() -> None:
    world = World(relay_sessions=2)
    world.statuses(CALLER, A, session=1)
    world.statuses(CALLER, A, session=2)
    assert world.statuses(CALLER, A, session=3) == [(relay_wire.LIMIT, A)]
    assert world.statuses(CALLEE, B, session=2)[0] == (relay_wire.PAIRED, B)
    world.show(CALLER, A, kind=wire.LEAVE)
    assert world.statuses(CALLER, A, session=3) == HERE_A


def test_sessions_of_an_address() -> None:
    """A callee's count only while it waits, or others could use up the limit of its address."""
    world = World(relay_sessions_per_address=2)
    for session in (1, 2):
        world.pair(session)
    assert world.statuses(CALLER, A, session=3) == [(relay_wire.LIMIT, A)]
    for session in (4, 5):
        assert world.statuses(CALLEE, B, bytes(8), session) == HERE_B
    assert world.statuses(CALLEE, B, bytes(8), 6) == [(relay_wire.LIMIT, B)]
    assert world.statuses(CALLER, A2, session=4)[0] == (relay_wire.PAIRED, A2)
    assert world.statuses(CALLEE, B, bytes(7) + b"6", 6) == HERE_B
    assert world.statuses(CALLER, A, bytes([1]) * 8, 1)[0] == (relay_wire.PAIRED, A), "it has it"
    assert world.statuses(CALLER, A, bytes(8), 4) == [(relay_wire.LIMIT, A)], "nor by moving there"
    assert world.gate.lane_sessions.counts[A[0]] == 2


def test_a_session_has_so_many_bytes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World(relay_session_bytes=1000)
    world.statuses(CALLER, A)
    world.statuses(CALLEE, B)
    assert world.route(A, ID_B, 600) == B
    assert world.statuses(CALLEE, B2)[0] == (relay_wire.PAIRED, B2), "what it has used stays used"
    assert world.route(B2, ID_A, 400) == A
    assert world.route(A, ID_B, 1) is None
    assert world.route(A, ID_B, 1) is None
    assert world.table.sessions == 0
    assert world.statuses(CALLER, A) == [(relay_wire.LIMIT, A)]
    assert f"lane of {A[0]} and {B2[0]}: 601 and 400 bytes" in caplog.text
    assert "ended: over 1000 bytes" in caplog.text
    world.now += EXPIRY - UNIX + 1
    world.sweep()
    assert world.statuses(CALLER, A) == [(relay_wire.EXPIRED, A)]


def test_leaving_gives_no_bytes_back() -> None:
    world = World(relay_session_bytes=1000)
    for _ in range(2):
        world.pair()
        assert world.route(A, bytes([101]) * 8, 500) == B
        for side, place in ((CALLER, A), (CALLEE, B)):
            world.show(side, place, kind=wire.LEAVE)
    world.pair()
    assert world.route(A, bytes([101]) * 8, 1) is None


def test_loopback_is_counted_only_if_that_is_wanted() -> None:
    here = ("127.0.0.1", 4000)
    for limit, status in ((False, relay_wire.HERE), (True, relay_wire.LIMIT)):
        world = World(relay_sessions_per_address=1, limit_loopback=limit)
        world.statuses(CALLER, here, session=1)
        assert world.statuses(CALLER, here, session=2) == [(status, here)]


# Anything, in any order.

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["show", "leave", "packet", "wait", "junk"]),
        st.integers(1, 3),
        st.sampled_from([CALLER, CALLEE]),
        st.integers(0, 3),
        st.integers(0, 2),
    ),
    max_size=60,
)


@given(STEPS)
def test_any_order_of_events(steps: list[tuple[str, int, int, int, int]]) -> None:
    """Packets go to nobody but the side that was bound last, and nothing is left in the end."""
    world = World(relay_sessions=3, relay_sessions_per_address=2, lane_total_per_s=1e6)
    places = (A, A2, B, B2)
    last: dict[tuple[int, int], Address] = {}
    for what, session, side, place, number in steps:
        connection_id = bytes([session, side, number]).ljust(8)
        if what in ("show", "leave"):
            kind = wire.SHOW if what == "show" else wire.LEAVE
            answers = world.show(side, places[place], connection_id, session, kind)
            if what == "leave":
                last.pop((session, side), None)
            elif answers[0][0].status in (relay_wire.HERE, relay_wire.PAIRED):
                last[session, side] = places[place]
        elif what == "packet":
            target = world.route(places[place], connection_id)
            assert target is None or target == last[session, side]
        elif what == "junk":
            world.hear(b"KKLN" + bytes([side, place, number]) * 10, places[place])
        else:
            world.now += number * 20
            world.sweep()
        assert world.table.sessions <= 3
    world.now += BINDING_S + 1
    world.sweep()
    world.sweep()
    assert (world.table.sessions, world.table.paired) == (0, 0)
    assert not world.gate.lane_sessions.counts + world.gate.lane_callees.counts
