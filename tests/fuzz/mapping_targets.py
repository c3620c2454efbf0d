"""What a router, or who pretends to be one, sends to our port mapping."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections import deque
from typing import Any

import gevent
from gevent import socket as gsocket

from kkp2p_compat._errors import BadPacket, KKP2PError
from kkp2p_compat.traversal import pcp, upnp
from kkp2p_compat.traversal.candidates import may_be_peer
from kkp2p_compat.traversal.gateway import MAX_LEASE_S, checked
from kkp2p_compat.traversal.upnp import parse_answer_untrusted

__all__ = [
    "ANSWERS",
    "ROUTERS",
    "SEARCH_ANSWERS",
    "fuzz_mapping",
    "fuzz_router",
    "fuzz_search_answer",
]

GATEWAY = "192.168.1.1"

_MAPPED = bytes(10) + b"\xff\xff" + socket.inet_aton("198.51.100.7")
ANSWERS = [
    bytes.fromhex("0281000000000e10000000640000000000000000")
    + bytes(4 + 12)
    + bytes.fromhex("110000001f902382")
    + _MAPPED,
    bytes.fromhex("0281000200000708000000640000000000000000") + bytes(4),
    bytes.fromhex("0081000000000064") + bytes.fromhex("1f90238200000e10"),
    bytes.fromhex("0080000000000064c6336407"),
]
SEARCH_ANSWERS = [
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n"
    b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nUSN: uuid:1::x\r\nEXT:\r\n"
    b"LOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"
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


# A router's description and its answers to SOAP.  Pieces: what it says to one request after the
# other, behind a head of HTTP unless it begins with one.

END = b"\n\n"
_HEAD = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n"
_SPACE = b"urn:schemas-upnp-org:service:WANIPConnection:1"
_DESCRIPTION = (
    b'<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device>'
    b"<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><deviceList>"
    b"<device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><deviceList>"
    b"<device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType>"
    b"<serviceList><service><serviceType>" + _SPACE + b"</serviceType>"
    b"<controlURL>/c</controlURL><SCPDURL>/s</SCPDURL></service></serviceList></device>"
    b"</deviceList></device></deviceList></device></root>"
)


def _soap(action: bytes, fields: bytes) -> bytes:
    return (
        b"<s:Envelope><s:Body><u:"
        + action
        + b'Response xmlns:u="'
        + _SPACE
        + b'">'
        + fields
        + b"</u:"
        + action
        + b"Response></s:Body></s:Envelope>"
    )


_OUTSIDE = _soap(
    b"GetExternalIPAddress", b"<NewExternalIPAddress>198.51.100.7</NewExternalIPAddress>"
)
_FAULT = (
    b"HTTP/1.0 500 No\r\n\r\n<s:Body><s:Fault><detail><UPnPError><errorCode>%d</errorCode>"
    b"</UPnPError></detail></s:Fault></s:Body>"
)
_ADDED, _REMOVED = _soap(b"AddPortMapping", b""), _soap(b"DeletePortMapping", b"")
ROUTERS = [
    END.join((_DESCRIPTION, _OUTSIDE, _FAULT % 714, _ADDED, _REMOVED)),
    END.join((_DESCRIPTION, _OUTSIDE, _FAULT % 714, _FAULT % 725, _ADDED, _REMOVED)),
    END.join((_DESCRIPTION, _OUTSIDE, _FAULT % 714, _FAULT % 718, _FAULT % 714, _ADDED)),
    END.join((b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/x\r\n\r\n", _DESCRIPTION)),
]


class _Router:
    """On loopback; answers one connection after the other."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = deque(answers)
        self._listener: Any = gsocket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.port = self._listener.getsockname()[1]
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        self._greenlet.kill()
        self._listener.close()

    def _run(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with contextlib.closing(sock), contextlib.suppress(OSError):
                sock.recv(4096)
                answer = self._answers.popleft() if self._answers else b""
                if not answer.startswith(b"HTTP"):
                    answer = _HEAD % len(answer) + answer
                sock.sendall(answer)


def fuzz_router(data: bytes) -> None:
    if not upnp.available():
        return
    router = _Router(data.split(END))
    session = upnp.UpnpSession("127.0.0.1")
    found = upnp.search
    upnp.search = lambda gateway, port: (router.port, "/d")
    try:
        session.probe()
        mapping = session.map(5000, 5001, 3600)
        assert may_be_peer(mapping.ip, mapping.port)
        assert 1 <= mapping.lease_s <= MAX_LEASE_S
        session.unmap()
    except KKP2PError:
        pass
    finally:
        upnp.search = found
        session.close()
        router.close()
