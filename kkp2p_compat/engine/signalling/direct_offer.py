"""The "direct" part of an offer or answer: what one peer tells the other to be met directly.

Besides its addresses each side says how its NAT behaves, so that both make the same plan.  The part
is protected as the text that it travels in is: the keys of the call depend on it (``keys``).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from random import SystemRandom
from typing import Any

from ..._errors import BadPacket
from ...transport.udp.protection import AES, CHACHA, CIPHERS, preferred_cipher, usable_ciphers
from ...traversal.candidates import Candidate, parse_untrusted
from ...traversal.checks import Credentials
from ...traversal.nat import UNKNOWN, NatBehaviour
from ...traversal.plan import KINDS as PLANS

__all__ = ["DirectOffer", "id_text", "parse_id_untrusted"]

PROOF_VERSION = 1  # that we know; who knows later ones, knows it, too
_ID_DIGITS = 16
_ID = re.compile(rf"[0-9a-f]{{{_ID_DIGITS}}}")
_random = SystemRandom()


@dataclass(frozen=True)
class DirectOffer:
    """One side's part.

    ``cipher``: the one that the caller prefers, or that the callee has chosen.  ``worked``: the
    kind of plan by which this caller last met this callee; "" if none is known.  ``proves``: this
    side shows who it is on the connection, if the other side does, too.  ``ciphers``: those that
    this side has, always with AES.

    Two fields are not sent.  ``vouched``: the IP addresses at which the cloud has seen the other
    side (None: it cannot tell).  ``to_stranger``: ours names only addresses that everybody can see
    who gets a packet from us.
    """

    connection_id: int
    credentials: Credentials
    candidates: list[Candidate]
    cipher: str
    nat: NatBehaviour
    worked: str
    vouched: frozenset[str] | None = None
    to_stranger: bool = False
    proves: bool = False
    ciphers: tuple[str, ...] = tuple(CIPHERS)

    @classmethod
    def make(
        cls,
        candidates: list[Candidate],
        nat: NatBehaviour,
        worked: str,
        asked: DirectOffer | None = None,
        to_stranger: bool = False,
        proves: bool = False,
    ) -> DirectOffer:
        """Ours; ``asked``: the caller's, when we answer."""
        ciphers, wanted = usable_ciphers(), {preferred_cipher()}
        if asked is not None:
            ciphers = tuple(cipher for cipher in ciphers if cipher in asked.ciphers)
            wanted.add(asked.cipher)  # a side without AES instructions decides for both
            proves = proves and asked.proves
        return cls(
            connection_id=secrets.randbits(64),
            credentials=Credentials.make(_random),
            candidates=candidates,
            cipher=CHACHA if CHACHA in wanted.intersection(ciphers) else AES,
            nat=nat,
            worked=worked,
            to_stranger=to_stranger,
            proves=proves,
            ciphers=ciphers,
        )

    def fields(self) -> dict[str, Any]:
        return {
            "id": id_text(self.connection_id),
            "ufrag": self.credentials.ufrag,
            "pwd": self.credentials.password,
            "cipher": self.cipher,
            "candidates": [candidate.text for candidate in self.candidates],
            **({"nat": self.nat.fields()} if self.nat != UNKNOWN else {}),
            **({"worked": self.worked} if self.worked else {}),
            **({"proof": PROOF_VERSION} if self.proves else {}),
            **({"ciphers": self.ciphers} if self.ciphers != tuple(CIPHERS) else {}),
        }

    @classmethod
    def parse_untrusted(cls, fields: object) -> DirectOffer:
        if not isinstance(fields, dict):
            raise BadPacket("a direct part that is not an object")
        cipher = fields.get("cipher")
        if not isinstance(cipher, str) or cipher not in CIPHERS:
            raise BadPacket("a direct part with an unknown cipher")
        ciphers = fields.get("ciphers", list(CIPHERS))
        if not isinstance(ciphers, list):
            raise BadPacket("a direct part with no list of ciphers")
        worked, proof = fields.get("worked"), fields.get("proof")
        return cls(
            parse_id_untrusted(fields.get("id")),
            Credentials.parse_untrusted(fields.get("ufrag"), fields.get("pwd")),
            parse_untrusted(fields.get("candidates")),
            cipher,
            NatBehaviour.parse_untrusted(fields.get("nat")),
            worked if isinstance(worked, str) and worked in PLANS else "",
            proves=type(proof) is int and proof >= PROOF_VERSION,
            ciphers=tuple(cipher for cipher in CIPHERS if cipher in ciphers),
        )


def id_text(connection_id: int) -> str:
    """As it stands in JSON: 16 hexadecimal digits."""
    return f"{connection_id:0{_ID_DIGITS}x}"


def parse_id_untrusted(digits: object) -> int:
    """The connection id in a JSON value."""
    if not isinstance(digits, str) or _ID.fullmatch(digits) is None:
        raise BadPacket("not a connection id")
    return int(digits, 16)
