"""Where this engine can be reached, and what its NAT does: found out at the start, and kept fresh.

Runs in the engine's hub.  It asks STUN servers from the endpoint's main sockets, with one Discovery
for each address family: at the start, every ten minutes, when it is told that the network has
changed, and every half a minute while nothing gets through.  Behind a NAT it asks every 25 s, which
keeps the binding of the main socket, so that the address that peers are told stays true; when the
answer is another address, or none comes three times, everything is found out anew.

What is known stays until something better is: a new Discovery replaces an old one when it is done,
or when its verdict is another.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from logging import Logger
from random import SystemRandom
from socket import AF_INET
from typing import Any

import gevent
from gevent.event import Event

from ..._address import HostPort
from ..._errors import EngineClosed, KKP2PError, LinkLost, OutOfDescriptors, TimedOut
from ...control.resolver import resolve
from ...transport.udp.endpoint import Endpoint
from ...traversal.candidates import (
    MAX_CANDIDATES,
    Candidate,
    family_of,
    host_candidates,
    is_private,
    outer_candidate,
)
from ...traversal.nat import BLOCKED, UNKNOWN, NatBehaviour
from ...traversal.nat_discovery import MAX_SERVERS, Discovery
from ...traversal.stun_client import at
from .questions import Questions

__all__ = ["LOOPBACK", "OwnAddresses", "Timing"]

# Our choices.
RESOLVE_S = 5.0  # for all names of servers
# Questions in a row without an answer after which everything is found out anew.  One is a server or
# a host that is too busy more often than another NAT, and to ask it much more makes that worse.
SILENT_QUESTIONS = 3
LOOPBACK = ("127.0.0.1", "::1")

_random = SystemRandom()
_now = time.monotonic


@dataclass(frozen=True)
class Timing:
    """How often servers are asked again.  Our choices, in seconds."""

    recheck_s: float = 600.0  # the NAT rarely becomes another one while our addresses stay
    blocked_recheck_s: float = 30.0
    keep_s: float = 25.0  # RFC 4787 section 4.3: NATs whose bindings end after 30 s are common
    min_keep_s: float = 10.0  # where bindings end earlier, and after a question without an answer


class OwnAddresses:
    """``start`` and ``close`` once each; all methods belong to the engine's hub.

    ``ready`` is set when the first verdict is there, or there is nobody to ask.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        servers: Sequence[tuple[str, int]],
        log: Logger,
        spawn: Callable[..., Any],
        on_change: Callable[[], object],
        watched: bool = False,
        udp: bool = True,
        timing: Timing = Timing(),
    ) -> None:
        """``servers``: names or numeric addresses, and ports.  ``spawn`` starts a greenlet.

        ``on_change`` is called in the hub when ``nat`` or ``candidates()`` say something new.
        ``watched``: ``refresh`` is called when this host's addresses have changed; otherwise the
        system is asked for them each time.  Without ``udp`` nobody is asked, and there are none.
        """
        self.ready = Event()
        self.found: dict[int, Discovery] = {}  # what is known by now, by address family
        self.questions = Questions(endpoint)
        self._endpoint = endpoint
        self._servers = list(servers)
        self._ips: dict[str, list[str]] = {}  # of the servers, when they were last looked up
        self._log = log
        self._spawn = spawn
        self._on_change = on_change
        self.mapped: HostPort | None = None  # by a router; who sets it calls ``see_changes``
        self._watched = watched
        self._udp = udp
        self._closed = False
        self._host: list[Candidate] | None = None  # None: the system has to be asked
        self._last_host: list[Candidate] = []
        self._wake = Event()  # everything is to be found out anew
        self._doubt = Event()  # somebody doubts that what is known still holds
        self._sure = Event()  # since then it was seen to hold, or was found out anew
        self._progress = Event()  # of a Discovery, or there is no more use for it
        self._greenlet: Any = None
        self._told: object = None
        self._logged = ""
        self._timing = timing
        self._keep_s = timing.keep_s
        self._unanswered = 0  # questions in a row that should have kept the bindings

    def start(self) -> None:
        if not self._servers or not self._udp:
            self.ready.set()
        if not self._servers:
            return
        self._greenlet = self._spawn(self._run)

    def close(self) -> None:
        """May be called again."""
        self._closed = True
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)
        self.ready.set()

    def refresh(self, reason: str) -> None:
        """The network may be another one: find everything out again."""
        self._log.info("own addresses: looking again: %s", reason)
        self._host = None
        self._wake.set()
        self._progress.set()
        self.see_changes()

    def doubt(self) -> None:
        """A path has died, perhaps by our NAT, or lives again: ask soon where we are seen now."""
        self._sure.clear()
        self._doubt.set()

    def make_sure(self, wait_s: float) -> None:
        """As ``doubt``; then wait until the answer is known, for ``wait_s`` at most."""
        self.doubt()
        if self._greenlet is not None:
            self._sure.wait(wait_s)

    # What is known.

    @property
    def nat(self) -> NatBehaviour:
        """That of IPv4, where NATs are; of IPv6 only if nothing gets through by IPv4."""
        if not self._udp:
            return BLOCKED
        known = [found.behaviour for _, found in sorted(self.found.items())]
        useful = [behaviour for behaviour in known if behaviour not in (BLOCKED, UNKNOWN)]
        return next(iter(useful or known), UNKNOWN)

    @property
    def tickets(self) -> dict[str, bytes]:
        """The cloud's own proof that it saw us at an IP address, which a track accepts."""
        return {ip: word for found in self.found.values() for ip, word in found.tickets.items()}

    @property
    def udp_blocked(self) -> bool:
        """No server answers by any family.  (They may be down: see if the cloud is reached.)"""
        return self.nat == BLOCKED

    @property
    def servers(self) -> list[HostPort]:
        """Those that are asked, with their addresses as they were looked up last."""
        return [(ip, port) for host, port in self._servers for ip in self._ips.get(host, ())]

    def candidates(self, to_stranger: bool = False) -> list[Candidate]:
        """Where peers may reach us, best first.

        ``to_stranger``: only addresses that everybody sees who gets a packet from us.
        """
        host = self.host_candidates()
        taken = {(candidate.address, candidate.port) for candidate in host}
        outer: list[tuple[str, HostPort]] = []
        if self.mapped is not None:
            outer.append(("mapped", self.mapped))
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
        """Those at which a STUN server sees us.  Where no server tells: the public IPv4 addresses,
        and the IPv6 address that the system prefers to send from.
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
        """Addresses of this host; the last known ones if it lacks the descriptors to look."""
        if not self._udp:
            return []
        if self._host is None or not self._watched:
            ports = {int(family): port for family, port in self._endpoint.ports().items()}
            try:
                self._last_host = self._host = host_candidates(ports)
            except OSError as error:
                self._log.info("own addresses: cannot look at them: %s", error)
        return self._last_host

    def see_changes(self) -> None:
        """Call ``on_change`` if what is known differs from what it was at the last call."""
        now = self.nat, self.candidates()
        if now != self._told and not self._closed:
            self._told = now
            self._on_change()

    # Finding out.

    def _run(self) -> None:
        while True:
            self._wake.clear()
            servers = self._resolve()
            if self._udp:
                self._discover(servers)
            if not self._wake.is_set():  # else it was cut short, and begins anew
                self._verdict()
            self.see_changes()
            self._stay()

    def _resolve(self) -> dict[int, list[HostPort]]:
        """The servers to ask, by family."""
        deadline = _now() + RESOLVE_S
        servers: dict[int, list[HostPort]] = {}
        for host, port in self._servers:
            try:
                self._ips[host] = list(resolve(host, max(0.1, deadline - _now())))
            except KKP2PError as error:
                self._log.info("STUN server %s: %s", host, error)
            for ip in self._ips.get(host, ()):
                of_family = servers.setdefault(family_of(ip), [])
                if len(of_family) < MAX_SERVERS:
                    of_family.append((ip, port))
        return servers

    def _discover(self, servers: dict[int, list[HostPort]]) -> None:
        """Until everything is found out, or has to be found out anew."""
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
    def _discovering(self, family: int, servers: list[HostPort]) -> Iterator[Discovery]:
        local = [candidate.address for candidate in self.host_candidates()]
        with contextlib.ExitStack() as stack:

            def open_fresh(count: int) -> dict[int, int]:
                try:
                    return stack.enter_context(self.questions.sockets(family, count))
                except (EngineClosed, OutOfDescriptors, LinkLost) as error:
                    self._log.info("own addresses: less is found out: %s", error)
                    return {}

            found = Discovery(
                servers,
                port=self._endpoint.ports()[family],
                open_fresh=open_fresh,
                local={*local, *LOOPBACK},
                now=_now(),
                random=_random,
            )
            stack.enter_context(self.questions.asking(found, lambda: self._take(family, found)))
            yield found

    def _take(self, family: int, new: Discovery) -> None:
        """Replace the old one as soon as the new one knows better."""
        old = self.found.get(family)
        if new.verdict and old is not new:
            same = old is not None and (
                (old.mapped, old.behaviour.mapping) == (new.mapped, new.behaviour.mapping)
            )
            if new.done or not same:
                self.found[family] = new
        if self.found.get(family) is new:
            self.see_changes()
        self._progress.set()

    def _has_family(self, family: int, servers: list[HostPort]) -> bool:
        """Whether we have an address to ask from; without one UDP would only seem blocked."""
        ours = [candidate.address for candidate in self.host_candidates()]
        return family in self._endpoint.ports() and (
            any(family_of(ip) == family for ip in ours)
            or servers[0][0] in LOOPBACK
            or (family == AF_INET and self._endpoint.nat64 is not None)
        )

    def _summary(self) -> str:
        outside = [
            f"{ip} port {port}" for found in self.found.values() for ip, port in found.mapped
        ]
        return f"{self.nat.text}; seen at {', '.join(outside) or 'no address'}"

    # Keeping it.

    def _stay(self) -> None:
        """Keep the bindings until it is time to find everything out again."""
        lost = self.udp_blocked or not self.found
        until = _now() + (self._timing.blocked_recheck_s if lost else self._timing.recheck_s)
        self._unanswered = 0
        while (left_s := until - _now()) > 0:
            keep_s = self._timing.min_keep_s if self._unanswered else self._keep_s
            gevent.wait([self._wake, self._doubt], min(left_s, keep_s), count=1)
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
            found
            for found in self.found.values()
            if found.mapped and found.behaviour.mapping != "none"
        ]
        servers = [found.server for found in behind_nat if found.server is not None]
        answers = self.questions.ask_all(servers)
        is_answered = all(ask.mapped is not None for ask in answers)
        self._unanswered = 0 if is_answered else self._unanswered + 1
        for found, ask in zip(behind_nat, answers, strict=True):
            seen_at = ask.mapped
            before = found.seen_from(ask.to)
            if seen_at == before:
                continue
            if seen_at is None and not doubted and self._unanswered < SILENT_QUESTIONS:
                continue
            same_ip = seen_at is not None and before is not None and seen_at[0] == before[0]
            if same_ip and found.behaviour.symmetric:
                continue  # peers get to see another port anyway
            if same_ip and not doubted:  # ask sooner, then the next one may live
                self._keep_s = max(self._timing.min_keep_s, self._keep_s / 2)
            self._log.info("own addresses: seen at %s, not %s", seen_at, before)
            return False
        return True

    # Questions for others.

    def server(self) -> tuple[int, HostPort]:
        """A family, and a server that answers by it; raises TimedOut if there is none."""
        for family, found in sorted(self.found.items()):
            if found.server is not None:
                return family, found.server
        raise TimedOut("no STUN server answers")

    def sample_ports(self, count: int) -> list[int]:
        """The outside ports that ``count`` fresh sockets get, in the order in which they ask.

        For port prediction.  Waits for 1.5 s at most; raises OutOfDescriptors, LinkLost, and
        TimedOut unless all are answered.
        """
        family, server = self.server()
        with self.questions.sockets(family, count) as extra:
            asks = self.questions.ask_all([at(server, number) for number in extra])
        ports = [ask.mapped[1] for ask in asks if ask.mapped is not None]
        if len(ports) < count:
            raise TimedOut(f"the STUN server answered {len(ports)} of {count} questions")
        return ports
