"""The frames in a packet: the layouts are those of docs/protocol.rst, "Frames".

A frame is a type byte and fixed fields, big-endian; the names and meanings are QUIC's (RFC 9000
section 19, RFC 9221).  ``parse_untrusted`` takes a whole plaintext or raises BadPacket: an unknown
type, a frame cut short or a field out of its range.  What a frame means for the connection (a
limit, an unknown stream, a number never sent) is for the connection to judge.

Frames are tuples, and the constants are public, because a bulk transfer is a hundred thousand
STREAM frames a second, which connection and packer read and write without the functions here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

from ..._codes import MAX_PEER_ID
from ..._errors import BadPacket
from .ranges import RangeSet

# Frame types.
PADDING = 0x00
PING = 0x01
ACK = 0x02
OPEN = 0x03
OPENED = 0x04
REFUSED = 0x05
RESET = 0x06
STOP = 0x07
STREAM = 0x08  # its data reaches to the end of the packet
STREAM_FIN = 0x09
STREAM_SIZED = 0x0A  # its data has a length
STREAM_SIZED_FIN = 0x0B
DATAGRAM = 0x0C
MAX_DATA = 0x10
MAX_STREAM_DATA = 0x11
PATH_CHALLENGE = 0x12
PATH_RESPONSE = 0x13
CLOSE = 0x14
PROOF = 0x15

STREAM_HEADER = struct.Struct(">BIQ")  # type, stream, offset
STREAM_SIZED_HEADER = struct.Struct(">BIQH")  # and the bytes of data
DATAGRAM_HEADER = struct.Struct(">BIIHHH")  # type, stream, message, part, parts, bytes of data
ACK_HEADER = struct.Struct(">BQIIB")  # type, largest, delay in us, first, number of gaps

ACK_GAP_BYTES = 8
MAX_ACK_GAPS = 64  # our choice: 530 bytes, half of the smallest packet
MAX_ACK_BYTES = ACK_HEADER.size + MAX_ACK_GAPS * ACK_GAP_BYTES
MAX_CLOSE_REASON_BYTES = 255
TOKEN_BYTES = 8  # of a path challenge; RFC 9000 section 19.17
_ABOUT_PATH = (bytes([PATH_CHALLENGE]), bytes([PATH_RESPONSE]))

_U32_MAX = (1 << 32) - 1
_CLOSE_HEADER = struct.Struct(">BBB")


class Ping(NamedTuple):
    """Asks for an acknowledgement."""


class Ack(NamedTuple):
    """Packets that arrived."""

    largest: int
    delay_s: float  # from the arrival of the largest to this frame
    ranges: list[tuple[int, int]]  # [start, stop) of packet numbers, descending, at least one


class Open(NamedTuple):
    """The sender opens a channel."""

    stream: int
    channel_type: int  # 0 to 255
    encrypt_data: int  # 0 or 1
    desc: int  # connect_desc, a signed 32-bit integer


class Opened(NamedTuple):
    """The sender accepts the channel."""

    stream: int


class Refused(NamedTuple):
    """The sender does not accept the channel."""

    stream: int
    reason: int  # 0 to 255


class Reset(NamedTuple):
    """The sender gives up its direction of the stream."""

    stream: int
    final_size: int  # bytes that it has sent in all
    reason: int  # 0 to 255


class Stop(NamedTuple):
    """The sender takes no more of the stream (STOP_SENDING)."""

    stream: int


class Stream(NamedTuple):
    """Some bytes of a stream; its end, too, if ``fin``."""

    stream: int
    offset: int
    data: memoryview  # of a copy: keeping it keeps nothing else of the packet
    fin: bool


class Datagram(NamedTuple):
    """A part of a message on a UDP channel."""

    stream: int
    message: int
    part: int  # counted from 0
    parts: int
    data: bytes


class MaxData(NamedTuple):
    """The receiver of this may send so many bytes on all streams together."""

    limit: int


class MaxStreamData(NamedTuple):
    """The receiver of this may send so many bytes on this stream."""

    stream: int
    limit: int


class PathChallenge(NamedTuple):
    """Asks for the token to come back on the same path."""

    token: bytes


class PathResponse(NamedTuple):
    """Brings the token back."""

    token: bytes


class Close(NamedTuple):
    """The sender has left the connection."""

    code: int  # 0 to 255
    reason: str  # the peer's words: quote them before they go to a log


class Proof(NamedTuple):
    """Shows who the sender is; what it is made of is for others to know."""

    key: bytes
    signature: bytes
    peer_id: bytes  # ended by zeros


Frame = (
    Ping
    | Ack
    | Open
    | Opened
    | Refused
    | Reset
    | Stop
    | Stream
    | Datagram
    | MaxData
    | MaxStreamData
    | PathChallenge
    | PathResponse
    | Close
    | Proof
)


def _open_untrusted(stream: int, channel_type: int, encrypt_data: int, desc: int) -> Open:
    if encrypt_data > 1:
        raise BadPacket("an OPEN with encrypt_data that is neither 0 nor 1")
    return Open(stream, channel_type, encrypt_data, desc)


# What follows the type byte of the frames that have one size.
_FIXED: dict[int, tuple[struct.Struct, Callable[..., Frame]]] = {
    PING: (struct.Struct(">"), Ping),
    OPEN: (struct.Struct(">IBBi"), _open_untrusted),
    OPENED: (struct.Struct(">I"), Opened),
    REFUSED: (struct.Struct(">IB"), Refused),
    RESET: (struct.Struct(">IQB"), Reset),
    STOP: (struct.Struct(">I"), Stop),
    MAX_DATA: (struct.Struct(">Q"), MaxData),
    MAX_STREAM_DATA: (struct.Struct(">IQ"), MaxStreamData),
    PATH_CHALLENGE: (struct.Struct(f">{TOKEN_BYTES}s"), PathChallenge),
    PATH_RESPONSE: (struct.Struct(f">{TOKEN_BYTES}s"), PathResponse),
}

MAX_CONTROL_BYTES = 1 + max(layout.size for layout, _ in _FIXED.values())
_FIXED[PROOF] = struct.Struct(f">32s64s{MAX_PEER_ID}s"), Proof  # longer, and sent once

_new = tuple.__new__  # the constructor of a NamedTuple is a Python function, and four times slower


def parse_untrusted(plaintext: bytes) -> list[Frame]:
    """The frames of a packet, in order; BadPacket if there is anything wrong with one of them."""
    if not plaintext:
        raise BadPacket("a packet without a frame")
    frames: list[Frame] = []
    place, end = 0, len(plaintext)
    try:
        while place < end:
            kind = plaintext[place]
            if kind | 1 == STREAM_FIN:  # or STREAM
                _, stream, offset = STREAM_HEADER.unpack_from(plaintext, place)
                data = memoryview(plaintext[place + STREAM_HEADER.size :])
                frames.append(_new(Stream, (stream, offset, data, kind == STREAM_FIN)))
                break
            if kind == PADDING:
                break
            if kind in _FIXED:
                layout, make = _FIXED[kind]
                frames.append(make(*layout.unpack_from(plaintext, place + 1)))
                place += 1 + layout.size
            elif kind in _SIZED:
                frame, place = _SIZED[kind](plaintext, place)
                frames.append(frame)
            else:
                raise BadPacket(f"a frame of the unknown type {kind:#04x}")
    except struct.error as error:
        raise BadPacket("a frame that is cut short") from error
    return frames


def is_about_path(plaintext: bytes) -> bool:
    """Whether a packet asks or answers whether a path works (RFC 9000 section 9.1: probing).

    At most an acknowledgement follows in it.
    """
    return plaintext[:1] in _ABOUT_PATH


def _data_untrusted(plaintext: bytes, start: int, length: int) -> bytes:
    data = plaintext[start : start + length]
    if len(data) != length:
        raise BadPacket("a frame whose data is cut short")
    return data


def _ack_untrusted(plaintext: bytes, place: int) -> tuple[Ack, int]:
    _, largest, delay_us, first, count = ACK_HEADER.unpack_from(plaintext, place)
    if count > MAX_ACK_GAPS:
        raise BadPacket(f"an ACK with {count} gaps")
    below = largest - first
    ranges = [(below, largest + 1)]
    place += ACK_HEADER.size
    numbers = struct.unpack_from(f">{2 * count}I", plaintext, place)
    for gap, acked in zip(numbers[::2], numbers[1::2], strict=True):
        if not gap or not acked:
            raise BadPacket("an ACK with an empty range")
        stop = below - gap
        below = stop - acked
        ranges.append((below, stop))
    if below < 0:
        raise BadPacket("an ACK of numbers below zero")
    return Ack(largest, delay_us / 1e6, ranges), place + count * ACK_GAP_BYTES


def _stream_untrusted(plaintext: bytes, place: int) -> tuple[Stream, int]:
    kind, stream, offset, length = STREAM_SIZED_HEADER.unpack_from(plaintext, place)
    place += STREAM_SIZED_HEADER.size
    data = memoryview(_data_untrusted(plaintext, place, length))
    return Stream(stream, offset, data, kind == STREAM_SIZED_FIN), place + length


def _datagram_untrusted(plaintext: bytes, place: int) -> tuple[Datagram, int]:
    _, stream, message, part, parts, length = DATAGRAM_HEADER.unpack_from(plaintext, place)
    place += DATAGRAM_HEADER.size
    data = _data_untrusted(plaintext, place, length)
    return Datagram(stream, message, part, parts, data), place + length


def _close_untrusted(plaintext: bytes, place: int) -> tuple[Close, int]:
    _, code, length = _CLOSE_HEADER.unpack_from(plaintext, place)
    place += _CLOSE_HEADER.size
    try:
        reason = _data_untrusted(plaintext, place, length).decode()
    except UnicodeDecodeError as error:
        raise BadPacket("a CLOSE whose reason is not UTF-8") from error
    return Close(code, reason), place + length


_SIZED: dict[int, Callable[[bytes, int], tuple[Any, int]]] = {
    ACK: _ack_untrusted,
    STREAM_SIZED: _stream_untrusted,
    STREAM_SIZED_FIN: _stream_untrusted,
    DATAGRAM: _datagram_untrusted,
    CLOSE: _close_untrusted,
}


_KINDS: dict[Any, int] = {Open: OPEN} | {make: kind for kind, (_, make) in _FIXED.items()}


def encode(frame: Frame) -> bytes:
    """A frame that has one size; the others have functions of their own."""
    kind = _KINDS[type(frame)]
    return bytes([kind]) + _FIXED[kind][0].pack(*frame)


def encode_ack(received: RangeSet, delay_s: float, room: int = MAX_ACK_BYTES) -> bytes:
    """An ACK of the newest packets received, as many ranges as ``room`` bytes (18 or more) hold."""
    ranges = reversed(received)
    largest = received.largest
    below, _ = next(ranges)
    first = min(largest - below, _U32_MAX)  # what is left out counts as not received
    below = largest - first
    numbers: list[int] = []
    gaps = min((room - ACK_HEADER.size) // ACK_GAP_BYTES, MAX_ACK_GAPS)
    for (start, stop), _ in zip(ranges, range(gaps), strict=False):
        if below - stop > _U32_MAX:
            break
        acked = min(stop - start, _U32_MAX)
        numbers += (below - stop, acked)
        below = stop - acked
    delay_us = min(max(round(delay_s * 1e6), 0), _U32_MAX)
    header = ACK_HEADER.pack(ACK, largest, delay_us, first, len(numbers) // 2)
    return header + struct.pack(f">{len(numbers)}I", *numbers)


def encode_stream_header(stream: int, offset: int, length: int, fin: bool) -> bytes:
    """What goes before ``length`` bytes of a stream, at most 65,535; any frame may follow them."""
    kind = STREAM_SIZED_FIN if fin else STREAM_SIZED
    return STREAM_SIZED_HEADER.pack(kind, stream, offset, length)


def encode_stream_run(stream: int, offset: int, data: memoryview, chunk: int) -> list[bytes]:
    """STREAM frames that fill packets with ``chunk`` bytes each, of all of ``data``.

    A bulk transfer is made of these, so what is done for each is done in loops in C.
    """
    cut, pack = _run_layouts(len(data) // chunk, chunk)
    offsets = range(offset, offset + len(data), chunk)
    return list(map(pack, repeat(STREAM), repeat(stream), offsets, cut(data)))


@lru_cache(maxsize=256)  # a path has few sizes of packets; a run of 64 takes 2 KB
def _run_layouts(
    count: int, chunk: int
) -> tuple[Callable[[memoryview], tuple[bytes, ...]], Callable[..., bytes]]:
    """What cuts ``count`` chunks apart, and what puts the header before one."""
    return (
        struct.Struct(f"{chunk}s" * count).unpack,
        struct.Struct(f"{STREAM_HEADER.format}{chunk}s").pack,
    )


def encode_datagram(
    stream: int, message: int, part: int, parts: int, data: bytes | memoryview
) -> bytes:
    """A part of a message: see messages.py."""
    header = DATAGRAM_HEADER.pack(DATAGRAM, stream, message, part, parts, len(data))
    return b"".join((header, data))


def encode_close(code: int, reason: str) -> bytes:
    """The reason is for people; what exceeds 255 bytes is cut off."""
    text = reason.encode(errors="replace")[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore").encode()
    return _CLOSE_HEADER.pack(CLOSE, code, len(text)) + text
