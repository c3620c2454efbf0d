"""Where a cloud is, in one line; for an invited peer also who it is there, and its secret.

``HOST[:PORT][#sha256:HEX]`` names a cloud and the SHA-256 of its certificate.  An invitation is
``kkp2p://PEER[:SECRET]@`` in front of that, PEER and SECRET with ``%`` and two hex digits for what
RFC 3986 section 2.3 does not leave alone: so it stays in one piece in a shell and in a chat.
``kkp2p invite`` prints one, and ``kkp2p join`` keeps it in a file of the user's.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from .._address import parse_host_port, text_of
from .._errors import KKP2PError
from .._kept_files import read_small, write_whole
from .._peer_id import is_peer_id
from .trust import parse_fingerprints

__all__ = [
    "DEFAULT_PORT",
    "MAX_CHARS",
    "Invitation",
    "begin",
    "begun",
    "keep",
    "kept",
    "kept_at",
    "line_of_this_user",
    "login_of_this_user",
]

DEFAULT_PORT = 3080  # what the document's programs use
DEFAULT_HOST = "127.0.0.1"
MAX_CHARS = 4096  # our choice

_LINE = re.compile(
    r"(?:kkp2p://(?:(?P<peer>[^:@/#]*)(?::(?P<secret>[^:@/#]*))?@)?)?"
    r"(?P<place>[^@/#]*)/?(?:#(?P<fingerprint>.*))?"
)


@dataclass(frozen=True)
class Invitation:
    """``fingerprint``: as engine_conf_t.login_fingerprint; None: a CA vouches for the cloud.

    ``peer_id``, ``secret``: None if the line does not tell them.
    """

    host: str
    port: int
    fingerprint: str | None = None
    peer_id: str | None = None
    secret: str | None = None

    @classmethod
    def parse(cls, text: str) -> Invitation:
        """Raises ValueError, which shows nothing of the line: there may be a secret in it."""
        match = _LINE.fullmatch(text.strip()) if len(text) <= MAX_CHARS else None
        if match is None:
            raise ValueError("not HOST[:PORT][#sha256:HEX], nor an invitation (kkp2p://...)")
        try:
            host, port = parse_host_port(match["place"], default=DEFAULT_PORT)
        except ValueError:
            raise ValueError("not the HOST[:PORT] of a cloud") from None
        fingerprint = match["fingerprint"]
        if fingerprint is not None:
            try:
                parse_fingerprints(fingerprint)
            except KKP2PError as error:
                raise ValueError("behind the # is not the SHA-256 of a certificate") from error
        peer_id, secret = (
            None if part is None else unquote(part) for part in match.group("peer", "secret")
        )
        if peer_id is not None and not is_peer_id(peer_id):
            raise ValueError("no peer id is in front of the @")
        return cls(host, port, fingerprint, peer_id, secret or None)

    @property
    def cloud(self) -> str:
        """The line without the peer and its secret."""
        pin = f"#{self.fingerprint}" if self.fingerprint else ""
        return text_of((self.host, self.port)) + pin

    def __str__(self) -> str:
        who = quote(self.peer_id or "", safe="")
        if self.secret is not None:
            who += f":{quote(self.secret, safe='')}"
        return f"kkp2p://{who}@{self.cloud}" if who else self.cloud


def kept_at() -> Path:
    """The file in which ``kkp2p join`` keeps what it was given (XDG base directories)."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "kkp2p" / "login"


def login_of_this_user() -> Invitation:
    """As ``line_of_this_user``; raises OSError or ValueError."""
    return Invitation.parse(line_of_this_user())


def line_of_this_user() -> str:
    """The environment's KKP2P_LOGIN, else what was kept, else a cloud on this host.

    Raises OSError or ValueError.
    """
    return os.environ.get("KKP2P_LOGIN") or _read(kept_at()) or f"{DEFAULT_HOST}:{DEFAULT_PORT}"


def kept() -> Invitation | None:
    """What ``keep`` was given last; raises OSError or ValueError."""
    line = _read(kept_at())
    return Invitation.parse(line) if line else None


def begun() -> Invitation | None:
    """What ``begin`` was given last, and ``keep`` not since; raises OSError or ValueError."""
    line = _read(_begun_at())
    return Invitation.parse(line) if line else None


def _begun_at() -> Path:
    return kept_at().with_suffix(".begun")


def _read(path: Path) -> str:
    try:
        return read_small(str(path), MAX_CHARS)[0].decode("ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def begin(invitation: Invitation) -> None:
    """What is going to be kept if all goes well.  Raises OSError."""
    _write(_begun_at(), invitation)


def keep(invitation: Invitation) -> None:
    """For this user only.  Raises OSError."""
    _write(kept_at(), invitation)
    _begun_at().unlink(missing_ok=True)


def _write(path: Path, invitation: Invitation) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(str(path), f"{invitation}\n".encode("ascii"), 0o600)
