"""Routers for the tests of port mapping: PCP and NAT-PMP over loopback, and a UPnP IGD."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event

from helpers.support import PATIENCE_S

__all__ = ["LOOPBACK", "OUTSIDE", "Igd", "Router", "until"]

LOOPBACK = "127.0.0.1"
OUTSIDE = "203.0.113.7"
NOT_A_PORT = 0


def until(condition: Callable[[], object], seen: Event) -> None:
    """Wait until it holds; whoever changes what it looks at sets ``seen``."""
    with gevent.Timeout(PATIENCE_S):
        while not condition():
            seen.wait()
            seen.clear()


class Router:
    """A PCP and NAT-PMP server.  What it does wrong is set by its fields."""

    def __init__(self, *, speaks: tuple[str, ...] = ("pcp", "nat-pmp")) -> None:
        self.speaks = speaks
        self.outside = OUTSIDE
        self.other_port: int | None = None  # given instead of the one that was asked for
        self.lease_s: int | None = None  # given instead
        self.result = 0  # of mapping requests
        self.deaf_to = 0  # datagrams that are lost from now on
        self.wrong_nonce = False  # a copy under another nonce comes first
        self.garbage: list[bytes] = []  # sent before each answer
        self.voice: Router | None = None  # whose socket sends the answers
        self.mapped: dict[int, tuple[str, int]] = {}  # internal port: by what, external port
        self.requests: list[tuple[str, int, int]] = []  # by what, internal port, lease
        self.nonces: set[bytes] = set()
        self.seen = Event()
        self._sock: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((LOOPBACK, 0))
        self.port: int = self._sock.getsockname()[1]
        self._greenlet = gevent.spawn(self._serve)

    def close(self) -> None:
        self._greenlet.kill()
        self._sock.close()

    def _serve(self) -> None:
        while True:
            data, source = self._sock.recvfrom(2000)
            if self.deaf_to:
                self.deaf_to -= 1
            else:
                answer = self._answer(data)
                voice = (self.voice or self)._sock
                for each in [*self.garbage, answer] if answer else []:
                    voice.sendto(each, source)
            self.seen.set()

    def _answer(self, data: bytes) -> bytes:
        if data[0] == 2:
            if "pcp" in self.speaks:
                return self._pcp(data)
            # RFC 6886 section 3.5, what a server of NAT-PMP only says to PCP.
            return (
                struct.pack(">BBHI", 0, 0x80 | data[1], 1, 0) if "nat-pmp" in self.speaks else b""
            )
        return self._pmp(data) if "nat-pmp" in self.speaks else b""

    def _pcp(self, data: bytes) -> bytes:
        opcode, lease_s = data[1], int.from_bytes(data[4:8], "big")
        if opcode == 0:
            return self._pcp_head(0, 0, 0)
        nonce, internal, external = data[24:36], *struct.unpack(">HH", data[40:44])
        self.nonces.add(nonce)
        lease_s, external = self._map("pcp", internal, external, lease_s)
        address = bytes(10) + b"\xff\xff" + socket.inet_aton(self.outside)
        rest = data[36:42] + struct.pack(">H", external) + address
        head = self._pcp_head(1, self.result, lease_s)
        if self.wrong_nonce:
            self.garbage = [head + bytes(12) + rest]
        return head + nonce + rest

    def _pcp_head(self, opcode: int, result: int, lease_s: int) -> bytes:
        return struct.pack(">BBBBII12x", 2, 0x80 | opcode, 0, result, lease_s, 1000)

    def _pmp(self, data: bytes) -> bytes:
        if data[1] == 0:
            return struct.pack(">BBHI", 0, 128, 0, 1000) + socket.inet_aton(self.outside)
        internal, external, lease_s = struct.unpack(">HHI", data[4:12])
        lease_s, external = self._map("nat-pmp", internal, external, lease_s)
        return struct.pack(">BBHIHHI", 0, 129, self.result, 1000, internal, external, lease_s)

    def _map(self, by: str, internal: int, external: int, lease_s: int) -> tuple[int, int]:
        self.requests.append((by, internal, lease_s))
        if self.result:
            return 0, external
        if lease_s == 0:
            self.mapped.pop(internal, None)
            return 0, 0
        external = external if self.other_port is None else self.other_port
        self.mapped[internal] = by, external
        return lease_s if self.lease_s is None else self.lease_s, external


DESCRIPTION = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0">{base}
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType>
<serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<SCPDURL>/scpd.xml</SCPDURL><controlURL>{control}</controlURL><eventSubURL>/event</eventSubURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>"""
SOAP = """<?xml version="1.0"?>
<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{}</s:Body></s:Envelope>"""
FAULT = """<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>
<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{}</errorCode></UPnPError>
</detail></s:Fault>"""


