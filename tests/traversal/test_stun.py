"""STUN messages: the vectors of RFC 5769, round trips, hostile bytes."""

from __future__ import annotations

import binascii
import contextlib
import dataclasses
import hmac
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._address import HostPort
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal.stun import MAX_BYTES, Kind, Message, TurnKind, parse_untrusted

ID = bytes.fromhex("b7e7a701 bc34d686 fa87dfae")
PASSWORD = b"VOkJxbRl1RmTxUk/WvJxBt"

# RFC 5769 section 2.1.  Padding is 0x20 there, which a receiver must ignore.
REQUEST = bytes.fromhex(
    "00010058 2112a442"  # binding request, 88 bytes; magic cookie
    "b7e7a701 bc34d686 fa87dfae"  # transaction id
    "80220010 5354554e 20746573 7420636c 69656e74"  # SOFTWARE "STUN test client"
    "00240004 6e0001ff"  # PRIORITY
    "80290008 932ff9b1 51263b36"  # ICE-CONTROLLED
    "00060009 6576746a 3a683676 59202020"  # USERNAME "evtj:h6vY"
    "00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2"  # MESSAGE-INTEGRITY
    "80280004 e57a3bcf"  # FINGERPRINT
)
# Section 2.2.
RESPONSE_4 = bytes.fromhex(
    "0101003c 2112a442"  # binding success response, 60 bytes
    "b7e7a701 bc34d686 fa87dfae"
    "8022000b 74657374 20766563 746f7220"  # SOFTWARE "test vector"
    "00200008 0001a147 e112a643"  # XOR-MAPPED-ADDRESS 192.0.2.1:32853
    "00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7"
    "80280004 c07d4c96"
)
# Section 2.3.
RESPONSE_6 = bytes.fromhex(
    "01010048 2112a442"
    "b7e7a701 bc34d686 fa87dfae"
    "8022000b 74657374 20766563 746f7220"
    "00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9"  # 2001:db8:1234:5678:...:6677
    "00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41"
    "80280004 c8fb0b4c"
)
VECTORS = {
    "request": (
        REQUEST,
        Message(
            Kind.REQUEST,
            ID,
            username="evtj:h6vY",
            priority=0x6E0001FF,
            controlled=0x932FF9B151263B36,
        ),
    ),
    "IPv4": (RESPONSE_4, Message(Kind.RESPONSE, ID, mapped=("192.0.2.1", 32853))),
    "IPv6": (
        RESPONSE_6,
        Message(Kind.RESPONSE, ID, mapped=("2001:db8:1234:5678:11:2233:4455:6677", 32853)),
    ),
}
WIRES = [wire for wire, _ in VECTORS.values()]


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str) -> None:
    wire, message = VECTORS[name]
    parsed = parse_untrusted(wire)
    assert parsed == message
    assert parsed.has_fingerprint
    assert parsed.verify(PASSWORD)
    assert not parsed.verify(PASSWORD + b"x")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack(">HH", kind, len(value)) + value + bytes(-len(value) % 4)


def wire_of(*attributes: bytes, kind: int = Kind.REQUEST) -> bytes:
    body = b"".join(attributes)
    return struct.pack(">HHI12s", kind, len(body), 0x2112A442, ID) + body


def seal(wire: bytes, key: bytes = PASSWORD) -> bytes:
    """Add MESSAGE-INTEGRITY and FINGERPRINT, written apart from the code under test."""
    wire = wire[:2] + struct.pack(">H", len(wire) + 4) + wire[4:]
    wire += attribute(0x0008, hmac.new(key, wire, "sha1").digest())
    wire = wire[:2] + struct.pack(">H", len(wire) - 12) + wire[4:]
    return wire + attribute(0x8028, struct.pack(">I", binascii.crc32(wire) ^ 0x5354554E))


def test_the_bytes_that_we_send() -> None:
    request = Message(
        Kind.REQUEST, ID, username="a:b", priority=1, use_candidate=True, controlling=2
    )
    body = [
        attribute(0x0006, b"a:b"),
        attribute(0x0024, bytes.fromhex("00000001")),
        attribute(0x0025, b""),
        attribute(0x802A, bytes.fromhex("0000000000000002")),
    ]
    assert request.encode(PASSWORD) == seal(wire_of(*body))
    error = Message(Kind.ERROR, ID, error=420, not_understood=(0x7001, 2))
    body = [attribute(0x0009, bytes.fromhex("00000414")), attribute(0x000A, b"\x70\x01\x00\x02")]
    assert error.encode(PASSWORD) == seal(wire_of(*body, kind=Kind.ERROR))


