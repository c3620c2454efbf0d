"""Where a TURN server is, and the credentials with which it takes us.

A cloud shares a secret with the server, and makes credentials from it that are good for a time, as
coturn's ``use-auth-secret`` takes them: the username begins with the Unix time of its end, and the
password is the username's HMAC-SHA1 under the secret, in base64 (draft-uberti-behave-turn-rest).
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import NamedTuple

from .._address import HostPort, host_port_untrusted, parse_host_port
from .._errors import BadPacket

__all__ = ["TurnServer", "parse_turn_uri", "parse_untrusted", "time_limited"]

DEFAULT_PORT = 3478  # RFC 7065 section 3.2
MAX_TEXT = 200  # our choice: characters of a username or a password; coturn's have 60 at most
_TEXT = re.compile(rf"[!-~]{{1,{MAX_TEXT}}}")  # nothing that RFC 8265 would prepare


class TurnServer(NamedTuple):
    host: str  # a name or a numeric address
    port: int
    username: str
    password: str


def parse_turn_uri(text: str) -> HostPort:
    """``turn:HOST:PORT``, or without the port (RFC 7065); ValueError if it is neither."""
    scheme, colon, rest = text.partition(":")
    if scheme.lower() != "turn" or not colon or "?" in rest:
        raise ValueError(f"{text[:100]!r} is not turn:HOST:PORT (TURN over UDP)")
    return parse_host_port(rest, default=DEFAULT_PORT)


def time_limited(secret: bytes, who: str, until: int) -> tuple[str, str]:
    """A username and a password; ``until``: Unix time; ``who``: for the server's quotas."""
    username = f"{until}:{who}"
    digest = hmac.digest(secret, username.encode(), "sha1")
    return username, base64.b64encode(digest).decode()


def parse_untrusted(field: object) -> TurnServer:
    """The ``turn`` field of a message: [host, port, username, password]."""
    if not isinstance(field, list) or len(field) != 4:
        raise BadPacket("a TURN server that is not [host, port, username, password]")
    host, port = host_port_untrusted(*field[:2])
    username, password = field[2:]
    for text in (username, password):
        if not isinstance(text, str) or _TEXT.fullmatch(text) is None:
            raise BadPacket("a TURN server with a bad username or password")
    return TurnServer(host, port, username, password)
