"""The cloud's TLS certificate: a self-signed one, made once and kept, unless the user has another.

The login needs no certificate that anybody vouches for: SCRAM is bound to the one that is shown.
Clients that are to verify it are given ``cloud.crt`` as their login_ca.

The files may be replaced at any time (``Certificate``); connections that are open keep what they
were shown.
"""

from __future__ import annotations

import datetime
import ipaddress
import logging
import socket
import ssl as stdlib_ssl
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gevent import ssl

from .._kept_files import write_whole
from ..control.binding import end_point_binding
from ..control.trust import fingerprint
from ..traversal.interfaces import interfaces, source_addresses
from .changed_files import ChangedFiles

__all__ = ["Certificate", "TLSIdentity", "host_addresses", "load_identity"]

log = logging.getLogger(__name__)

VALID_DAYS = 3652  # our choice: ten years; nobody renews a self-signed certificate on time
CLOCK_SKEW_DAYS = 1  # our choice: a client's clock may be behind


class TLSIdentity(NamedTuple):
    """What a server shows."""

    context: Any  # gevent.ssl.SSLContext
    binding: bytes  # tls-server-end-point data
    fingerprint: str  # "sha256:" and that of the certificate in hex
    ends: float  # Unix time


def host_addresses() -> list[str]:
    """This host's addresses, IPv4 first; none that need a scope (link-local IPv6)."""
    listed = [interface.address for interface in interfaces()]
    return list(dict.fromkeys([*listed, *source_addresses()]))


def reachable_host(host: str) -> str:
    """Where others reach what listens at ``host``: of all addresses, one that is seen from outside
    if there is one.
    """
    if host not in ("0.0.0.0", "::"):
        return host
    found = [each for each in host_addresses() if host == "::" or ":" not in each]
    parsed = {each: ipaddress.ip_address(each) for each in found}
    found.sort(key=lambda each: (parsed[each].is_loopback, not parsed[each].is_global))
    return found[0] if found else "127.0.0.1"


def load_identity(
    data: Path | None,
    certificate: Path | None = None,
    key: Path | None = None,
    names: list[str] | None = None,
) -> TLSIdentity:
    """The certificate of the files given, else that of ``data``, made there if it is missing.

    One that we make is for this host's addresses and name, and for ``names``; where the kept one
    lacks some of these, or is missing, a new one is made with the same key.  Without ``data`` it
    is made for this process only.  Raises OSError (also ssl.SSLError) or ValueError, with a
    sentence for the user.
    """
    if certificate is not None and key is not None:
        return _identity(certificate, key)
    if data is None:
        with tempfile.TemporaryDirectory(prefix="kkp2p-") as folder:
            return _kept_identity(Path(folder), names or [])
    return _kept_identity(data, names or [])


class Certificate:
    """What a cloud shows now, from files that may be replaced while it runs."""

    def __init__(
        self, data: Path | None, certificate: Path | None, key: Path | None, names: list[str]
    ) -> None:
        """Raises as ``load_identity`` does."""
        self.shown = load_identity(data, certificate, key, names)
        self._files: tuple[Path, ...] = ()
        if certificate is not None and key is not None:
            self._files = certificate, key
        elif data is not None:
            self._files = data / _CERTIFICATE, data / _KEY
        self._changed = ChangedFiles(self._files)

    def sweep(self, now: float) -> None:
        """To be called about once a second: load files that have changed."""
        if self._changed.look():
            self.load()

    def load(self) -> None:
        """Load the files now.  Where they do not fit together the old certificate stays."""
        if not self._files:
            return
        self._changed.forget()
        try:
            identity = _identity(*self._files)
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            log.error("the certificate is not replaced by %s and %s: %s", *self._files, error)
            return
        if identity.fingerprint != self.shown.fingerprint:
            log.warning("new connections are shown another certificate: %s", identity.fingerprint)
        self.shown = identity


_CERTIFICATE, _KEY = "cloud.crt", "cloud.key"


def _kept_identity(data: Path, names: list[str]) -> TLSIdentity:
    certificate, key_file = data / _CERTIFICATE, data / _KEY
    if not certificate.exists():
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not key_file.exists():
            write_whole(str(key_file), _key_pem(ec.generate_private_key(ec.SECP256R1())), 0o600)
        write_whole(str(certificate), _self_signed_pem(_kept_key(key_file), names), 0o644)
    elif not key_file.exists():
        raise ValueError(
            f"{certificate} is there, but its key, {key_file}, is missing: put that back, or delete"
            f" {certificate} to have both made anew; whoever goes by its SHA-256, or has it as"
            " login_ca, then needs the new one"
        )
    elif missing := set(names) - _names_in(certificate):
        pem = _self_signed_pem(_kept_key(key_file), names)
        write_whole(str(certificate), pem, 0o644)
        log.warning(
            "%s was made anew, with %s: whoever has it as login_ca, or has its SHA-256, needs the"
            " new one; its key is the same",
            certificate,
            ", ".join(sorted(missing)),
        )
    return _identity(certificate, key_file)


def _names_in(certificate: Path) -> set[str]:
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = names.get_values_for_type(x509.IPAddress)
    return {*names.get_values_for_type(x509.DNSName), *map(str, addresses)}


def _kept_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(file.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{file} is not a key that kkp2p cloud makes certificates for")
    return key


def _identity(certificate: Path, key: Path) -> TLSIdentity:
    pem = certificate.read_text("ascii")
    end = pem.find(stdlib_ssl.PEM_FOOTER)
    if end < 0:
        raise ValueError(f"{certificate} holds no PEM certificate")
    der = stdlib_ssl.PEM_cert_to_DER_cert(
        pem[pem.index(stdlib_ssl.PEM_HEADER) : end + len(stdlib_ssl.PEM_FOOTER)]
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody resumes, and each would cost memory and bytes
    key.read_bytes()  # whose OSError names the file, other than that of load_cert_chain
    try:
        context.load_cert_chain(certificate, key)
    except stdlib_ssl.SSLError as error:
        raise ValueError(f"{certificate} and {key} are not a pair: {error}") from error
    ends = x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
    return TLSIdentity(context, end_point_binding(der), f"sha256:{fingerprint(der).hex()}", ends)


def _self_signed_pem(key: ec.EllipticCurvePrivateKey, given: list[str]) -> bytes:
    host_name = socket.gethostname()
    names = ["localhost", *([host_name] if host_name.isascii() else []), *host_addresses(), *given]
    alternatives = [_alternative(name) for name in dict.fromkeys(names)]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kkp2p cloud")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=CLOCK_SKEW_DAYS))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        # A CA of itself, so that a client may trust it and nothing but it.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
