"""Which certificates the servers of an engine's cloud may show.

Any one of these vouches for a certificate:

- a CA: login_ca, which may be the very certificate that is shown, and is read again when the file
  was replaced; or for a login_domain that has a name one of the system's;
- the user: login_fingerprint;
- a login: SCRAM is bound to the certificate that it ran on (``binding.py``), so the server knows
  our secret's verifier.  What a login has proved counts as long as the engine lives;
- a server that is vouched for itself, for others of its cloud.

As long as nothing vouches for anything every certificate is taken on faith: a caller needs no
account, as in the C SDK.  From the first proof on that is over.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re

from gevent import ssl

from .._codes import KKP2P_ERROR_PARAMETER
from .._errors import KKP2PError, ParameterError
from .._kept_files import stamp_of

__all__ = ["MAX_NAMED", "Trust", "fingerprint", "parse_fingerprints"]

MAX_NAMED = 256  # our choice: certificates that an engine remembers for one cloud

_SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{2}(?::?[0-9a-f]{2}){31})", re.IGNORECASE)


@functools.lru_cache(MAX_NAMED)
def fingerprint(der: bytes) -> bytes:
    """The SHA-256 of a certificate."""
    return hashlib.sha256(der).digest()


def parse_fingerprints(text: str) -> frozenset[bytes]:
    """SHA-256s of certificates, joined with commas; raises ParameterError.

    Each in hex, with ``sha256:`` in front or without, and colons between the bytes or none.
    """
    return frozenset(_parse_fingerprint(part.strip()) for part in text.split(","))


def _parse_fingerprint(text: str) -> bytes:
    match = _SHA256.fullmatch(text)
    if match is None:
        raise ParameterError(f"{text[:100]!r} is not the SHA-256 of a certificate, in hex")
    return bytes.fromhex(match[1].replace(":", ""))


class Trust:
    """What vouches for the servers of one engine's cloud.

    ``has_name``: there is a name in login_domain.
    """

    def __init__(self, ca_file: str | None, given: frozenset[bytes], has_name: bool) -> None:
        self._known = set(given)  # vouched for by what we hold, not by a CA
        # A server that shows a certificate of login_ca itself is meant, by whatever name or
        # address it is reached: behind a port forward its own certificate has another one.
        self._of_ca: frozenset[bytes] = frozenset()
        self._ca_file = ca_file
        self.asks_ca = ca_file is not None or (has_name and not given)
        # Nothing else may even be logged in at: a false server gets no proof to guess from.
        self.is_required = ca_file is not None or bool(given)
        if ca_file is not None:
            self._load(ca_file)
        else:  # nobody passes by the bare one
            self.verified = _system_context() if self.asks_ca else _bare_context()
        self.unverified = _unverified_context()

    def _load(self, ca_file: str) -> None:
        self._ca_stamp = stamp_of(ca_file)
        self.verified = _context(ca_file)
        self._of_ca = frozenset(map(fingerprint, self.verified.get_ca_certs(binary_form=True)))

    def refresh(self) -> None:
        """Go by login_ca as the file is now; KKP2PError: it cannot be used, and what was in it
        before still counts."""
        if self._ca_file is not None and stamp_of(self._ca_file) != self._ca_stamp:
            self._load(self._ca_file)

    @property
    def is_strict(self) -> bool:
        """Whether calls use only servers that something vouches for."""
        return self.is_required or bool(self._known)

    def knows(self, certificate: bytes) -> bool:
        """Whether we know a certificate (DER) without asking a CA."""
        digest = fingerprint(certificate)
        return digest in self._known or digest in self._of_ca

    def require(self) -> None:
        """A CA has vouched for a server: from now on anything less is an attack."""
        self.is_required = True

    def add(self, certificate: bytes) -> None:
        """A login has proved this certificate."""
        self._known.add(fingerprint(certificate))

    def add_named_untrusted(self, names: object) -> None:
        """The SHA-256s, in hex, that a server that is vouched for names of others of its cloud."""
        for name in names[:MAX_NAMED] if isinstance(names, list) else []:
            if isinstance(name, str) and len(self._known) < MAX_NAMED:
                with contextlib.suppress(ParameterError):  # another kind of hash
                    self._known.add(_parse_fingerprint(name))


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


# Those that hold nothing of one engine's are shared by all: each takes up to 0.3 ms to make, and
# the system's certificates 40 ms and megabytes.
_bare_context = functools.cache(_new_context)


@functools.cache
def _unverified_context() -> ssl.SSLContext:
    context = _new_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@functools.cache
def _system_context() -> ssl.SSLContext:
    context = _new_context()
    context.load_default_certs()
    return context


def _context(ca_file: str) -> ssl.SSLContext:
    context = _new_context()
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:
        raise KKP2PError(f"login_ca {ca_file}: {error}", KKP2P_ERROR_PARAMETER) from error
    return context
