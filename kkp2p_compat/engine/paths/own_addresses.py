"""Where this engine can be reached, and what its NAT does: found out at the start, and kept fresh.

Runs in the engine's hub.  It asks STUN servers from the endpoint's main sockets, one Discovery for
each address family, again every ten minutes, when it is told that the network has changed, and
every half a minute while nothing gets through.  Behind a NAT it asks every 25 s, which keeps the
binding of the main socket, so the address that peers are told stays true; when the answer is
another address, or none comes, everything is found out anew.

What is known stays until something better is: a new run replaces it when it is done, or when its
verdict says something else.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from logging import Logger
from random import SystemRandom
from typing import Any

import gevent
from gevent.event import Event

from ..._errors import KKP2PError, LinkLost, OutOfDescriptors, TimedOut
from ...control.resolver import resolve
from ...transport.udp.endpoint import Endpoint
from ...transport.udp.events import Address as Route
from ...traversal.address_watch import AddressWatch
from ...traversal.candidates import (
    MAX_CANDIDATES,
    Candidate,
    family_of,
    host_candidates,
    is_private,
    outer_candidate,
)
from ...traversal.nat import (
    BLOCKED,
    EXTRA_SOCKETS,
    MAX_SERVERS,
    UNKNOWN,
    Discovery,
    NatBehaviour,
)
from ...traversal.port_mapping import PortMapper
from ...traversal.stun import Address
from ...traversal.stun_client import Ask, Asks, at, over
from .driver import Pump

__all__ = ["LOOPBACK", "OwnAddresses"]

# Our choices.
RECHECK_S = 600.0  # the NAT rarely becomes another one without a change of our addresses
BLOCKED_RECHECK_S = 30.0
KEEP_S = 25.0  # RFC 4787 section 4.3: NATs with bindings of 30 s are common
MIN_KEEP_S = 10.0  # for those with shorter ones
RESOLVE_S = 5.0  # for all names of servers
# How long idle bindings are tried to live, at once on as many sockets.
IDLE_S = (5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0)
LOOPBACK = ("127.0.0.1", "::1")

_random = SystemRandom()
_now = time.monotonic


class _Questions(Pump):
    """To STUN servers: a Discovery's, or some Asks."""

    def __init__(
        self, core: Discovery | Asks, endpoint: Endpoint, progress: Callable[[], object]
    ) -> None:
        super().__init__(core, endpoint, progress)
        self._asked = core

    def handle(self, data: bytes, source: Route) -> bool:
        """Whether the datagram answers one of them."""
        if not self._asked.handle_datagram_untrusted(data, source, _now()):
            return False
        self.poll()
        return True


