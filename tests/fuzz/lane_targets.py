"""Lanes: what strangers send to the relay's UDP port, and what a false relay sends to a peer."""

from __future__ import annotations

from collections.abc import Iterator

from kkp2p_compat._address import Address
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.cloud.directory_local import LocalDirectory
from kkp2p_compat.cloud.lane_table import LaneTable
from kkp2p_compat.cloud.limits import Gatekeeper
from kkp2p_compat.cloud.settings import Limits
from kkp2p_compat.cloud.usage import Usage
from kkp2p_compat.transport import lane_wire, relay_wire
from kkp2p_compat.transport.udp.lane import MAX_COOKIES, LaneClient

__all__ = ["LANES", "LANE_ANSWERS", "fuzz_lane", "fuzz_lane_answers"]

KEY = b"k" * 32
UNIX = 1_700_000_000
PLACES: list[Address] = [
    ("198.51.100.1", 4000),
    ("203.0.113.2", 5000),
    ("2001:db8::3", 6000, 7),
    ("192.0.2.4", 0),
]
SESSIONS = 4
BYTES = 5000  # of a session
MAGIC_BYTES = len(lane_wire.MAGIC)


def pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """What to do, and with which bytes: a byte each for that and for their number, then they."""
    while len(data) >= 2:
        yield data[0], data[2 : 2 + data[1]]
        data = data[2 + data[1] :]


class Strangers:
    """They have tokens of some sessions, and see some of what is sent to them."""

    def __init__(self) -> None:
        limits = Limits(
            relay_sessions=3,
            relay_sessions_per_address=2,
            relay_session_bytes=BYTES,
            lane_per_s=1e6,
            lane_total_per_s=1e6,
        )
        self.now = 1000.0
        self.gate = Gatekeeper(limits)
        self.table = LaneTable(self.gate, KEY, Usage(KEY, LocalDirectory(None)), self.now)
        self.cookies: dict[Address, bytes] = {}  # that were sent to it
        self.carried = 0

    def step(self, how: int, body: bytes) -> None:
        place = PLACES[how & 3]
        if how & 12 == 0:
            self.hear(body if how & 16 else lane_wire.MAGIC + body, place)
        elif how & 12 == 4:
            self.hear(self.show(how, body, place), place)
        elif how & 12 == 8:
            target = self.table.route(place, body[1:9], body[0] if body else 0, self.now)
            assert target is None or target in self.cookies, "nobody has shown that it is there"
        else:
            self.now += how
            self.check(self.table.sweep(self.now, self.now - 1000 + UNIX), 0)

    def show(self, how: int, body: bytes, place: Address) -> bytes:
        """A genuine one, which the bytes then alter."""
        session, side, kind = (how >> 4) % SESSIONS, (how >> 6) & 1, body[:1]
        token = relay_wire.make_token(KEY, bytes([session]) * 16, side, UNIX + 100)
        cookie = self.cookies.get(place, lane_wire.NO_COOKIE)
        shown = lane_wire.make_show(
            token,
            body[1:9].ljust(8, b"i"),
            cookie,
            lane_wire.LEAVE if kind == b"L" else lane_wire.SHOW,
        )
        mask = body[9:]
        altered = bytes(a ^ b for a, b in zip(shown, mask, strict=False))
        return altered + shown[len(altered) :]

    def hear(self, data: bytes, place: Address) -> None:
        self.check(self.table.handle_untrusted(data, place, self.now, self.now - 1000 + UNIX), 1)
        who = self.table.who_untrusted(place, data[:8].ljust(8), self.now)
        assert who is None or len(who) < 32

    def check(self, answers: list[tuple[bytes, Address]], asked: int) -> None:
        if asked:
            assert sum(len(data) for data, _ in answers) < lane_wire.SHOW_BYTES, "amplified"
        for data, to in answers:
            answer = lane_wire.parse_answer_untrusted(data)
            assert to[1] != 0
            if answer.kind == lane_wire.COOKIE:
                self.cookies[to] = answer.cookie
            else:
                assert to in self.cookies, "a status for somebody who has proved nothing"
        assert self.table.sessions <= 3
        assert self.table.paired <= 3
        assert max(self.gate.lane_sessions.counts.values(), default=0) <= 2


def fuzz_lane(data: bytes) -> None:
    strangers = Strangers()
    for how, body in pieces(data):
        strangers.step(how, body)
    try:
        show = lane_wire.parse_show_untrusted(data)
        lane_wire.verify_show_untrusted(KEY, show)
    except BadPacket:
        return
    raise AssertionError("a token that nobody made")


def fuzz_lane_answers(data: bytes) -> None:
    """A relay, or whoever can send under its address, keeps a peer no busier than is agreed."""
    now, spot, local_id = 100.0, ("192.0.2.1", 3080), int.from_bytes(b"i" * 8, "big")
    token = relay_wire.make_token(KEY, bytes(16), relay_wire.CALLER, UNIX)
    lane = LaneClient(spot, token, local_id, now)
    shows, waited_s = 0, 0.0
    for how, body in pieces(data):
        head = lane_wire.MAGIC + bytes([how & 7]) + b"i" * 8
        lane.handle_datagram_untrusted(body if how & 8 else head + body, spot, now)
        deadline = lane.next_timer()
        if how & 16 and deadline is not None:
            waited_s += max(0.0, deadline - now)
            now = max(now, deadline)
            lane.handle_timer(now)
        while (transmit := lane.poll_transmit()) is not None:
            assert transmit[1] == spot
            show = lane_wire.parse_show_untrusted(transmit[0])
            assert lane_wire.verify_show_untrusted(KEY, show).session == bytes(16)
            shows += 1
    assert shows <= (1 + MAX_COOKIES) * (1 + waited_s / 0.1)


def piece(how: int, body: bytes = b"") -> bytes:
    return bytes([how, len(body)]) + body


def _shown(place: int, session: int, side: int, connection_id: bytes, kind: bytes = b"S") -> bytes:
    return piece(4 | place | session << 4 | side << 6, kind + connection_id)


_ID_A, _ID_B = b"a" * 8, b"b" * 8
_PAIRED = b"".join(
    _shown(side, 1, side, connection_id) * 2 for side, connection_id in ((0, _ID_A), (1, _ID_B))
)
LANES = [
    _PAIRED + piece(8, b"\xff" + _ID_B) * 30 + _shown(0, 1, 0, _ID_A),
    _PAIRED + _shown(2, 1, 1, _ID_B) * 2 + piece(8, b"\x20" + _ID_B) + piece(12) * 9,
    _PAIRED + _shown(0, 1, 0, _ID_A, b"L") + _shown(1, 1, 1, _ID_B, b"L"),
    _PAIRED + _shown(0, 2, 0, _ID_A) + _shown(1, 2, 1, _ID_B) + piece(0, b"\x01" + bytes(75)),
    piece(16, b"KKLN\x05") + piece(7, b"S" + _ID_A) * 2,
]
LANE_ANSWERS = [
    piece(2, b"a cookie of 16 B") + piece(3, b"\x06") + piece(19, b"\0" + bytes(16)) + piece(20),
    piece(16) * 7 + piece(3, b"\x04"),
    piece(4) * 5 + piece(2, b"a cookie of 16 B") + piece(2, b"b cookie of 16 B") + piece(8, b"KK"),
]
