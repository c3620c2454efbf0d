"""The datagrams by which a peer and a relay set up a lane: a way through the relay for UDP packets.

Sans-IO: no socket and no clock.  The layout is that of docs/protocol.rst, "The lane"::

    0          4      5               13
    +----------+------+---------------+-----------------------------------------------+
    | KKLN     | type | connection id | SHOW, LEAVE: cookie (16), text (51 characters) |
    +----------+------+---------------+ COOKIE: cookie (16)                            |
                                      | STATE: status (1), perhaps a receipt (16)      |
                                      | WHO: nothing                                   |

Datagrams can be overheard, and sent under a false address, so:

- A token is proved, not shown.  The text is the token's body and a MAC under the token's own MAC,
  which never leaves the two TLS connections that it came by: who overhears a SHOW can repeat it,
  from the address that it came from and to the same effect, and nothing else.
- A relay believes a source address only with a cookie that it has sent to that address.
- Each answer is shorter than what it answers.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from .. import _base64url
from .._errors import BadPacket
from . import relay_wire

__all__ = [
    "COOKIE",
    "COOKIE_BYTES",
    "LEAVE",
    "MAGIC",
    "NO_COOKIE",
    "SHOW",
    "SHOW_BYTES",
    "STATE",
    "WHO",
    "Answer",
    "Show",
    "make_cookie",
    "make_show",
    "make_state",
    "make_who",
    "parse_answer_untrusted",
    "parse_show_untrusted",
    "verify_show_untrusted",
]

MAGIC = b"KKLN"  # 0x4B: neither STUN (0 to 3) nor a packet of a connection (0x40)

SHOW = 1  # a peer: I am at this address, and here is my token
COOKIE = 2  # the relay: if you are there, say it again with this
STATE = 3  # the relay: what has become of your SHOW, or of the other side
WHO = 4  # the relay: a packet came from you, and I do not know you
LEAVE = 5  # a peer: as SHOW, but it goes

ID_BYTES = 8
HEAD_BYTES = len(MAGIC) + 1 + ID_BYTES
COOKIE_BYTES = 16  # as the next, our choice: 2^-128 to guess one
PROOF_BYTES = 16
NO_COOKIE = bytes(COOKIE_BYTES)
_SHOWN_BYTES = relay_wire.BODY_BYTES + PROOF_BYTES
# As text, as in a hello: whoever named the relay chose the body, and something else may listen.
SHOW_BYTES = HEAD_BYTES + COOKIE_BYTES + -(-_SHOWN_BYTES * 4 // 3)


class Show(NamedTuple):
    """A SHOW or a LEAVE."""

    kind: int
    connection_id: bytes  # of the side that shows
    cookie: bytes
    body: bytes  # of a token
    proof: bytes


class Answer(NamedTuple):
    """What a relay sends."""

    kind: int
    connection_id: bytes
    cookie: bytes = b""
    status: int = 0
    receipt: bytes = b""


def _head(kind: int, connection_id: bytes) -> bytes:
    return MAGIC + bytes([kind]) + connection_id


def _proof(token_mac: bytes, kind: int, connection_id: bytes, cookie: bytes) -> bytes:
    covered = _head(kind, connection_id) + cookie
    return hmac.digest(token_mac, covered, "sha256")[:PROOF_BYTES]


# A peer's half.


def make_show(token: bytes, connection_id: bytes, cookie: bytes, kind: int = SHOW) -> bytes:
    body, mac = token[: relay_wire.BODY_BYTES], token[relay_wire.BODY_BYTES :]
    text = _base64url.encode(body + _proof(mac, kind, connection_id, cookie))
    return _head(kind, connection_id) + cookie + text.encode()


def parse_answer_untrusted(data: bytes) -> Answer:
    """Raises BadPacket for all that no relay sends."""
    kind, rest = _parse_head_untrusted(data)
    connection_id = data[HEAD_BYTES - ID_BYTES : HEAD_BYTES]
    if kind == COOKIE and len(rest) == COOKIE_BYTES:
        return Answer(kind, connection_id, cookie=rest)
    if kind == STATE and len(rest) in (1, 1 + relay_wire.RECEIPT_BYTES):
        return Answer(kind, connection_id, status=rest[0], receipt=rest[1:])
    if kind == WHO and not rest:
        return Answer(kind, connection_id)
    raise BadPacket("a lane's datagram that is no answer")


# The relay's half.


def parse_show_untrusted(data: bytes) -> Show:
    """Raises BadPacket for all that no peer sends."""
    kind, rest = _parse_head_untrusted(data)
    if kind not in (SHOW, LEAVE) or len(data) != SHOW_BYTES:
        raise BadPacket("a lane's datagram that shows nothing")
    cookie, text = rest[:COOKIE_BYTES], rest[COOKIE_BYTES:]
    if not text.isascii():
        raise BadPacket("a SHOW that is not text")
    shown = _base64url.decode_untrusted(text.decode(), _SHOWN_BYTES, "a SHOW")
    connection_id = data[HEAD_BYTES - ID_BYTES : HEAD_BYTES]
    body, proof = shown[: relay_wire.BODY_BYTES], shown[relay_wire.BODY_BYTES :]
    return Show(kind, connection_id, cookie, body, proof)


def verify_show_untrusted(key: bytes, show: Show) -> relay_wire.Token:
    """What the token says, if it is genuine and the sender has it; else TokenRefused.

    Whether it has expired is for the caller to judge.
    """
    mac = relay_wire.mac_of(key, show.body)
    genuine = _proof(mac, show.kind, show.connection_id, show.cookie)
    if not hmac.compare_digest(show.proof, genuine):
        raise relay_wire.TokenRefused(relay_wire.BAD)
    return relay_wire.parse_body_untrusted(show.body)


def make_cookie(connection_id: bytes, cookie: bytes) -> bytes:
    return _head(COOKIE, connection_id) + cookie


def make_state(connection_id: bytes, status: int, receipt: bytes = b"") -> bytes:
    return _head(STATE, connection_id) + bytes([status]) + receipt


def make_who(connection_id: bytes) -> bytes:
    return _head(WHO, connection_id)


def _parse_head_untrusted(data: bytes) -> tuple[int, bytes]:
    if len(data) < HEAD_BYTES or not data.startswith(MAGIC):
        raise BadPacket("not a lane's datagram")
    return data[len(MAGIC)], data[HEAD_BYTES:]
