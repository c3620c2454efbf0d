"""Packet protection: vectors made another way, forgeries, and epochs at their edges."""

from __future__ import annotations

import hashlib
import hmac
import struct
from pathlib import Path

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.transport.udp import protection
from kkp2p_compat.transport.udp.header import HEADER_BYTES, OVERHEAD_BYTES
from kkp2p_compat.transport.udp.protection import (
    CIPHERS,
    MAX_NUMBER,
    PacketOpener,
    PacketSealer,
    preferred_cipher,
    usable_ciphers,
)

SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(1, 33))
AES, CHACHA = "aes-128-gcm", "chacha20-poly1305"
EPOCH = 1 << 23  # packets

each_cipher = pytest.mark.parametrize("cipher", [AES, CHACHA])


# The specification once more, by other means: HKDF-Expand (RFC 5869 section 2.3) of one block by
# hmac, AES-GCM by the streaming interface, ChaCha20-Poly1305 composed as in RFC 8439 section 2.8.


def expand(info: bytes, length: int) -> bytes:
    return hmac.new(SECRET, info + b"\x01", hashlib.sha256).digest()[:length]


def aes_gcm(key: bytes, nonce: bytes, header: bytes, payload: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(header)
    return encryptor.update(payload) + encryptor.finalize() + encryptor.tag


def chacha20_poly1305(key: bytes, nonce: bytes, header: bytes, payload: bytes) -> bytes:
    def stream(counter: int, data: bytes) -> bytes:
        algorithm = algorithms.ChaCha20(key, struct.pack("<I", counter) + nonce)
        return Cipher(algorithm, mode=None).encryptor().update(data)

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 16)

    sealed = stream(1, payload)
    lengths = struct.pack("<QQ", len(header), len(sealed))
    tag = Poly1305.generate_tag(stream(0, bytes(32)), padded(header) + padded(sealed) + lengths)
    return sealed + tag


