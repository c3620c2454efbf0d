"""A host behind a chain of NATs, and STUN servers: seeded, on a virtual clock.

The NATs are those of the lab, the servers answer as the cloud's responder does.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from kkp2p_compat._address import Address, HostPort
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.cloud.stun import respond_untrusted
from kkp2p_compat.testing.nat import UDP, Nat, NatType

SERVER, OTHER, SECOND = ("203.0.113.1", 3080), ("203.0.113.2", 3081), ("203.0.113.3", 3478)
HOST_IP, PUBLIC_IP = "192.168.1.2", "198.51.100.7"
MAIN_PORT = 4000
EXTRA = {1: 41001, 2: 35777, 3: 52222, 4: 47003}
DELAY_S = 0.02  # one way


class Driven(Protocol):
    def handle_datagram_untrusted(self, data: bytes, source: Address, now: float) -> object: ...
    def handle_timer(self, now: float) -> object: ...
    def poll_transmit(self) -> tuple[bytes, Address] | None: ...
    def next_timer(self) -> float | None: ...


class Simulation:
    """``types``: the NATs from the inside out.  ``others``: of each server port, its other address.

    ``servers`` may be changed to others by address; one that answers None is down.
    """

    def __init__(self, *types: NatType, seed: int = 1, two_addresses: bool = True) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.ip = HOST_IP if any(one.mapping != "none" for one in types) else PUBLIC_IP
        self.nats = [
            Nat(one, [PUBLIC_IP if one is types[-1] else f"100.64.0.{n}"], self.random)
            for n, one in enumerate(types, 1)
        ]
        other_ip = OTHER[0] if two_addresses else SERVER[0]
        self.others: dict[HostPort, HostPort] = {}
        for ip, port in itertools.product((SERVER[0], other_ip), (SERVER[1], OTHER[1])):
            far = other_ip if ip == SERVER[0] else SERVER[0]
            self.others[ip, port] = far, SERVER[1] + OTHER[1] - port
        self.loss = 0.0
        self.jitter_s = 0.0
        self.sent: list[tuple[float, Address, bytes]] = []
        self.answered_by: Callable[
            [bytes, HostPort, HostPort], Sequence[tuple[bytes, HostPort]]
        ] = self.respond
        self._ports = {0: MAIN_PORT, **EXTRA}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def respond(
        self, data: bytes, source: HostPort, asked: HostPort
    ) -> list[tuple[bytes, HostPort]]:
        """What comes back, and where from."""
        other = self.others.get(asked)
        if other is None:
            return []
        try:
            reply = respond_untrusted(data, source, asked, other)
        except BadPacket:
            return []
        if reply.to != source:
            self._later(lambda: self._inbound(reply.data, reply.sender, reply.to))
            return []
        return [(reply.data, reply.sender)]

    def run(self, driven: Driven, until: Callable[[], bool]) -> None:
        """Until it is so, or nothing happens any more."""
        self._driven = driven
        self._flush()
        while not until():
            timer = driven.next_timer()
            arrives = self._heap[0][0] if self._heap else None
            if timer is None and arrives is None:
                return
            if arrives is None or (timer is not None and timer < arrives):
                assert timer is not None
                self.now = max(self.now, timer)
                driven.handle_timer(self.now)
            else:
                self.now, _, act = heapq.heappop(self._heap)
                act()
            self._flush()

    def _flush(self) -> None:
        while (transmit := self._driven.poll_transmit()) is not None:
            data, to = transmit
            self.sent.append((self.now, to, data))
            port = self._ports[to[2] if len(to) == 3 else 0]
            self._outbound(data, (self.ip, port), (to[0], to[1]))

    def _later(self, act: Callable[[], None]) -> None:
        if self.random.random() >= self.loss:
            at = self.now + DELAY_S + self.random.random() * self.jitter_s
            heapq.heappush(self._heap, (at, next(self._count), act))

    def _outbound(self, data: bytes, source: HostPort, to: HostPort) -> None:
        for level, nat in enumerate(self.nats):
            if to[0] in nat.external_ips:
                turned = nat.hairpin(UDP, source, to, self.now)
                if turned is not None:
                    self._later(functools.partial(self._inbound, data, *turned, level))
                return
            outer = nat.outbound(UDP, source, to, self.now)
            if outer is None:
                return
            source = outer
        seen_as = source

        def arrive() -> None:
            for answer, sender in self.answered_by(data, seen_as, to):
                self._answer(answer, sender, seen_as)

        self._later(arrive)

    def _answer(self, data: bytes, sender: HostPort, to: HostPort) -> None:
        self._later(lambda: self._inbound(data, sender, to))

    def _inbound(
        self, data: bytes, sender: HostPort, to: HostPort, level: int | None = None
    ) -> None:
        for nat in reversed(self.nats[:level]):
            inner = nat.inbound(UDP, to, sender, self.now)
            if inner is None:
                return
            to = inner
        for number, port in self._ports.items():
            if to == (self.ip, port):
                source = (*sender, number) if number else sender
                self._driven.handle_datagram_untrusted(data, source, self.now)
