"""Where what peers open is forwarded to: a port, a Unix socket, or a socket that is given.

Runs in the engine's hub; the caller bounds the time with its own gevent.Timeout.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Any, Protocol

import gevent
from gevent import monkey

from ..._address import HostPort, is_ip, text_of
from ..._descriptors import keep_private
from ..._errors import CallRefused
from ...control.resolver import addresses_of
from ...transport import dial, tcp

__all__ = ["GivenTarget", "PathTarget", "PortTarget", "Target", "connected_udp"]

RESOLVE_S = 5.0  # our choice: for a name; whoever calls waits about twice as long
BACKLOG_PAUSE_S = 0.02
_new_socket: Any = monkey.get_original("socket", "socket")


class Target(Protocol):
    """``str`` of it names it to the user."""

    def connect(self) -> Any:
        """A plain non-blocking stream socket; waits.  Raises OSError or KKP2PError."""

    def udp_addresses(self) -> list[HostPort]:
        """For ``connected_udp``, the best first; waits.  Raises OSError or KKP2PError."""


@dataclass(frozen=True)
class PortTarget:
    """``hosts``: names or addresses, of which the first that answers is taken."""

    hosts: tuple[str, ...]
    port: int

    def __str__(self) -> str:
        return text_of((self.hosts[0], self.port))

    def connect(self) -> Any:
        made = _connect(self._addresses(), self.port)
        tcp.tune(made)
        sock = _new_socket(made.family, made.type, fileno=made.detach())
        sock.setblocking(False)
        return keep_private(sock)

    def udp_addresses(self) -> list[HostPort]:
        return [(ip, self.port) for ip in self._addresses()]

    def _addresses(self) -> list[str]:
        found: list[str] = []
        for host in self.hosts:
            found += [host] if is_ip(host) else addresses_of(host, RESOLVE_S)
        return found


def connected_udp(address: HostPort) -> Any:
    """Non-blocking, connected to an IP address and port; raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = keep_private(_new_socket(family, socket.SOCK_DGRAM))
    try:
        sock.setblocking(False)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(addresses: list[str], port: int) -> Any:
    if not all(ipaddress.ip_address(ip).is_loopback for ip in addresses):
        return dial.connect(addresses, port)[0]
    for ip in addresses[:-1]:  # in turns, as no packet is lost there: a race costs three greenlets
        with contextlib.suppress(ConnectionRefusedError):
            return tcp.connect(ip, port)
    return tcp.connect(addresses[-1], port)


@dataclass(frozen=True)
class PathTarget:
    """A Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def connect(self) -> Any:
        sock = keep_private(_new_socket(socket.AF_UNIX))
        try:
            sock.setblocking(False)
            while (code := sock.connect_ex(self.path)) == errno.EAGAIN:
                gevent.sleep(BACKLOG_PAUSE_S)  # its backlog is full, and no event tells of room
            if code:
                raise OSError(code, os.strerror(code))
        except BaseException:
            sock.close()
            raise
        return sock

    def udp_addresses(self) -> list[HostPort]:
        raise CallRefused("{target} takes streams only", target=str(self))


class GivenTarget:
    """A socket that exists already, for the first channel alone."""

    def __init__(self, sock: Any, name: str) -> None:
        self._sock = keep_private(sock)
        self._name = name

    def __str__(self) -> str:
        return self._name

    def connect(self) -> Any:
        if self._sock is None:
            raise CallRefused("{target} is another caller's", target=str(self))
        sock, self._sock = self._sock, None
        return sock

    def udp_addresses(self) -> list[HostPort]:
        raise CallRefused("{target} takes streams only", target=str(self))