def test_without_a_key() -> None:
    parsed = parse_untrusted(Message(Kind.REQUEST, ID).encode(None))
    assert parsed.has_fingerprint
    assert not parsed.verify(b"")


IPS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(
    lambda ip: str(getattr(ip, "ipv4_mapped", None) or ip)
)
ADDRESSES: st.SearchStrategy[HostPort] = st.tuples(IPS, st.integers(0, 65535))
U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
MESSAGES = st.builds(
    Message,
    st.sampled_from(Kind),
    st.binary(min_size=12, max_size=12),
    username=st.none() | st.text(max_size=40),
    mapped=st.none() | ADDRESSES,
    priority=st.none() | U32,
    use_candidate=st.booleans(),
    controlling=st.none() | U64,
    controlled=st.none() | U64,
    error=st.none() | st.integers(300, 699),
    not_understood=st.lists(U16, max_size=20).map(tuple),
    change_ip=st.booleans(),
    change_port=st.booleans(),
    response_port=st.none() | U16,
    origin=st.none() | ADDRESSES,
    other=st.none() | ADDRESSES,
)


@given(MESSAGES, st.binary(max_size=40))
def test_round_trip(message: Message, key: bytes) -> None:
    parsed = parse_untrusted(message.encode(key))
    assert parsed == message
    assert parsed.verify(key)
    assert not parsed.verify(key + b"x")


@pytest.mark.parametrize("wire", WIRES)
def test_every_cut_and_every_addition(wire: bytes) -> None:
    for data in [*(wire[:size] for size in range(len(wire))), wire + b"\0", wire + bytes(4)]:
        with pytest.raises(BadPacket):
            parse_untrusted(data)


@pytest.mark.parametrize("wire", WIRES)
def test_every_flipped_bit(wire: bytes) -> None:
    for bit in range(8 * len(wire)):
        changed = (int.from_bytes(wire, "big") ^ 1 << bit).to_bytes(len(wire), "big")
        # One hidden in FINGERPRINT's own type leaves an attribute that nobody needs to understand.
        try:
            parsed = parse_untrusted(changed)
        except BadPacket:
            continue
        assert not parsed.has_fingerprint, bit
        assert bit // 8 in range(4, 8), bit


@given(st.sampled_from(WIRES), st.integers(0, 65535), st.integers(0, 50))
def test_a_lie_about_a_length(wire: bytes, length: int, place: int) -> None:
    at = min(2 + 4 * place, len(wire) - 2)
    changed = wire[:at] + struct.pack(">H", length) + wire[at + 2 :]
    if changed != wire:
        with contextlib.suppress(BadPacket):
            assert not parse_untrusted(changed).has_fingerprint


@given(st.binary(max_size=MAX_BYTES + 1))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(BadPacket):
        parse_untrusted(data)


@given(
    st.lists(st.tuples(st.integers(0, 0x30) | U16, st.binary(max_size=24)), max_size=12),
    st.sampled_from([*Kind, 0, 2, 0x3FFF]),
)
def test_any_attributes(attributes: list[tuple[int, bytes]], kind: int) -> None:
    wire = wire_of(*(attribute(*each) for each in attributes), kind=kind)
    try:
        parsed = parse_untrusted(wire)
    except BadPacket:
        return
    assert not parsed.verify(PASSWORD)


USERNAME = attribute(0x0006, b"a:b")


