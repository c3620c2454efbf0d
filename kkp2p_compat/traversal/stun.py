"""STUN binding messages (RFC 8489) with the attributes of ICE (RFC 8445) and of NAT behaviour
discovery (RFC 5780), and the messages of TURN (RFC 8656): bytes in, and out.

Every byte that comes in is a stranger's: ``parse_untrusted`` raises BadPacket and nothing else,
and takes no message over MAX_BYTES.  What it returns is well-formed, not true: ask ``verify``.

Of an attribute that comes twice only the first counts (RFC 8489 section 14).  After
MESSAGE-INTEGRITY only FINGERPRINT counts, which must be last (14.5, 14.7).  Attributes that we do
not know are left out; the types of those that must be understood are in ``unknown``.
Servers older than RFC 5389 answer with MAPPED-ADDRESS alone: it counts if nothing better is there.
MESSAGE-INTEGRITY-SHA256 is not supported (RFC 8445 keeps to HMAC-SHA1, and so do TURN servers).
The texts of errors contain no values of the message, as drops are counted by their text.
"""

from __future__ import annotations

import binascii
import functools
import hmac
import struct
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from .._address import HostPort
from .._errors import BadPacket
from .stun_values import (
    MAGIC,
    TICKET_BYTES,
    encode_address,
    encode_error,
    encode_plain_address,
    encode_port,
    encode_tie_breaker,
    encode_types,
    parse_address_untrusted,
    parse_error_untrusted,
    parse_flag_untrusted,
    parse_nonce_untrusted,
    parse_number_untrusted,
    parse_port_untrusted,
    parse_realm_untrusted,
    parse_ticket_untrusted,
    parse_types_untrusted,
    parse_username_untrusted,
)

__all__ = [
    "MAX_BYTES",
    "TICKET_BYTES",
    "UNKNOWN_ATTRIBUTE",
    "Kind",
    "Message",
    "TurnKind",
    "parse_untrusted",
    "size_untrusted",
]

# RFC 8489.
MAX_BYTES = 548  # 6.1: 576 bytes less the headers of IPv4 and UDP, when the path's MTU is unknown
FINGERPRINT_XOR = 0x5354554E  # 14.7
UNKNOWN_ATTRIBUTE = 420  # 14.8

HEADER = struct.Struct(">HHI12s")  # type, bytes after the header, magic, transaction id
ATTRIBUTE = struct.Struct(">HH")  # type, bytes of the value; the value is padded to 4 bytes
INTEGRITY_BYTES = 20  # HMAC-SHA1

# Attribute types: RFC 8489 section 18.3, RFC 8445 section 16.1, RFC 5780 section 7, RFC 8656
# section 18.
MAPPED_ADDRESS = 0x0001
CHANGE_REQUEST = 0x0003
USERNAME = 0x0006
MESSAGE_INTEGRITY = 0x0008
ERROR_CODE = 0x0009
UNKNOWN_ATTRIBUTES = 0x000A
CHANNEL_NUMBER = 0x000C
LIFETIME = 0x000D
XOR_PEER_ADDRESS = 0x0012
DATA = 0x0013
REALM = 0x0014
NONCE = 0x0015
XOR_RELAYED_ADDRESS = 0x0016
REQUESTED_TRANSPORT = 0x0019
XOR_MAPPED_ADDRESS = 0x0020
PRIORITY = 0x0024
USE_CANDIDATE = 0x0025
PADDING = 0x0026
RESPONSE_PORT = 0x0027
SOFTWARE = 0x8022
FINGERPRINT = 0x8028
ICE_CONTROLLED = 0x8029
ICE_CONTROLLING = 0x802A
RESPONSE_ORIGIN = 0x802B
OTHER_ADDRESS = 0x802C
# Ours, of those that need not be understood (RFC 8489 section 18.3): a cloud's word of where it saw
# the asker, for the cloud itself (docs/protocol.rst, "Seen").
TICKET = 0xFB4B

