from __future__ import annotations

import struct
from random import Random

import pytest

from kkp2p_compat.traversal.channel_data import HEADER_BYTES, unwrap_untrusted, wrap

CHANNEL = 0x4001


def message(channel: int, size: int, data: bytes) -> bytes:
    return struct.pack(">HH", channel, size) + data


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 250, 6400])
def test_each_datagram_gets_its_header(size: int) -> None:
    data = Random(1).randbytes(size)
    pieces = [data[start : start + 100] for start in range(0, size, 100)] or [b""]
    expected = b"".join(message(CHANNEL, len(piece), piece) for piece in pieces)
    assert wrap(CHANNEL, data, 100) == expected


@pytest.mark.parametrize("size", [1, 100, 200, 250, 6400])
def test_what_was_wrapped_is_unwrapped(size: int) -> None:
    data = Random(2).randbytes(size)
    found = list(unwrap_untrusted(wrap(CHANNEL, data, 100), 100 + HEADER_BYTES))
    assert b"".join(piece for _, piece, _ in found) == data
    assert {channel for channel, _, _ in found} == {CHANNEL}
    assert [size for _, _, size in found] == [100] * (size >= 100) + [size % 100] * (size % 100 > 0)


def test_channels_are_told_apart_and_stun_is_left_whole() -> None:
    stun = b"\x01\x03" + bytes(18)
    batch = message(CHANNEL, 16, b"a" * 16) + message(CHANNEL + 1, 16, b"b" * 16) + stun
    assert list(unwrap_untrusted(batch, 20)) == [
        (CHANNEL, b"a" * 16, 16),
        (CHANNEL + 1, b"b" * 16, 16),
        (0, stun, 20),
    ]


def test_padding_is_no_part_of_a_datagram() -> None:
    batch = message(CHANNEL, 5, b"hello" + bytes(3)) * 2
    assert list(unwrap_untrusted(batch, 12)) == [(CHANNEL, b"hello", 5)] * 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x40",
        b"\x40\x01\x00",
        message(CHANNEL, 17, b"a" * 16),
        message(0x3FFF, 4, b"data"),
        message(0x5000, 4, b"data"),
        message(0xFFFF, 4, b"data"),
    ],
)
def test_what_is_none_is_left_out(data: bytes) -> None:
    assert list(unwrap_untrusted(data, len(data))) == []


def test_a_datagram_that_says_another_length_is_not_joined() -> None:
    """The kernel has joined what is of one length on the wire; the server may say anything."""
    batch = message(CHANNEL, 16, b"a" * 16) + message(CHANNEL, 15, b"b" * 16)
    batch += message(CHANNEL, 60000, b"c" * 16) + message(CHANNEL, 3, b"ddd")
    assert list(unwrap_untrusted(batch, 20)) == [
        (CHANNEL, b"a" * 16, 16),
        (CHANNEL, b"b" * 15, 15),
        (CHANNEL, b"ddd", 3),
    ]
