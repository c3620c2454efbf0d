"""Seal and open packets: the layout is that of docs/protocol.rst, "The UDP transport".

    0        8                16
    +--------+----------------+-----------------------------------+
    | number | connection id  | AEAD ciphertext, its 16-byte tag  |
    +--------+----------------+-----------------------------------+

The top byte of ``number`` is FIRST_BYTE, which tells our packets from STUN; the other 56 bits are
the packet number, in full.  The header is the associated data, the nonce the epoch's iv XOR the
number.  Keys are derived for each epoch of 2^23 numbers from the secret of the direction, not from
the epoch before, so that a forged number cannot make the receiver walk a chain.

A nonce that is used twice gives AES-GCM's key away, so a PacketSealer takes rising numbers only.
Replays are for the receiving connection to detect: it keeps the numbers that it has seen.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from itertools import repeat

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ..._errors import BadPacket
from .header import FIRST_BYTE, HEADER, HEADER_BYTES

__all__ = [
    "CIPHERS",
    "MAX_NUMBER",
    "SECRET_BYTES",
    "PacketOpener",
    "PacketSealer",
    "preferred_cipher",
    "usable_ciphers",
]

SECRET_BYTES = 32
MAX_NUMBER = (1 << 56) - 1

# RFC 9001 section 6.6: an AES-GCM key seals 2^23 packets at most.  ChaCha20-Poly1305 has no limit
# that we could meet; one rule for both is simpler.
_EPOCH_BITS = 23
_IV_BYTES = 12

AES = "aes-128-gcm"
CHACHA = "chacha20-poly1305"
CIPHERS: dict[str, tuple[type[AESGCM | ChaCha20Poly1305], int]] = {
    AES: (AESGCM, 16),  # and the bytes of its key
    CHACHA: (ChaCha20Poly1305, 32),
}

# RFC 9001 section 6.6: after more forgeries than this a connection must be closed.
_MAX_FAILURES = {AES: 1 << 52, CHACHA: 1 << 36}

_FIRST_BITS = FIRST_BYTE << 56
_pack_header = HEADER.pack

_Crypt = Callable[[bytes, bytes, bytes], bytes]  # nonce, data, associated data


class _Direction:
    """The secret of one direction; gives out the key and iv of any epoch."""

    __slots__ = ("_cipher", "_key_bytes", "_secret")

    def __init__(self, secret: bytes, cipher: str) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a secret of {len(secret)} bytes, not {SECRET_BYTES}")
        self._secret = secret
        self._cipher, self._key_bytes = CIPHERS[cipher]

    def keys(self, epoch: int) -> tuple[AESGCM | ChaCha20Poly1305, int]:
        """The cipher with its key, and the iv as a number."""
        key = self._expand(b"kkp2p key", epoch, self._key_bytes)
        iv = self._expand(b"kkp2p iv", epoch, _IV_BYTES)
        return self._cipher(key), int.from_bytes(iv, "big")

    def _expand(self, label: bytes, epoch: int, length: int) -> bytes:
        return HKDFExpand(SHA256(), length, label + epoch.to_bytes(8, "big")).derive(self._secret)


class PacketSealer:
    """Makes the packets of one direction of one connection."""

    __slots__ = ("_direction", "_encrypt", "_epoch", "_iv", "_next")

    def __init__(self, secret: bytes, cipher: str) -> None:
        self._direction = _Direction(secret, cipher)
        self._next = 0  # no number under this one may be sealed any more
        self._use(0)

    def _use(self, epoch: int) -> None:
        aead, self._iv = self._direction.keys(epoch)
        self._encrypt: _Crypt = aead.encrypt
        self._epoch = epoch

    def seal(self, first_number: int, connection_id: int, payloads: Sequence[bytes]) -> list[bytes]:
        """The packets of consecutive numbers: header, ciphertext, header, ciphertext, ...

        ``b"".join`` of it is what goes into one sendmsg.  ValueError if a number was sealed before
        or is over MAX_NUMBER.
        """
        number, stop = first_number, first_number + len(payloads)
        if number < self._next or stop > MAX_NUMBER + 1:
            raise ValueError(f"packet numbers {number} to {stop - 1} after {self._next - 1}")
        self._next = stop
        if number >> _EPOCH_BITS == (stop - 1) >> _EPOCH_BITS == self._epoch:
            return self._seal_in_epoch(number, connection_id, payloads)
        packets = []
        while number < stop:
            epoch = number >> _EPOCH_BITS
            if epoch != self._epoch:
                self._use(epoch)
            end = min(stop, epoch + 1 << _EPOCH_BITS)
            piece = payloads[number - first_number : end - first_number]
            packets += self._seal_in_epoch(number, connection_id, piece)
            number = end
        return packets

    def _seal_in_epoch(
        self, number: int, connection_id: int, payloads: Sequence[bytes]
    ) -> list[bytes]:
        """The hot path: what is not encryption must stay small against its microsecond.

        So each step is taken for all packets at once, by loops in C.
        """
        iv, stop = self._iv, number + len(payloads)
        numbers = range(_FIRST_BITS | number, _FIRST_BITS | stop)
        headers = list(map(_pack_header, numbers, repeat(connection_id)))
        nonces = [(iv ^ each).to_bytes(_IV_BYTES, "big") for each in range(number, stop)]
        packets = headers * 2
        packets[::2] = headers
        packets[1::2] = map(self._encrypt, nonces, payloads, headers)
        return packets

    def seal_one(self, number: int, connection_id: int, payload: bytes) -> bytes:
        """The same for one packet, in one piece."""
        if number < self._next or number >> _EPOCH_BITS != self._epoch:
            return b"".join(self.seal(number, connection_id, [payload]))
        self._next = number + 1
        header = _pack_header(_FIRST_BITS | number, connection_id)
        nonce = (self._iv ^ number).to_bytes(_IV_BYTES, "big")
        return header + self._encrypt(nonce, payload, header)


class PacketOpener:
    """Opens the packets of one direction of one connection, in any order.

    Accepts the epochs next to the highest one that a genuine packet had, so it keeps three keys at
    most, and a stranger's numbers make it derive no more than those.
    """

    __slots__ = ("_decrypt", "_direction", "_epoch", "_highest", "_iv", "_keys", "_max", "failures")

    def __init__(self, secret: bytes, cipher: str) -> None:
        self._direction = _Direction(secret, cipher)
        self._keys: dict[int, tuple[_Crypt, int]] = {}
        self._highest = 0  # epoch of a genuine packet
        self._max = _MAX_FAILURES[cipher]
        self._epoch, (self._decrypt, self._iv) = 0, self._key(0)
        self.failures = 0  # packets with a usable header that did not open

    @property
    def exhausted(self) -> bool:
        """Whether so many forgeries were tried that the connection must be closed."""
        return self.failures >= self._max

    def open_run_untrusted(self, data: bytes, place: int, size: int) -> tuple[int, list[bytes]]:
        """Open packets that follow each other from ``place``, ``size`` bytes each.

        Returns the number of the first, and the plaintexts of as many as have consecutive numbers.
        This is the hot path: the other numbers are not even read, because a packet with another one
        does not open.  BadPacket if not even the first opens.
        """
        number, plaintext = self.open_untrusted(data[place : place + size])
        plaintexts = [plaintext]
        if place + size >= len(data):
            return number, plaintexts
        append, decrypt, iv = plaintexts.append, self._decrypt, self._iv
        next_number = number + 1
        if (number ^ self._epoch << _EPOCH_BITS) >> _EPOCH_BITS:
            return number, plaintexts  # of an epoch that ends or begins: one by one
        left = (self._epoch + 1 << _EPOCH_BITS) - next_number
        end = min(len(data), place + size * (left + 1))
        header = HEADER_BYTES
        try:
            for start in range(place + size, end, size):
                body = start + header
                append(
                    decrypt(
                        (iv ^ next_number).to_bytes(12, "big"),
                        data[body : start + size],
                        data[start:body],
                    )
                )
                next_number += 1
        except InvalidTag:
            pass  # another number, or a forgery: the next call will tell
        return number, plaintexts

    def open_untrusted(self, packet: bytes) -> tuple[int, bytes]:
        """The packet number and the plaintext; BadPacket if it was made without the secret."""
        try:
            first, _ = HEADER.unpack_from(packet)
        except struct.error as error:
            raise BadPacket("a packet shorter than its header") from error
        number = first ^ _FIRST_BITS
        epoch = number >> _EPOCH_BITS
        if epoch == self._epoch:
            decrypt, iv = self._decrypt, self._iv
        elif number > MAX_NUMBER:
            raise BadPacket("a packet with another first byte")
        elif abs(epoch - self._highest) <= 1:
            decrypt, iv = self._key(epoch)
        else:
            raise BadPacket("a packet number far from those seen")
        try:
            plaintext = decrypt(
                (iv ^ number).to_bytes(12, "big"), packet[HEADER_BYTES:], packet[:HEADER_BYTES]
            )
        except InvalidTag as error:
            self.failures += 1
            raise BadPacket("a packet that does not open") from error
        if epoch > self._highest:
            self._advance(epoch)
        return number, plaintext

    def _key(self, epoch: int) -> tuple[_Crypt, int]:
        key = self._keys.get(epoch)
        if key is None:
            aead, iv = self._direction.keys(epoch)
            key = self._keys[epoch] = aead.decrypt, iv
        return key

    def _advance(self, epoch: int) -> None:
        self._highest = self._epoch = epoch
        self._decrypt, self._iv = self._keys[epoch]
        self._keys.pop(epoch - 2, None)


@functools.cache
def preferred_cipher(cpuinfo: str = "/proc/cpuinfo") -> str:
    """ChaCha20-Poly1305 where the CPU says that it has no AES instructions, else AES-128-GCM."""
    try:
        with open(cpuinfo, encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):  # of x86, of ARM
                    return AES if "aes" in value.split() else CHACHA
    except OSError:
        return AES  # not Linux, or no /proc: nearly every CPU of today has them
    return AES


@functools.cache
def usable_ciphers() -> tuple[str, ...]:
    """Those of this host: in FIPS 140 mode its cryptography has no ChaCha20-Poly1305."""
    return tuple(filter(_is_usable, CIPHERS))


def _is_usable(cipher: str) -> bool:
    aead, key_bytes = CIPHERS[cipher]
    try:
        aead(bytes(key_bytes))
    except UnsupportedAlgorithm:
        return False
    return True