UNDERSTOOD = {
    MAPPED_ADDRESS,
    USERNAME,
    MESSAGE_INTEGRITY,
    ERROR_CODE,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    PRIORITY,
    USE_CANDIDATE,
    CHANGE_REQUEST,
    PADDING,
    RESPONSE_PORT,
}
UNDERSTOOD_OF_TURN = UNDERSTOOD | {
    CHANNEL_NUMBER,
    LIFETIME,
    XOR_PEER_ADDRESS,
    DATA,
    REALM,
    NONCE,
    XOR_RELAYED_ADDRESS,
    REQUESTED_TRANSPORT,
}
MUST_BE_UNDERSTOOD_BELOW = 0x8000  # section 14
CHANGE_IP, CHANGE_PORT = 4, 2  # RFC 5780 section 7.2


class Kind(IntEnum):
    """The message types of the method Binding (section 5)."""

    REQUEST = 0x0001
    INDICATION = 0x0011
    RESPONSE = 0x0101
    ERROR = 0x0111


class TurnKind(IntEnum):
    """The message types of TURN (RFC 8656 section 17): a request, its two answers, and so on."""

    ALLOCATE = 0x0003
    ALLOCATE_DONE = 0x0103
    ALLOCATE_ERROR = 0x0113
    REFRESH = 0x0004
    REFRESH_DONE = 0x0104
    REFRESH_ERROR = 0x0114
    CREATE_PERMISSION = 0x0008
    CREATE_PERMISSION_DONE = 0x0108
    CREATE_PERMISSION_ERROR = 0x0118
    CHANNEL_BIND = 0x0009
    CHANNEL_BIND_DONE = 0x0109
    CHANNEL_BIND_ERROR = 0x0119
    SEND = 0x0016  # indications
    DATA = 0x0017


@dataclass(slots=True)  # not frozen: that would treble the time to make one
class Message:
    """One message; an attribute that is missing is None, False or empty."""

    kind: Kind | TurnKind
    transaction_id: bytes  # 12 bytes
    username: str | None = None
    mapped: HostPort | None = None  # XOR-MAPPED-ADDRESS; received: or MAPPED-ADDRESS
    priority: int | None = None  # 32 bits
    use_candidate: bool = False
    controlling: int | None = None  # the tie-breaker, 64 bits
    controlled: int | None = None
    error: int | None = None  # 300 to 699
    not_understood: tuple[int, ...] = ()  # what an error says that its sender did not understand
    change_ip: bool = False  # a request to be answered from the server's other address,
    change_port: bool = False  # or from its other port
    response_port: int | None = None  # a request to be answered to this port
    origin: HostPort | None = None  # where an answer was sent from
    other: HostPort | None = None  # the server's other address and port
    ticket: bytes | None = None  # TICKET_BYTES
    software: str = field(default="", compare=False)  # sent, to pad a request; never read

    # Of TURN only.
    realm: str | None = None
    nonce: bytes | None = None
    lifetime_s: int | None = None
    relayed: HostPort | None = None  # where peers reach the allocation
    peer: HostPort | None = None
    channel: int | None = None
    data: bytes | None = None
    transport: int | None = None  # the protocol of the relayed address, as IP numbers it

    # Known of received messages only.
    unknown: tuple[int, ...] = ()  # types in this message that we ought to understand
    has_fingerprint: bool = field(default=False, compare=False)
    _wire: bytes = field(default=b"", repr=False, compare=False)
    _integrity_at: int = field(default=0, repr=False, compare=False)

    def encode(self, key: bytes | None, fingerprint: bool = True) -> bytes:
        """The bytes, with MESSAGE-INTEGRITY under ``key`` unless it is None, and FINGERPRINT."""
        change = CHANGE_IP * self.change_ip + CHANGE_PORT * self.change_port
        body = b""
        for kind, value in (
            (USERNAME, None if self.username is None else self.username.encode()),
            *(() if type(self.kind) is Kind else self._turn_attributes()),
            (PRIORITY, None if self.priority is None else struct.pack(">I", self.priority)),
            (USE_CANDIDATE, b"" if self.use_candidate else None),
            (ICE_CONTROLLING, encode_tie_breaker(self.controlling)),
            (ICE_CONTROLLED, encode_tie_breaker(self.controlled)),
            (XOR_MAPPED_ADDRESS, self.mapped and encode_address(self.mapped, self.transaction_id)),
            (ERROR_CODE, None if self.error is None else encode_error(self.error)),
            (UNKNOWN_ATTRIBUTES, encode_types(self.not_understood)),
            (CHANGE_REQUEST, struct.pack(">I", change) if change else None),
            # Four bytes, as others send it: the RFC leaves open if its padding counts.
            (RESPONSE_PORT, encode_port(self.response_port)),
            (RESPONSE_ORIGIN, self.origin and encode_plain_address(self.origin)),
            (OTHER_ADDRESS, self.other and encode_plain_address(self.other)),
            (TICKET, self.ticket),
            (SOFTWARE, self.software.encode() or None),
        ):
            if value is not None:
                body += _encode_attribute(kind, value)
        if key is not None:
            covered = self._header(len(body) + ATTRIBUTE.size + INTEGRITY_BYTES) + body
            body += _encode_attribute(MESSAGE_INTEGRITY, hmac.digest(key, covered, "sha1"))
        if not fingerprint:
            return self._header(len(body)) + body
        covered = self._header(len(body) + ATTRIBUTE.size + 4) + body
        return covered + _encode_attribute(FINGERPRINT, _fingerprint(covered))

    def _turn_attributes(self) -> Iterator[tuple[int, bytes | None]]:
        hidden = self.transaction_id
        yield REALM, None if self.realm is None else self.realm.encode()
        yield NONCE, self.nonce
        yield LIFETIME, None if self.lifetime_s is None else struct.pack(">I", self.lifetime_s)
        yield XOR_RELAYED_ADDRESS, self.relayed and encode_address(self.relayed, hidden)
        yield XOR_PEER_ADDRESS, self.peer and encode_address(self.peer, hidden)
        yield CHANNEL_NUMBER, encode_port(self.channel)
        if self.transport is not None:
            yield REQUESTED_TRANSPORT, struct.pack(">B3x", self.transport)
        yield DATA, self.data

    def _header(self, body_bytes: int) -> bytes:
        return HEADER.pack(self.kind, body_bytes, MAGIC, self.transaction_id)

    def verify(self, key: bytes) -> bool:
        """Whether a received message has MESSAGE-INTEGRITY, and under this key."""
        start = self._integrity_at
        if not start:
            return False
        # The length covers the message as it was when the attribute was added (14.5).
        end = start + ATTRIBUTE.size + INTEGRITY_BYTES
        covered = self._header(end - HEADER.size) + self._wire[HEADER.size : start]
        given = self._wire[start + ATTRIBUTE.size : end]
        return hmac.compare_digest(hmac.digest(key, covered, "sha1"), given)


