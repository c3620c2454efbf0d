"""The channel binding that ties a login to the server's certificate (RFC 5929 section 4).

Both ends compute it from the certificate that they see: the server from its own, the client from
what the TLS handshake showed.  They differ when somebody sits in the middle.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

__all__ = ["BINDING_NAME", "MECHANISM", "end_point_binding"]

MECHANISM = "SCRAM-SHA-256-PLUS"  # RFC 7677; -PLUS: with a channel binding
BINDING_NAME = "tls-server-end-point"


def end_point_binding(der: bytes) -> bytes:
    """The tls-server-end-point hash of a DER certificate; raises ValueError if it is not one.

    The hash is that of the certificate's signature, SHA-256 in place of MD5 and SHA-1 (RFC 5929
    section 4.1).  Where the signature has no hash of its own (Ed25519), which the RFC leaves
    undefined, both ends take SHA-256.
    """
    certificate = x509.load_der_x509_certificate(der)
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm as error:
        raise ValueError(f"a certificate with an unknown signature: {error}") from error
    if algorithm is None or isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    digest = hashes.Hash(algorithm)
    digest.update(der)
    return digest.finalize()
