"""A lane's datagrams: the layout, what is proved by them, and what is refused."""

from __future__ import annotations

import base64
import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.transport import lane_wire as wire
from kkp2p_compat.transport import relay_wire

KEY = b"k" * 32
SESSION = bytes(range(16))
NOW = 1_700_000_000
TOKEN = relay_wire.make_token(KEY, SESSION, relay_wire.CALLEE, NOW)
ID = b"ID of 8B"
COOKIE = b"a cookie of 16 B"


def test_the_layout_is_that_of_the_protocol_document() -> None:
    body, mac = TOKEN[:22], TOKEN[22:]
    head = b"KKLN\x01" + ID
    proof = hmac.digest(mac, head + COOKIE, "sha256")[:16]
    text = base64.urlsafe_b64encode(body + proof).rstrip(b"=")
    assert wire.make_show(TOKEN, ID, COOKIE) == head + COOKIE + text
    assert len(head + COOKIE + text) == wire.SHOW_BYTES == 80
    assert wire.make_cookie(ID, COOKIE) == b"KKLN\x02" + ID + COOKIE
    assert wire.make_state(ID, 6) == b"KKLN\x03" + ID + b"\x06"
    assert wire.make_state(ID, 0, COOKIE) == b"KKLN\x03" + ID + b"\x00" + COOKIE
    assert wire.make_who(ID) == b"KKLN\x04" + ID
    assert wire.make_show(TOKEN, ID, COOKIE, wire.LEAVE).startswith(b"KKLN\x05" + ID + COOKIE)


@pytest.mark.parametrize("kind", [wire.SHOW, wire.LEAVE])
@pytest.mark.parametrize("side", [relay_wire.CALLER, relay_wire.CALLEE])
def test_what_is_shown_is_what_the_token_says(kind: int, side: int) -> None:
    token = relay_wire.make_token(KEY, SESSION, side, NOW)
    show = wire.parse_show_untrusted(wire.make_show(token, ID, COOKIE, kind))
    assert show[:3] == (kind, ID, COOKIE)
    assert wire.verify_show_untrusted(KEY, show) == (SESSION, side, NOW)


def test_what_is_overheard_makes_no_other_show() -> None:
    """The token's own MAC is not in it, so nothing in it can be exchanged for something else."""
    data = wire.make_show(TOKEN, ID, COOKIE)
    assert TOKEN[22:38] not in base64.urlsafe_b64decode(data[29:] + b"=")
    show = wire.parse_show_untrusted(data)
    for other in (
        show._replace(kind=wire.LEAVE),
        show._replace(connection_id=b"another."),
        show._replace(cookie=b"another cookie.."),
        show._replace(body=relay_wire.make_token(KEY, SESSION, relay_wire.CALLER, NOW)[:22]),
        show._replace(proof=show.proof[:-1] + bytes([show.proof[-1] ^ 1])),
    ):
        with pytest.raises(relay_wire.TokenRefused):
            wire.verify_show_untrusted(KEY, other)
    with pytest.raises(relay_wire.TokenRefused):
        wire.verify_show_untrusted(b"another key of a relay", show)


@pytest.mark.parametrize("version_and_side", [b"\x02\x00", b"\x01\x02", b"\x00\x00"])
def test_a_genuine_token_of_another_kind_is_refused(version_and_side: bytes) -> None:
    body = version_and_side + TOKEN[2:22]
    show = wire.make_show(body + relay_wire.mac_of(KEY, body), ID, COOKIE)
    with pytest.raises(relay_wire.TokenRefused):
        wire.verify_show_untrusted(KEY, wire.parse_show_untrusted(show))


@given(st.binary(min_size=54, max_size=54))
def test_no_token_makes_a_show_that_holds_a_line(token: bytes) -> None:
    """Whoever named the relay chose the token, and something else may listen there."""
    data = wire.make_show(token, ID, wire.NO_COOKIE)
    assert re.fullmatch(rb"KKLN\x01.{8}\x00{16}[A-Za-z0-9_-]{51}", data, re.DOTALL)


def test_each_answer_is_shorter_than_what_it_answers() -> None:
    receipt = relay_wire.make_receipt(KEY, SESSION)
    longest = max(wire.make_state(ID, 0, receipt), wire.make_cookie(ID, COOKIE), key=len)
    assert len(longest) < wire.SHOW_BYTES
    assert len(wire.make_who(ID)) < 32, "a packet has 32 bytes"


ANSWERS = [
    (wire.make_cookie(ID, COOKIE), (wire.COOKIE, ID, COOKIE, 0, b"")),
    (wire.make_state(ID, 6), (wire.STATE, ID, b"", 6, b"")),
    (wire.make_state(ID, 0, COOKIE), (wire.STATE, ID, b"", 0, COOKIE)),
    (wire.make_who(ID), (wire.WHO, ID, b"", 0, b"")),
]


@pytest.mark.parametrize(("data", "answer"), ANSWERS)
def test_answers_whole_cut_and_with_more_behind(data: bytes, answer: wire.Answer) -> None:
    assert wire.parse_answer_untrusted(data) == answer
    for wrong in [data[:size] for size in range(len(data))] + [data + b"!", data + data]:
        if wrong == wire.make_state(ID, 0):
            continue  # a receipt may be missing
        with pytest.raises(BadPacket):
            wire.parse_answer_untrusted(wrong)
    with pytest.raises(BadPacket):
        wire.parse_show_untrusted(data)


def test_shows_cut_and_with_more_behind() -> None:
    data = wire.make_show(TOKEN, ID, COOKIE)
    wrongs = [data[:size] for size in range(len(data))]
    wrongs += [data + b"!", data[:-1] + b"=", data[:-1] + b"\xff", b"KKRL" + data[4:]]
    for wrong in wrongs:
        with pytest.raises(BadPacket):
            wire.parse_show_untrusted(wrong)
    with pytest.raises(BadPacket):
        wire.parse_answer_untrusted(data)
