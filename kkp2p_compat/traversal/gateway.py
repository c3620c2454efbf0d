"""Ask one router for a UDP port by PCP or NAT-PMP: the sockets for the bytes of pcp.py.

A ``Session`` is one router and one way to ask it; upnp.py has the third one.  Call order: ``probe``
(is this way there? changes nothing at the router), then ``map`` as often as wanted (a renewal is
the same call), then ``unmap``, and always ``close``.  All but ``close`` wait, in a greenlet, for at
most some seconds, and raise KKP2PError.

The socket is connected, so the kernel drops what does not come from the router's own port, and
an ICMP error tells at once that nobody listens there.  What comes from the router is still a
stranger's: answers are parsed by ``parse_..._untrusted``, a PCP mapping must have our nonce, ports
must be ports and the external address one that a peer can have.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import gevent
from gevent import socket

from .._errors import BadPacket, KKP2PError, TimedOut, from_os_error
from . import pcp
from .candidates import may_be_peer

__all__ = ["Mapping", "PcpSession", "PmpSession", "Refused", "Session", "checked"]

T = TypeVar("T")

# RFC 6886 section 3.1: the first repeat after 250 ms, the following ones after twice that each.
# PCP waits 3 s (RFC 6887 section 8.1.1), for servers far away; we ask the next router only.
FIRST_REPEAT_S = 0.25
TRANSMISSIONS = 4  # our choice: 3.75 s in all; RFC 6886 goes on to 9, which are two minutes

MAX_LEASE_S = 7 * 86400  # our choice: a longer lease counts as this


class Refused(KKP2PError):
    """the router does not map the port"""


class Mapping(NamedTuple):
    ip: str  # IPv4, the router's outside
    port: int  # 1 to 65535
    lease_s: int  # at least 1; how long the router keeps it


def checked(ip: str, port: int, lease_s: int) -> Mapping:
    """What a router said, if it can be true; otherwise BadPacket.  A private address can be."""
    try:
        address = ipaddress.IPv4Address(ip)
    except ValueError:
        raise BadPacket("the external address is not an IPv4 address") from None
    if not 0 < port < 65536 or address.is_loopback or not may_be_peer(ip, port):
        raise BadPacket("the external address is not one that a peer can have")
    if lease_s < 1:
        raise BadPacket("a mapping that has ended already")
    return Mapping(str(address), port, min(lease_s, MAX_LEASE_S))


class Session(ABC):
    """One router, asked in one way."""

    method = ""

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway

    @abstractmethod
    def probe(self) -> None: ...

    @abstractmethod
    def map(self, internal_port: int, external_port: int, lease_s: int) -> Mapping:
        """``external_port`` is wanted (1 to 65535); the router may give another one."""

    @abstractmethod
    def unmap(self) -> None:
        """Remove the mapping that ``map`` asked for, whether it was answered or not."""

    @abstractmethod
    def close(self) -> None: ...


class _Udp(Session):
    def __init__(self, gateway: str, port: int = pcp.PORT) -> None:
        super().__init__(gateway)
        self._port = port
        self._asked: int | None = None  # the internal port of the last ``map``

    def close(self) -> None:
        """Nothing is open between two exchanges."""

    def _exchange(self, make: Callable[[str], bytes], accept: Callable[[bytes], T | None]) -> T:
        """Send ``make(our address)`` until ``accept`` takes an answer; it returns None for others.

        Each exchange has a socket of its own, as our address may have changed; so no late answer
        reaches the next exchange.
        """
        silence = TimedOut(f"{self.gateway} does not answer {self.method}")
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((self.gateway, self._port))
                request = make(sock.getsockname()[0])
                repeat_s = FIRST_REPEAT_S
                for _ in range(TRANSMISSIONS):
                    sock.send(request)
                    answer = None
                    with gevent.Timeout(repeat_s, False):
                        answer = _wait(sock, accept)
                    if answer is not None:
                        return answer
                    repeat_s *= 2
        except OSError as error:
            raise from_os_error(error, f"{self.method} at {self.gateway}") from error
        raise silence


def _wait(sock: Any, accept: Callable[[bytes], T | None]) -> T:
    while True:
        data = sock.recv(pcp.MAX_BYTES + 1)
        try:
            answer = accept(data)
        except BadPacket:
            answer = None  # as if lost: the true answer may still come
        if answer is not None:
            return answer
        gevent.sleep(0)  # a flood must not keep timers and others from running


class PcpSession(_Udp):
    """``nonce``: NONCE_BYTES secret bytes, the same for a mapping's life, also in a new session."""

    method = "pcp"

    def __init__(self, gateway: str, nonce: bytes, port: int = pcp.PORT) -> None:
        super().__init__(gateway, port)
        self._nonce = nonce
        self._given: tuple[str, int] | None = None

    def probe(self) -> None:
        answer = self._exchange(pcp.announce_request, pcp.parse_pcp_untrusted)
        if answer.result == pcp.UNSUPPORTED_VERSION:  # any other answer is a server's of ours
            raise Refused(f"{self.gateway} does not speak PCP version {pcp.VERSION}")

    def map(self, internal_port: int, external_port: int, lease_s: int) -> Mapping:
        self._asked = internal_port
        answer = self._request(internal_port, self._given or ("0.0.0.0", external_port), lease_s)
        if answer.external is None:
            raise BadPacket("a PCP mapping without an address")
        mapping = checked(*answer.external, answer.lifetime_s)
        self._given = mapping.ip, mapping.port
        return mapping

    def unmap(self) -> None:
        if self._asked is not None:
            self._request(self._asked, ("0.0.0.0", 0), 0)
            self._asked = None

    def _request(
        self, internal_port: int, external: tuple[str, int], lease_s: int
    ) -> pcp.PcpAnswer:
        def make(client: str) -> bytes:
            return pcp.map_request(client, self._nonce, internal_port, external, lease_s)

        def accept(data: bytes) -> pcp.PcpAnswer | None:
            answer = pcp.parse_pcp_untrusted(data)
            ours = answer.nonce == self._nonce and answer.internal_port == internal_port
            # An error about the version, or the opcode, need not have the rest of the request.
            early = answer.nonce is None and answer.result != pcp.SUCCESS
            return answer if ours or early else None

        answer = self._exchange(make, accept)
        if answer.result != pcp.SUCCESS:
            reason = pcp.PCP_RESULTS.get(answer.result, f"result {answer.result}")
            raise Refused(f"{self.gateway} refuses by PCP: {reason}")
        return answer


