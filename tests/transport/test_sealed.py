"""Sealed records, against the same sums done by hand, and against a relay that meddles."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.engine.signalling.keys import derive_keys
from kkp2p_compat.transport import sealed
from kkp2p_compat.transport.sealed import (
    DATA,
    END,
    MAX_PLAINTEXT_BYTES,
    RESET,
    DirectionKeys,
    RecordOpener,
    RecordSealer,
)

KEYS = DirectionKeys(bytes(range(16)), bytes(range(100, 112)))
OTHER = DirectionKeys(bytes(16), bytes(12))


# docs/protocol.rst once more, with nothing but hashlib and one AEAD call.


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    key = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + data).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()


def hkdf_expand(key: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 section 2.3"""
    out = block = b""
    for number in itertools.count(1):
        if len(out) >= size:
            return out[:size]
        block = hmac_sha256(key, block + info + bytes([number]))
        out += block
    raise AssertionError


def hand_made(
    keys: DirectionKeys, number: int, kind: int, plaintext: bytes, epoch: int = 0
) -> bytes:
    key = keys.key
    for _ in range(epoch):
        key = hkdf_expand(key, b"kkp2p next", 16)
    base = int.from_bytes(keys.nonce_base, "big")
    header = bytes([kind]) + (len(plaintext) + 16).to_bytes(3, "big")
    nonce = (base ^ number).to_bytes(12, "big")
    return header + AESGCM(key).encrypt(nonce, plaintext, header)


def opened(stream: bytes, keys: DirectionKeys = KEYS) -> list[tuple[int, bytes]]:
    """All records of a complete stream."""
    opener = RecordOpener(keys)
    opener.feed(stream)
    records = list(opener.records())
    opener.finish()
    return records


def test_the_hand_made_hkdf_is_the_rfc_s() -> None:
    """RFC 5869 appendix A.1"""
    prk = hmac_sha256(bytes(range(13)), b"\x0b" * 22)
    assert prk.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    okm = hkdf_expand(prk, bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex().startswith("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")


def test_keys_of_a_call() -> None:
    caller, callee = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    offer, answer = '{"key":"\u00e9"}', '{"key":"b"}'
    salt = hashlib.sha256(
        hashlib.sha256(offer.encode()).digest() + hashlib.sha256(answer.encode()).digest()
    ).digest()
    secret = caller.exchange(callee.public_key())
    block = hkdf_expand(hmac_sha256(salt, secret), b"kkp2p sealed 1", 56)
    expected = (
        DirectionKeys(block[:16], block[32:44]),
        DirectionKeys(block[16:32], block[44:]),
    )
    assert derive_keys(caller, callee.public_key().public_bytes_raw(), offer, answer) == expected
    assert derive_keys(callee, caller.public_key().public_bytes_raw(), offer, answer) == expected


def test_a_changed_offer_or_answer_changes_every_key() -> None:
    private, public = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key()
    seen = set()
    for offer, answer in (("a", "b"), ("a", "c"), ("c", "b"), ("b", "a"), ("ab", ""), ("", "ab")):
        for keys in derive_keys(private, public.public_bytes_raw(), offer, answer):
            seen |= {keys.key, keys.nonce_base}
    assert len(seen) == 6 * 4


SMALL_ORDER = [  # RFC 7748 section 6.1 and the list in libsodium
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("public", [*SMALL_ORDER, "", "02" * 31, "02" * 33], ids=lambda k: k[:8])
def test_unusable_public_keys(public: str) -> None:
    with pytest.raises(BadPacket, match="not usable"):
        derive_keys(X25519PrivateKey.generate(), bytes.fromhex(public), "", "")


def test_records_are_those_made_by_hand() -> None:
    sealer = RecordSealer(KEYS)
    stream = sealer.seal(b"hello") + sealer.seal(b"") + sealer.seal(b"x") + sealer.end()
    stream += sealer.reset()
    by_hand = [(DATA, b"hello"), (DATA, b"x"), (END, b""), (RESET, b"")]
    assert stream == b"".join(hand_made(KEYS, i, *record) for i, record in enumerate(by_hand))
    assert opened(stream) == by_hand


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 200_000])
def test_a_long_write_is_cut_into_full_records(size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    sealer = RecordSealer(KEYS)
    records = opened(sealer.seal(data) + sealer.end())
    assert b"".join(plaintext for _, plaintext in records) == data
    sizes = [len(plaintext) for kind, plaintext in records if kind == DATA]
    assert sizes == [65536] * (size // 65536) + [size % 65536] * (size % 65536 > 0)


def test_the_key_is_replaced_on_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "RECORDS_PER_KEY", 3)
    sealer = RecordSealer(KEYS)
    stream = b"".join(sealer.seal(bytes([i])) for i in range(10)) + sealer.end()
    by_hand = [hand_made(KEYS, i, DATA, bytes([i]), epoch=i // 3) for i in range(10)]
    assert stream == b"".join(by_hand) + hand_made(KEYS, 10, END, b"", epoch=3)
    assert [plaintext for _, plaintext in opened(stream)] == [*map(bytes, zip(range(10))), b""]


def test_the_schedule_is_the_document_s() -> None:
    assert sealed.RECORDS_PER_KEY == 1 << 20


def test_an_old_key_opens_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "RECORDS_PER_KEY", 1)
    with pytest.raises(BadPacket):
        opened(hand_made(KEYS, 0, DATA, b"a") + hand_made(KEYS, 1, END, b"", epoch=0))


# A relay that meddles.


def stream_of(*writes: bytes) -> list[bytes]:
    sealer = RecordSealer(KEYS)
    return [*(sealer.seal(write) for write in writes), sealer.end()]


def test_a_flipped_bit_anywhere() -> None:
    stream = b"".join(stream_of(b"first", b"second"))
    for place, bit in itertools.product(range(len(stream)), range(8)):
        bad = bytearray(stream)
        bad[place] ^= 1 << bit
        with pytest.raises(BadPacket):
            opened(bytes(bad))


def test_cut_off_anywhere() -> None:
    stream = b"".join(stream_of(b"first", b"second"))
    for size in range(len(stream)):
        with pytest.raises(BadPacket, match="cut off"):
            opened(stream[:size])


def test_records_repeated_moved_left_out_or_joined() -> None:
    genuine = stream_of(b"a", b"b", b"c")
    good = [tuple(genuine)]
    for count in range(1, 6):
        for order in itertools.product(genuine, repeat=count):
            if order in good:
                assert opened(b"".join(order))
            else:
                with pytest.raises(BadPacket):
                    opened(b"".join(order))


def test_our_own_records_sent_back() -> None:
    caller, callee = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    ours, theirs = derive_keys(caller, callee.public_key().public_bytes_raw(), "o", "a")
    stream = RecordSealer(ours).seal(b"x")
    with pytest.raises(BadPacket, match="does not open"):
        opened(stream, theirs)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("03000010", "bad header"),
        ("ff000010", "bad header"),
        ("00000000", "bad header"),
        ("0000000f", "bad header"),
        ("00010011", "bad header"),
        ("00ffffff", "bad header"),
        ("01000011", "carries data"),
        ("02000011", "carries data"),
    ],
)
def test_headers_are_refused_before_what_they_announce_is_held(header: str, problem: str) -> None:
    opener = RecordOpener(KEYS)
    opener.feed(bytes.fromhex(header))
    with pytest.raises(BadPacket, match=problem):
        list(opener.records())


