"""The values of STUN's attributes; whole messages are in test_stun.py."""

from __future__ import annotations

import pytest

from kkp2p_compat._address import HostPort
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal.stun_values import (
    encode_address,
    encode_error,
    encode_plain_address,
    parse_address_untrusted,
    parse_error_untrusted,
)

ID = bytes.fromhex("b7e7a701 bc34d686 fa87dfae")


@pytest.mark.parametrize("address", [("192.0.2.1", 32853), ("2001:db8::1", 1)])
def test_a_hidden_address_is_told_only_with_the_transaction(address: HostPort) -> None:
    hidden = encode_address(address, ID)
    assert parse_address_untrusted(hidden, ID) == address
    assert parse_address_untrusted(hidden) != address
    assert parse_address_untrusted(encode_plain_address(address)) == address


def test_an_address_in_disguise() -> None:
    """IPv4 is never read as IPv6."""
    hidden = encode_address(("::ffff:192.0.2.1", 1), ID)
    assert parse_address_untrusted(hidden, ID) == ("192.0.2.1", 1)


@pytest.mark.parametrize("value", ["", "0002a1470113", "0001a14701", "00020001c0000201"])
def test_no_address(value: str) -> None:
    """Another length than either family has, or the one family with the other's length."""
    with pytest.raises(BadPacket):
        parse_address_untrusted(bytes.fromhex(value))


@pytest.mark.parametrize("code", [300, 420, 508, 699])
def test_an_error(code: int) -> None:
    assert parse_error_untrusted(encode_error(code) + b"a reason") == code


@pytest.mark.parametrize("value", [b"", bytes(3), b"\0\0\2\0", b"\0\0\4\x64"])
def test_no_error(value: bytes) -> None:
    with pytest.raises(BadPacket):
        parse_error_untrusted(value)