def _encode_attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _fingerprint(covered: bytes) -> bytes:
    return struct.pack(">I", binascii.crc32(covered) ^ FINGERPRINT_XOR)


def parse_untrusted(
    data: bytes, max_bytes: int = MAX_BYTES, kinds: type[Kind | TurnKind] = Kind
) -> Message:
    """The message of one of the ``kinds`` that is exactly ``data``; BadPacket if it is none."""
    if not HEADER.size <= len(data) <= max_bytes:
        raise BadPacket("a STUN message that is too short or too long")
    number, length, magic, transaction_id = HEADER.unpack_from(data)
    if magic != MAGIC or length != len(data) - HEADER.size or length % 4:
        raise BadPacket("not a STUN message")
    try:
        kind = kinds(number)
    except ValueError:
        raise BadPacket("not a message of the expected kind") from None
    understood = UNDERSTOOD if kinds is Kind else UNDERSTOOD_OF_TURN
    values, unknown, integrity_at = _split_untrusted(data, understood)
    fields: dict[str, Any] = {}
    for number, value in values.items():
        if (known := _PARSERS.get(number)) is not None:
            name, parse = known
            fields[name] = parse(value)
    if XOR_MAPPED_ADDRESS in values:
        fields["mapped"] = parse_address_untrusted(values[XOR_MAPPED_ADDRESS], transaction_id)
    elif MAPPED_ADDRESS in values:
        fields["mapped"] = parse_address_untrusted(values[MAPPED_ADDRESS])
    for number, name in _HIDDEN_ADDRESSES if kinds is TurnKind else ():
        if number in values:
            fields[name] = parse_address_untrusted(values[number], transaction_id)
    if CHANGE_REQUEST in values:
        change = parse_number_untrusted(CHANGE_REQUEST, 4, values[CHANGE_REQUEST])
        fields["change_ip"] = bool(change & CHANGE_IP)
        fields["change_port"] = bool(change & CHANGE_PORT)
    return Message(
        kind,
        transaction_id,
        **fields,
        unknown=tuple(unknown),
        has_fingerprint=FINGERPRINT in values,
        _wire=data,
        _integrity_at=integrity_at,
    )


