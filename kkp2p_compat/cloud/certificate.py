"""The cloud's TLS certificate: a self-signed one, made once and kept, unless the user has another.

The login needs no certificate that anybody vouches for (SCRAM is bound to whatever it is); clients
that should verify it are given ``cloud.crt`` as their login_ca.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl as stdlib_ssl
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gevent import ssl

from ..control.binding import end_point_binding
from ..control.trust import fingerprint
from ..traversal.interfaces import interfaces, source_addresses

__all__ = ["TLSIdentity", "host_addresses", "load_identity"]

VALID_DAYS = 3652  # our choice: ten years; nobody renews a self-signed certificate on time
CLOCK_SKEW_DAYS = 1  # our choice: a client's clock may be behind


class TLSIdentity(NamedTuple):
    """What a server shows."""

    context: Any  # gevent.ssl.SSLContext
    binding: bytes  # tls-server-end-point data
    fingerprint: str  # "sha256:" and that of the certificate in hex


def host_addresses() -> list[str]:
    """This host's addresses, IPv4 first; none that need a scope (link-local IPv6)."""
    listed = [interface.address for interface in interfaces()]
    return list(dict.fromkeys([*listed, *source_addresses()]))


def load_identity(
    data: Path | None, certificate: Path | None = None, key: Path | None = None
) -> TLSIdentity:
    """The certificate of the files given, else that of ``data``, made there if it is missing.

    Without ``data`` it is made for this process only.  Raises OSError (also ssl.SSLError) or
    ValueError, with a sentence for the user.
    """
    if certificate is not None and key is not None:
        return _identity(certificate, key)
    if data is None:
        with tempfile.TemporaryDirectory(prefix="kkp2p-") as folder:
            return _kept_identity(Path(folder))
    return _kept_identity(data)


def _kept_identity(data: Path) -> TLSIdentity:
    certificate, key = data / "cloud.crt", data / "cloud.key"
    if not (certificate.exists() and key.exists()):
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificate_pem, key_pem = _make_self_signed()
        _write(key, key_pem, 0o600)
        _write(certificate, certificate_pem, 0o644)
    return _identity(certificate, key)


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
    try:
        context.load_cert_chain(certificate, key)
    except stdlib_ssl.SSLError as error:
        raise ValueError(f"{certificate} and {key} are no pair: {error}") from error
    return TLSIdentity(context, end_point_binding(der), f"sha256:{fingerprint(der).hex()}")


def _make_self_signed() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    names = dict.fromkeys(["localhost", socket.gethostname()])
    addresses = [ipaddress.ip_address(address) for address in host_addresses()]
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names if name.isascii()]
    alternatives += [x509.IPAddress(address) for address in addresses]
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
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem


def _write(path: Path, content: bytes, mode: int) -> None:
    """Put a file in place whole, and with its mode from the first byte on."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
