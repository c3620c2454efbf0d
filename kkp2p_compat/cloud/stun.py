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
import functools
import time
from collections import Counter
from typing import NamedTuple

from .._address import Address, HostPort
from .._bucket import Bucket
from .._errors import BadPacket
from ..traversal.candidates import family_of, may_be_peer
from ..traversal.stun import CHANGE_REQUEST, UNKNOWN_ATTRIBUTE, Kind, Message, parse_untrusted
from .counting import Networks, address_keys
from .limits import Gatekeeper
from .outside import make_ticket
from .udp_port import WILD, Home, UdpPort, ip_of, number_of

__all__ = ["Reply", "StunResponder", "respond_untrusted"]

# Our choices.
MAX_REQUEST_BYTES = 2048  # PADDING of RFC 5780 section 7.6 fills an Ethernet frame
LOWEST_RESPONSE_PORT = 1024  # below are services that one could be made to annoy
PORT_TRIES = 16


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
    request: Message,
    most: int,
    source: HostPort,
    asked: HostPort,
    other: HostPort,
    ticket: bytes | None = None,
) -> Reply:
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
            for given in (ticket, None):
                full = Message(
                    Kind.RESPONSE, tag, mapped=source, origin=sender, other=other, ticket=given
                )
                wire = full.encode(None)
                if len(wire) <= most:
                    return Reply(wire, sender, (source[0], port))
    for fingerprint in (True, False):
        wire = short.encode(None, fingerprint)
        if len(wire) <= most:
            return Reply(wire, sender, (source[0], port))
    raise BadPacket("a request that is shorter than its answer")


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
        self._places: list[UdpPort] = []
        gate.when_limits_change(self._set_rates)

    def _set_rates(self) -> None:
        limits = self._gate.limits
        self._by_address = Networks(limits.stun_per_s, limits.stun_per_s * limits.burst_s)
        self._in_all = Bucket(limits.stun_total_per_s, limits.stun_total_per_s, time.monotonic())

    def start(self, first: UdpPort, host: str) -> None:
        """Answer at ``first``, the port at ``host``, and at another one, which is opened here.

        Raises OSError.
        """
        self._host = host
        homes = first.homes
        if self._second_ip is not None and host in WILD:  # it must be an address of this host
            UdpPort([(family_of(self._second_ip), self._second_ip)], 0).stop()
        second = self._open_second(homes, first.port + 1, first.shared)
        self.ports = first.port, second.port
        self.answer_at(first)
        self.answer_at(second)
        second.start()

    def answer_at(self, port: UdpPort) -> None:
        """At a port that stays its owner's; a third one is for those that measure how far it is."""
        port.on_stun = functools.partial(self._answer_untrusted, len(self._places))
        self._places.append(port)

    def _open_second(self, homes: list[Home], port: int, shared: bool) -> UdpPort:
        """At all homes by the same number; the one that is asked for, or any."""
        wanted = port if port <= 65535 else 0
        for _ in range(PORT_TRIES):
            try:
                return UdpPort(homes, wanted, shared)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or shared:
                    raise
                wanted = 0
        raise OSError(errno.EADDRINUSE, "no second port for STUN is free")

    def stop(self) -> None:
        """The other ports are their owners' to close.  May be called again."""
        for place in self._places[1:2]:
            place.stop()
        self._places = []

    def _answer_untrusted(
        self, index: int, data: bytes, segment_bytes: int, source: Address
    ) -> None:
        """``index``: of the port at which it came, among the places."""
        keys, now = address_keys(source[0]), time.monotonic()
        if self._gate.limits.hold_for(keys) and not self._by_address.take(keys, now):
            self.counts["over the limit of an address"] += 1
            return
        ip, asker = ip_of(source), (source[0], source[1])
        asked = ip, self._places[index].port
        try:
            request = parse_request_untrusted(data, asker)
            if not self._in_all.take(now):  # after parsing: garbage takes nothing from others
                raise BadPacket("over the limit of all")
            other = self._other(ip, index)
            reply = respond(request, len(data), asker, asked, other, self._ticket(source[0]))
        except BadPacket as error:
            self.counts[str(error)] += 1
            return
        to: Address = reply.to if not ip else (*reply.to, number_of(reply.sender[0]))
        by = next(place for place in self._places if place.port == reply.sender[1])
        if by.send(reply.data, len(reply.data), to):
            self.counts["answered"] += 1
        else:
            self.counts["socket full"] += 1  # the client asks on

    def _ticket(self, ip: str) -> bytes | None:
        if self._key is None or ":" in ip:
            return None
        return make_ticket(self._key, ip, time.time())

    def _other(self, ip: str, index: int) -> HostPort:
        other = ip
        if self._second_ip is not None and family_of(self._second_ip) == family_of(ip):
            if ip != self._second_ip:
                other = self._second_ip
            elif family_of(self._host) == family_of(ip) and self._host not in WILD:
                other = self._host
        return other, self.ports[index == 0]
