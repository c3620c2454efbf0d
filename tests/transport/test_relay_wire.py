"""Relay hellos and tokens: the layout, and what is refused with which status."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.transport import relay_wire as wire

KEY = b"k" * 32
SESSION = bytes(range(16))
NOW = 1_700_000_000
TOKEN = wire.make_token(KEY, SESSION, wire.CALLEE, NOW + 30)


def test_the_layout_is_that_of_the_protocol_document() -> None:
    body = bytes([1, 1]) + (NOW + 30).to_bytes(4, "big") + SESSION
    assert body + hmac.new(KEY, body, hashlib.sha256).digest() == TOKEN
    assert wire.hello(TOKEN) == b"KKRL\x02" + base64.urlsafe_b64encode(TOKEN)
    assert (wire.TOKEN_BYTES, wire.HELLO_BYTES) == (len(TOKEN), len(wire.hello(TOKEN))) == (54, 77)


@given(st.binary(min_size=54, max_size=54))
def test_no_token_makes_a_hello_that_holds_a_line(token: bytes) -> None:
    """Whoever named the relay chose the token, and something else may listen there."""
    assert re.fullmatch(rb"KKRL\x02[A-Za-z0-9_-]{72}", wire.hello(token))


def test_a_hello_of_the_version_before_is_taken() -> None:
    old = b"KKRL\x01" + TOKEN
    assert wire.parse_hello_untrusted(old) == (TOKEN, False)
    assert wire.is_whole_hello(old)
    assert not wire.is_whole_hello(old[:-1])
    assert not wire.is_whole_hello(wire.hello(TOKEN)[:-1])


def test_a_genuine_token_says_what_was_put_in() -> None:
    assert wire.parse_hello_untrusted(wire.hello(TOKEN)) == (TOKEN, False)
    assert wire.parse_hello_untrusted(wire.hello(TOKEN, True)) == (TOKEN, True)
    token = wire.verify_token_untrusted(KEY, TOKEN, NOW + 30)
    assert token == (SESSION, wire.CALLEE, NOW + 30)


def test_text_form_goes_there_and_back() -> None:
    text = wire.token_to_text(TOKEN)
    assert len(text) == 72
    assert "=" not in text
    assert wire.token_from_text_untrusted(text) == TOKEN


def _refusal(key: bytes, token: bytes, now: float = NOW) -> int:
    with pytest.raises(wire.TokenRefused) as caught:
        wire.verify_token_untrusted(key, token, now)
    assert str(caught.value) == wire.STATUS_TEXTS[caught.value.status]
    return caught.value.status


def test_expired() -> None:
    assert _refusal(KEY, TOKEN, NOW + 30.5) == wire.EXPIRED


def test_another_key() -> None:
    assert _refusal(b"x" * 32, TOKEN) == wire.BAD


@pytest.mark.parametrize("index", range(54))
def test_any_altered_byte_is_found(index: int) -> None:
    forged = bytearray(TOKEN)
    forged[index] ^= 1
    assert _refusal(KEY, bytes(forged)) == wire.BAD


@pytest.mark.parametrize(("version", "side"), [(2, 0), (1, 2), (0, 1)])
def test_a_signed_token_of_an_unknown_version_or_side(version: int, side: int) -> None:
    body = bytes([version, side]) + (NOW + 30).to_bytes(4, "big") + SESSION
    assert _refusal(KEY, body + hmac.new(KEY, body, hashlib.sha256).digest()) == wire.BAD


@pytest.mark.parametrize("length", [0, 1, 53, 55, 200])
def test_a_token_of_another_length(length: int) -> None:
    assert _refusal(KEY, (TOKEN * 4)[:length]) == wire.BAD
    with pytest.raises(ValueError, match="bytes, not 54"):
        wire.hello((TOKEN * 4)[:length])


def test_a_hello_with_another_magic_or_version() -> None:
    text = base64.urlsafe_b64encode(TOKEN)
    for head in (b"KKRL\x00", b"KKRL\x04", b"KKRX\x01", b"KKRX\x02", b"GET /"):
        for token in (TOKEN, text):
            with pytest.raises(wire.TokenRefused):
                wire.parse_hello_untrusted(head + token)
    for data in (
        b"KKRL\x01" + text,
        b"KKRL\x02" + TOKEN,
        b"KKRL\x03" + TOKEN,
        b"KKRL\x02" + text[:-1] + b"\n",
    ):
        with pytest.raises(wire.TokenRefused):
            wire.parse_hello_untrusted(data)


def test_a_receipt_is_of_one_session_and_no_token() -> None:
    receipt = wire.make_receipt(KEY, SESSION)
    assert wire.receipt_from_text_untrusted(wire.receipt_to_text(receipt)) == receipt
    assert receipt != wire.make_receipt(KEY, bytes(16))
    assert receipt != wire.make_receipt(b"another key", SESSION)
    assert receipt not in wire.make_token(KEY, SESSION, 0, NOW)


def test_make_token_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="session of 3 bytes"):
        wire.make_token(KEY, b"abc", 0, NOW)
    with pytest.raises(ValueError, match="side 2"):
        wire.make_token(KEY, SESSION, 2, NOW)


def test_an_unknown_status_has_a_text() -> None:
    assert wire.status_text(wire.USED) == "the token was used before"
    assert wire.status_text(77) == "unknown status 77"


@given(st.binary(max_size=120))
def test_strangers_bytes_raise_only_bad_packet(data: bytes) -> None:
    with pytest.raises(BadPacket):
        wire.verify_token_untrusted(KEY, data, NOW)
    with pytest.raises(BadPacket):
        wire.parse_hello_untrusted(data)


@given(st.one_of(st.text(max_size=100), st.none(), st.integers(), st.lists(st.text())))
def test_strangers_text_raises_only_bad_packet(value: object) -> None:
    with pytest.raises(BadPacket):
        wire.token_from_text_untrusted(value)
