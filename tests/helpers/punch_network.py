"""Two peers behind NATs with a cloud between them, on a virtual clock: whole calls in milliseconds.

Every packet is delivered or dropped by the NATs of the lab (kkp2p_compat.testing.nat).  Signalling
goes through the cloud and takes its time.  A packet of few hops gets over the NATs of its sender
and no further.  Nothing waits, and everything is seeded.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kkp2p_compat.testing.nat import UDP, Nat, NatType
from kkp2p_compat.traversal.candidates import Candidate
from kkp2p_compat.traversal.check_table import CheckTable
from kkp2p_compat.traversal.checks import Checks, Credentials
from kkp2p_compat.traversal.nat import NatBehaviour
from kkp2p_compat.traversal.plan import Side, make_plan
from kkp2p_compat.traversal.punch import Close, Open, Punch, Sample, Tell, Turn

DELAY_S = 0.02  # one way between a host and the core, and between the core and the cloud
SERVER = "198.51.100.1", 3478
HOST_PRIORITY, SRFLX_PRIORITY = 126 << 24, 100 << 24
NEAR_HOPS = 4  # a packet of no more does not get to the other peer's NAT

Address = tuple[str, int]


class LinuxNat:
    """Masquerading by Linux: a port for each connection, kept if it is free for that remote.

    The router's own ports are open, so whatever comes in unasked is a connection, too, and takes
    the port for that remote.  ``is_random``: "fully-random" of nftables.
    """

    def __init__(self, ip: str, dice: random.Random, is_random: bool = False) -> None:
        self.ip = ip
        self.is_random = is_random
        self.dice = dice
        self.inner: dict[tuple[Address, Address], Address | None] = {}  # by (outer, remote)
        self.outer: dict[tuple[Address, Address], Address] = {}  # by (inner, remote)

    def outbound(self, protocol: int, inner: Address, remote: Address, now: float) -> Address:
        outer = self.outer.get((inner, remote))
        if outer is None:
            port = self.dice.randint(1024, 65535) if self.is_random else inner[1]
            while ((self.ip, port), remote) in self.inner:
                port = self.dice.randint(1024, 65535)
            outer = self.outer[inner, remote] = self.ip, port
            self.inner[outer, remote] = inner
        return outer

    def inbound(self, protocol: int, outer: Address, remote: Address, now: float) -> Address | None:
        return self.inner.setdefault((outer, remote), None)


class Peer:
    """``nats``: from the host outwards; none: it has its public address itself.

    ``hops``: how far away they are.
    """

    def __init__(
        self,
        ip: str,
        nats: Sequence[Nat | LinuxNat],
        behaviour: NatBehaviour,
        delay_s: float,
        hops: Sequence[int] = (1, 2, 3),
    ) -> None:
        self.ip = ip
        self.nats = nats
        self.behaviour = behaviour
        self.delay_s = delay_s
        self.hops = hops
        self.ports = {0: 4000}  # by socket number
        self.numbers = itertools.count(1)
        self.fresh_port = itertools.count(40000, 7)
        self.table = CheckTable()
        self.listed: list[Candidate] = []
        self.credentials: Credentials
        self.checks: Checks | None = None
        self.punch: Punch | None = None
        self.sent = 0

    def outbound(self, port: int, remote: Address, now: float, ttl: int = 64) -> Address | None:
        source: Address | None = (self.ip, port)
        for nat, hops in zip(self.nats, self.hops, strict=False):
            if source is not None:
                source = nat.outbound(UDP, source, remote, now) if hops <= ttl else None
        return source

    def inbound(self, target: Address, remote: Address, now: float) -> int | None:
        """The socket that gets it."""
        inner: Address | None = target
        for nat in reversed(self.nats):
            if inner is not None:
                inner = nat.inbound(UDP, inner, remote, now)
        if inner is None or inner[0] != self.ip:
            return None
        return next((n for n, port in self.ports.items() if port == inner[1]), None)

    def open(self, count: int) -> list[tuple[int, int]]:
        opened = [(next(self.numbers), next(self.fresh_port)) for _ in range(count)]
        self.ports.update(opened)
        return opened


@dataclass
class Flight:
    """A datagram, and how it ended; it is recorded for docs/meeting.py, which draws it."""

    at: float
    by: Peer
    data: bytes
    target: Any
    end: str = "sent"  # then "passed" its sender's NATs, and "arrived"


class World:
    """``busy``: bindings a second that other hosts make at each NAT.  ``loss``: of packets.
    ``late_s``: how much longer the caller takes to send than the answer's way over the network.
    """

    def __init__(
        self,
        caller: Peer,
        callee: Peer,
        seed: int,
        loss: float = 0.0,
        busy: float = 0.0,
        late_s: float = 0.0,
    ) -> None:
        self.caller, self.callee = caller, callee
        self.dice = random.Random(f"peers {seed}")
        self.loss = loss
        self.busy = busy
        self.started = self.now = 100.0
        self.arrivals: list[tuple[float, int, Callable[[], object]]] = []
        self.count = itertools.count()
        self.foreign = itertools.count(10000)
        self.flights: list[Flight] = []
        for peer in (caller, callee):
            peer.credentials = Credentials.make(self.dice)
            kind = "host"
            peer.listed = [Candidate(kind, HOST_PRIORITY, peer.ip, peer.ports[0])]
            outside = peer.outbound(peer.ports[0], SERVER, self.now)
            if outside is not None and outside[0] != peer.ip:
                peer.listed.append(Candidate("srflx", SRFLX_PRIORITY, *outside))
            if busy and peer.nats:
                self.later(self.dice.expovariate(busy), partial(self.others, peer))
        sides = [Side(each.behaviour, each.listed) for each in (caller, callee)]
        self.plan = make_plan(sides[0], sides[1])
        signal_s = self.signal_s()
        self.later(signal_s, lambda: self.start(callee))
        self.later(2 * signal_s + late_s, lambda: self.start(caller))

    def signal_s(self) -> float:
        """From peer to peer through the cloud."""
        return self.caller.delay_s + self.callee.delay_s + 2 * DELAY_S

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        heapq.heappush(self.arrivals, (self.now + seconds, next(self.count), function))

    def others(self, peer: Peer) -> None:
        """Another host behind that NAT sends somewhere."""
        port = next(self.foreign)
        peer.nats[-1].outbound(UDP, ("10.9.9.9", port % 50000 + 1024), ("192.0.2.99", 53), self.now)
        self.later(self.dice.expovariate(self.busy), lambda: self.others(peer))

    def other(self, peer: Peer) -> Peer:
        return self.callee if peer is self.caller else self.caller

    def start(self, peer: Peer) -> None:
        other = self.other(peer)
        peer.checks = Checks(
            controlling=peer is self.caller,
            local=peer.credentials,
            remote=other.credentials,
            local_candidates=peer.listed,
            candidates=other.listed,
            now=self.now,
            random=self.dice,
        )
        peer.table.add(peer.checks)
        peer.punch = Punch(
            peer.checks, self.plan, peer is self.caller, peer.behaviour, self.dice, self.now
        )
        self.flush(peer)

    def flush(self, peer: Peer) -> None:
        assert peer.checks is not None
        assert peer.punch is not None
        while (action := peer.punch.poll_action()) is not None:
            self.act(peer, action)
        while (transmit := peer.checks.poll_transmit()) is not None:
            self.send(peer, *transmit)

    def act(self, peer: Peer, action: Any) -> None:
        assert peer.punch is not None
        punch = peer.punch
        match action:
            case Sample(sockets, number):
                outside = [
                    peer.outbound(next(peer.fresh_port), SERVER, self.now) for _ in range(sockets)
                ]
                ports = [each[1] for each in outside if each]

                def sampled() -> None:
                    punch.handle_sampled(number, ports, self.now)
                    self.flush(peer)

                self.later(2 * (peer.delay_s + DELAY_S), sampled)
            case Open(sockets, number):
                punch.handle_opened(number, peer.open(sockets), self.now)
            case Close(numbers):
                for number in numbers:
                    del peer.ports[number]
            case Turn(_):
                punch.handle_turn(self.now)
            case Tell(fields):
                other = self.other(peer)

                def told() -> None:
                    assert other.punch is not None
                    other.punch.handle_fields_untrusted(fields, self.now)
                    self.flush(other)

                self.later(self.signal_s(), told)

    def send(self, peer: Peer, data: bytes, target: Any, ttl: int | None) -> None:
        peer.sent += 1
        flight = Flight(self.now, peer, data, target)
        self.flights.append(flight)
        number = target[2] if len(target) == 3 else 0
        if number not in peer.ports or target[0].startswith("10."):
            return  # a private network of somebody else's
        source = peer.outbound(peer.ports[number], target[:2], self.now, ttl or 64)
        lost = self.dice.random() < self.loss or (ttl or 64) <= NEAR_HOPS
        if source is None or lost:
            return
        flight.end = "passed"
        other = self.other(peer)

        def arrive() -> None:
            got_by = other.inbound(target[:2], source, self.now)
            if got_by is None or other.checks is None:
                return
            flight.end = "arrived"
            origin = (*source, got_by) if got_by else source
            if other.table.handle_datagram_untrusted(data, origin, self.now) is not None:
                self.flush(other)

        self.later(peer.delay_s + other.delay_s, arrive)

    def run(self, seconds: float) -> float | None:
        """Until both have chosen; how long it took the caller, from the offer on."""
        end = self.now + seconds
        found_at = None
        while True:
            timers = []
            for peer in (self.caller, self.callee):
                for part in (peer.checks, peer.punch):
                    due = part.next_timer() if part is not None else None
                    if part is not None and due is not None:
                        timers.append((due, peer, part))
            due_at = min(
                [due for due, _, _ in timers] + [at for at, _, _ in self.arrivals[:1]], default=end
            )
            if due_at >= end:
                return None
            self.now = max(self.now, due_at)
            while self.arrivals and self.arrivals[0][0] <= self.now:
                heapq.heappop(self.arrivals)[2]()
            for due, peer, part in timers:
                if due <= self.now:
                    part.handle_timer(self.now)
                    self.flush(peer)
            if found_at is None and self.caller.checks and self.caller.checks.selected:
                found_at = self.now - self.started
            if found_at is not None and self.callee.checks and self.callee.checks.selected:
                return found_at


def peer_behind(
    kind: NatType | str,
    side: int,
    dice: random.Random,
    delay_s: float = DELAY_S,
    behaviour: NatBehaviour | None = None,
) -> Peer:
    """``kind``: a NatType; "public", "linux", "linux random", or "carrier": a home router that is
    port-restricted, and six hops away a carrier's NAT with random ports.  ``side``: 1 or 2.
    """
    ip, outside = f"10.0.{side}.2", f"203.0.113.{side}"
    if isinstance(kind, NatType):
        nat = Nat(kind, [outside], dice)
        told = behaviour or NatBehaviour(
            kind.mapping,
            kind.filtering,
            kind.allocation,
            kind.step if kind.allocation == "sequential" else 0,
        )
        return Peer(outside if kind.mapping == "none" else ip, [nat], told, delay_s)
    if kind == "public":
        told = NatBehaviour("none", "endpoint-independent", "preserved")
        return Peer(outside, [], told, delay_s)
    restricted = "address-and-port-dependent"
    if kind == "carrier":
        nats = [
            Nat(NatType(), [f"100.64.{side}.7"], dice),
            Nat(NatType(restricted, allocation="random"), [outside], dice),
        ]
        return Peer(ip, nats, NatBehaviour(restricted, restricted, "random"), delay_s, (1, 6))
    if kind == "linux random":
        told = NatBehaviour(restricted, restricted, "random")
    else:
        told = NatBehaviour("endpoint-independent", restricted, "preserved")
    return Peer(ip, [LinuxNat(outside, dice, kind == "linux random")], told, delay_s)


def call(
    caller: NatType | str,
    callee: NatType | str,
    seed: int,
    *,
    loss: float = 0.0,
    busy: float = 0.0,
    seconds: float = 10.0,
    delays: tuple[float, float] = (DELAY_S, DELAY_S),
    late_s: float = 0.0,
) -> tuple[float | None, World]:
    """One call: how long until the caller had a path (None: none), and the world it was in."""
    dice = random.Random(f"NATs {seed}")
    one, other = peer_behind(caller, 1, dice, delays[0]), peer_behind(callee, 2, dice, delays[1])
    world = World(one, other, seed, loss, busy, late_s)
    return world.run(seconds), world
