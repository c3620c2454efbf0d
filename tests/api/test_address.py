"""Hosts and ports, as the command line, engine_conf_t and the cloud have them."""

from __future__ import annotations

import pytest

from kkp2p_compat._address import Address, HostPort, host_port_untrusted, parse_host_port, text_of
from kkp2p_compat._errors import BadPacket

DEFAULT = 9


@pytest.mark.parametrize(
    ("text", "expected", "by_default"),
    [
        ("192.0.2.1:1", ("192.0.2.1", 1), ("192.0.2.1", 1)),
        ("cloud.example:65535", ("cloud.example", 65535), ("cloud.example", 65535)),
        ("[2001:db8::1]:3080", ("2001:db8::1", 3080), ("2001:db8::1", 3080)),
        ("192.0.2.1|192.0.2.2:3080", ("192.0.2.1|192.0.2.2", 3080), None),
        ("cloud.example", None, ("cloud.example", DEFAULT)),
        ("192.0.2.1", None, ("192.0.2.1", DEFAULT)),
        ("[2001:db8::1]", None, ("2001:db8::1", DEFAULT)),
        ("2001:db8::1", None, ("2001:db8::1", DEFAULT)),
        ("2001:db8::1:3080", None, ("2001:db8::1:3080", DEFAULT)),
        ("3080", None, ("3080", DEFAULT)),
    ],
)
def test_host_and_port(text: str, expected: HostPort | None, by_default: HostPort | None) -> None:
    for default, result in ((None, expected), (DEFAULT, by_default or expected)):
        if result is None:
            with pytest.raises(ValueError, match="is not HOST:PORT"):
                parse_host_port(text, default=default)
        else:
            assert parse_host_port(text, default=default) == result


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":3080",
        "host:",
        "host:x",
        "host:0",
        "host:65536",
        "host:-1",
        "host:+1",
        "host:\u0661",
        f"host:{'1' * 6000}",
        "host:1:2",
        "[]:1",
        "[]",
        "[host]:1",
        "[192.0.2.1]:1",
        "[::1",
        "::1]:1",
        "[::1]1",
        "[::1]:",
        "[[::1]]:1",
        "host[::1]:1",
    ],
)
def test_neither(text: str) -> None:
    for default in (None, DEFAULT):
        with pytest.raises(ValueError, match="is not HOST:PORT") as caught:
            parse_host_port(text, default=default)
        assert len(str(caught.value)) < 200


def test_any_port() -> None:
    assert parse_host_port("[::]:0", lowest=0) == ("::", 0)
    for text in ("relay.example", "192.0.2.1", "[2001:db8::1]", "2001:db8::1"):
        assert parse_host_port(text, default=0) == (text.strip("[]"), 0)  # none was given
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_host_port("relay.example:0", default=0)
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        parse_host_port("host:65536", lowest=0)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        (None, 1),
        (7, 1),
        ("", 1),
        ("a b", 1),
        ("a\n", 1),
        ("x" * 254, 1),
        ("\u00e4", 1),
        ("a", 0),
        ("a", 65536),
        ("a", -1),
        ("a", "1"),
        ("a", 1.0),
        ("a", True),
        ("a", None),
    ],
)
def test_what_is_no_address_in_json(host: object, port: object) -> None:
    with pytest.raises(BadPacket):
        host_port_untrusted(host, port)


def test_an_address_in_json() -> None:
    assert host_port_untrusted("fe80::1%eth0", 65535) == ("fe80::1%eth0", 65535)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 1), "192.0.2.1:1"),
        (("2001:db8::1", 2), "[2001:db8::1]:2"),
        (("192.0.2.1", 1, 7), "192.0.2.1:1 by socket 7"),
    ],
)
def test_in_words(address: Address, text: str) -> None:
    assert text_of(address) == text
