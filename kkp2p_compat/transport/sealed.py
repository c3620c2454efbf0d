"""Sealed records: what two peers send each other through a relay that must not read it.

Sans-IO: plaintext in, records out (``RecordSealer``), and back (``RecordOpener``).  A record that
was lost, repeated, moved, cut or altered raises BadPacket, and so does an end of stream that the
peer did not seal.  The format and its reasons are in docs/protocol.rst, "Sealed channels".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from .._errors import BadPacket

__all__ = [
    "DATA",
    "END",
    "MAX_PLAINTEXT_BYTES",
    "RECORD_OVERHEAD_BYTES",
    "RESET",
    "DirectionKeys",
    "RecordOpener",
    "RecordSealer",
]

# Record types.
DATA = 0
END = 1  # this direction is complete
RESET = 2  # our application is gone; it takes no more data

HEADER_BYTES = 4
TAG_BYTES = 16
RECORD_OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
MAX_PLAINTEXT_BYTES = 65536
RECORDS_PER_KEY = 1 << 20  # our choice: 2^32 AES blocks, far below NIST SP 800-38D's limits
_KEY_BYTES = 16
_NONCE_BYTES = 12


@dataclass(frozen=True)
class DirectionKeys:
    """The first key and the nonce base of one direction; never used for a second stream."""

    key: bytes
    nonce_base: bytes


class _KeySchedule:
    """The key and the record counter of one direction."""

    __slots__ = ("_aead", "_base", "_count", "_key")

    def __init__(self, keys: DirectionKeys) -> None:
        self._key = keys.key
        self._aead = AESGCM(keys.key)
        self._base = int.from_bytes(keys.nonce_base, "big")
        self._count = 0

    def next(self) -> tuple[AESGCM, bytes]:
        """The cipher and the nonce of the next record; each pair is given out once."""
        if self._count and self._count % RECORDS_PER_KEY == 0:
            self._key = HKDFExpand(SHA256(), _KEY_BYTES, b"kkp2p next").derive(self._key)
            self._aead = AESGCM(self._key)
        nonce = (self._base ^ self._count).to_bytes(_NONCE_BYTES, "big")
        self._count += 1
        return self._aead, nonce


class RecordSealer:
    """Makes the records of one direction, in the order in which they must be sent."""

    __slots__ = ("_schedule",)

    def __init__(self, keys: DirectionKeys) -> None:
        self._schedule = _KeySchedule(keys)

    def seal(self, data: bytes) -> bytearray:
        """The records for some bytes of the stream."""
        count = -(-len(data) // MAX_PLAINTEXT_BYTES)
        sealed = bytearray(len(data) + count * RECORD_OVERHEAD_BYTES)
        with memoryview(data) as source, memoryview(sealed) as target:
            place = 0
            for start in range(0, len(data), MAX_PLAINTEXT_BYTES):
                piece = source[start : start + MAX_PLAINTEXT_BYTES]
                place += self._record(DATA, piece, target[place:])
        return sealed

    def end(self) -> bytearray:
        """The record that completes this direction."""
        return self._control(END)

    def reset(self) -> bytearray:
        """The record that tells the peer to stop sending; it may follow the end."""
        return self._control(RESET)

    def _control(self, kind: int) -> bytearray:
        sealed = bytearray(RECORD_OVERHEAD_BYTES)
        with memoryview(sealed) as target:
            self._record(kind, b"", target)
        return sealed

    def _record(self, kind: int, plaintext: bytes | memoryview, target: memoryview) -> int:
        """Seal in place, without a copy: joining pieces took longer than sealing them."""
        aead, nonce = self._schedule.next()
        header = (kind << 24 | len(plaintext) + TAG_BYTES).to_bytes(HEADER_BYTES, "big")
        end = len(plaintext) + RECORD_OVERHEAD_BYTES
        target[:HEADER_BYTES] = header
        aead.encrypt_into(nonce, plaintext, header, target[HEADER_BYTES:end])
        return end


class RecordOpener:
    """Takes the bytes of one direction: ``feed`` what arrived, then iterate ``records``.

    Holds at most one incomplete record besides what was fed last, and nothing when idle.
    """

    __slots__ = ("_buffer", "_schedule", "ended")

    def __init__(self, keys: DirectionKeys) -> None:
        self._schedule = _KeySchedule(keys)
        self._buffer = b""
        self.ended = False  # the peer has sealed its end of stream

    def feed(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data

    @property
    def pending(self) -> int:
        """Bytes of an incomplete record: under a record's size once ``records`` is exhausted."""
        return len(self._buffer)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Every complete record fed so far, as (type, plaintext); raises BadPacket."""
        start = 0
        try:
            with memoryview(self._buffer) as view:
                while (end := self._end_of_record_untrusted(view, start)) is not None:
                    record = self._open_untrusted(view, start, end)
                    start = end
                    yield record
        finally:
            self._buffer = self._buffer[start:]

    def finish(self) -> None:
        """TCP's end of stream is here; raises BadPacket unless the peer had sealed its end."""
        if not self.ended:
            raise BadPacket("the stream was cut off (no sealed end)")

    def _end_of_record_untrusted(self, view: memoryview, start: int) -> int | None:
        if len(view) - start < HEADER_BYTES:
            return None
        kind = view[start]
        length = int.from_bytes(view[start + 1 : start + HEADER_BYTES], "big")
        if kind > RESET or not TAG_BYTES <= length <= MAX_PLAINTEXT_BYTES + TAG_BYTES:
            raise BadPacket("a sealed record with a bad header")
        if kind != DATA and length != TAG_BYTES:
            raise BadPacket("a sealed end or reset that carries data")
        if self.ended and kind != RESET:
            raise BadPacket("a sealed record after the end")
        end = start + HEADER_BYTES + length
        return end if end <= len(view) else None

    def _open_untrusted(self, view: memoryview, start: int, end: int) -> tuple[int, bytes]:
        header = bytes(view[start : start + HEADER_BYTES])
        aead, nonce = self._schedule.next()
        try:
            plaintext = aead.decrypt(nonce, view[start + HEADER_BYTES : end], header)
        except InvalidTag as error:
            raise BadPacket("a sealed record that does not open") from error
        kind = header[0]
        self.ended = self.ended or kind == END
        return kind, plaintext
