"""The STUN responder: tells whoever asks at which address it is seen (RFC 8489, RFC 5780).

It answers by UDP on the cloud's listening address, at the number of its TCP port and at the next
one, and on a second address if the host has one to give: so a peer sees what its NAT's mapping
depends on.  OTHER-ADDRESS tells the other address and port.  Departure from RFC 5780: a cloud with
one address sends it, too, with that address.

Anybody can write a victim's address into a request, so:

- An answer is never longer than its request.  What does not fit is left out: FINGERPRINT and the
  other addresses first, then there is no answer.  So a request without any attribute gets none.
- Requests are limited by address and in all; nothing is logged for one.
- Only requests are answered, so two responders cannot keep each other busy.
- RESPONSE-PORT reaches another port of the asker's own address only, and none below 1024.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

from gevent import get_hub, monkey

from .._address import HostPort
from .._bucket import Bucket
from .._errors import BadPacket
from .._io import READ
from ..traversal.candidates import family_of, may_be_peer
from ..traversal.stun import CHANGE_REQUEST, UNKNOWN_ATTRIBUTE, Kind, Message, parse_untrusted
from .counting import Networks, address_keys
from .limits import Gatekeeper
from .outside import make_ticket

__all__ = ["Reply", "StunResponder", "respond_untrusted"]

log = logging.getLogger(__name__)

# Our choices.
MAX_REQUEST_BYTES = 2048  # PADDING of RFC 5780 section 7.6 fills an Ethernet frame
DATAGRAMS_PER_TURN = 16  # a millisecond; then the connections have their turn
LOWEST_RESPONSE_PORT = 1024  # below are services that one could be made to annoy
PORT_TRIES = 16

# linux/in.h; Python before 3.14 has no name for it.
_IP_PKTINFO = 8
_PKTINFO_4 = struct.Struct("=I4s4s")  # interface, our address, the address in the header
_PKTINFO_6 = struct.Struct("=16sI")
_CONTROL_BYTES = socket.CMSG_SPACE(_PKTINFO_6.size)
_LINUX = sys.platform == "linux"
_new_socket: Any = monkey.get_original("socket", "socket")


class Reply(NamedTuple):
    data: bytes
    sender: HostPort
    to: HostPort


def respond_untrusted(data: bytes, source: HostPort, asked: HostPort, other: HostPort) -> Reply:
    """The answer to a datagram.  Raises BadPacket, with the reason, if it gets none."""
    return respond(parse_request_untrusted(data, source), len(data), source, asked, other)


def parse_request_untrusted(data: bytes, source: HostPort) -> Message:
    """A request that may be answered; raises BadPacket, with the reason, for all else."""
    request = parse_untrusted(data, MAX_REQUEST_BYTES)
    if request.kind is not Kind.REQUEST:
        raise BadPacket("not a request")
    if not may_be_peer(*source):
        raise BadPacket("a request from an address that no peer can have")
    return request


def respond(
    request: Message, most: int, source: HostPort, asked: HostPort, other: HostPort,
    ticket: bytes | None = None,
) -> Reply:  # fmt: skip
    """The answer to a request of ``most`` bytes.  Raises BadPacket if it gets none.

    ``asked``: the address and port that it came to, the address empty where the system does not
    tell.  ``other``: our other ones.  ``ticket``: for this source.
    """
    port = source[1] if request.response_port is None else request.response_port
    if request.response_port is not None and port < LOWEST_RESPONSE_PORT:
        raise BadPacket("a request for an answer to a port of services")
    refused = request.unknown
    if request.change_ip and other[0] == asked[0]:
        refused += (CHANGE_REQUEST,)
    tag = request.transaction_id
    if refused:
        sender = asked
        short = Message(Kind.ERROR, tag, error=UNKNOWN_ATTRIBUTE, not_understood=refused)
    else:
        sender = (
            other[0] if request.change_ip else asked[0],
            other[1] if request.change_port else asked[1],
        )
        short = Message(Kind.RESPONSE, tag, mapped=source)
        if asked[0]:
            full = Message(
                Kind.RESPONSE, tag, mapped=source, origin=sender, other=other, ticket=ticket
            )
            for message in (full, replace(full, ticket=None)):
                wire = message.encode(None)
                if len(wire) <= most:
                    return Reply(wire, sender, (source[0], port))
    for fingerprint in (True, False):
        wire = short.encode(None, fingerprint)
        if len(wire) <= most:
            return Reply(wire, sender, (source[0], port))
    raise BadPacket("a request that is shorter than its answer")


class _Place:
    """A socket: at one address of the host, or (no ip) at all of a family."""

    def __init__(self, family: int, ip: str, index: int, port: int) -> None:
        self.family = family
        self.ip = ip
        self.index = index  # 0: the first port, 1: the second
        self.watcher: Any = None
        self.sock: socket.socket = _new_socket(family, socket.SOCK_DGRAM)
        try:
            self.sock.setblocking(False)
            if family == socket.AF_INET6:
                self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if not ip and family == socket.AF_INET6:
                self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            elif not ip and _LINUX:
                self.sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self.sock.bind((ip or ("::" if family == socket.AF_INET6 else "0.0.0.0"), port))
        except BaseException:
            self.sock.close()
            raise

    def receive(self) -> tuple[bytes, HostPort, str]:
        """A datagram, where from, and our address that it came to."""
        data, control, _, source = self.sock.recvmsg(MAX_REQUEST_BYTES + 1, _CONTROL_BYTES)
        ip = self.ip
        for level, kind, value in control:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                ip = socket.inet_ntop(socket.AF_INET, _PKTINFO_4.unpack(value)[1])
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                ip = socket.inet_ntop(socket.AF_INET6, _PKTINFO_6.unpack(value)[0])
        return data, (source[0], source[1]), ip

    def send(self, reply: Reply) -> None:
        control: list[tuple[int, int, bytes]] = []
        if not self.ip and self.family == socket.AF_INET6:
            packed = socket.inet_pton(socket.AF_INET6, reply.sender[0])
            control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO_6.pack(packed, 0))]
        elif not self.ip and _LINUX:
            packed = socket.inet_pton(socket.AF_INET, reply.sender[0])
            control = [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO_4.pack(0, packed, packed))]
        self.sock.sendmsg([reply.data], control, 0, reply.to)

    def close(self) -> None:
        if self.watcher is not None:
            self.watcher.close()
        self.sock.close()


class StunResponder:
    """Call order: ``start``, ``stop``.  Belongs to the hub of the thread that calls ``start``.

    ``counts``: answers, and what got none by reason.
    """

    def __init__(
        self, gate: Gatekeeper, second_ip: str | None = None, key: bytes | None = None
    ) -> None:
        """``key``: for tickets; None: none are given."""
        self._key = key
        self.ports = (0, 0)
        self.counts: Counter[str] = Counter()
        self._gate = gate
        self._host = ""
        self._second_ip = second_ip
        self._places: list[_Place] = []
        limits = gate.limits
        self._by_address = Networks(limits.stun_per_s, limits.stun_per_s * limits.burst_s)
        self._in_all = Bucket(limits.stun_total_per_s, limits.stun_total_per_s, time.monotonic())

    def start(self, host: str, port: int) -> None:
        """Raises OSError, with EADDRINUSE if the port is not free."""
        self._host = host
        wild = host in ("0.0.0.0", "::")
        families = [socket.AF_INET6, socket.AF_INET] if host == "::" else [family_of(host)]
        homes = [(int(family), "" if wild else host) for family in families]
        if self._second_ip is not None:
            home = family_of(self._second_ip), self._second_ip
            if not wild:
                homes.append(home)
            else:
                _Place(*home, 0, 0).close()  # it must be an address of this host
        try:
            for home in homes:
                self._places.append(_Place(*home, 0, port))
            self.ports = port, self._open_second(homes, port + 1)
        except BaseException:
            self.stop()
            raise
        loop = get_hub().loop
        for place in self._places:
            place.watcher = loop.io(place.sock.fileno(), READ)
            place.watcher.start(self._on_readable, place)

    def _open_second(self, homes: list[tuple[int, str]], port: int) -> int:
        """At all homes by the same number; the one that is asked for, or any."""
        wanted = port if port <= 65535 else 0
        for _ in range(PORT_TRIES):
            opened: list[_Place] = []
            try:
                for home in homes:
                    opened.append(_Place(*home, 1, wanted))
                    wanted = opened[0].sock.getsockname()[1]
            except OSError as error:
                for place in opened:
                    place.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                wanted = 0
            else:
                self._places += opened
                return wanted
        raise OSError(errno.EADDRINUSE, "no second port for STUN is free")

    def stop(self) -> None:
        """May be called again."""
        for place in self._places:
            place.close()
        self._places = []

    def _on_readable(self, place: _Place) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                data, source, ip = place.receive()
            except BlockingIOError:
                return
            except OSError as error:
                self._count(error)
                return
            self._answer_untrusted(place, data, source, ip)

    def _answer_untrusted(self, place: _Place, data: bytes, source: HostPort, ip: str) -> None:
        keys, now = address_keys(source[0]), time.monotonic()
        if self._gate.limits.hold_for(keys) and not self._by_address.take(keys, now):
            self.counts["over the limit of an address"] += 1
            return
        asked = ip, self.ports[place.index]
        try:
            request = parse_request_untrusted(data, source)
            if not self._in_all.take(now):  # after parsing: garbage takes nothing from others
                raise BadPacket("over the limit of all")
            other = self._other(ip, place.index)
            reply = respond(request, len(data), source, asked, other, self._ticket(source[0]))
        except BadPacket as error:
            self.counts[str(error)] += 1
            return
        try:
            self._sender(place, reply.sender).send(reply)
            self.counts["answered"] += 1
        except OSError as error:  # unreachable, or the socket's buffer is full: the client asks on
            self._count(error)

    def _ticket(self, ip: str) -> bytes | None:
        if self._key is None or ":" in ip:
            return None
        return make_ticket(self._key, ip, time.time())

    def _count(self, error: OSError) -> None:
        self.counts[errno.errorcode.get(error.errno or 0, "OSError")] += 1

    def _other(self, ip: str, index: int) -> HostPort:
        other = ip
        if self._second_ip is not None and family_of(self._second_ip) == family_of(ip):
            if ip != self._second_ip:
                other = self._second_ip
            elif family_of(self._host) == family_of(ip) and self._host not in ("0.0.0.0", "::"):
                other = self._host
        return other, self.ports[1 - index]

    def _sender(self, asked: _Place, sender: HostPort) -> _Place:
        index = self.ports.index(sender[1])
        fits = (
            place for place in self._places
            if place.index == index and place.family == asked.family
            and place.ip in ("", sender[0])
        )  # fmt: skip
        return next(fits)
