"""The internet of a lab: networks, NATs and access lines that packets are carried through.

It has no device and no clock: ``take`` gets the packet of a host, ``due`` gives what arrives where.
``world_process`` runs it between the TUN devices of real hosts.

How it is built:
- The core is the network of all public addresses; every other network is behind one NAT.
- A host or a NAT is joined to its network by a port, whose line (``access``) may drop packets.
- Between two ports of the core there are ``hops`` routers, the delays of both access lines, and the
  chance of loss.  Within a network behind a NAT there is nothing in between, and no delay.
- A NAT is one router.  IPv6 passes it as it is, to the hosts that are registered behind it.
- A packet meets the NAT of its sender when it is sent, and that of its receiver a delay later: two
  packets that cross find the NATs in the state that they would find in reality.
- What is dropped is counted by the host that sent it and the reason.  Nobody sends ICMP errors.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Mapping
from ipaddress import IPv4Network
from random import Random
from typing import Any

from .._errors import BadPacket
from .access import Access
from .nat import FIREWALL, Nat, NatType
from .packet import Packet, parse_untrusted

__all__ = ["Arrival", "Gateway", "Network", "Port", "World"]

Arrival = tuple[str, bytes]  # a host's name, a packet for it

TRACE_LINES = 10_000  # our choice: the newest are kept
CORE = ""  # the name of the network of public addresses


class Port:
    """Where a host or a NAT is joined to a network."""

    def __init__(self, name: str, network: Network, access: Access) -> None:
        self.name = name
        self.network = network
        self.access = access
        self.addresses: list[str] = []
        self.firewall: Nat | None = None  # IPv6 only


class Gateway(Port):
    """A NAT: a port of its outer network, and the way out of its inner one."""

    def __init__(self, name: str, outer: Network, access: Access, subnet: str, nat: Nat) -> None:
        super().__init__(name, outer, access)
        self.nat = nat
        self.inner = Network(name, self, subnet)


class Network:
    def __init__(self, name: str, gateway: Gateway | None, subnet: str = "") -> None:
        self.name = name
        self.gateway = gateway
        self.router = str(next(IPv4Network(subnet).hosts())) if subnet else ""
        self.broadcast = str(IPv4Network(subnet).broadcast_address) if subnet else ""
        self.ports: dict[str, Port] = {}  # by address

    def is_for_all(self, address: str) -> bool:
        """Broadcast or multicast."""
        if ":" in address:
            return address.startswith("ff")
        if address == "255.255.255.255" or 224 <= int(address.partition(".")[0]) < 240:
            return True
        return address == self.broadcast


class World:
    """Hosts and NATs share one set of names.  Times are in seconds of the caller's clock."""

    def __init__(
        self, delay_s: float = 0.0, loss: float = 0.0, hops: int = 6, seed: int = 1
    ) -> None:
        self.delay_s = delay_s
        """One way between an access and the core."""
        self.loss = loss
        """Chance of a packet between two accesses."""
        self.hops = hops
        """Routers between two accesses."""
        self.age_s = 0.0
        """By how much the clocks of the NATs are ahead."""
        self.carried: Counter[tuple[str, str]] = Counter()
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.trace: deque[str] | None = None
        self._seed = seed
        self._random = Random(seed)
        self._core = Network(CORE, None)
        self._ports: dict[str, Port] = {}
        self._apart: set[frozenset[str]] = set()
        self._flying: list[tuple[float, int, Port, Packet]] = []
        self._numbers = itertools.count()
        self._arrivals: list[Arrival] = []
        self._now = 0.0

    # What there is.

    def add_host(
        self,
        name: str,
        network: str,
        addresses: list[str],
        *,
        udp: bool = True,
        firewall: bool = False,
        delay_s: float | None = None,
    ) -> None:
        self._ports[name] = Port(name, self._network(network), self._access(udp, delay_s))
        self.set_addresses(name, network, addresses, firewall=firewall)

    def add_nat(
        self,
        name: str,
        outer: str,
        addresses: list[str],
        subnet: str,
        nat_type: NatType,
        *,
        udp: bool = True,
        delay_s: float | None = None,
    ) -> None:
        nat = Nat(nat_type, addresses, Random(f"{self._seed} {name}"))
        access = self._access(udp, delay_s)
        self._ports[name] = Gateway(name, self._network(outer), access, subnet, nat)
        self.set_addresses(name, outer, addresses)

    def _access(self, udp: bool, delay_s: float | None) -> Access:
        access = Access(self._random)
        access.udp, access.delay_s = udp, delay_s
        return access

    def set_addresses(
        self, name: str, network: str, addresses: list[str], *, firewall: bool = False
    ) -> None:
        """A host that has moved, or a NAT that has got other addresses."""
        port = self._ports[name]
        for address in port.addresses:
            self._unregister(port, address)
        port.network = self._network(network)
        port.addresses = list(addresses)
        port.firewall = Nat(FIREWALL, [], self._random) if firewall else None
        for address in addresses:
            self._register(port, address)

    def cut(self, name: str, on: bool) -> None:
        self._ports[name].access.cut = on

    def block_udp(self, name: str, on: bool) -> None:
        self._ports[name].access.udp = not on

    def set_line(self, name: str, **fields: float | None) -> None:
        """``Access.set``, of a host or a NAT."""
        self._ports[name].access.set(fields)

    def cut_between(self, one: str, other: str, on: bool) -> None:
        """Drop what two hosts send each other; NATs cannot be named here."""
        (self._apart.add if on else self._apart.discard)(frozenset((one, other)))

    def reboot(self, name: str, addresses: list[str] | None) -> None:
        gateway = self._gateway(name)
        if addresses is not None:
            self.set_addresses(name, gateway.network.name, addresses)
        gateway.nat.reboot(addresses)

    def become(self, name: str, nat_type: NatType) -> None:
        """Another type of NAT, which starts empty."""
        gateway = self._gateway(name)
        gateway.nat.type = nat_type
        gateway.nat.reboot()

    def age(self, seconds: float) -> None:
        self.age_s += seconds

    def bindings(self, name: str) -> list[Any]:
        return self._gateway(name).nat.bindings(self._now + self.age_s)

    def counters(self) -> dict[str, Any]:
        gateways = [port for port in self._ports.values() if isinstance(port, Gateway)]
        return {
            "carried": _nested(self.carried),
            "dropped": _nested(self.dropped),
            "nats": {
                port.name: {"bindings": port.nat.made, "dropped": dict(port.nat.dropped)}
                for port in gateways
            },
        }

    # Packets.

    def take(self, name: str, data: bytes, now: float) -> None:
        """Take a packet that a host has sent, after delivering what has arrived before."""
        self._arrive(now)
        port = self._ports[name]
        try:
            packet = parse_untrusted(data)
        except BadPacket as error:
            self.dropped[name, str(error)] += 1
            return
        if packet.target.startswith("ff") and not packet.ports_at:
            return  # the kernel's own MLD (RFC 3810): there is no router to hear it
        packet.origin = name
        if packet.source not in port.addresses:
            self._drop(packet, "not from an address of its sender")
        else:
            self._send(port, packet)

    def due(self, now: float) -> list[Arrival]:
        """What has arrived until now, in order."""
        self._arrive(now)
        arrivals, self._arrivals = self._arrivals, []
        return arrivals

    def _arrive(self, now: float) -> None:
        self._now = now
        flying = self._flying
        while flying and flying[0][0] <= now:
            _, _, port, packet = heapq.heappop(flying)
            if packet.version == 6 and not self._let_in(port, packet):
                self._drop(packet, "firewall")
            else:
                self._deliver(port, packet)

    def flying(self) -> int:
        """Packets that are under way."""
        return len(self._flying) + len(self._arrivals)

    def next_due(self) -> float:
        if self._arrivals:
            return self._now
        return self._flying[0][0] if self._flying else float("inf")

    def _send(self, port: Port, packet: Packet) -> None:
        """Into the network of a port."""
        if refusal := port.access.refusal(packet, False, self._now):
            return self._drop(packet, refusal)
        network, target = port.network, packet.target
        if network.is_for_all(target):
            if network.gateway is None:
                return self._drop(packet, "to all of the internet")
            for mate in {id(one): one for one in network.ports.values()}.values():
                if mate is not port:
                    copy = parse_untrusted(packet.data)
                    copy.origin = packet.origin
                    self._deliver(mate, copy)
            return None
        there = network.ports.get(target)
        if there is not None and network.gateway is not None:
            return self._deliver(there, packet)
        if packet.version == 6 and not self._let_out(port, packet):
            return self._drop(packet, "firewall")
        if network.gateway is not None:
            return self._out_through(network.gateway, packet)
        return self._cross(port, there, packet)

    def _cross(self, port: Port, there: Port | None, packet: Packet) -> None:
        """From an access over the core to another access."""
        if there is None:
            return self._drop(packet, "no such address")
        if not packet.pass_routers(self.hops):
            return self._drop(packet, "TTL")
        if self.loss and self._random.random() < self.loss:
            return self._drop(packet, "lost")
        lines = (port.access.delay_s, there.access.delay_s)
        delay_s = sum(self.delay_s if one is None else one for one in lines)
        number = next(self._numbers)
        heapq.heappush(self._flying, (self._now + delay_s, number, there, packet))
        return None

    def _deliver(self, port: Port, packet: Packet) -> None:
        """To the host or the NAT at a port, from its network."""
        if refusal := port.access.refusal(packet, True, self._now):
            return self._drop(packet, refusal)
        if isinstance(port, Gateway):
            return self._in_through(port, packet)
        if self._apart and frozenset((packet.origin, port.name)) in self._apart:
            return self._drop(packet, "cut between the two")
        self.carried[packet.origin, port.name] += 1
        if self.trace is not None:
            self._note(packet, f"arrives at {port.name}")
        self._arrivals.append((port.name, bytes(packet.data)))
        return None

    def _let_out(self, port: Port, packet: Packet) -> bool:
        """Through a host's firewall for IPv6, which then lets the answers in."""
        if port.firewall is None:
            return True
        if not packet.ports_at:
            return False
        source, target = _ends(packet)
        now = self._now + self.age_s
        return port.firewall.outbound(packet.protocol, source, target, now) is not None

    def _let_in(self, port: Port, packet: Packet) -> bool:
        if port.firewall is None:
            return True
        if not packet.ports_at:
            return False
        source, target = _ends(packet)
        now = self._now + self.age_s
        return port.firewall.inbound(packet.protocol, target, source, now) is not None

    def _out_through(self, gateway: Gateway, packet: Packet) -> None:
        if packet.target == gateway.inner.router:
            return self._drop(packet, "to the router itself")
        if not packet.pass_routers(1):
            return self._drop(packet, "TTL")
        if packet.version == 6:
            return self._send(gateway, packet)
        if not packet.ports_at:
            return self._drop(packet, "no ports to translate")
        source, target = _ends(packet)
        now = self._now + self.age_s
        nat = gateway.nat
        if packet.target in gateway.addresses:
            ends = nat.hairpin(packet.protocol, source, target, now)
            if ends is None:
                return self._drop(packet, f"no way back in at {gateway.name}")
            packet.set_source(ends[0])
            packet.set_target(ends[1])
            return self._to_inner(gateway, packet)
        outer = nat.outbound(packet.protocol, source, target, now)
        if outer is None:
            return self._drop(packet, f"no free port at {gateway.name}")
        packet.set_source(outer)
        if self.trace is not None:
            self._note(packet, f"leaves {gateway.name}, from {source[0]}:{source[1]}")
        return self._send(gateway, packet)

    def _in_through(self, gateway: Gateway, packet: Packet) -> None:
        if not packet.pass_routers(1):
            return self._drop(packet, "TTL")
        if packet.version == 4:
            if not packet.ports_at:
                return self._drop(packet, "no ports to translate")
            source, target = _ends(packet)
            now = self._now + self.age_s
            inner = gateway.nat.inbound(packet.protocol, target, source, now)
            if inner is None:
                return self._drop(packet, f"not let in by {gateway.name}")
            packet.set_target(inner)
        return self._to_inner(gateway, packet)

    def _to_inner(self, gateway: Gateway, packet: Packet) -> None:
        port = gateway.inner.ports.get(packet.target)
        if port is None:
            return self._drop(packet, f"nobody there behind {gateway.name}")
        if packet.version == 6 and not self._let_in(port, packet):
            return self._drop(packet, "firewall")
        return self._deliver(port, packet)

    def _drop(self, packet: Packet, reason: str) -> None:
        self.dropped[packet.origin, reason] += 1
        if self.trace is not None:
            self._note(packet, f"dropped: {reason}")

    def _note(self, packet: Packet, what: str) -> None:
        assert self.trace is not None
        self.trace.append(f"{self._now:.4f} {packet.origin}: {packet.text}: {what}")

    # Names and addresses.

    def _network(self, name: str) -> Network:
        return self._gateway(name).inner if name else self._core

    def _gateway(self, name: str) -> Gateway:
        port = self._ports[name]
        if not isinstance(port, Gateway):
            raise ValueError(f"{name} is no NAT")
        return port

    def _register(self, port: Port, address: str) -> None:
        if address in port.network.ports:
            raise ValueError(f"{address} has been given to {port.network.ports[address].name}")
        port.network.ports[address] = port
        # IPv6 is not translated: every NAT on the way knows who is behind it.
        if ":" in address and port.network.gateway is not None:
            self._register(port.network.gateway, address)

    def _unregister(self, port: Port, address: str) -> None:
        del port.network.ports[address]
        if ":" in address and port.network.gateway is not None:
            self._unregister(port.network.gateway, address)


def _ends(packet: Packet) -> tuple[tuple[str, int], tuple[str, int]]:
    return (packet.source, packet.source_port), (packet.target, packet.target_port)


def _nested(counter: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (one, other), count in counter.items():
        nested.setdefault(one, {})[other] = count
    return nested
