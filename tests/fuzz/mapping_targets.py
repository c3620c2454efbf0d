"""What a router, or who pretends to be one, sends to our port mapping."""

from __future__ import annotations

import ipaddress
import socket

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal import pcp
from kkp2p_compat.traversal.candidates import may_be_peer
from kkp2p_compat.traversal.gateway import MAX_LEASE_S, checked
from kkp2p_compat.traversal.upnp import parse_answer_untrusted

__all__ = ["ANSWERS", "SEARCH_ANSWERS", "fuzz_mapping", "fuzz_search_answer"]

GATEWAY = "192.168.1.1"

_MAPPED = bytes(10) + b"\xff\xff" + socket.inet_aton("198.51.100.7")
ANSWERS = [
    bytes.fromhex("0281000000000e10000000640000000000000000") + bytes(4 + 12)
    + bytes.fromhex("110000001f902382") + _MAPPED,
    bytes.fromhex("0281000200000708000000640000000000000000") + bytes(4),
    bytes.fromhex("0081000000000064") + bytes.fromhex("1f90238200000e10"),
    bytes.fromhex("0080000000000064c6336407"),
]  # fmt: skip
SEARCH_ANSWERS = [
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n"
    b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nUSN: uuid:1::x\r\nEXT:\r\n"
    b"LOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n",
]


def fuzz_mapping(data: bytes) -> None:
    found: list[tuple[str, int, int]] = []
    try:
        answer = pcp.parse_pcp_untrusted(data)
        if answer.external is not None:
            found.append((*answer.external, answer.lifetime_s))
    except BadPacket:
        pass
    try:
        other = pcp.parse_pmp_untrusted(data)
        found.append((other.address or "", other.external_port, other.lifetime_s))
        found.append(("198.51.100.7", other.external_port, other.lifetime_s))
    except BadPacket:
        pass
    for each in found:
        try:
            mapping = checked(*each)
        except BadPacket:
            continue
        assert may_be_peer(mapping.ip, mapping.port)
        assert not ipaddress.ip_address(mapping.ip).is_loopback
        assert 1 <= mapping.lease_s <= MAX_LEASE_S


def fuzz_search_answer(data: bytes) -> None:
    try:
        port, path = parse_answer_untrusted(data, GATEWAY)
    except BadPacket:
        return
    assert 0 < port < 65536
    assert path.startswith("/")
    assert path.isascii()
    assert not set(path) & set(" \r\n\t")
