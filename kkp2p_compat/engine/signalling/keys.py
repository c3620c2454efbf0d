"""The keys of one call: an X25519 exchange, bound to the very texts of offer and answer.

Whoever changes a text on its way, such as a candidate, a credential or the cipher, gets two sides
that share no key.  docs/protocol.rst has the derivation.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..._errors import BadPacket, NotSupported

__all__ = ["CallKeys", "make_private_key"]

SECRET_BYTES = (
    32  # docs/protocol.rst: each of the two directions', the trickled texts' and the proofs'
)


class CallKeys(NamedTuple):
    """What both sides share once the callee has answered."""

    send: bytes
    receive: bytes
    trickle: bytes
    proof: bytes  # both sides sign it: see identity.py

    @classmethod
    def derive(
        cls, private: X25519PrivateKey, public: bytes, offer: str, answer: str, is_caller: bool
    ) -> CallKeys:
        """BadPacket if the peer's key is not usable."""
        block = _agree(private, public, offer, answer, b"kkp2p udp 1", 4 * SECRET_BYTES)
        callers, callees, trickle, proof = (
            block[start : start + SECRET_BYTES] for start in range(0, len(block), SECRET_BYTES)
        )
        send, receive = (callers, callees) if is_caller else (callees, callers)
        return cls(send, receive, trickle, proof)


def make_private_key() -> X25519PrivateKey:
    """For one call; NotSupported where the host's cryptography may not (FIPS 140 mode)."""
    try:
        return X25519PrivateKey.generate()
    except UnsupportedAlgorithm as error:
        raise NotSupported(f"the cryptography of this host has no X25519: {error}") from error


def _agree(
    private: X25519PrivateKey, public: bytes, offer: str, answer: str, purpose: bytes, size: int
) -> bytes:
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # wrong length, or a point of small order
        raise BadPacket("the peer's public key is not usable") from error
    salt = hashlib.sha256(
        hashlib.sha256(offer.encode()).digest() + hashlib.sha256(answer.encode()).digest()
    ).digest()
    return HKDF(SHA256(), size, salt, purpose).derive(secret)
