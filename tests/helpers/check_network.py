"""A network for checks: seeded, on a virtual clock, with hosts of several addresses and a NAT.

Packets are delivered in the order of their arrival; nothing waits.
"""

from __future__ import annotations

import heapq
import itertools
import random
import socket
from collections.abc import Callable, Sequence
from typing import Any

from kkp2p_compat._address import HostPort
from kkp2p_compat.traversal.candidates import Candidate, family_of, host_candidates
from kkp2p_compat.traversal.check_table import CheckTable
from kkp2p_compat.traversal.checks import Checks, Credentials
from kkp2p_compat.traversal.stun import Kind, Message, parse_untrusted

Packet = tuple[float, "Host", HostPort, bytes]  # sent at, by, to
DELAY_S = 0.01


class Host:
    """``addresses``: of each family the first is what it sends from, unless ``send_from`` says."""

    def __init__(self, *addresses: str, port: int = 4000) -> None:
        self.addresses = addresses
        self.port = port
        self.table = CheckTable()
        self.send_from: dict[str, str] = {}  # by destination ip
        self.outside: dict[HostPort, HostPort] = {}  # a full-cone NAT: inside to outside
        self.listed = host_candidates(
            {int(socket.AF_INET): port, int(socket.AF_INET6): port}, addresses
        )
        self.checks: Checks
        self.credentials: Credentials

    def source_for(self, target: HostPort) -> HostPort | None:
        """As the network sees it."""
        if target[0] in self.addresses:
            ip = target[0]
        else:
            family = family_of(target[0])
            ours = [ip for ip in self.addresses if family_of(ip) == family]
            if not ours:
                return None
            ip = self.send_from.get(target[0], ours[0])
        return self.outside.get((ip, self.port), (ip, self.port))

    def owns(self, target: HostPort) -> bool:
        inside = {outside: inside for inside, outside in self.outside.items()}
        ip, port = inside.get(target, target)
        # What a NAT hides is not reached by its inner address.
        return (
            ip in self.addresses
            and port == self.port
            and (target in inside or (ip, port) not in self.outside)
        )


class Network:
    def __init__(self, caller: Host, callee: Host, seed: int = 1) -> None:
        self.caller, self.callee = caller, callee
        self.random = random.Random(seed)
        self.now = 100.0
        self.sent: list[Packet] = []
        self.dead: set[str] = set()  # ips that nothing gets to
        self.lose: Callable[[Host, HostPort, bytes], bool] = lambda host, target, data: False
        self.delay: Callable[[Host, HostPort], float] = lambda host, target: DELAY_S
        self._arrivals: list[tuple[float, int, Host, HostPort, bytes]] = []
        self._count = itertools.count()
        for host in self.hosts:
            host.credentials = Credentials.make(self.random)

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.caller, self.callee

    def start(
        self,
        host: Host,
        candidates: Sequence[Candidate] | None = None,
        controlling: bool | None = None,
    ) -> Checks:
        other = self.callee if host is self.caller else self.caller
        host.checks = Checks(
            controlling=(host is self.caller) if controlling is None else controlling,
            local=host.credentials,
            remote=other.credentials,
            local_candidates=host.listed,
            candidates=other.listed if candidates is None else candidates,
            now=self.now,
            random=self.random,
        )
        host.table.add(host.checks)
        self.flush(host)
        return host.checks

    def start_both(self) -> None:
        for host in self.hosts:
            self.start(host)

    def flush(self, host: Host) -> None:
        while transmit := host.checks.poll_transmit():
            self.send(host, *transmit[:2])

    def send(self, host: Host, data: bytes, target: HostPort) -> None:
        self.sent.append((self.now, host, target, data))
        source = host.source_for(target)
        if source is None or target[0] in self.dead or self.lose(host, target, data):
            return
        for other in self.hosts:
            if other.owns(target):
                arrival = self.now + self.delay(host, target)
                heapq.heappush(self._arrivals, (arrival, next(self._count), other, source, data))

    def receive(self, host: Host, data: bytes, source: HostPort) -> Checks | None:
        taken = host.table.handle_datagram_untrusted(data, source, self.now)
        if taken is not None:
            self.flush(host)
        return taken

    def run(self, seconds: float, until: Callable[[], object] = lambda: False) -> None:
        """Until then, or nothing is left to happen, or ``until`` holds."""
        end = self.now + seconds
        started = [host for host in self.hosts if hasattr(host, "checks")]
        at_once = 0
        while not until():
            timers = [t for host in started if (t := host.checks.next_timer()) is not None]
            times = timers + [arrival[0] for arrival in self._arrivals[:1]]
            if not times or min(times) > end:
                self.now = end
                return
            at_once = 0 if min(times) > self.now else at_once + 1
            assert at_once < 1000, "the timer does not advance"
            self.now = max(self.now, min(times))
            if self._arrivals and self._arrivals[0][0] <= self.now:
                _, _, host, source, data = heapq.heappop(self._arrivals)
                if hasattr(host, "checks"):
                    self.receive(host, data, source)
            for host in started:
                due = host.checks.next_timer()
                if due is not None and due <= self.now:
                    host.checks.handle_timer(self.now)
                    self.flush(host)

    def run_to_the_end(self) -> None:
        """Both know; and both mean the same path."""
        self.run(60, lambda: self.caller.checks.settled and self.callee.checks.settled)
        self.check_agreement()

    def check_agreement(self) -> None:
        for host, other in (self.hosts, self.hosts[::-1]):
            assert host.checks.selected is not None
            assert other.owns(host.checks.selected)
            assert host.source_for(host.checks.selected) == other.checks.selected

    def sent_by(self, host: Host) -> list[tuple[HostPort, bytes]]:
        return [(target, data) for _, sender, target, data in self.sent if sender is host]


def lan(seed: int = 1) -> Network:
    return Network(Host("192.0.2.1", "2001:db8::1"), Host("192.0.2.2", "2001:db8::2"), seed)


def candidate(ip: str, port: int = 4000, priority: int = 1) -> Candidate:
    return Candidate("host", priority, ip, port)


def fresh_request(network: Network, **fields: Any) -> bytes:
    """An authentic one of the caller, to the callee."""
    values = {"priority": 7, "controlling": 1, **fields}
    username = f"{network.callee.credentials.ufrag}:{network.caller.credentials.ufrag}"
    transaction_id = network.random.randbytes(12)
    message = Message(Kind.REQUEST, transaction_id, username=username, **values)
    return message.encode(network.callee.credentials.key)


def nominates(data: bytes) -> bool:
    return parse_untrusted(data).use_candidate
