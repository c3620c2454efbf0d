"""What two peers tell each other so that they can meet directly: the "direct" part of a call.

Travels inside the offer and the answer, through the cloud or a LAN search.  The keys come from the
X25519 exchange of the call and from the very texts of both, so whoever changes a candidate, a
credential or the cipher on the way gets two sides that do not understand each other.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from random import SystemRandom
from typing import Any

from .._errors import BadPacket
from ..transport.udp.protection import CIPHERS, preferred_cipher
from ..traversal.candidates import Candidate, parse_untrusted
from ..traversal.checks import Credentials

__all__ = ["DirectOffer"]

_ID_DIGITS = 16
_random = SystemRandom()


@dataclass(frozen=True)
class DirectOffer:
    """One side's part.  ``cipher``: what the caller likes best, what the callee has chosen."""

    connection_id: int
    credentials: Credentials
    candidates: list[Candidate]
    cipher: str

    @classmethod
    def make(cls, candidates: list[Candidate], asked: DirectOffer | None = None) -> DirectOffer:
        """Ours; ``asked``: the caller's, when we answer.  Slow AES on one side decides for both."""
        ours = preferred_cipher()
        cipher = ours if asked is None or ours != asked.cipher == _FAST else asked.cipher
        return cls(secrets.randbits(64), Credentials.make(_random), candidates, cipher)

    def fields(self) -> dict[str, Any]:
        return {
            "id": f"{self.connection_id:0{_ID_DIGITS}x}",
            "ufrag": self.credentials.ufrag,
            "pwd": self.credentials.password,
            "cipher": self.cipher,
            "candidates": [candidate.text for candidate in self.candidates],
        }

    @classmethod
    def parse_untrusted(cls, fields: object) -> DirectOffer:
        if not isinstance(fields, dict):
            raise BadPacket("a direct part that is not an object")
        digits, cipher = fields.get("id"), fields.get("cipher")
        if not isinstance(digits, str) or len(digits) != _ID_DIGITS or not _is_hex(digits):
            raise BadPacket("a direct part without a connection id")
        if not isinstance(cipher, str) or cipher not in CIPHERS:
            raise BadPacket("a direct part with an unknown cipher")
        return cls(
            int(digits, 16),
            Credentials.parse_untrusted(fields.get("ufrag"), fields.get("pwd")),
            parse_untrusted(fields.get("candidates")),
            cipher,
        )


_FAST = next(iter(CIPHERS))


def _is_hex(text: str) -> bool:
    return all(digit in "0123456789abcdef" for digit in text)