def size_untrusted(start: bytes, max_bytes: int = MAX_BYTES) -> int:
    """How long the message is that a stream begins with; the bytes that are needed to tell, first.

    RFC 8489 section 6.2.2.  BadPacket if there will be no message of up to ``max_bytes``.
    """
    if len(start) < HEADER.size:
        return HEADER.size
    _, length, magic, _ = HEADER.unpack_from(start)
    if magic != MAGIC or HEADER.size + length > max_bytes:
        raise BadPacket("not a STUN message")
    return HEADER.size + int(length)


def _split_untrusted(
    data: bytes, understood: Container[int]
) -> tuple[dict[int, bytes], list[int], int]:
    """Values by type, types that we ought to understand, where MESSAGE-INTEGRITY starts or 0."""
    values: dict[int, bytes] = {}
    unknown: list[int] = []
    integrity_at = 0
    start = HEADER.size
    while start < len(data):
        # The header fits: everything so far has been a multiple of four bytes.
        kind, length = ATTRIBUTE.unpack_from(data, start)
        value = data[start + ATTRIBUTE.size : start + ATTRIBUTE.size + length]
        if len(value) < length:
            raise BadPacket("an attribute over the end of its message")
        if kind == FINGERPRINT:
            if start + ATTRIBUTE.size + length != len(data):
                raise BadPacket("a fingerprint that is not last")
            if value != _fingerprint(data[:start]):
                raise BadPacket("a wrong fingerprint")
            values[kind] = value
        elif not integrity_at:
            if kind == MESSAGE_INTEGRITY:
                if length != INTEGRITY_BYTES:
                    raise BadPacket("a message integrity of a wrong length")
                integrity_at = start
            elif kind < MUST_BE_UNDERSTOOD_BELOW and kind not in understood:
                unknown.append(kind)
            else:
                values.setdefault(kind, value)
        start += ATTRIBUTE.size + length + -length % 4
    return values, unknown, integrity_at


def _number(kind: int, size: int) -> Callable[[bytes], int]:
    return functools.partial(parse_number_untrusted, kind, size)


def _parse_transport_untrusted(value: bytes) -> int:
    return parse_number_untrusted(REQUESTED_TRANSPORT, 4, value) >> 24


# The field of Message that an attribute becomes, and how; those that need more than their value
# are not here.
_PARSERS: dict[int, tuple[str, Callable[[bytes], object]]] = {
    USERNAME: ("username", parse_username_untrusted),
    PRIORITY: ("priority", _number(PRIORITY, 4)),
    USE_CANDIDATE: ("use_candidate", parse_flag_untrusted),
    ICE_CONTROLLING: ("controlling", _number(ICE_CONTROLLING, 8)),
    ICE_CONTROLLED: ("controlled", _number(ICE_CONTROLLED, 8)),
    ERROR_CODE: ("error", parse_error_untrusted),
    UNKNOWN_ATTRIBUTES: ("not_understood", parse_types_untrusted),
    RESPONSE_PORT: ("response_port", parse_port_untrusted),
    RESPONSE_ORIGIN: ("origin", parse_address_untrusted),
    OTHER_ADDRESS: ("other", parse_address_untrusted),
    TICKET: ("ticket", parse_ticket_untrusted),
    REALM: ("realm", parse_realm_untrusted),
    NONCE: ("nonce", parse_nonce_untrusted),
    LIFETIME: ("lifetime_s", _number(LIFETIME, 4)),
    CHANNEL_NUMBER: ("channel", parse_port_untrusted),
    REQUESTED_TRANSPORT: ("transport", _parse_transport_untrusted),
    DATA: ("data", bytes),
}
_HIDDEN_ADDRESSES = ((XOR_PEER_ADDRESS, "peer"), (XOR_RELAYED_ADDRESS, "relayed"))
