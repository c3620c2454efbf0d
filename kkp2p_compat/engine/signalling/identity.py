"""Who we are for peers that know our key: an Ed25519 key pair (RFC 8032), and proofs made with it.

A proof is a signature of what only the two ends of one connection have in common: a secret of its
keys, which are made of both X25519 keys and of the very texts of offer and answer.  So it is worth
nothing in another connection, and who passes the keys of two peers on, with keys of his own, has
two connections with different secrets.  docs/protocol.rst has the layout.
"""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..._codes import MAX_PEER_ID
from ..._errors import NotSupported, ParameterError, UnprovenPeer
from ..._kept_files import locked, read_small, write_whole
from ..._peer_id import is_peer_id
from ...transport.udp.frames import Proof

__all__ = ["Identity", "Proven", "verify_untrusted"]

MAX_KEY_FILE_BYTES = 16 * 1024  # our choice
_LABEL = b"kkp2p proof 1\0"


class Proven(NamedTuple):
    """What a proof that is right says."""

    fingerprint: str  # of the key
    peer_id: str  # the signer's, as it says; "": it has none


class Identity:
    """A key pair of ours."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self._public = private.public_key().public_bytes_raw()
        self.fingerprint = _fingerprint(private.public_key())

    @classmethod
    def kept_in(cls, path: str) -> Identity:
        """The one in a file, which is made if there is none; raises ParameterError."""
        try:
            try:
                return cls(_load(path))
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
            with locked(path):
                try:
                    return cls(_load(path))  # another program was faster
                except FileNotFoundError:
                    return cls(_make(path))
        except OSError as error:
            raise ParameterError(f"the key file: {error}") from error
        except UnsupportedAlgorithm as error:
            raise NotSupported(f"the cryptography of this host has no Ed25519: {error}") from error

    def prove(self, secret: bytes, is_caller: bool, own_id: str, called_id: str) -> Proof:
        """To the other end of a connection.  ``secret``: CallKeys.proof."""
        name = _padded(own_id)
        statement = _statement(secret, is_caller, self._public, name, called_id)
        return Proof(self._public, self._private.sign(statement), name)


def verify_untrusted(proof: Proof, secret: bytes, is_caller: bool, called_id: str) -> Proven:
    """What the other end proves; raises UnprovenPeer.  ``is_caller``: whether that end called."""
    name = proof.peer_id.rstrip(b"\0").decode("latin-1")
    if name and not is_peer_id(name):
        raise UnprovenPeer("a proof with something that is no peer id")
    statement = _statement(secret, is_caller, proof.key, proof.peer_id, called_id)
    try:
        key = Ed25519PublicKey.from_public_bytes(proof.key)
        key.verify(proof.signature, statement)
    except (InvalidSignature, ValueError) as error:
        raise UnprovenPeer("a proof that is not of this connection, or a false one") from error
    return Proven(_fingerprint(key), name)


def _statement(secret: bytes, is_caller: bool, public: bytes, name: bytes, called_id: str) -> bytes:
    """What is signed: every part has one length."""
    role = b"caller" if is_caller else b"callee"
    return _LABEL + role + secret + public + name + _padded(called_id)


def _padded(peer_id: str) -> bytes:
    return peer_id.encode("latin-1").ljust(MAX_PEER_ID, b"\0")


def _fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo (RFC 8410), as other programs can compute it."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def _load(path: str) -> Ed25519PrivateKey:
    content, status = read_small(path, MAX_KEY_FILE_BYTES)
    if status.st_mode & 0o077:
        raise ParameterError(f"the key file {path} is not its owner's alone: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError) as error:  # no key; one with a passphrase
        raise ParameterError(f"the key file {path} holds no key without a passphrase") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ParameterError(f"the key file {path} holds a key that is not of Ed25519")
    return key


def _make(path: str) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_whole(path, pem)
    return key
