"""Addresses of the two peers: which of ours to tell, and which of the peer's to try.

A candidate travels in an offer or an answer as text: ``<kind> <priority> <ip> <port>``.  Kinds:
``host`` (an address of the host), ``mapped`` (one that a router forwards because it was asked to)
and ``srflx`` (as a STUN server saw it).  The peer's list is a stranger's word, and whatever is in
it gets packets from us: ``parse_untrusted`` bounds it and leaves out what is never a peer, and
``plausible`` judges private and loopback addresses.

Loopback is a candidate only on a host that has no other address, as peers on one host need it only
then: each of them reaches any address of the host, and answers come from the same one.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from .._address import HostPort
from .._errors import BadPacket
from .interfaces import interfaces, source_addresses

__all__ = [
    "MAX_CANDIDATES",
    "Candidate",
    "family_of",
    "host_candidates",
    "is_private",
    "may_be_peer",
    "outer_candidate",
    "parse_untrusted",
    "plausible",
    "reflexive_priority",
]

# Type preferences, as RFC 8445 section 5.1.2.2 recommends them.  "mapped" is our choice: it takes
# packets from everybody, as a host address does, so it is the next best.
HOST_PREFERENCE = 126
REFLEXIVE_PREFERENCE = 110  # what a check teaches the peer ("prflx"; never in a list)
OUTER_PREFERENCES = {"mapped": 120, "srflx": 100}
COMPONENT = 1  # 5.1.2.1: we have one component
MAX_LOCAL_PREFERENCE = 65535
MAX_PRIORITY = 2**31 - 1  # 5.1.2

# Our choices.
MAX_CANDIDATES = 32  # of one peer: a dozen of each family, and some to be learnt later
MAX_OWN_PER_FAMILY = 12  # a host with more has them for other purposes
MAX_TEXT = 80  # characters of one candidate; the longest possible one has 67
CACHED = 1024  # judged addresses: a call asks hundreds of times about the same few

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
KINDS = {"host", *OUTER_PREFERENCES}

# Addresses that only hosts of the same network reach: RFC 1918, RFC 6598, RFC 3927, RFC 4193; or
# only the host itself: RFC 7335 (464XLAT, DS-Lite), RFC 2544 (VPN programs use them for devices).
PRIVATE = [
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "fc00::/7",
        "192.0.0.0/29",
        "198.18.0.0/15",
    )
]
# IPv6 addresses whose packets a translator or tunnel carries to the IPv4 address within them:
# RFC 6052, RFC 8215, RFC 3056, RFC 4291 section 2.5.5.1.
CARRIED_TO_IPV4 = [
    ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "::/96")
]
# What is never one peer: "this network" (RFC 791), reserved and broadcast (RFC 1112), and IPv4
# addresses written as IPv6 ones (RFC 4291), which would evade the rules for IPv4.
NEVER = [
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/8", "240.0.0.0/4", "::ffff:0:0/96", "::/128", "fec0::/10")
]


class Candidate(NamedTuple):
    kind: str
    priority: int  # 1 to 2^31-1, the higher the better
    address: str  # numeric ip, no scope
    port: int

    @property
    def text(self) -> str:
        return f"{self.kind} {self.priority} {self.address} {self.port}"


def family_of(ip: str) -> int:
    """AF_INET or AF_INET6 of a numeric address."""
    return int(socket.AF_INET6 if ":" in ip else socket.AF_INET)


def host_candidates(
    ports: Mapping[int, int], addresses: Iterable[str] | None = None
) -> list[Candidate]:
    """Our own addresses, best first: IPv6 before IPv4, then in the order of the interfaces.

    ``ports``: the bound port for each address family that we have a socket of.
    ``addresses``: of this host, the preferred interface's first; read from the system by default.
    Asks the system anew each time; OSError: it has no descriptors left.
    """
    # An address with a scope (fe80::1%eth0) names no host: only its network could use it.
    named = [
        text
        for text in (_own_addresses() if addresses is None else addresses)
        if family_of(text) in ports and _names_one_host(text)
    ]
    named = [text for text in named if _scope(text) is not _Scope.HOST] or named
    usable = _without_those_that_name_the_device(
        [ip for ip in map(_parse_ip, named) if ip is not None]
    )
    chosen: list[IPAddress] = []
    for version in (6, 4):
        same_family = dict.fromkeys(ip for ip in usable if ip.version == version)
        chosen += list(same_family)[:MAX_OWN_PER_FAMILY]
    return [
        Candidate(
            "host",
            _priority(HOST_PREFERENCE, MAX_LOCAL_PREFERENCE - place),
            str(ip),
            ports[family_of(str(ip))],
        )
        for place, ip in enumerate(chosen)
    ]


def _without_those_that_name_the_device(found: list[IPAddress]) -> list[IPAddress]:
    """IPv6 addresses made of a MAC address (RFC 4291 appendix A) are the same in every network.

    RFC 8445 section 5.1.1.1 forbids telling them where we have another one of that network.  One
    that the system sends from stays, as the peer sees it anyway.
    """
    sends_from = next((ip for ip in found if ip.version == 6), None)

    def names_it(ip: IPAddress) -> bool:
        if ip.version == 4 or ip == sends_from:
            return False
        return ip.packed[11:13] == b"\xff\xfe" and bool(ip.packed[8] & 2)

    others = {ip.packed[:8] for ip in found if not names_it(ip)}
    return [ip for ip in found if not (names_it(ip) and ip.packed[:8] in others)]


def _own_addresses() -> list[str]:
    """The source addresses of the default routes, then every interface's in the kernel's order."""
    listed = (interface.address for interface in interfaces())
    return list(dict.fromkeys([*source_addresses(), *listed]))


def _priority(kind_preference: int, local_preference: int) -> int:
    """RFC 8445 section 5.1.2.1."""
    return (kind_preference << 24) + (local_preference << 8) + (256 - COMPONENT)


def reflexive_priority(own: Sequence[Candidate], family: int) -> int:
    """What our own address would be worth if the peer learnt it from a check (7.1.1)."""
    return _priority(REFLEXIVE_PREFERENCE, _local_preference(own, family))


def outer_candidate(kind: str, address: HostPort, own: Sequence[Candidate]) -> Candidate:
    """An address at which we are seen from outside; ``kind``: "mapped" or "srflx"."""
    preference = _local_preference(own, family_of(address[0]))
    return Candidate(kind, _priority(OUTER_PREFERENCES[kind], preference), *address)


def _local_preference(own: Sequence[Candidate], family: int) -> int:
    """That of the best host candidate of the family, which has the same base."""
    host = max((c.priority for c in own if family_of(c.address) == family), default=0)
    return host >> 8 & MAX_LOCAL_PREFERENCE


def parse_untrusted(texts: object) -> list[Candidate]:
    """The peer's list, as it came in JSON.  BadPacket if it is too long or not well-formed.

    Left out: kinds that we do not know, a repeated address, and what is never one peer: multicast,
    broadcast, unspecified and link-local IPv6 addresses (their scope is not the peer's to know).
    """
    if not isinstance(texts, list) or len(texts) > MAX_CANDIDATES:
        raise BadPacket(f"not a list of up to {MAX_CANDIDATES} candidates")
    found: dict[HostPort, Candidate] = {}
    for text in texts:
        candidate = _parse_one_untrusted(text)
        if candidate.kind in KINDS and may_be_peer(candidate.address, candidate.port):
            found.setdefault((candidate.address, candidate.port), candidate)
    return list(found.values())


def _parse_one_untrusted(text: object) -> Candidate:
    if not isinstance(text, str) or len(text) > MAX_TEXT or not text.isascii():
        raise BadPacket("a candidate that is not a short text")
    fields = text.split(" ")
    if len(fields) != 4:
        raise BadPacket("a candidate that is not four fields")
    kind, priority, address, port = fields
    ip = _parse_ip(address)
    if ip is None:
        raise BadPacket("a candidate without an address")
    return Candidate(
        kind,
        _parse_number_untrusted(priority, 1, MAX_PRIORITY),
        str(ip),
        _parse_number_untrusted(port, 0, 65535),
    )


def _parse_number_untrusted(text: str, lowest: int, highest: int) -> int:
    if not text.isdecimal() or not lowest <= int(text) <= highest:
        raise BadPacket("a candidate with a number out of range")
    return int(text)


@functools.lru_cache(CACHED)
def _parse_ip(text: str) -> IPAddress | None:
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_one_host(ip: IPAddress) -> bool:
    if ip.is_multicast or (ip.version == 6 and ip.is_link_local):
        return False
    return not any(ip in network for network in NEVER)


def may_be_peer(address: str, port: int) -> bool:
    """Whether a packet from there may be answered and probed: a single host's address."""
    return port != 0 and _names_one_host(address)


# Judgements are kept by text: an ipaddress object takes microseconds to hash.
@functools.lru_cache(CACHED)
def _names_one_host(address: str) -> bool:
    ip = _parse_ip(address)
    return ip is not None and _is_one_host(ip)


def plausible(address: str, own: Sequence[Candidate]) -> bool:
    """Whether an address that the peer only named may be the peer's, seen from here.

    It is not without an address of ours of its family.  Loopback is plausible only if we have
    nothing else either, so that the peer may be on this host; a private address only if we have one
    too, or none but loopback.  So a caller cannot make a public server probe the network behind it,
    nor by IPv4 addresses within IPv6 ones.  A peer that is there nevertheless reaches us by its own
    checks.
    """
    scope, family = _scope(address), family_of(address)
    ours = {_scope(each.address) for each in own if family_of(each.address) == family}
    if scope is _Scope.HOST:
        return _Scope.HOST in ours
    if scope is _Scope.NETWORK:
        return not ours.isdisjoint((_Scope.HOST, _Scope.NETWORK))
    return bool(ours) and scope is not _Scope.CARRIED


def is_private(address: str) -> bool:
    """Whether only a host of our network, or this host itself, can have this numeric address."""
    return _scope(address) in (_Scope.HOST, _Scope.NETWORK)


class _Scope(Enum):
    """Whose packets reach an address."""

    HOST = "loopback"
    NETWORK = "private"
    CARRIED = "an IPv6 address that stands for an IPv4 one"
    WORLD = "any other"


@functools.lru_cache(CACHED)
def _scope(address: str) -> _Scope:
    ip = ipaddress.ip_address(address)
    if ip.is_loopback:
        return _Scope.HOST
    if any(ip in network for network in PRIVATE):
        return _Scope.NETWORK
    return _Scope.CARRIED if any(ip in network for network in CARRIED_TO_IPV4) else _Scope.WORLD
