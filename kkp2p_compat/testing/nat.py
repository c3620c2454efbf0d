"""What a NAT remembers and decides: which outside port a sender gets, and who gets back in.

The terms are those of RFC 4787 (UDP) and RFC 5382 (TCP).  It has no socket and no clock and takes
no random numbers: ``now`` and the random source are passed in, so a simulation and the lab use the
same NAT.
It sees addresses only; ``world`` rewrites the packets.

The rules:
- ``outbound`` makes or refreshes a binding, and lets the remote back in as ``filtering`` says.
- ``inbound`` finds the binding of an outside address, or counts a drop and returns None.
- A binding, and each permission in it, ends ``timeout_s`` after the last packet that refreshed it.
- An outside port belongs to one binding at a time (no port overloading, RFC 4787 REQ-3).
- Each inside address keeps to one outside address (pooling "paired", RFC 4787 REQ-2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from .._address import HostPort

__all__ = [
    "ADDRESS_AND_PORT_DEPENDENT",
    "ADDRESS_DEPENDENT",
    "ADDRESS_RESTRICTED",
    "ENDPOINT_INDEPENDENT",
    "FIREWALL",
    "FULL_CONE",
    "PORT_RESTRICTED",
    "SYMMETRIC_RANDOM",
    "SYMMETRIC_SEQUENTIAL",
    "TCP",
    "UDP",
    "Nat",
    "NatType",
]

TCP, UDP = 6, 17  # IANA protocol numbers

ENDPOINT_INDEPENDENT = "endpoint-independent"
ADDRESS_DEPENDENT = "address-dependent"
ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
BEHAVIOURS = (ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT)
ALLOCATIONS = ("preserved", "sequential", "random")

SWEEP_S = 10.0  # our choice: how often what has ended is looked for
RANDOM_TRIES = 64  # our choice: then the next free port is taken


@dataclass(frozen=True)
class NatType:
    """How a NAT behaves.  ``NatType()`` is the common home router."""

    mapping: str = ENDPOINT_INDEPENDENT
    """RFC 4787 4.1: on what, beside the sender, the outside port depends.  "none": nothing is
    translated, which leaves a firewall."""
    filtering: str = ADDRESS_AND_PORT_DEPENDENT
    """RFC 4787 5: who gets in; always through a binding only."""
    allocation: str = "preserved"
    """The outside port of a new binding.  "preserved": that of the sender, or the next free one
    where another binding has it.  "sequential": ``step`` after the last one.  "random": any."""
    step: int = 1
    """Of "sequential"; may be negative."""
    hairpin: bool = False
    """Do inside hosts reach each other by their outside addresses (RFC 4787 6)?"""
    timeout_s: float = 120.0
    """How long an idle UDP binding lives; RFC 4787 REQ-5 asks for 120 s, many have 30 s."""
    tcp_timeout_s: float = 7440.0
    """The same for TCP, RFC 5382 REQ-5."""
    ports: tuple[int, int] = (1024, 65535)
    """The first and the last outside port."""
    refresh_inbound: bool = False
    """Do packets from outside keep a UDP binding, too?  (RFC 4787 REQ-6 asks for outbound only.)
    TCP is kept by both ways."""

    def __post_init__(self) -> None:
        if self.mapping not in (*BEHAVIOURS, "none"):
            raise ValueError(f"no such mapping: {self.mapping}")
        if self.filtering not in BEHAVIOURS:
            raise ValueError(f"no such filtering: {self.filtering}")
        if self.allocation not in ALLOCATIONS:
            raise ValueError(f"no such allocation: {self.allocation}")
        first, last = self.ports
        if not 1 <= first <= last <= 65535:
            raise ValueError(f"no range of ports: {self.ports}")
        if self.step == 0:
            raise ValueError("a step of 0 gives every binding the same port")


@dataclass
class _Binding:
    key: tuple[object, ...]
    protocol: int
    inner: HostPort
    outer: HostPort
    used_at: float
    permitted: dict[object, float] = field(default_factory=dict)  # remote: last refreshed


def _scope(behaviour: str, remote: HostPort) -> object:
    """The part of the remote address that a mapping or a filter depends on."""
    if behaviour in (ENDPOINT_INDEPENDENT, "none"):
        return None
    return remote[0] if behaviour == ADDRESS_DEPENDENT else remote


class Nat:
    """One NAT.  ``dropped`` counts by reason what ``outbound`` or ``inbound`` refused."""

    def __init__(self, nat_type: NatType, external_ips: Sequence[str], random: Random) -> None:
        self.type = nat_type
        self.external_ips = list(external_ips)
        self.dropped: Counter[str] = Counter()
        self.made = 0
        """Bindings, since the beginning."""
        self._random = random
        self._by_key: dict[tuple[object, ...], _Binding] = {}
        self._by_outer: dict[tuple[int, HostPort], _Binding] = {}
        self._pool: dict[str, str] = {}  # inside address: outside address
        self._last_port: dict[tuple[int, str], int] = {}  # of "sequential"
        self._sweep_at = 0.0

    def outbound(
        self, protocol: int, inner: HostPort, remote: HostPort, now: float
    ) -> HostPort | None:
        """The outside address that the remote sees; None when no port is free."""
        if now >= self._sweep_at:
            self._sweep(now)
        key = (protocol, inner, _scope(self.type.mapping, remote))
        binding = self._by_key.get(key)
        if binding is not None and self._ended(binding, now):
            self._remove(binding)
            binding = None
        if binding is None:
            outer = self._allocate(protocol, inner, now)
            if outer is None:
                self.dropped["no free port"] += 1
                return None
            binding = _Binding(key, protocol, inner, outer, now)
            self._by_key[key] = self._by_outer[protocol, outer] = binding
            self.made += 1
        binding.used_at = now
        binding.permitted[_scope(self.type.filtering, remote)] = now
        return binding.outer

    def inbound(
        self, protocol: int, external: HostPort, remote: HostPort, now: float
    ) -> HostPort | None:
        """The inside address that a packet from ``remote`` to ``external`` goes to."""
        binding = self._by_outer.get((protocol, external))
        if binding is None or self._ended(binding, now):
            self.dropped["no binding"] += 1
            return None
        scope = _scope(self.type.filtering, remote)
        refreshed_at = binding.permitted.get(scope)
        if refreshed_at is None or now - refreshed_at >= self._timeout_s(protocol):
            self.dropped["filtered"] += 1
            return None
        if self.type.refresh_inbound or protocol == TCP:
            binding.used_at = binding.permitted[scope] = now
        return binding.inner

    def hairpin(
        self, protocol: int, inner: HostPort, external: HostPort, now: float
    ) -> tuple[HostPort, HostPort] | None:
        """An inside host sends to an outside address of ours: (source, destination) as the inside
        host behind it sees them, the source being an outside one (RFC 4787 REQ-9a)."""
        if not self.type.hairpin:
            self.dropped["no hairpin"] += 1
            return None
        source = self.outbound(protocol, inner, external, now)
        target = None if source is None else self.inbound(protocol, external, source, now)
        return None if source is None or target is None else (source, target)

    def reboot(self, external_ips: Sequence[str] | None = None) -> None:
        """Forget all bindings; and have other outside addresses, if any are given."""
        self._by_key.clear()
        self._by_outer.clear()
        self._pool.clear()
        self._last_port.clear()
        if external_ips is not None:
            self.external_ips = list(external_ips)

    def bindings(self, now: float) -> list[tuple[int, HostPort, HostPort]]:
        """Protocol, inside address and outside address of each live binding."""
        alive = (binding for binding in self._by_key.values() if not self._ended(binding, now))
        return [(binding.protocol, binding.inner, binding.outer) for binding in alive]

    def _timeout_s(self, protocol: int) -> float:
        return self.type.tcp_timeout_s if protocol == TCP else self.type.timeout_s

    def _ended(self, binding: _Binding, now: float) -> bool:
        return now - binding.used_at >= self._timeout_s(binding.protocol)

    def _remove(self, binding: _Binding) -> None:
        del self._by_key[binding.key]
        del self._by_outer[binding.protocol, binding.outer]

    def _sweep(self, now: float) -> None:
        """Forget expired bindings, so that they take no memory."""
        self._sweep_at = now + SWEEP_S
        for binding in list(self._by_key.values()):
            if self._ended(binding, now):
                self._remove(binding)
                continue
            since = now - self._timeout_s(binding.protocol)
            for scope in [one for one, at in binding.permitted.items() if at <= since]:
                del binding.permitted[scope]

    def _allocate(self, protocol: int, inner: HostPort, now: float) -> HostPort | None:
        if self.type.mapping == "none":
            return inner
        ip = self._pool.get(inner[0])
        if ip is None:
            ip = self._pool[inner[0]] = self.external_ips[len(self._pool) % len(self.external_ips)]
        first, last = self.type.ports
        count, step = last - first + 1, 1
        if self.type.allocation == "preserved" and first <= inner[1] <= last:
            start = inner[1]
        elif self.type.allocation == "sequential" and (protocol, ip) in self._last_port:
            step = self.type.step
            start = self._last_port[protocol, ip] + step
        else:
            start = self._random.randint(first, last)
            tries = RANDOM_TRIES if self.type.allocation == "random" else 0
            while tries and not self._is_free(protocol, (ip, start), now):
                start, tries = self._random.randint(first, last), tries - 1
        # By the step at first; where that leads round in a circle of taken ports, one by one.
        for stride in (step, 1):
            for number in range(count):
                port = first + (start - first + number * stride) % count
                if self._is_free(protocol, (ip, port), now):
                    self._last_port[protocol, ip] = port
                    return ip, port
        return None

    def _is_free(self, protocol: int, outer: HostPort, now: float) -> bool:
        binding = self._by_outer.get((protocol, outer))
        if binding is not None and self._ended(binding, now):
            self._remove(binding)
            return True
        return binding is None


FULL_CONE = NatType(filtering=ENDPOINT_INDEPENDENT)
ADDRESS_RESTRICTED = NatType(filtering=ADDRESS_DEPENDENT)
PORT_RESTRICTED = NatType()
SYMMETRIC_SEQUENTIAL = NatType(ADDRESS_AND_PORT_DEPENDENT, allocation="sequential")
SYMMETRIC_RANDOM = NatType(ADDRESS_AND_PORT_DEPENDENT, allocation="random")
FIREWALL = NatType("none")
