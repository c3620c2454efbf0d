"""How two sides of a call know each other on a TCP connection that either may have made.

    both:    MAGIC, 16 random bytes
    callee:  its proof, an HMAC-SHA256 of both numbers under a key of the call
    caller:  its proof, on the one connection that it takes

So a stranger that happens to be at that address is not taken for the peer; and where several
connections came to be, both sides keep the same one.  Sans-IO: each step takes a part of fixed
length and gives what to send.  What follows the caller's proof is no part of it.
"""

from __future__ import annotations

import hmac

from .._errors import BadPacket

__all__ = ["GREETING_BYTES", "PROOF_BYTES", "TcpProof"]

MAGIC = b"KKTP\x01"
NONCE_BYTES = 16
GREETING_BYTES = len(MAGIC) + NONCE_BYTES
PROOF_BYTES = 32


class TcpProof:
    """``nonce``: NONCE_BYTES random bytes of this connection."""

    def __init__(self, key: bytes, is_caller: bool, nonce: bytes) -> None:
        self.greeting = MAGIC + nonce
        self._key = key
        self._is_caller = is_caller
        self._both = b""

    def handle_greeting_untrusted(self, greeting: bytes) -> None:
        """BadPacket: it is not one of ours."""
        if len(greeting) != GREETING_BYTES or not greeting.startswith(MAGIC):
            raise BadPacket("a greeting of another kind")
        if greeting == self.greeting:
            raise BadPacket("our own greeting")
        pair = (self.greeting, greeting) if self._is_caller else (greeting, self.greeting)
        self._both = b"".join(pair)

    def own_proof(self) -> bytes:
        return self._proof(self._is_caller)

    def check_untrusted(self, proof: bytes) -> None:
        """BadPacket: the other side does not have the call's key."""
        if not hmac.compare_digest(proof, self._proof(not self._is_caller)):
            raise BadPacket("a wrong proof")

    def _proof(self, is_caller: bool) -> bytes:
        side = b"caller" if is_caller else b"callee"
        return hmac.digest(self._key, b"kkp2p tcp " + side + self._both, "sha256")
