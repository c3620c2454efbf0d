"""A UDP port of the cloud, at one or all addresses of this host; what arrives is told apart there.

Whoever asked must be answered from the address that was asked: a NAT lets nothing else in.  So an
address that comes from here has a third item, our own address as a number, and what is sent to it
leaves from there.  Where the system does not tell (IPv4 on macOS), it has none.
"""

from __future__ import annotations

import logging
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from gevent import get_hub

from .._address import Address
from .._io import READ
from ..transport import lane_wire
from ..transport.udp.batch_socket import BatchSocket
from ..transport.udp.demultiplex import joined, runs
from ..transport.udp.header import FIRST_BYTE
from ..traversal.candidates import family_of

__all__ = ["WILD", "Handler", "Home", "HomedSocket", "UdpPort", "homes_of", "ip_of", "number_of"]

log = logging.getLogger(__name__)

WILD = ("0.0.0.0", "::")  # a server that listens there does at all addresses

# Our choices.
TURN_S = 0.001  # then the connections have their turn
JOINED_BYTES = 32 << 10  # datagrams that the kernel did not join are, up to this
JOINED_CALLS = 64

# linux/in.h; Python before 3.14 has no name for it.
_IP_PKTINFO = 8
_PKTINFO_4 = struct.Struct("=I4s4s")  # interface, our address, the address in the header
_PKTINFO_6 = struct.Struct("=16sI")
_LINUX = sys.platform == "linux"

Home = tuple[int, str]  # family; an address of this host, or empty: all of the family
Handler = Callable[[bytes, int, Address], object]  # data, the bytes of each but the last, source


def number_of(ip: str) -> int:
    """One of our addresses as the third item of an address."""
    return int.from_bytes(socket.inet_pton(family_of(ip), ip), "big")


def ip_of(address: Address) -> str:
    """Our address by which ``address`` is reached; empty where the system does not tell."""
    if len(address) == 2:
        return ""
    family = family_of(address[0])
    size = 16 if family == socket.AF_INET6 else 4
    return socket.inet_ntop(family, address[2].to_bytes(size, "big"))


def homes_of(host: str, second_ip: str | None = None) -> list[Home]:
    """What a server that listens at ``host`` binds its UDP sockets to.

    ``second_ip``: another address of this host, which all its addresses would include.
    """
    families = [socket.AF_INET6, socket.AF_INET] if host == "::" else [family_of(host)]
    homes = [(int(family), "" if host in WILD else host) for family in families]
    if second_ip is not None and host not in WILD:
        homes.append((family_of(second_ip), second_ip))
    return homes


class HomedSocket(BatchSocket):
    """Tells of each datagram to which of our addresses it came, and sends from that one."""

    CONTROL_BYTES = BatchSocket.CONTROL_BYTES + socket.CMSG_SPACE(_PKTINFO_6.size)

    def __init__(self, home: Home, port: int, shared: bool = False) -> None:
        family, self.ip = home
        self._shared = shared
        number = number_of(self.ip) if self.ip else 0
        super().__init__(socket.AddressFamily(family), log, port, number, self.ip)
        self.grow()

    def _configure(self) -> None:
        super()._configure()
        if self._shared:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if self.ip:
            return
        if self.family == socket.AF_INET6:
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif _LINUX:
            self._sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def _number_of(self, value: bytes) -> int:
        six = self.family == socket.AF_INET6
        ours = _PKTINFO_6.unpack(value)[0] if six else _PKTINFO_4.unpack(value)[1]
        return int.from_bytes(ours, "big")

    def _origin(self, address: Address) -> tuple[tuple[int, int, bytes], ...]:
        if self.ip or len(address) == 2:
            return ()
        if self.family == socket.AF_INET6:
            packed = address[2].to_bytes(16, "big")
            return ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO_6.pack(packed, 0)),)
        packed = address[2].to_bytes(4, "big")
        return ((socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO_4.pack(0, packed, packed)),)


class UdpPort:
    """Belongs to the hub of the thread that makes it.  Set the handlers, then ``start``.

    A handler must not wait.  ``on_stun`` gets one datagram at a time, whatever nobody else wants
    included; ``on_lane`` what begins as a lane's datagrams do; ``on_packets`` packets of peers, of
    one sender and for one connection.  ``counts``: what could not be sent, by reason.
    """

    def __init__(self, homes: list[Home], port: int, shared: bool = False) -> None:
        """Raises OSError, with EADDRINUSE if the port is not free; 0: any.

        ``shared``: with other processes, among which the kernel divides what comes.
        """
        self.homes = homes
        self.shared = shared
        self.port = port
        self.on_stun: Handler | None = None
        self.on_lane: Handler | None = None
        self.on_packets: Handler | None = None
        self.counts: Counter[str] = Counter()
        self._watchers: list[Any] = []
        self._sockets: list[HomedSocket] = []
        try:
            for home in homes:
                self._sockets.append(HomedSocket(home, self.port, shared))
                self.port = self._sockets[0].port
        except BaseException:
            self.stop()
            raise
        # The first one of a family; and those that are bound to one address each, by it.
        self._of_family = {each.family: each for each in reversed(self._sockets)}
        self._of_number = {each.number: each for each in self._sockets if each.ip}

    def start(self) -> None:
        loop = get_hub().loop
        for each in self._sockets:
            watcher = loop.io(each.fileno(), READ)
            watcher.start(self._on_readable, each)
            self._watchers.append(watcher)

    def stop(self) -> None:
        """May be called again."""
        for thing in [*self._watchers, *self._sockets]:
            thing.close()
        self._watchers, self._sockets = [], []

    def failures(self) -> Counter[str]:
        """System calls that failed, by errno name."""
        return sum((each.failures for each in self._sockets), Counter())

    def send(self, data: bytes, segment_bytes: int, address: Address) -> bool:
        """Now or never; whether the socket had room for it."""
        by = self._of_number.get(address[-1]) if len(address) > 2 else None
        if by is None:
            by = self._of_family[socket.AF_INET6 if ":" in address[0] else socket.AF_INET]
        if by.send(data, segment_bytes, address) < len(data):
            self.counts["socket full"] += 1
            return False
        return True

    def _on_readable(self, by: HomedSocket) -> None:
        receive = by.receive
        until = time.monotonic() + TURN_S
        while (first := receive()) is not None:
            for data, segment_bytes, source in joined(receive, first, JOINED_CALLS, JOINED_BYTES):
                try:
                    self._sort(data, segment_bytes, source)
                except Exception:
                    log.exception("UDP: a fault of ours, at a datagram from %s", source[0])
                if not self._sockets:
                    return
            if time.monotonic() >= until:
                return

    def _sort(self, data: bytes, segment_bytes: int, source: Address) -> None:
        for run in runs(data, segment_bytes):
            handler = self.on_stun
            if run[:1] == _FIRST:
                handler = self.on_packets or handler
            elif run.startswith(lane_wire.MAGIC):
                handler = self.on_lane or handler
            if handler is None:
                self.counts["not ours"] += 1
            elif handler is self.on_packets:
                handler(run, segment_bytes, source)
            else:
                for start in range(0, max(len(run), 1), segment_bytes or 1):
                    handler(run[start : start + segment_bytes], segment_bytes, source)


_FIRST = bytes([FIRST_BYTE])
