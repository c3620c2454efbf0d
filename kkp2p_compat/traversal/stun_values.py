"""The values of STUN's attributes as bytes: written, and read.

Which attribute has which, ``stun.py`` says; the sections are those of RFC 8489.  What is read is a
stranger's: BadPacket if it cannot be a value of its kind.
"""

from __future__ import annotations

import ipaddress
import socket
import struct

from .._address import HostPort
from .._errors import BadPacket

__all__ = [
    "MAGIC",
    "TICKET_BYTES",
    "encode_address",
    "encode_error",
    "encode_plain_address",
    "encode_port",
    "encode_tie_breaker",
    "encode_types",
    "parse_address_untrusted",
    "parse_error_untrusted",
    "parse_flag_untrusted",
    "parse_nonce_untrusted",
    "parse_number_untrusted",
    "parse_port_untrusted",
    "parse_realm_untrusted",
    "parse_ticket_untrusted",
    "parse_types_untrusted",
    "parse_username_untrusted",
]

MAGIC = 0x2112A442  # section 5: in each message, and part of what hides an address
MAX_USERNAME_BYTES = 508  # 14.3: less than 509
MAX_REALM_BYTES = 763  # 14.9, 14.10: less than 128 characters, which are up to 763 bytes
TICKET_BYTES = 16  # ours

# 14.1: family, port, ip; by the bytes of the ip.
ADDRESS_OF = {4: struct.Struct(">xBH4s"), 16: struct.Struct(">xBH16s")}
FAMILY_OF = {4: 1, 16: 2}


# Written: None where there is nothing to write.


def encode_tie_breaker(value: int | None) -> bytes | None:
    return None if value is None else struct.pack(">Q", value)


def encode_port(port: int | None) -> bytes | None:
    """Also a channel's number, which has the same layout."""
    return None if port is None else struct.pack(">H2x", port)


def encode_error(code: int) -> bytes:
    return struct.pack(">HBB", 0, *divmod(code, 100))


def encode_types(types: tuple[int, ...]) -> bytes | None:
    return struct.pack(f">{len(types)}H", *types) if types else None


def _mask(transaction_id: bytes, size: int) -> int:
    """What an address is XORed with, so that no NAT finds and rewrites it (14.2)."""
    return int.from_bytes((struct.pack(">I", MAGIC) + transaction_id)[:size], "big")


def encode_address(address: HostPort, transaction_id: bytes) -> bytes:
    size = 16 if ":" in address[0] else 4
    family, port, ip = ADDRESS_OF[size].unpack(encode_plain_address(address))
    hidden = int.from_bytes(ip, "big") ^ _mask(transaction_id, size)
    return ADDRESS_OF[size].pack(family, port ^ MAGIC >> 16, hidden.to_bytes(size, "big"))


def encode_plain_address(address: HostPort) -> bytes:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    ip = socket.inet_pton(family, address[0])  # a tenth of the time of ip_address
    return ADDRESS_OF[len(ip)].pack(FAMILY_OF[len(ip)], address[1], ip)


# Read.


def parse_address_untrusted(value: bytes, transaction_id: bytes | None = None) -> HostPort:
    """``transaction_id``: what the address is hidden with, if it is."""
    size = len(value) - 4
    if size not in ADDRESS_OF:
        raise BadPacket("an address of a wrong length")
    family, port, packed = ADDRESS_OF[size].unpack(value)
    if family != FAMILY_OF[size]:
        raise BadPacket("an address of a wrong family")
    if transaction_id is not None:
        hidden = int.from_bytes(packed, "big") ^ _mask(transaction_id, size)
        packed, port = hidden.to_bytes(size, "big"), port ^ MAGIC >> 16
    if size == 4:
        return socket.inet_ntoa(packed), port
    ip = ipaddress.IPv6Address(packed)
    return str(ip.ipv4_mapped or ip), port


def parse_username_untrusted(value: bytes) -> str:
    if len(value) > MAX_USERNAME_BYTES:
        raise BadPacket("a username that is too long")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadPacket("a username that is not UTF-8") from None


def parse_realm_untrusted(value: bytes) -> str:
    parse_nonce_untrusted(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadPacket("a realm that is not UTF-8") from None


def parse_nonce_untrusted(value: bytes) -> bytes:
    if len(value) > MAX_REALM_BYTES:
        raise BadPacket("a realm or nonce that is too long")
    return value


def parse_number_untrusted(kind: int, size: int, value: bytes) -> int:
    if len(value) != size:
        raise BadPacket(f"attribute {kind:#06x} of a wrong length")
    return int.from_bytes(value, "big")


def parse_flag_untrusted(value: bytes) -> bool:
    if value:
        raise BadPacket("a flag with a value")
    return True


def parse_port_untrusted(value: bytes) -> int:
    if len(value) not in (2, 4):
        raise BadPacket("a response port of a wrong length")
    return int.from_bytes(value[:2], "big")


def parse_error_untrusted(value: bytes) -> int:
    """The code; the reason phrase is for people, and a stranger's."""
    if len(value) < 4:
        raise BadPacket("an error code of a wrong length")
    hundreds, rest = value[2] & 0x07, value[3]
    if not 3 <= hundreds <= 6 or rest > 99:
        raise BadPacket("an error code out of range")
    return 100 * hundreds + rest


def parse_ticket_untrusted(value: bytes) -> bytes | None:
    """Of another length it is somebody else's attribute."""
    return value if len(value) == TICKET_BYTES else None


def parse_types_untrusted(value: bytes) -> tuple[int, ...]:
    if len(value) % 2:
        raise BadPacket("unknown attributes of a wrong length")
    return struct.unpack(f">{len(value) // 2}H", value)
