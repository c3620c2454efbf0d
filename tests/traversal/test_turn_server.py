from __future__ import annotations

import pytest

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal.turn_server import (
    TurnServer,
    parse_turn_uri,
    parse_untrusted,
    time_limited,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("turn:example.org:5349", ("example.org", 5349)),
        ("turn:example.org", ("example.org", 3478)),
        ("turn:192.0.2.1:1", ("192.0.2.1", 1)),
        ("TURN:[2001:db8::1]:9", ("2001:db8::1", 9)),
    ],
)
def test_uris(text: str, address: tuple[str, int]) -> None:
    assert parse_turn_uri(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "turn",
        "turn:",
        "example.org:3478",
        "turns:example.org",
        "stun:example.org:3478",
        "turn:example.org:0",
        "turn:example.org:3478?transport=tcp",
        "turn:example.org:70000",
    ],
)
def test_what_is_no_uri(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not (turn:)?HOST:PORT"):
        parse_turn_uri(text)


def test_credentials() -> None:
    """The password: printf 2000000000:me | openssl dgst -sha1 -hmac secret -binary | base64"""
    assert time_limited(b"secret", "me", 2_000_000_000) == (
        "2000000000:me",
        "/4Si3KwCk5TSHfI29x63XVAcl80=",
    )


def test_a_field() -> None:
    field = ["turn.example.org", 3478, "2000000000:me", "x/+="]
    assert parse_untrusted(field) == TurnServer(*field)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "field",
    [
        None,
        [],
        {},
        "turn",
        ["h", 3478, "u"],
        ["h", 3478, "u", "p", 5],
        [None, 3478, "u", "p"],
        ["h", 0, "u", "p"],
        ["h", "3478", "u", "p"],
        ["h/", 3478, "u", "p"],
        ["h", 3478, "", "p"],
        ["h", 3478, "u", ""],
        ["h", 3478, "u" * 201, "p"],
        ["h", 3478, "u", "p" * 201],
        ["h", 3478, "u\n", "p"],
        ["h", 3478, "ü", "p"],
        ["h", 3478, 5, "p"],
        ["h", 3478, "u", None],
        ["h", True, "u", "p"],
        ["h", 3478, "a b", "p"],
    ],
)
def test_bad_fields(field: object) -> None:
    with pytest.raises(BadPacket):
        parse_untrusted(field)
