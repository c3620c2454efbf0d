"""Who may take part in one call's checks: RFC 8445's username fragments and passwords."""

from __future__ import annotations

import base64
import hmac
import re
from random import Random
from typing import NamedTuple

from .._errors import BadPacket

__all__ = ["UFRAG_BYTES", "Credentials"]

UFRAG_BYTES = 6  # RFC 8445 section 5.3: at least 24 random bits
PASSWORD_BYTES = 18  # 5.3: at least 128 random bits
ICE_TEXT = re.compile(r"[A-Za-z0-9+/]*", re.ASCII)  # 5.3: ice-char


class Credentials(NamedTuple):
    """A username fragment and a password of one side of one call; travel in the offer or answer.

    ``repr`` hides the password, so that no log gets it.
    """

    ufrag: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.ufrag!r})"

    @classmethod
    def make(cls, random: Random) -> Credentials:
        """Fresh ones; ``random`` is a SystemRandom outside tests."""
        return cls(_text(random.randbytes(UFRAG_BYTES)), _text(random.randbytes(PASSWORD_BYTES)))

    @classmethod
    def derive(cls, secret: bytes, name: str) -> Credentials:
        """Those that both sides make of a secret of theirs."""
        made = hmac.digest(secret, name.encode(), "sha256")[: UFRAG_BYTES + PASSWORD_BYTES]
        return cls(_text(made[:UFRAG_BYTES]), _text(made[UFRAG_BYTES:]))

    @classmethod
    def parse_untrusted(cls, ufrag: object, password: object) -> Credentials:
        """The peer's, from JSON."""
        return cls(_ice_untrusted(ufrag, UFRAG_BYTES), _ice_untrusted(password, PASSWORD_BYTES))

    @property
    def key(self) -> bytes:
        """Of MESSAGE-INTEGRITY, for requests to this side and its answers."""
        return self.password.encode()

    @property
    def tag(self) -> bytes:
        """How the transaction ids of this side's requests start: by it an answer finds us."""
        return base64.b64decode(self.ufrag)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _ice_untrusted(value: object, size: int) -> str:
    if not isinstance(value, str) or len(value) != size * 4 // 3 or not ICE_TEXT.fullmatch(value):
        raise BadPacket("credentials that are not of their form")
    return value