def independent_packet(cipher: str, number: int, connection_id: int, payload: bytes) -> bytes:
    epoch = struct.pack(">Q", number // 8_388_608)
    key = expand(b"kkp2p key" + epoch, {AES: 16, CHACHA: 32}[cipher])
    iv = expand(b"kkp2p iv" + epoch, 12)
    nonce = bytes(a ^ b for a, b in zip(iv, bytes(4) + struct.pack(">Q", number), strict=True))
    header = b"\x40" + struct.pack(">Q", number)[1:] + struct.pack(">Q", connection_id)
    seal = {AES: aes_gcm, CHACHA: chacha20_poly1305}[cipher]
    return header + seal(key, nonce, header, payload)


# (cipher, packet number, connection id, payload, packet) with SECRET; the packets were written
# down from independent_packet.
VECTORS = [
    (AES, 0, 0, b"", "4000000000000000000000000000000016a354814f1acc939d01570ff7c8c3e0"),
    (
        AES,
        1,
        0x0123456789ABCDEF,
        b"\x01",
        "40000000000000010123456789abcdef62db344e3be2b33668b5adf26c50c61743",
    ),
    (
        AES,
        EPOCH - 1,
        2**64 - 1,
        b"last of its epoch",
        "40000000007fffffffffffffffffffff"
        "eb83b3d420884c05479805f474fb2451cb57230aecd7176a4dbb4ece7d972dbe39",
    ),
    (
        AES,
        EPOCH,
        2**64 - 1,
        b"first of its epoch",
        "4000000000800000ffffffffffffffff"
        "a6ff46a79c286d1ebcd510b284f4cee20722cdce28cc393878189fff629a4dadea3a",
    ),
    (
        AES,
        MAX_NUMBER,
        1,
        b"last of all",
        "40ffffffffffffff000000000000000187da9b7d63ee04bd27f4a8d74b42f5c570c60281357071f4244eaa",
    ),
    (CHACHA, 0, 0, b"", "4000000000000000000000000000000032b99cd0fddfb9aec9797a1c0c4000da"),
    (
        CHACHA,
        1,
        0x0123456789ABCDEF,
        b"\x01",
        "40000000000000010123456789abcdefef21b876c260f8cfc83c3c4a0c9f688549",
    ),
    (
        CHACHA,
        EPOCH - 1,
        2**64 - 1,
        b"last of its epoch",
        "40000000007fffffffffffffffffffff"
        "356fc1a40054aa0f5382d0aa541b78ee60fada7fe758eeb77d710b99d707c77843",
    ),
    (
        CHACHA,
        EPOCH,
        2**64 - 1,
        b"first of its epoch",
        "4000000000800000ffffffffffffffff"
        "e8b896d6f0f3b4be591d219cfdd6f1dbbff748522aa60e9180876919b8a502e3c459",
    ),
    (
        CHACHA,
        MAX_NUMBER,
        1,
        b"last of all",
        "40ffffffffffffff0000000000000001b0d6bea6eb5bc7720411a6308a53dd6c8cefddec90e6c44998ed3e",
    ),
]


def packets(
    sealer: PacketSealer, first_number: int, payloads: list[bytes], connection_id: int = 7
) -> list[bytes]:
    pieces = sealer.seal(first_number, connection_id, payloads)
    return [a + b for a, b in zip(pieces[::2], pieces[1::2], strict=True)]


def assert_refused(opener: PacketOpener, packet: bytes) -> None:
    with pytest.raises(BadPacket):
        opener.open_untrusted(packet)


@pytest.mark.parametrize(("cipher", "number", "connection_id", "payload", "packet"), VECTORS)
def test_vectors(cipher: str, number: int, connection_id: int, payload: bytes, packet: str) -> None:
    expected = bytes.fromhex(packet)
    assert independent_packet(cipher, number, connection_id, payload) == expected
    assert PacketSealer(SECRET, cipher).seal(number, connection_id, [payload]) == [
        expected[:HEADER_BYTES],
        expected[HEADER_BYTES:],
    ]
    if number <= EPOCH:
        assert PacketOpener(SECRET, cipher).open_untrusted(expected) == (number, payload)


@pytest.mark.parametrize("cipher", list(CIPHERS))
@given(payloads=st.lists(st.binary(max_size=1500), max_size=70), first=st.integers(0, 2 * EPOCH))
def test_what_is_sealed_opens_in_any_order(cipher: str, payloads: list[bytes], first: int) -> None:
    first = min(first, 2 * EPOCH - len(payloads))
    sealed = packets(PacketSealer(SECRET, cipher), first, payloads)
    opener = PacketOpener(SECRET, cipher)
    opened = [opener.open_untrusted(packet) for packet in reversed(sealed)]
    assert opened[::-1] == list(enumerate(payloads, first))
    assert opener.failures == 0


@each_cipher
@pytest.mark.parametrize("first", [EPOCH - 3, EPOCH - 1, EPOCH, 5 * EPOCH - 2])
def test_a_batch_over_the_end_of_an_epoch(cipher: str, first: int) -> None:
    payloads = [bytes([index]) for index in range(6)]
    assert packets(PacketSealer(SECRET, cipher), first, payloads) == [
        independent_packet(cipher, first + index, 7, payload)
        for index, payload in enumerate(payloads)
    ]


def test_an_empty_batch() -> None:
    sealer = PacketSealer(SECRET, AES)
    assert sealer.seal(0, 7, []) == []
    assert len(sealer.seal(0, 7, [b"x"])) == 2


@each_cipher
def test_one_packet_is_sealed_as_a_batch_of_one(cipher: str) -> None:
    sealer = PacketSealer(SECRET, cipher)
    for number in (0, 1, EPOCH - 1, EPOCH, 3 * EPOCH + 7, MAX_NUMBER):
        expected = independent_packet(cipher, number, 7, b"payload")
        assert sealer.seal_one(number, 7, b"payload") == expected
    for again in (0, MAX_NUMBER, MAX_NUMBER + 1):
        with pytest.raises(ValueError, match="packet numbers"):
            sealer.seal_one(again, 7, b"payload")


def test_no_number_is_sealed_twice() -> None:
    sealer = PacketSealer(SECRET, AES)
    sealer.seal(10, 7, [b"a", b"b"])
    for again in (0, 10, 11):
        with pytest.raises(ValueError, match="after 11"):
            sealer.seal(again, 7, [b"c"])
    sealer.seal(12, 7, [b"c"])


def test_numbers_end() -> None:
    sealer = PacketSealer(SECRET, AES)
    with pytest.raises(ValueError, match="packet numbers"):
        sealer.seal(MAX_NUMBER, 7, [b"a", b"b"])
    sealer.seal(MAX_NUMBER, 7, [b"a"])
    with pytest.raises(ValueError, match="packet numbers"):
        sealer.seal(MAX_NUMBER + 1, 7, [b"a"])


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_secret_of_another_length(length: int) -> None:
    for kind in (PacketSealer, PacketOpener):
        with pytest.raises(ValueError, match="not 32"):
            kind(bytes(length), AES)


# Nothing that a stranger sends opens, and the genuine packet opens after it as before.


@each_cipher
def test_any_flipped_bit(cipher: str) -> None:
    (genuine,) = packets(PacketSealer(SECRET, cipher), 5, [b"hello"])
    opener = PacketOpener(SECRET, cipher)
    for bit in range(8 * len(genuine)):
        forged = bytearray(genuine)
        forged[bit // 8] ^= 1 << bit % 8
        assert_refused(opener, bytes(forged))
    assert opener.open_untrusted(genuine) == (5, b"hello")


@pytest.mark.parametrize("first_byte", [0, 3, 0x3F, 0x41, 0x7F, 0x80, 0xFF])
def test_another_first_byte(first_byte: int) -> None:
    (genuine,) = packets(PacketSealer(SECRET, AES), 5, [b"hello"])
    with pytest.raises(BadPacket, match="another first byte"):
        PacketOpener(SECRET, AES).open_untrusted(bytes([first_byte]) + genuine[1:])


@each_cipher
def test_cut_short_at_every_byte_or_with_trailing_bytes(cipher: str) -> None:
    (genuine,) = packets(PacketSealer(SECRET, cipher), 5, [b"hello"])
    assert len(genuine) == OVERHEAD_BYTES + 5
    opener = PacketOpener(SECRET, cipher)
    for cut in range(len(genuine)):
        assert_refused(opener, genuine[:cut])
    for more in (b"\0", b"\xff", genuine):
        assert_refused(opener, genuine + more)
    assert opener.open_untrusted(genuine) == (5, b"hello")


@each_cipher
@given(data=st.binary(max_size=100), honest_start=st.booleans())
def test_strangers_bytes_raise_only_bad_packet(
    cipher: str, data: bytes, honest_start: bool
) -> None:
    assert_refused(PacketOpener(SECRET, cipher), b"\x40\0" * honest_start + data)


@each_cipher
def test_a_packet_of_the_other_direction_or_cipher(cipher: str) -> None:
    opener = PacketOpener(SECRET, cipher)
    assert_refused(opener, packets(PacketSealer(OTHER_SECRET, cipher), 0, [b"mine"])[0])
    other = CHACHA if cipher == AES else AES
    assert_refused(opener, packets(PacketSealer(SECRET, other), 0, [b"x"])[0])


def test_the_connection_id_and_the_number_are_authenticated() -> None:
    a, b = packets(PacketSealer(SECRET, AES), 0, [b"hello", b"hello"])
    opener = PacketOpener(SECRET, AES)
    assert_refused(opener, a[:8] + bytes(8) + a[16:])
    assert_refused(opener, b[:8] + a[8:])
    assert_refused(opener, a[:HEADER_BYTES] + b[HEADER_BYTES:])


def test_a_replay_opens_again() -> None:
    (genuine,) = packets(PacketSealer(SECRET, AES), 0, [b"x"])
    opener = PacketOpener(SECRET, AES)
    assert opener.open_untrusted(genuine) == opener.open_untrusted(genuine)


def at_epoch(opener: PacketOpener, epoch: int) -> None:
    """Bring it there by genuine packets."""
    for each in range(1, epoch + 1):
        opener.open_untrusted(independent_packet(AES, each * EPOCH, 7, b"on"))


@pytest.mark.parametrize("highest", [0, 1, 2, 3, 4])
def test_epochs_next_to_the_highest_are_taken(highest: int) -> None:
    for epoch in range(7):
        for number in (epoch * EPOCH, epoch * EPOCH + EPOCH - 1):
            opener = PacketOpener(SECRET, AES)
            at_epoch(opener, highest)
            packet = independent_packet(AES, number, 7, b"x")
            if abs(epoch - highest) <= 1:
                assert opener.open_untrusted(packet) == (number, b"x")
            else:
                assert_refused(opener, packet)
                assert opener.failures == 0  # it was not even tried


def test_an_older_epoch_does_not_take_the_newer_one_back() -> None:
    opener = PacketOpener(SECRET, AES)
    at_epoch(opener, 2)
    for number in (2 * EPOCH - 1, 2 * EPOCH, 2 * EPOCH - 2, 3 * EPOCH, 3 * EPOCH - 1):
        packet = independent_packet(AES, number, 7, b"x")
        assert opener.open_untrusted(packet) == (number, b"x")
    assert_refused(opener, independent_packet(AES, 2 * EPOCH - 1, 7, b"x"))


def test_a_forged_number_moves_no_epoch() -> None:
    opener = PacketOpener(SECRET, AES)
    forged = independent_packet(AES, EPOCH, 7, b"x")[:-1] + b"\0"
    for _ in range(3):
        assert_refused(opener, forged)
    assert opener.failures == 3
    assert_refused(opener, independent_packet(AES, 2 * EPOCH, 7, b"x"))
    assert opener.open_untrusted(independent_packet(AES, EPOCH - 1, 7, b"x")) == (EPOCH - 1, b"x")


def test_forged_numbers_derive_a_bounded_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    opener = PacketOpener(SECRET, AES)
    at_epoch(opener, 6)
    derived = []
    real_keys = protection._Direction.keys

    def counting(self: protection._Direction, epoch: int) -> object:
        derived.append(epoch)
        return real_keys(self, epoch)

    monkeypatch.setattr(protection._Direction, "keys", counting)
    for _ in range(3):
        for epoch in range(20):
            forged = struct.pack(">Q", 0x40 << 56 | epoch * EPOCH) + bytes(40)
            assert_refused(opener, forged)
    assert derived == [7]  # 5 and 6 were there
    at_epoch_7 = independent_packet(AES, 7 * EPOCH, 7, b"x")
    assert opener.open_untrusted(at_epoch_7) == (7 * EPOCH, b"x")
    assert len(opener._keys) == 2


@each_cipher
def test_too_many_forgeries_exhaust_a_connection(
    cipher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert protection._MAX_FAILURES == {AES: 2**52, CHACHA: 2**36}  # RFC 9001 section 6.6
    monkeypatch.setitem(protection._MAX_FAILURES, cipher, 3)
    opener = PacketOpener(SECRET, cipher)
    for count in range(3):
        assert (opener.failures, opener.exhausted) == (count, False)
        assert_refused(opener, b"\x40" + bytes(40))
    assert opener.exhausted


@pytest.mark.parametrize(
    ("text", "cipher"),
    [
        ("processor\t: 0\nflags\t\t: fpu vme aes avx\n\nprocessor\t: 1\nflags\t: fpu\n", AES),
        ("processor\t: 0\nflags\t\t: fpu vme aesthetic\n", CHACHA),
        ("Features\t: fp asimd aes pmull sha1\n", AES),
        ("model name\t: ARMv7\nFeatures\t: half thumb neon\n", CHACHA),
        ("vendor_id\t: IBM/S390\n", AES),
        ("", AES),
    ],
)
def test_the_cipher_that_suits_the_cpu(text: str, cipher: str, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert preferred_cipher(str(cpuinfo)) == cipher


def test_the_cipher_where_nothing_is_said_about_the_cpu(tmp_path: Path) -> None:
    assert preferred_cipher(str(tmp_path / "none")) == AES
    assert preferred_cipher() in CIPHERS


def test_a_cipher_that_the_host_does_not_have(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def refuse(key: bytes) -> None:
        raise UnsupportedAlgorithm("ChaCha20Poly1305 is not supported by this version of OpenSSL")

    assert usable_ciphers() == (AES, CHACHA)
    usable_ciphers.cache_clear()
    request.addfinalizer(usable_ciphers.cache_clear)
    monkeypatch.setitem(CIPHERS, CHACHA, (refuse, 32))  # type: ignore[arg-type]
    assert usable_ciphers() == (AES,)