@pytest.mark.parametrize(
    "wire",
    [
        wire_of(attribute(0x0024, bytes(3))),  # PRIORITY
        wire_of(attribute(0x0025, bytes(1))),  # USE-CANDIDATE
        wire_of(attribute(0x8029, bytes(12))),  # ICE-CONTROLLED
        wire_of(attribute(0x802A, b"")),  # ICE-CONTROLLING
        wire_of(attribute(0x0006, b"\xff")),  # USERNAME
        wire_of(attribute(0x0006, bytes(509))),
        wire_of(attribute(0x0008, bytes(19))),  # MESSAGE-INTEGRITY
        wire_of(attribute(0x0009, bytes(3))),  # ERROR-CODE
        wire_of(attribute(0x0009, bytes.fromhex("00000200"))),
        wire_of(attribute(0x0009, bytes.fromhex("00000464"))),
        wire_of(attribute(0x000A, bytes(3))),  # UNKNOWN-ATTRIBUTES
        wire_of(attribute(0x0020, bytes.fromhex("0002000000000000"))),  # IPv6 in 4 bytes
        wire_of(attribute(0x0020, bytes.fromhex("0001") + bytes(18))),
        wire_of(attribute(0x0020, bytes(7))),
        wire_of(attribute(0x0001, bytes(7))),  # MAPPED-ADDRESS
        wire_of(attribute(0x0003, bytes(3))),  # CHANGE-REQUEST
        wire_of(attribute(0x0027, bytes(3))),  # RESPONSE-PORT
        wire_of(attribute(0x802B, bytes(9))),  # RESPONSE-ORIGIN
        wire_of(attribute(0x802C, bytes.fromhex("0002000000000000"))),  # OTHER-ADDRESS
        wire_of(attribute(0x8028, bytes(4))),  # FINGERPRINT
        wire_of(USERNAME)[:-4],  # over the end
        seal(wire_of(USERNAME))[:-8] + attribute(0x8028, bytes(4)) + attribute(0x8028, bytes(4)),
        wire_of(kind=0x0003),  # another method
        wire_of(kind=0x4001),
        wire_of(attribute(0x9000, bytes(MAX_BYTES - 20))),
    ],
)
def test_malformed(wire: bytes) -> None:
    with pytest.raises(BadPacket):
        parse_untrusted(wire)


def test_of_duplicates_the_first_counts() -> None:
    parsed = parse_untrusted(seal(wire_of(USERNAME, attribute(0x0006, b"c:d"))))
    assert parsed.username == "a:b"
    assert parsed.verify(PASSWORD)


def test_what_follows_the_integrity_is_ignored() -> None:
    sealed = seal(wire_of(USERNAME))[:-8] + attribute(0x0025, b"") + attribute(0x7001, b"")
    wire = sealed[:2] + struct.pack(">H", len(sealed) - 20) + sealed[4:]
    parsed = parse_untrusted(wire)
    assert not parsed.use_candidate
    assert parsed.unknown == ()
    assert parsed.verify(PASSWORD)
    assert not parsed.has_fingerprint


def test_unknown_attributes() -> None:
    """Those below 0x8000 must be understood."""
    parsed = parse_untrusted(
        seal(wire_of(attribute(0x7001, b"x"), attribute(0x8001, b"y"), attribute(0x0002, bytes(4))))
    )
    assert parsed.unknown == (0x7001, 0x0002)
    assert parsed.verify(PASSWORD)


def test_the_bytes_of_rfc_5780() -> None:
    request = Message(
        Kind.REQUEST, ID, change_ip=True, change_port=True, response_port=4000, software="pad"
    )
    assert request.encode(None, fingerprint=False) == wire_of(
        attribute(0x0003, bytes.fromhex("00000006")),
        attribute(0x0027, bytes.fromhex("0fa00000")),
        attribute(0x8022, b"pad"),
    )
    answer = Message(Kind.RESPONSE, ID, origin=("192.0.2.1", 3478), other=("2001:db8::1", 3479))
    assert answer.encode(None, fingerprint=False) == wire_of(
        attribute(0x802B, bytes.fromhex("0001 0d96 c0000201")),
        attribute(0x802C, bytes.fromhex("0002 0d97 20010db8000000000000000000000001")),
        kind=Kind.RESPONSE,
    )
    for value in (b"\x0f\xa0", b"\x0f\xa0\0\0"):
        assert parse_untrusted(wire_of(attribute(0x0027, value))).response_port == 4000
    for value, ip, port in ((0, False, False), (2, False, True), (4, True, False)):
        parsed = parse_untrusted(wire_of(attribute(0x0003, struct.pack(">I", value))))
        assert (parsed.change_ip, parsed.change_port) == (ip, port)


