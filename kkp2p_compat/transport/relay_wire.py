"""The bytes that a peer and the relay exchange before the relay starts to splice.

Sans-IO: no socket and no clock; ``now`` is passed in, in Unix seconds.  The layout is that of
docs/protocol.rst, "The relay".  Whoever holds the key can make tokens: the track makes them, the
relay checks them, a peer only carries them and needs no more than ``hello`` and the statuses.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import NamedTuple

from .. import _base64url
from .._errors import BadPacket

__all__ = [
    "BAD",
    "BODY_BYTES",
    "CALLEE",
    "CALLER",
    "CLOSING",
    "EXPIRED",
    "HELLO_BYTES",
    "HERE",
    "LIMIT",
    "MAGIC",
    "NO_PARTNER",
    "PAIRED",
    "RECEIPT_BYTES",
    "SESSION_BYTES",
    "STATUS_TEXTS",
    "TOKEN_BYTES",
    "USED",
    "Token",
    "TokenRefused",
    "hello",
    "is_whole_hello",
    "mac_of",
    "make_receipt",
    "make_token",
    "parse_body_untrusted",
    "parse_hello_untrusted",
    "receipt_from_text_untrusted",
    "receipt_to_text",
    "session_of",
    "status_text",
    "token_from_text_untrusted",
    "token_to_text",
    "verify_token_untrusted",
]

MAGIC = b"KKRL"
_HEAD = MAGIC + b"\x02"
_RECEIPT_HEAD = MAGIC + b"\x03"  # asks for a receipt as well
_OLD_HEAD = MAGIC + b"\x01"  # with the token raw; still taken, for peers of the version before
_TOKEN_VERSION = 1
SESSION_BYTES = 16
MAC_BYTES = 32
_BODY = struct.Struct(f"!BBI{SESSION_BYTES}s")  # version, side, expiry (Unix s), session
BODY_BYTES = _BODY.size
TOKEN_BYTES = BODY_BYTES + MAC_BYTES
TOKEN_CHARS = TOKEN_BYTES * 4 // 3  # in base64url
HELLO_BYTES = len(_HEAD) + TOKEN_CHARS
_OLD_HELLO_BYTES = len(_OLD_HEAD) + TOKEN_BYTES
RECEIPT_BYTES = 16  # behind HERE; our choice: 2^-128 to guess one

# Sides of a session.
CALLER = 0
CALLEE = 1

# The relay's answer to a hello, one byte.
PAIRED = 0
BAD = 1
EXPIRED = 2
USED = 3
LIMIT = 4
NO_PARTNER = 5
HERE = 6  # sent before one of the others, if a receipt was asked for, which follows
CLOSING = 7  # on a lane only

STATUS_TEXTS = {
    PAIRED: "paired",
    BAD: "a bad hello or token",
    EXPIRED: "the token has expired",
    USED: "the token was used before",
    LIMIT: "a limit of the relay is met",
    NO_PARTNER: "the other side did not come",
    CLOSING: "the relay shuts down",
}


class Token(NamedTuple):
    """What a genuine token says."""

    session: bytes  # SESSION_BYTES random bytes of this call
    side: int  # CALLER or CALLEE
    expiry: int  # Unix seconds; later than this no new connection may show it


class TokenRefused(BadPacket):
    """the relay token is not valid"""

    def __init__(self, status: int) -> None:
        super().__init__(status_text(status))
        self.status = status  # what the relay answers: BAD or EXPIRED


def status_text(status: int) -> str:
    """What an answer of the relay means, for the log."""
    return STATUS_TEXTS.get(status, f"unknown status {status}")


def mac_of(key: bytes, body: bytes) -> bytes:
    """What makes a body a token, and nobody without the key can make."""
    return hmac.new(key, body, hashlib.sha256).digest()


def make_token(key: bytes, session: bytes, side: int, expiry: int) -> bytes:
    """One side's place in a session: TOKEN_BYTES bytes."""
    if len(session) != SESSION_BYTES or side not in (CALLER, CALLEE):
        raise ValueError(f"a session of {len(session)} bytes, side {side}")
    body = _BODY.pack(_TOKEN_VERSION, side, expiry, session)
    return body + mac_of(key, body)


def verify_token_untrusted(key: bytes, token: bytes, now: float) -> Token:
    """What the token says, if our key signed it and it has not expired; else TokenRefused."""
    if len(token) != TOKEN_BYTES:
        raise TokenRefused(BAD)
    body, mac = token[:BODY_BYTES], token[BODY_BYTES:]
    if not hmac.compare_digest(mac, mac_of(key, body)):
        raise TokenRefused(BAD)
    said = parse_body_untrusted(body)
    if now > said.expiry:
        raise TokenRefused(EXPIRED)
    return said


def parse_body_untrusted(body: bytes) -> Token:
    """What the body of a token says; whether it is genuine and has not expired is another check."""
    version, side, expiry, session = _BODY.unpack(body)
    if version != _TOKEN_VERSION or side not in (CALLER, CALLEE):
        raise TokenRefused(BAD)
    return Token(session, side, expiry)


def session_of(token: bytes) -> bytes:
    """Which call a token is for; not verified, as a peer cannot."""
    session: bytes = _BODY.unpack(token[:BODY_BYTES])[3]
    return session


def make_receipt(key: bytes, session: bytes) -> bytes:
    """Proof for the track that the caller of this session was at the relay: RECEIPT_BYTES bytes."""
    return mac_of(key, b"here" + session)[:RECEIPT_BYTES]


def hello(token: bytes, wants_receipt: bool = False) -> bytes:
    """What a peer sends first: HELLO_BYTES bytes.

    The token is what a cloud chose, and the relay is where it sent us: as text it holds no line end
    and no command for whatever else may listen there.
    """
    if len(token) != TOKEN_BYTES:
        raise ValueError(f"a token of {len(token)} bytes, not {TOKEN_BYTES}")
    return (_RECEIPT_HEAD if wants_receipt else _HEAD) + token_to_text(token).encode()


def is_whole_hello(data: bytes) -> bool:
    """Whether a hello is complete, be it valid or not."""
    is_text = data.startswith((_HEAD, _RECEIPT_HEAD))
    return len(data) >= (HELLO_BYTES if is_text else _OLD_HELLO_BYTES)


def parse_hello_untrusted(data: bytes) -> tuple[bytes, bool]:
    """The token in a hello, not yet verified, and whether a receipt is wanted."""
    if len(data) == _OLD_HELLO_BYTES and data.startswith(_OLD_HEAD):
        return data[len(_OLD_HEAD) :], False
    is_known = data.startswith((_HEAD, _RECEIPT_HEAD))
    if len(data) != HELLO_BYTES or not is_known or not data.isascii():
        raise TokenRefused(BAD)
    try:
        token = token_from_text_untrusted(data[len(_HEAD) :].decode())
    except BadPacket as error:
        raise TokenRefused(BAD) from error
    return token, data.startswith(_RECEIPT_HEAD)


def token_to_text(token: bytes) -> str:
    """A token as it stands in JSON."""
    return _base64url.encode(token)


def receipt_to_text(receipt: bytes) -> str:
    """A receipt as it stands in JSON."""
    return _base64url.encode(receipt)


def receipt_from_text_untrusted(text: object) -> bytes:
    """A receipt out of a JSON value; BadPacket if it is not one."""
    return _base64url.decode_untrusted(text, RECEIPT_BYTES, "a relay's receipt")


def token_from_text_untrusted(text: object) -> bytes:
    """A token out of a JSON value; BadPacket if it is not one."""
    return _base64url.decode_untrusted(text, TOKEN_BYTES, "a relay token")