class Igd:
    """A UPnP router: answers searches, describes itself, keeps mappings."""

    def __init__(self) -> None:
        self.outside = OUTSIDE
        self.base = ""  # its URLBase, if it has one
        self.control = "/control"
        self.location = ""  # what the search answers instead of its description's address
        self.only_permanent = False
        self.taken: set[int] = set()  # external ports of another host
        self.raw: Callable[[Any], None] | None = None  # does the talking of HTTP instead
        self.mapped: dict[int, tuple[str, int, int]] = {}  # external: ip, port and lease inside
        self.heads: list[str] = []  # of the requests, as they came
        self.seen = Event()
        self._search: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._search.bind((LOOPBACK, 0))
        self.port: int = self._search.getsockname()[1]
        self._listener: Any = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind((LOOPBACK, 0))
        self._listener.listen()
        self.http_port: int = self._listener.getsockname()[1]
        self._greenlets = [gevent.spawn(self._answer_searches), gevent.spawn(self._serve)]

    def close(self) -> None:
        gevent.killall(self._greenlets)
        self._search.close()
        self._listener.close()

    def _answer_searches(self) -> None:
        while True:
            data, source = self._search.recvfrom(2000)
            location = self.location or f"http://{LOOPBACK}:{self.http_port}/desc.xml"
            kind = data.decode().partition("\r\nST: ")[2].split("\r\n")[0]
            text = f"HTTP/1.1 200 OK\r\nST: {kind}\r\nLOCATION: {location}\r\n\r\n"
            self._search.sendto(text.encode(), source)

    def _serve(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with sock:
                if self.raw is not None:
                    self.raw(sock)
                else:
                    self._handle(sock)
            self.seen.set()

    def _handle(self, sock: Any) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(4096)
        head, _, body = data.decode().partition("\r\n\r\n")
        self.heads.append(head)
        length = [
            line.split(":")[1] for line in head.split("\r\n") if "content-length" in line.lower()
        ]
        while length and len(body) < int(length[0]):
            body += sock.recv(4096).decode()
        status, text = 200, DESCRIPTION.format(base=self.base, control=self.control)
        if head.startswith("POST"):
            status, text = self._soap(body)
        sock.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())

    def _soap(self, body: str) -> tuple[int, str]:
        def argument(name: str) -> str:
            return body.partition(f"<{name}>")[2].partition("<")[0]

        external = int(argument("NewExternalPort") or NOT_A_PORT)
        action = body.partition("<u:")[2].split(" ")[0]
        fields, error = "", 0
        if action == "GetExternalIPAddress":
            fields = f"<NewExternalIPAddress>{self.outside}</NewExternalIPAddress>"
        elif action == "GetSpecificPortMappingEntry":
            error = 0 if external in self.mapped else 714
            if not error:
                ip, port, lease_s = self.mapped[external]
                fields = (
                    f"<NewInternalPort>{port}</NewInternalPort><NewInternalClient>{ip}"
                    f"</NewInternalClient><NewEnabled>1</NewEnabled><NewLeaseDuration>{lease_s}"
                    "</NewLeaseDuration>"
                )
        elif action == "AddPortMapping":
            lease_s = int(argument("NewLeaseDuration"))
            if external in self.taken:
                error = 718
            elif self.only_permanent and lease_s:
                error = 725
            else:
                inside = argument("NewInternalClient"), int(argument("NewInternalPort")), lease_s
                self.mapped[external] = inside
        elif action == "DeletePortMapping":
            error = 0 if self.mapped.pop(external, None) else 714
        else:
            error = 401
        if error:
            return 500, SOAP.format(FAULT.format(error))
        space = "urn:schemas-upnp-org:service:WANIPConnection:1"
        return 200, SOAP.format(
            f'<u:{action}Response xmlns:u="{space}">{fields}</u:{action}Response>'
        )
