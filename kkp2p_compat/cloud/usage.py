"""How many bytes of the relays each account uses, and which accounts have had enough for a day;
how often each has logged in and called.

A relay knows no accounts.  So the id of a session is one block of AES under a key that only the
servers of a cloud have: six random bytes, the quota of the account that pays, and its tag, which is
a hash of its id.  To peers it is sixteen random bytes.  The relays add up bytes by tag and tell the
directory now and then; there the tracks see what an account has used, and relays what it has used
elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import struct
from collections import Counter
from typing import NamedTuple

import gevent
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..transport.relay_wire import SESSION_BYTES
from .directory import Directory, DirectoryAway, today

__all__ = ["CALLS", "LOGINS", "RELAY_BYTES", "USED_UP", "Payer", "Sessions", "Usage", "tag_of"]

log = logging.getLogger(__name__)

RELAY_BYTES = "relay_bytes"  # what the directory counts by tag
CALLS, LOGINS = "calls", "logins"  # and by account

# Our choices.
TELL_EVERY_S = 10.0
MAX_TAGS = 100_000  # that are remembered
MAX_COUNTS = 100_000  # that are not told yet
USED_UP = "the account that pays has used up its relay bytes of the day"

_BLOCK = struct.Struct("!6sH8s")
_MANTISSA_BITS = 10  # of a quota, which is rounded up by less than two in a thousand


class Payer(NamedTuple):
    """Whose a session is; ``quota``: relay bytes that it may use in a day, None: any number."""

    tag: str
    quota: int | None = None


def tag_of(peer_id: str) -> str:
    """By what relays and the directory know the bytes of an account."""
    return hashlib.blake2b(peer_id.encode(), digest_size=8).hexdigest()


class Sessions:
    """Makes and reads ids of sessions; ``key``: that of the relays."""

    def __init__(self, key: bytes) -> None:
        block_key = hmac.digest(key, b"session", "sha256")
        # One block, and never two that are equal: this is no use of ECB as a mode.
        cipher = Cipher(algorithms.AES(block_key), modes.ECB())
        self._encrypt = cipher.encryptor().update
        self._decrypt = cipher.decryptor().update

    def make(self, payer: Payer) -> bytes:
        random, tag = secrets.token_bytes(6), bytes.fromhex(payer.tag)
        return self._encrypt(_BLOCK.pack(random, _packed(payer.quota), tag))

    def payer(self, session: bytes) -> Payer:
        """Of a session whose token is genuine."""
        _, packed, tag = _BLOCK.unpack(self._decrypt(session))
        return Payer(tag.hex(), _unpacked(packed))


assert _BLOCK.size == SESSION_BYTES


def _packed(quota: int | None) -> int:
    """Six bits of exponent, and ten of mantissa; 0: none."""
    if quota is None:
        return 0
    exponent = max(quota == 0, quota.bit_length() - _MANTISSA_BITS)
    mantissa = -(-quota >> exponent)  # rounded up
    if mantissa >> _MANTISSA_BITS:
        mantissa, exponent = mantissa >> 1, exponent + 1
    return exponent << _MANTISSA_BITS | mantissa


def _unpacked(packed: int) -> int | None:
    exponent, mantissa = divmod(packed, 1 << _MANTISSA_BITS)
    return mantissa << exponent if packed else None


class Usage:
    """``charge`` what relays carry, ``count`` logins and calls; ``is_over`` tells at once what is
    known by now.

    ``sweep`` about once a second.  What cannot be told to a directory that is away is told later.
    """

    def __init__(self, key: bytes, directory: Directory) -> None:
        sessions = Sessions(key)
        self.new_session, self.payer = sessions.make, sessions.payer
        self._directory = directory
        self._counts: Counter[tuple[str, str]] = Counter()  # by tag or account, not told yet
        self._left_out = 0
        self._used: dict[str, int] = {}  # by tags with a quota: of this day, as far as is known
        self._unknown: set[str] = set()  # such tags, to be asked for
        self._day = ""
        self._told_at = 0.0
        self._telling: gevent.Greenlet[..., None] | None = None

    def count(self, who: str, what: str, count: int = 1) -> bool:
        """Whether there is room for it."""
        if (who, what) not in self._counts and len(self._counts) >= MAX_COUNTS:
            self._left_out += count
            return False
        self._counts[who, what] += count
        return True

    def charge(self, payer: Payer, count: int) -> None:
        if not count or not self.count(payer.tag, RELAY_BYTES, count):
            return
        if payer.tag in self._used:
            self._used[payer.tag] += count
        elif payer.quota is not None:
            self._unknown.add(payer.tag)

    def is_over(self, payer: Payer) -> bool:
        """Whether this account has used up what it may use today, on all relays together."""
        if payer.quota is None:
            return False
        if payer.quota and payer.tag not in self._used:
            self._unknown.add(payer.tag)
            if self._directory.is_local:
                self._ask([payer.tag])
        return self._used.get(payer.tag, 0) >= payer.quota

    def sweep(self, now: float) -> None:
        day = today()
        if day != self._day:
            self._day = day
            self._used.clear()
        if self._telling or not (self._unknown or now - self._told_at >= TELL_EVERY_S):
            return
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            self._unknown.update(self._used)
        if self._directory.is_local:
            self._tell()
        else:
            self._telling = gevent.spawn(self._tell)

    def close(self) -> None:
        """Tell what is left; may wait."""
        if self._telling:
            self._telling.kill()
        self._tell()

    def _tell(self) -> None:
        if self._left_out:
            log.warning(
                "usage: %d bytes, logins and calls are not counted: over %d numbers at once",
                self._left_out,
                MAX_COUNTS,
            )
            self._left_out = 0
        counts, self._counts = self._counts, Counter()
        try:
            if counts:
                self._directory.add_usage(counts)
            self._ask(list(self._unknown))
        except DirectoryAway as error:
            log.info("relay: usage is told later: %s", error)
        finally:
            self._counts.update(counts)

    def _ask(self, tags: list[str]) -> None:
        """What these have used today, by all relays."""
        for tag, used in self._directory.usages(tags):
            if len(self._used) >= MAX_TAGS:
                self._used.clear()
            self._used[tag] = used.get(RELAY_BYTES, 0) + self._counts[tag, RELAY_BYTES]
            self._unknown.discard(tag)