def test_the_answer_of_an_old_server() -> None:
    """RFC 3489 has MAPPED-ADDRESS only; where both are, the hidden one counts."""
    plain = attribute(0x0001, bytes.fromhex("0001 0fa0 c0000201"))
    old = wire_of(plain, attribute(0x0004, bytes(8)), attribute(0x0005, bytes(8)), kind=0x0101)
    parsed = parse_untrusted(old)
    assert parsed.mapped == ("192.0.2.1", 4000)
    hidden = attribute(0x0020, bytes.fromhex("0001a147e112a643"))
    parsed = parse_untrusted(wire_of(plain, hidden, kind=0x0101))
    assert parsed.mapped == ("192.0.2.1", 32853)


def test_the_bytes_of_turn() -> None:
    """RFC 8656 section 18."""
    allocate = Message(
        TurnKind.ALLOCATE,
        ID,
        username="a:b",
        realm="example.org",
        nonce=b"nonce",
        transport=17,
        lifetime_s=600,
    )
    attributes = [
        USERNAME,
        attribute(0x0014, b"example.org"),
        attribute(0x0015, b"nonce"),
        attribute(0x000D, bytes.fromhex("00000258")),
        attribute(0x0019, bytes.fromhex("11000000")),
    ]
    assert allocate.encode(PASSWORD) == seal(wire_of(*attributes, kind=0x0003))
    bind = Message(TurnKind.CHANNEL_BIND, ID, peer=("192.0.2.1", 32853), channel=0x4001)
    assert bind.encode(None, fingerprint=False) == wire_of(
        attribute(0x0012, bytes.fromhex("0001a147e112a643")),
        attribute(0x000C, bytes.fromhex("40010000")),
        kind=0x0009,
    )
    send = Message(TurnKind.SEND, ID, peer=("192.0.2.1", 32853), data=b"hello")
    assert send.encode(None, fingerprint=False) == wire_of(
        attribute(0x0012, bytes.fromhex("0001a147e112a643")),
        attribute(0x0013, b"hello"),
        kind=0x0016,
    )


@given(
    MESSAGES,
    st.sampled_from(TurnKind),
    st.text(max_size=60),
    st.binary(max_size=60),
    U32,
    ADDRESSES,
    ADDRESSES,
    U16,
    st.binary(max_size=60),
    st.integers(0, 255),
)
def test_turn_makes_the_round_trip(
    message: Message,
    kind: TurnKind,
    realm: str,
    nonce: bytes,
    lifetime_s: int,
    relayed: HostPort,
    peer: HostPort,
    channel: int,
    data: bytes,
    transport: int,
) -> None:
    message = dataclasses.replace(
        message,
        kind=kind,
        realm=realm,
        nonce=nonce,
        lifetime_s=lifetime_s,
        relayed=relayed,
        peer=peer,
        channel=channel,
        data=data,
        transport=transport,
    )
    assert parse_untrusted(message.encode(PASSWORD), 65535, TurnKind) == message


@pytest.mark.parametrize(
    "wire",
    [
        wire_of(attribute(0x000C, bytes(3)), kind=0x0109),  # CHANNEL-NUMBER
        wire_of(attribute(0x000D, bytes(3)), kind=0x0103),  # LIFETIME
        wire_of(attribute(0x0012, bytes(7)), kind=0x0017),  # XOR-PEER-ADDRESS
        wire_of(attribute(0x0014, b"\xff"), kind=0x0113),  # REALM
        wire_of(attribute(0x0014, bytes(764)), kind=0x0113),
        wire_of(attribute(0x0015, bytes(764)), kind=0x0113),  # NONCE
        wire_of(attribute(0x0016, b""), kind=0x0103),  # XOR-RELAYED-ADDRESS
        wire_of(attribute(0x0019, bytes(1)), kind=0x0003),  # REQUESTED-TRANSPORT
        wire_of(kind=0x0001),  # Binding
        wire_of(kind=0x0006),
    ],
)
def test_malformed_turn(wire: bytes) -> None:
    with pytest.raises(BadPacket):
        parse_untrusted(wire, 65535, TurnKind)


def test_a_binding_message_knows_nothing_of_turn() -> None:
    parsed = parse_untrusted(wire_of(attribute(0x0014, b"realm"), attribute(0x0013, b"data")))
    assert parsed.unknown == (0x0014, 0x0013)
    assert parsed.realm is parsed.data is None