def test_the_largest_record_is_taken() -> None:
    record = hand_made(KEYS, 0, DATA, bytes(MAX_PLAINTEXT_BYTES))
    assert record[:4].hex() == "00010010"
    assert opened(record + hand_made(KEYS, 1, END, b"")) == [
        (DATA, bytes(MAX_PLAINTEXT_BYTES)),
        (END, b""),
    ]


@pytest.mark.parametrize("kind", [DATA, END])
def test_nothing_but_a_reset_follows_the_end(kind: int) -> None:
    stream = hand_made(KEYS, 0, END, b"") + hand_made(KEYS, 1, kind, b"")
    with pytest.raises(BadPacket, match="after the end"):
        opened(stream)
    opened(hand_made(KEYS, 0, END, b"") + hand_made(KEYS, 1, RESET, b""))


def test_a_reset_is_no_end() -> None:
    with pytest.raises(BadPacket, match="cut off"):
        opened(hand_made(KEYS, 0, RESET, b""))


def test_an_opener_that_refused_once_goes_on_refusing() -> None:
    genuine = stream_of(b"a", b"b")
    opener = RecordOpener(KEYS)
    opener.feed(genuine[1] + b"".join(genuine))
    for _ in range(3):
        with pytest.raises(BadPacket):
            list(opener.records())
        opener.feed(b"".join(genuine))


@given(
    st.lists(st.binary(min_size=1, max_size=400), max_size=5),
    st.lists(st.integers(0, 2500), max_size=30),
)
def test_fed_in_any_pieces(writes: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(stream_of(*writes))
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    opener, records = RecordOpener(KEYS), []
    for a, b in itertools.pairwise(edges):
        opener.feed(stream[a:b])
        records += list(opener.records())
    opener.finish()
    assert records == [*((DATA, write) for write in writes), (END, b"")]
    assert opener._buffer == b""


def test_fed_byte_by_byte_and_while_records_are_taken() -> None:
    stream = b"".join(stream_of(b"one", b"two"))
    opener = RecordOpener(KEYS)
    records = []
    for i in range(0, len(stream), 2):
        opener.feed(stream[i : i + 1])
        taking = opener.records()
        first = next(taking, None)
        opener.feed(stream[i + 1 : i + 2])  # a reader that feeds before it has taken all
        records += [first] * (first is not None) + list(taking)
    assert [*records, *opener.records()] == [(DATA, b"one"), (DATA, b"two"), (END, b"")]


@given(st.binary(max_size=100))
def test_strangers_bytes_raise_only_bad_packet(data: bytes) -> None:
    with pytest.raises(BadPacket):
        opened(data)
