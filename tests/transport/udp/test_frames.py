"""Frames: the bytes of each, there and back, cut short at every byte, and strangers' bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.udp_streams import encode_stream, encode_stream_sized
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.transport.udp import frames
from kkp2p_compat.transport.udp.frames import parse_untrusted
from kkp2p_compat.transport.udp.ranges import RangeSet

U8, U16 = st.integers(0, 2**8 - 1), st.integers(0, 2**16 - 1)
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
TOKEN = st.binary(min_size=8, max_size=8)
DATA = st.binary(max_size=100)

# (frame, its bytes), written down by hand from docs/protocol.rst.
VECTORS: list[tuple[frames.Frame, str]] = [
    (frames.Ping(), "01"),
    (frames.Ack(7, 0.000258, [(7, 8)]), "02 0000000000000007 00000102 00000000 00"),
    (
        frames.Ack(0x100, 0.0, [(0xFE, 0x101), (0xF0, 0xFD), (0, 1)]),
        "02 0000000000000100 00000000 00000002 02 00000001 0000000d 000000ef 00000001",
    ),
    (frames.Open(2, 1, 1, -2), "03 00000002 01 01 fffffffe"),
    (frames.Open(0xFFFFFFFF, 0, 0, 2**31 - 1), "03 ffffffff 00 00 7fffffff"),
    (frames.Opened(3), "04 00000003"),
    (frames.Refused(3, 9), "05 00000003 09"),
    (frames.Reset(4, 2**40, 1), "06 00000004 0000010000000000 01"),
    (frames.Stop(5), "07 00000005"),
    (frames.Stream(6, 1, memoryview(b"ab"), False), "0a 00000006 0000000000000001 0002 6162"),
    (frames.Stream(6, 3, memoryview(b""), True), "0b 00000006 0000000000000003 0000"),
    (frames.Datagram(7, 1, 2, 3, b"z"), "0c 00000007 00000001 0002 0003 0001 7a"),
    (frames.MaxData(2**64 - 1), "10 ffffffffffffffff"),
    (frames.MaxStreamData(8, 255), "11 00000008 00000000000000ff"),
    (frames.PathChallenge(b"12345678"), "12 3132333435363738"),
    (frames.PathResponse(b"\0" * 8), "13 0000000000000000"),
    (frames.Close(4, "vé"), "14 04 03 76c3a9"),
    (frames.Close(0, ""), "14 00 00"),
    (
        frames.Proof(bytes(range(32)), b"\1" * 64, b"bob".ljust(32, b"\0")),
        "15" + bytes(range(32)).hex() + "01" * 64 + "626f62" + "00" * 29,
    ),
]
TO_THE_END: list[tuple[frames.Frame, str]] = [
    (frames.Stream(6, 1, memoryview(b"ab"), False), "08 00000006 0000000000000001 6162"),
    (frames.Stream(6, 2, memoryview(b"\0"), True), "09 00000006 0000000000000002 00"),
    (frames.Stream(6, 0, memoryview(b""), True), "09 00000006 0000000000000000"),
]


def encode(frame: frames.Frame) -> bytes:
    match frame:
        case frames.Ack(_, delay_s, ranges):
            return frames.encode_ack(RangeSet(ranges), delay_s)
        case frames.Stream():
            return encode_stream_sized(*frame)
        case frames.Datagram():
            return frames.encode_datagram(*frame)
        case frames.Close():
            return frames.encode_close(*frame)
    return frames.encode(frame)


@st.composite
def acks(draw: st.DrawFn) -> frames.Ack:
    pairs = draw(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), max_size=64))
    first = draw(st.integers(1, 99))
    below = draw(st.integers(0, 2**40))
    ranges = []
    for gap, count in reversed(pairs):
        ranges.append((below, below + count))
        below += count + gap
    ranges.append((below, below + first))
    return frames.Ack(below + first - 1, draw(U32) / 1e6, ranges[::-1])


ANY_FRAME: st.SearchStrategy[frames.Frame] = st.one_of(
    st.builds(frames.Ping),
    acks(),
    st.builds(frames.Open, U32, U8, st.integers(0, 1), st.integers(-(2**31), 2**31 - 1)),
    st.builds(frames.Opened, U32),
    st.builds(frames.Refused, U32, U8),
    st.builds(frames.Reset, U32, U64, U8),
    st.builds(frames.Stop, U32),
    st.builds(frames.Stream, U32, U64, DATA.map(memoryview), st.booleans()),
    st.builds(frames.Datagram, U32, U32, U16, U16, DATA),
    st.builds(frames.MaxData, U64),
    st.builds(frames.MaxStreamData, U32, U64),
    st.builds(frames.PathChallenge, TOKEN),
    st.builds(frames.PathResponse, TOKEN),
    st.builds(frames.Close, U8, st.text(max_size=60)),
    st.builds(frames.Proof, *(st.binary(min_size=size, max_size=size) for size in (32, 64, 32))),
)


@pytest.mark.parametrize(("frame", "text"), VECTORS)
def test_vectors(frame: frames.Frame, text: str) -> None:
    assert encode(frame) == bytes.fromhex(text)
    assert parse_untrusted(bytes.fromhex(text)) == [frame]
    assert type(parse_untrusted(bytes.fromhex(text))[0]) is type(frame)


@pytest.mark.parametrize(("frame", "text"), TO_THE_END)
def test_stream_data_to_the_end_of_the_packet(frame: frames.Stream, text: str) -> None:
    packet = bytes.fromhex(text)
    assert encode_stream(*frame) == packet
    assert parse_untrusted(packet) == [frame]
    assert parse_untrusted(packet + b"\x01") == [
        frame._replace(data=memoryview(bytes(frame.data) + b"\x01"))
    ]


def test_every_frame_type_has_a_vector() -> None:
    types = {bytes.fromhex(text)[0] for _, text in VECTORS + TO_THE_END}
    assert types | {frames.PADDING} == {*range(0x0D), *range(0x10, 0x16)}


@given(st.lists(ANY_FRAME, min_size=1, max_size=8), st.none() | DATA, st.booleans())
def test_frames_in_a_packet_come_out_as_they_went_in(
    sent: list[frames.Frame], rest: bytes | None, fin: bool
) -> None:
    packet = b"".join(map(encode, sent))
    assert parse_untrusted(packet) == sent
    assert parse_untrusted(packet + b"\0" + packet) == sent  # padding hides what is behind it
    if rest is not None:
        last = encode_stream(4, 5, rest, fin)
        assert parse_untrusted(packet + last) == [*sent, frames.Stream(4, 5, memoryview(rest), fin)]


@given(st.lists(ANY_FRAME, min_size=1, max_size=3))
def test_a_packet_cut_anywhere_is_whole_frames_or_bad(sent: list[frames.Frame]) -> None:
    encoded = list(map(encode, sent))
    packet = b"".join(encoded)
    edges = list(itertools.accumulate(map(len, encoded)))
    for cut in range(len(packet)):
        if cut in edges:
            assert parse_untrusted(packet[:cut]) == sent[: edges.index(cut) + 1]
        else:
            with pytest.raises(BadPacket):
                parse_untrusted(packet[:cut])


@pytest.mark.parametrize("text", [text for _, text in TO_THE_END])
def test_the_header_of_stream_data_to_the_end_cut_short(text: str) -> None:
    for cut in range(13):
        with pytest.raises(BadPacket):
            parse_untrusted(bytes.fromhex(text)[:cut])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "without a frame"),
        ("0d", "unknown type 0x0d"),
        ("01 16", "unknown type 0x16"),
        ("ff", "unknown type 0xff"),
        ("03 00000002 00 02 00000000", "encrypt_data"),
        ("02 0000000000000001 00000000 00000002 00", "below zero"),
        ("02 0000000000000009 00000000 00000000 01 00000000 00000001", "empty range"),
        ("02 0000000000000009 00000000 00000000 01 00000001 00000000", "empty range"),
        ("02 0000000000000009 00000000 00000000 01 00000008 00000002", "below zero"),
        ("02 0000000000000009 00000000 00000000 01 00000008", "cut short"),
        ("02 000000000000ffff 00000000 00000000 41" + "00000001" * 130, "65 gaps"),
        ("0a 00000006 0000000000000001 0003 6162", "cut short"),
        ("0c 00000007 00000001 0002 0003 0002 7a", "cut short"),
        ("14 04 03 76c3", "cut short"),
        ("14 04 02 c328", "not UTF-8"),
        ("14 04 01 c3", "not UTF-8"),
        ("12 31323334353637", "cut short"),
        ("15" + "00" * 127, "cut short"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(BadPacket, match=reason):
        parse_untrusted(bytes.fromhex(text))


def test_packets_of_nothing_but_padding() -> None:
    assert parse_untrusted(b"\0") == []
    assert parse_untrusted(bytes(1400)) == []


def test_stream_data_keeps_nothing_else_of_the_packet_alive() -> None:
    small = encode_stream_sized(2, 0, b"a", False)
    for frame in parse_untrusted(small * 50 + encode_stream(2, 0, b"a", False)):
        assert isinstance(frame, frames.Stream)
        assert frame.data.obj == b"a"


@given(acks(), st.integers(18, 600))
def test_an_ack_fits_the_room_and_has_the_newest_ranges(ack: frames.Ack, room: int) -> None:
    encoded = frames.encode_ack(RangeSet(ack.ranges), ack.delay_s, room)
    assert len(encoded) <= room
    assert len(encoded) > room - 8 or len(encoded) == 10 + 8 * len(ack.ranges)
    (parsed,) = parse_untrusted(encoded)
    assert isinstance(parsed, frames.Ack)
    assert parsed.ranges == ack.ranges[: (len(encoded) - 10) // 8]
    assert parsed.delay_s == ack.delay_s


def test_an_ack_of_more_ranges_than_a_frame_holds() -> None:
    received = RangeSet((10 * place, 10 * place + 3) for place in range(100))
    encoded = frames.encode_ack(received, 0)
    assert len(encoded) == frames.MAX_ACK_BYTES == 530
    assert parse_untrusted(encoded) == [frames.Ack(992, 0, list(reversed(received))[:65])]


def test_ranges_and_gaps_beyond_32_bits_acknowledge_less_and_never_more() -> None:
    cases: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {
        ((0, 2**33), (2**33 + 1, 2**33 + 2)): [(2**33 + 1, 2**33 + 2), (2**32 + 1, 2**33)],
        ((0, 1), (5, 2**33)): [(2**32, 2**33), (0, 1)],
        ((0, 1), (2**32 + 1, 2**32 + 2)): [(2**32 + 1, 2**32 + 2)],
        ((0, 1), (2**32, 2**32 + 2)): [(2**32, 2**32 + 2), (0, 1)],
    }
    for received, ranges in cases.items():
        (ack,) = parse_untrusted(frames.encode_ack(RangeSet(received), 0))
        assert isinstance(ack, frames.Ack)
        assert ack.ranges == ranges


@pytest.mark.parametrize(("delay_s", "sent_s"), [(-1.0, 0.0), (0.0015, 0.0015), (1e9, 4294.967295)])
def test_a_delay_out_of_range_is_cut_to_it(delay_s: float, sent_s: float) -> None:
    (ack,) = parse_untrusted(frames.encode_ack(RangeSet([(0, 1)]), delay_s))
    assert ack == frames.Ack(0, sent_s, [(0, 1)])


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("x" * 300, "x" * 255),
        ("é" * 200, "é" * 127),
        ("a" + "é" * 127, "a" + "é" * 127),
        ("\ud800", "?"),
    ],
)
def test_a_long_or_broken_reason_is_cut_at_a_character(reason: str, sent: str) -> None:
    assert parse_untrusted(frames.encode_close(1, reason)) == [frames.Close(1, sent)]


@given(st.binary(max_size=200))
@example(b"\x02" + bytes(16) + b"\xff")
def test_strangers_bytes_raise_only_bad_packet(data: bytes) -> None:
    try:
        parsed = parse_untrusted(data)
    except BadPacket:
        return
    assert len(parsed) <= len(data)


@given(st.lists(ANY_FRAME, min_size=1, max_size=4), st.data())
def test_a_damaged_packet_raises_only_bad_packet(
    sent: list[frames.Frame], data: st.DataObject
) -> None:
    packet = bytearray(b"".join(map(encode, sent)))
    packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(U8)
    try:
        parse_untrusted(bytes(packet))
    except BadPacket:
        return