class OwnAddresses:
    """``start`` and ``close`` once each; all methods belong to the engine's hub.

    ``ready`` is set when the first verdict is there, or there is nobody to ask.
    ``on_change`` is called in the hub when ``nat`` or ``candidates()`` say something new.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        servers: Sequence[tuple[str, int]],
        log: Logger,
        spawn: Callable[..., Any],
        mapper: PortMapper | None = None,
        watch: AddressWatch | None = None,
    ) -> None:
        """``servers``: names or addresses and ports.  ``spawn`` starts a greenlet.

        ``mapper`` and ``watch`` are started and closed by whoever made them.  Whoever has a watch
        calls ``refresh`` when it fires; without one the system is asked at each ``candidates``.
        """
        self.ready = Event()
        self.on_change: Callable[[], object] | None = None
        self.found: dict[int, Discovery] = {}
        """What is known by now, by address family."""
        self._endpoint = endpoint
        self._servers = list(servers)
        self._ips: dict[str, list[str]] = {}  # of the servers, when they were last looked up
        self._log = log
        self._spawn = spawn
        self._mapper = mapper
        self._watched = watch is not None
        self._host: list[Candidate] | None = None  # None: the system has to be asked
        self._last_host: list[Candidate] = []
        self._questions: list[_Questions] = []
        self._wake = Event()  # something to find out
        self._doubt = Event()  # that all is as it was
        self._sure = Event()  # or known to be otherwise
        self._progress = Event()  # of the run, or the run is of no use any more
        self._greenlet: Any = None
        self._told: object = None
        self._logged = ""
        self._keep_s = KEEP_S

    def start(self) -> None:
        if self._mapper is not None:
            self._mapper.on_change = self._changed
        if not self._servers:
            self.ready.set()
            return
        self._greenlet = self._spawn(self._run)

    def close(self) -> None:
        """May be called again."""
        self.on_change = None
        if self._mapper is not None:
            self._mapper.on_change = None
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)
        self.ready.set()

    def refresh(self, reason: str) -> None:
        """The network may be another: find everything out again."""
        self._log.info("own addresses: looking again: %s", reason)
        self._host = None
        self._wake.set()
        self._progress.set()
        self._changed()

    def doubt(self) -> None:
        """A path has died, perhaps by our NAT, or lives again: see soon where we are now."""
        self._sure.clear()
        self._doubt.set()

    def make_sure(self, wait_s: float) -> None:
        """The same, and wait until that is known, if not for long."""
        self.doubt()
        if self._greenlet is not None:
            self._sure.wait(wait_s)

    # What is known.

    @property
    def nat(self) -> NatBehaviour:
        """Of IPv4, where NATs are; of IPv6 only if IPv4 does not get through."""
        known = [found.behaviour for _, found in sorted(self.found.items())]
        useful = [behaviour for behaviour in known if behaviour not in (BLOCKED, UNKNOWN)]
        return next(iter(useful or known), UNKNOWN)

    @property
    def tickets(self) -> dict[str, bytes]:
        """By ip: the cloud's own word that it saw us there, which a track takes as such."""
        return {ip: word for found in self.found.values() for ip, word in found.tickets.items()}

    @property
    def udp_blocked(self) -> bool:
        """No server answers by any family.  (They may be down: see if the control link is up.)"""
        return self.nat == BLOCKED

    def candidates(self, to_stranger: bool = False) -> list[Candidate]:
        """Where peers may find us, best first.

        ``to_stranger``: only what everybody sees who gets a packet of ours.
        """
        host = self.host_candidates()
        taken = {(candidate.address, candidate.port) for candidate in host}
        outer: list[tuple[str, Address]] = []
        if self._mapper is not None and self._mapper.mapped is not None:
            outer.append(("mapped", self._mapper.mapped))
        for _, found in sorted(self.found.items(), reverse=True):
            if found.behaviour.mapping != "none":  # then it is an address of this host
                outer += [("srflx", mapped) for mapped in found.mapped]
        listed = self._seen_outside(host) if to_stranger else list(host)
        for kind, address in outer:
            if address not in taken:
                taken.add(address)
                listed.append(outer_candidate(kind, address, host))
        listed.sort(key=lambda candidate: -candidate.priority)
        return listed[:MAX_CANDIDATES]

    def _seen_outside(self, host: Sequence[Candidate]) -> list[Candidate]:
        """Those at which a STUN server sees us.  Of a family of which none tells: the public IPv4
        addresses, and the IPv6 address that the system sends from.
        """
        public = [candidate for candidate in host if not is_private(candidate.address)]
        preferred = next((each.address for each in public if ":" in each.address), "")
        shown = []
        for each in public:
            found = self.found.get(family_of(each.address))
            if found is not None and found.mapped:
                is_shown = any(ip == each.address for ip, _ in found.mapped)
            else:
                is_shown = ":" not in each.address or each.address == preferred
            if is_shown:
                shown.append(each)
        return shown

    def host_candidates(self) -> list[Candidate]:
        """Of this host; as they were last when it is too short of descriptors to look."""
        if self._host is None or not self._watched:
            ports = {int(family): port for family, port in self._endpoint.ports().items()}
            try:
                self._last_host = self._host = host_candidates(ports)
            except OSError as error:
                self._log.info("own addresses: cannot look at them: %s", error)
        return self._last_host

    def _changed(self) -> None:
        now = self.nat, self.candidates()
        if now != self._told:
            self._told = now
            if self.on_change is not None:
                self.on_change()

    # What arrives.

    def handle_stun(self, data: bytes, source: Route) -> bool:
        """Whether the datagram was for one of ours."""
        return any(asked.handle(data, source) for asked in list(self._questions))

    # Finding out.

    def _run(self) -> None:
        while True:
            self._wake.clear()
            servers = self._resolve()
            self._discover(servers)
            self._verdict()
            self._changed()
            self._stay()

    def _resolve(self) -> dict[int, list[Address]]:
        """The servers to ask, by family."""
        deadline = _now() + RESOLVE_S
        servers: dict[int, list[Address]] = {}
        for host, port in self._servers:
            try:
                self._ips[host] = resolve(host, max(0.1, deadline - _now()))
            except KKP2PError as error:
                self._log.info("STUN server %s: %s", host, error)
            for ip in self._ips.get(host, ()):
                of_family = servers.setdefault(family_of(ip), [])
                if len(of_family) < MAX_SERVERS:
                    of_family.append((ip, port))
        return servers

    def _discover(self, servers: dict[int, list[Address]]) -> None:
        """Until all is found out, or something wakes us."""
        with contextlib.ExitStack() as stack:
            asked = {
                family: stack.enter_context(self._discovering(family, addresses))
                for family, addresses in servers.items()
                if self._has_family(family, addresses)
            }
            for family in set(self.found) - set(asked):
                del self.found[family]
            while not all(found.done for found in asked.values()) and not self._wake.is_set():
                self._progress.clear()
                if any(found.verdict and found.mapped for found in asked.values()) or all(
                    found.verdict for found in asked.values()
                ):
                    self._verdict()
                self._progress.wait()
        if self._summary() != self._logged:
            self._logged = self._summary()
            self._log.info("own addresses: %s", self._logged)

    def _verdict(self) -> None:
        self.ready.set()
        self._sure.set()

    @contextlib.contextmanager
    def _discovering(self, family: int, servers: list[Address]) -> Iterator[Discovery]:
        local = [candidate.address for candidate in self.host_candidates()]
        with self._extra_sockets(family, EXTRA_SOCKETS, needed=False) as extra:
            found = Discovery(
                servers, port=self._endpoint.ports()[family], extra=extra,
                local={*local, *LOOPBACK}, now=_now(), random=_random,
            )  # fmt: skip
            with self._pumping(found, lambda: self._take(family, found)):
                yield found

    def _take(self, family: int, new: Discovery) -> None:
        """Know the new one as soon as it knows better."""
        old = self.found.get(family)
        if new.verdict and old is not new:
            same = old is not None and (
                (old.mapped, old.behaviour.mapping) == (new.mapped, new.behaviour.mapping)
            )
            if new.done or not same:
                self.found[family] = new
        if self.found.get(family) is new:
            self._changed()
        self._progress.set()

    @contextlib.contextmanager
    def _pumping(self, core: Discovery | Asks, progress: Callable[[], object]) -> Iterator[Pump]:
        pump = _Questions(core, self._endpoint, progress)
        self._questions.append(pump)
        try:
            pump.poll()
            yield pump
        finally:
            pump.close()
            self._questions.remove(pump)

    @contextlib.contextmanager
    def _extra_sockets(
        self, family: int, count: int, needed: bool = True
    ) -> Iterator[dict[int, int]]:
        """Fresh sockets: their ports by number; where none can be had and none is needed, none."""
        numbers: list[int] = []
        try:
            numbers = self._endpoint.open_sockets(family, count)
        except (OutOfDescriptors, LinkLost) as error:
            if needed:
                raise
            self._log.info("own addresses: less is found out: %s", error)
        try:
            yield {number: self._endpoint.port_of(number) for number in numbers}
        finally:
            self._endpoint.close_sockets(numbers)

    def _has_family(self, family: int, servers: list[Address]) -> bool:
        """Asking without an address to ask from would only look as if UDP were blocked."""
        ours = [candidate.address for candidate in self.host_candidates()]
        return family in self._endpoint.ports() and (
            any(family_of(ip) == family for ip in ours) or servers[0][0] in LOOPBACK
        )

    def _summary(self) -> str:
        outside = [
            f"{ip} port {port}" for found in self.found.values() for ip, port in found.mapped
        ]
        return f"{self.nat.text}; seen at {', '.join(outside) or 'no address'}"

    # Keeping it.

    def _stay(self) -> None:
        """Until it is time to find everything out again."""
        lost = self.udp_blocked or not self.found
        until = _now() + (BLOCKED_RECHECK_S if lost else RECHECK_S)
        while (left_s := until - _now()) > 0:
            gevent.wait([self._wake, self._doubt], min(left_s, self._keep_s), count=1)
            doubted = self._doubt.is_set()
            self._doubt.clear()
            if self._wake.is_set() or (doubted and lost) or not self._is_as_it_was(doubted):
                return
            self._sure.set()

    def _is_as_it_was(self, doubted: bool) -> bool:
        """Ask again from the main socket, which keeps its bindings.

        ``doubted``: the NAT may have started anew; else only a binding can have ended.
        """
        behind_nat = [
            found for found in self.found.values()
            if found.mapped and found.behaviour.mapping != "none"
        ]  # fmt: skip
        servers = [found.server for found in behind_nat if found.server is not None]
        answers = self._ask_all(servers)
        for found, ask in zip(behind_nat, answers, strict=True):
            seen_at = ask.answer.mapped if ask.answer is not None else None
            before = found.seen_from(ask.to)
            if seen_at == before:
                continue
            same_ip = seen_at is not None and before is not None and seen_at[0] == before[0]
            if same_ip and found.behaviour.symmetric:
                continue  # peers get to see another port anyway
            if same_ip and not doubted:  # ask sooner, then the next one may live
                self._keep_s = max(MIN_KEEP_S, self._keep_s / 2)
            self._log.info("own addresses: seen at %s, not %s", seen_at, before)
            return False
        return True

    # Questions for others.

    def _ask_all(self, to: Sequence[Route]) -> list[Ask]:
        """Ask the servers, in this order and at once; all of it is over when this returns."""
        asks, done = Asks(_random), Event()
        mine = [asks.ask(server, _now()) for server in to]
        with self._pumping(asks, lambda: done.set() if over(*mine) else None):
            done.wait()
        return mine

    def _server(self) -> tuple[int, Address]:
        """One that answers, by the family that ``nat`` is of; raises TimedOut."""
        for family, found in sorted(self.found.items()):
            if found.server is not None:
                return family, found.server
        raise TimedOut("no STUN server answers")

    def sample_ports(self, count: int) -> list[int]:
        """Which outside ports ``count`` fresh sockets get, in the order in which they ask.

        For port prediction.  In a greenlet, for 1.5 s at most; raises TimedOut unless all are
        answered, OutOfDescriptors, LinkLost.
        """
        family, server = self._server()
        with self._extra_sockets(family, count) as extra:
            asks = self._ask_all([at(server, number) for number in extra])
        seen_at = [ask.answer.mapped for ask in asks if ask.answer is not None]
        ports = [mapped[1] for mapped in seen_at if mapped is not None]
        if len(ports) < count:
            raise TimedOut(f"the STUN server answered {len(ports)} of {count} questions")
        return ports

    def measure_lifetime(self, longest_s: float) -> float | None:
        """How long an idle binding lives: the longest time of IDLE_S, up to ``longest_s``, after
        which one was still there; 0.0 if not even after the first.

        In a greenlet; takes as long as what it finds out (RFC 5780 section 4.6, all times at once).
        None: no server can tell.
        """
        try:
            family, server = self._server()
        except TimedOut:
            return None
        idle_s = [0.0, *(time_s for time_s in IDLE_S if time_s <= longest_s)]
        with self._extra_sockets(family, len(idle_s) + 1) as extra:
            asker, *idle = extra
            bound = self._ask_all([at(server, number) for number in idle])
            started = _now()
            lived_s: float | None = None
            for time_s, ask in zip(idle_s, bound, strict=True):
                gevent.sleep(max(0.0, started + time_s - _now()))
                if not self._binding_lives(at(server, asker), ask):
                    break
                lived_s = time_s
        return lived_s

    def _binding_lives(self, by: Route, bound: Ask) -> bool:
        """Have the server answer another socket's question to a binding."""
        mapped = None if bound.answer is None else bound.answer.mapped
        if mapped is None:
            return False
        asks, done = Asks(_random), Event()
        ask = asks.ask(by, _now(), response_port=mapped[1], heard_by=bound.number)
        with self._pumping(asks, lambda: done.set() if ask.over else None):
            done.wait()
        return ask.answer is not None
