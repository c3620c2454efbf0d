"""The TLS channel binding "tls-server-end-point" (RFC 5929 section 4)."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes

__all__ = ["end_point_binding"]


def end_point_binding(der: bytes) -> bytes:
    """The hash of a server's certificate (DER) that both ends of a login must agree on.

    The hash is that of the certificate's signature, MD5 and SHA-1 replaced by SHA-256; so is a
    signature without a hash of its own (Ed25519), for which the RFC names none.
    """
    algorithm = x509.load_der_x509_certificate(der).signature_hash_algorithm
    if algorithm is None or isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    digest = hashes.Hash(algorithm)
    digest.update(der)
    return digest.finalize()
