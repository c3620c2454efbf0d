"""What two peers tell each other so that they can meet directly: the "direct" part of a call.

Besides its addresses each side says how its NAT behaves, so that both make the same plan.  It
travels inside the offer and the answer, through the cloud or a LAN search.  The keys come from the
X25519 exchange of the call and from the very texts of both, so whoever changes a candidate, a
credential or the cipher on the way gets two sides that do not understand each other.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from random import SystemRandom
from typing import Any

from ..._errors import BadPacket
from ...transport.udp.protection import CIPHERS, preferred_cipher
from ...traversal.candidates import Candidate, parse_untrusted
from ...traversal.checks import Credentials
from ...traversal.nat import UNKNOWN, NatBehaviour
from ...traversal.plan import KINDS as PLANS

__all__ = ["DirectOffer", "parse_id_untrusted"]

_ID_DIGITS = 16
_random = SystemRandom()


@dataclass(frozen=True)
class DirectOffer:
    """One side's part.

    ``cipher``: what the caller likes best, what the callee has chosen.  ``worked``: the kind of
    plan that last led from this caller to this callee, or nothing.

    Not told: ``vouched``, ips where the cloud has seen the other side (None: it cannot tell);
    ``to_stranger``, whether ours names only where everybody can see us.
    """

    connection_id: int
    credentials: Credentials
    candidates: list[Candidate]
    cipher: str
    nat: NatBehaviour
    worked: str
    vouched: frozenset[str] | None = None
    to_stranger: bool = False

    @classmethod
    def make(
        cls, candidates: list[Candidate], nat: NatBehaviour, worked: str,
        asked: DirectOffer | None = None, to_stranger: bool = False,
    ) -> DirectOffer:  # fmt: skip
        """Ours; ``asked``: the caller's, when we answer.  Slow AES on one side decides for both."""
        ours = preferred_cipher()
        cipher = ours if asked is None or ours != asked.cipher == _FAST else asked.cipher
        credentials = Credentials.make(_random)
        number = secrets.randbits(64)
        return cls(number, credentials, candidates, cipher, nat, worked, None, to_stranger)

    def fields(self) -> dict[str, Any]:
        return {
            "id": f"{self.connection_id:0{_ID_DIGITS}x}",
            "ufrag": self.credentials.ufrag,
            "pwd": self.credentials.password,
            "cipher": self.cipher,
            "candidates": [candidate.text for candidate in self.candidates],
            **({"nat": self.nat.fields()} if self.nat != UNKNOWN else {}),
            **({"worked": self.worked} if self.worked else {}),
        }

    @classmethod
    def parse_untrusted(cls, fields: object) -> DirectOffer:
        if not isinstance(fields, dict):
            raise BadPacket("a direct part that is not an object")
        cipher = fields.get("cipher")
        if not isinstance(cipher, str) or cipher not in CIPHERS:
            raise BadPacket("a direct part with an unknown cipher")
        worked = fields.get("worked")
        return cls(
            parse_id_untrusted(fields.get("id")),
            Credentials.parse_untrusted(fields.get("ufrag"), fields.get("pwd")),
            parse_untrusted(fields.get("candidates")),
            cipher,
            NatBehaviour.parse_untrusted(fields.get("nat")),
            worked if isinstance(worked, str) and worked in PLANS else "",
        )


_FAST = next(iter(CIPHERS))


def parse_id_untrusted(digits: object) -> int:
    """A connection id, as 16 hexadecimal digits."""
    if not isinstance(digits, str) or len(digits) != _ID_DIGITS or not _is_hex(digits):
        raise BadPacket("what is no connection id")
    return int(digits, 16)


def _is_hex(text: str) -> bool:
    return all(digit in "0123456789abcdef" for digit in text)