class PmpSession(_Udp):
    method = "nat-pmp"

    def probe(self) -> None:
        self._address()

    def map(self, internal_port: int, external_port: int, lease_s: int) -> Mapping:
        ip = self._address()
        self._asked = internal_port
        answer = self._request(internal_port, external_port, lease_s)
        return checked(ip, answer.external_port, answer.lifetime_s)

    def unmap(self) -> None:
        if self._asked is not None:
            self._request(self._asked, 0, 0)  # RFC 6886 section 3.4
            self._asked = None

    def _address(self) -> str:
        def accept(data: bytes) -> pcp.PmpAnswer | None:
            answer = pcp.parse_pmp_untrusted(data)
            return answer if answer.result != pcp.SUCCESS or answer.address else None

        answer = self._succeeded(self._exchange(lambda client: pcp.address_request(), accept))
        return answer.address or ""

    def _request(self, internal_port: int, external_port: int, lease_s: int) -> pcp.PmpAnswer:
        def accept(data: bytes) -> pcp.PmpAnswer | None:
            answer = pcp.parse_pmp_untrusted(data)
            ours = answer.result != pcp.SUCCESS or answer.internal_port == internal_port
            return answer if ours else None

        request = pcp.pmp_map_request(internal_port, external_port, lease_s)
        return self._succeeded(self._exchange(lambda client: request, accept))

    def _succeeded(self, answer: pcp.PmpAnswer) -> pcp.PmpAnswer:
        if answer.result != pcp.SUCCESS:
            reason = pcp.PMP_RESULTS.get(answer.result, f"result {answer.result}")
            raise Refused(f"{self.gateway} refuses by NAT-PMP: {reason}")
        return answer
