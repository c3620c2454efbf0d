"""The bytes of PCP (RFC 6887) and of NAT-PMP (RFC 6886): how a router is asked for a UDP port.

Both are spoken to UDP port 5351 of the default gateway.  This module opens no socket and reads no
clock.  Of PCP only what a mapping needs is here: the opcodes ANNOUNCE (is anybody there?) and MAP,
no options, IPv4 inside and outside.  Every byte that comes in is a stranger's: the ``parse``
functions raise BadPacket and nothing else.  Errors say no number of the message.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import NamedTuple

from .._errors import BadPacket

__all__ = [
    "MAX_BYTES",
    "NONCE_BYTES",
    "PCP_RESULTS",
    "PMP_RESULTS",
    "PORT",
    "SUCCESS",
    "UNSUPPORTED_VERSION",
    "VERSION",
    "PcpAnswer",
    "PmpAnswer",
    "address_request",
    "announce_request",
    "map_request",
    "parse_pcp_untrusted",
    "parse_pmp_untrusted",
    "pmp_map_request",
]

PORT = 5351  # RFC 6887 section 19.1, RFC 6886 section 3.1
UDP = 17  # RFC 6887 section 11.1: IANA's protocol number

# RFC 6887.
VERSION = 2  # section 7.1
MAX_BYTES = 1100  # 7
NONCE_BYTES = 12  # 11.1
ANNOUNCE = 0  # 14.1
MAP = 1  # 11
RESPONSE = 0x80  # 7.2
SUCCESS = 0  # 7.4; of NAT-PMP, too
UNSUPPORTED_VERSION = 1  # 7.4
PCP_RESULTS = {  # 7.4
    1: "unsupported version",
    2: "not authorised",
    3: "malformed request",
    4: "unsupported opcode",
    5: "unsupported option",
    6: "malformed option",
    7: "network failure",
    8: "no resources",
    9: "unsupported protocol",
    10: "quota exceeded",
    11: "cannot provide that external address",
    12: "another address than ours arrives there",
    13: "excessive remote peers",
}

# RFC 6886.
PMP_VERSION = 0  # section 3.3
PMP_ADDRESS = 0  # 3.2
PMP_MAP_UDP = 1  # 3.3
PMP_RESULTS = {  # 3.5
    1: "unsupported version",
    2: "not authorised",
    3: "network failure",
    4: "no resources",
    5: "unsupported opcode",
}

REQUEST = struct.Struct(">BBxxI16s")  # version, opcode, lifetime, our address
ANSWER = struct.Struct(">BBxBII12x")  # version, opcode, result, lifetime, epoch
MAPPING = struct.Struct(">12sB3xHH16s")  # nonce, protocol, internal port, external port and address
PMP_REQUEST = struct.Struct(">BBxxHHI")  # version, opcode, internal port, external port, lifetime
PMP_HEAD = struct.Struct(">BBHI")  # version, opcode, result, epoch
PMP_MAPPED = struct.Struct(">HHI")  # internal port, external port, lifetime


def announce_request(client: str) -> bytes:
    """PCP: ask for any answer.  ``client`` is our IPv4 address, as the router sees it."""
    return REQUEST.pack(VERSION, ANNOUNCE, 0, _pack(client))


def map_request(
    client: str, nonce: bytes, internal_port: int, external: tuple[str, int], lifetime_s: int
) -> bytes:
    """PCP: map a UDP port, renew its mapping (same nonce), or with a lifetime of 0 remove it.

    ``external`` is what is suggested; ("0.0.0.0", 0) leaves both to the router.
    """
    ip, port = external
    return REQUEST.pack(VERSION, MAP, lifetime_s, _pack(client)) + MAPPING.pack(
        nonce, UDP, internal_port, port, _pack(ip)
    )


class PcpAnswer(NamedTuple):
    """What a PCP server said; the fields after ``lifetime_s`` are None unless it is about MAP."""

    opcode: int
    result: int
    lifetime_s: int  # of an error: for how long the answer would be the same
    nonce: bytes | None = None
    internal_port: int | None = None
    external: tuple[str, int] | None = None  # ("", port): not an IPv4 address


def parse_pcp_untrusted(data: bytes) -> PcpAnswer:
    """A server that speaks NAT-PMP only answers with result 1 (RFC 6886 section 3.5)."""
    if len(data) == PMP_HEAD.size and (data[0], data[2:4]) == (PMP_VERSION, b"\0\1"):
        return PcpAnswer(data[1] & ~RESPONSE, UNSUPPORTED_VERSION, 0)
    if not ANSWER.size <= len(data) <= MAX_BYTES or len(data) % 4:
        raise BadPacket("a PCP answer of a wrong length")
    version, opcode, result, lifetime_s, _ = ANSWER.unpack_from(data)
    if not opcode & RESPONSE:
        raise BadPacket("a PCP request, not an answer")
    opcode &= ~RESPONSE
    if version != VERSION:
        return PcpAnswer(opcode, UNSUPPORTED_VERSION, 0)
    if opcode != MAP or len(data) < ANSWER.size + MAPPING.size:
        if opcode == MAP and result == SUCCESS:
            raise BadPacket("a PCP mapping cut short")
        return PcpAnswer(opcode, result, lifetime_s)
    nonce, protocol, internal, port, packed = MAPPING.unpack_from(data, ANSWER.size)
    if protocol != UDP:
        raise BadPacket("a PCP mapping of another protocol")
    address = ipaddress.IPv6Address(packed).ipv4_mapped
    external = ("" if address is None else str(address), port)
    return PcpAnswer(MAP, result, lifetime_s, nonce, internal, external)


def address_request() -> bytes:
    """NAT-PMP: ask for the external address."""
    return bytes((PMP_VERSION, PMP_ADDRESS))


def pmp_map_request(internal_port: int, external_port: int, lifetime_s: int) -> bytes:
    """NAT-PMP: map a UDP port, or renew it; to remove it, 0 as external port and as lifetime."""
    return PMP_REQUEST.pack(PMP_VERSION, PMP_MAP_UDP, internal_port, external_port, lifetime_s)


class PmpAnswer(NamedTuple):
    """What a NAT-PMP server said.  With a result other than SUCCESS nothing else counts."""

    result: int
    address: str | None = None  # of an answer to address_request
    internal_port: int | None = None  # the rest: of an answer to pmp_map_request
    external_port: int = 0
    lifetime_s: int = 0


def parse_pmp_untrusted(data: bytes) -> PmpAnswer:
    if len(data) < PMP_HEAD.size:
        raise BadPacket("a NAT-PMP answer cut short")
    version, opcode, result, _ = PMP_HEAD.unpack_from(data)
    if version != PMP_VERSION or not opcode & RESPONSE:
        raise BadPacket("not a NAT-PMP answer")
    if result != SUCCESS:
        return PmpAnswer(result)
    rest = data[PMP_HEAD.size :]
    if opcode & ~RESPONSE == PMP_ADDRESS and len(rest) == 4:
        return PmpAnswer(result, str(ipaddress.IPv4Address(rest)))
    if opcode & ~RESPONSE == PMP_MAP_UDP and len(rest) == PMP_MAPPED.size:
        return PmpAnswer(result, None, *PMP_MAPPED.unpack(rest))
    raise BadPacket("a NAT-PMP answer of an unknown form")


def _pack(ip: str) -> bytes:
    """RFC 6887 section 5: an IPv4 address as an IPv4-mapped IPv6 address."""
    return bytes(10) + b"\xff\xff" + socket.inet_pton(socket.AF_INET, ip)
