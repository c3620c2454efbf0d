"""Keep one UDP port of this host reachable from outside, if the router can be asked for that.

A ``PortMapper`` asks the default gateway by PCP, NAT-PMP and UPnP-IGD.  The three probe at the same
time, each with a short head start over the next; a probe changes nothing at the router.  The first
that is answered maps the port, or the next one if it fails.  So there is never a second mapping to
remove, no protocol waits for the time-outs of another, and a router that speaks PCP sees nothing
else.  The mapping is renewed at half its lease; after a failure the search starts over; and when no
port can be mapped it is tried again with growing pauses.

A router whose own address is private is behind another NAT: a mapping there lets nobody in, so it
is removed and ``problem`` says so.

Runs in greenlets of the engine.  Only ``close`` makes its caller wait, for a time that it is given.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from logging import Logger
from typing import Any

import gevent
from gevent.event import Event
from gevent.queue import Queue

from .._errors import KKP2PError
from . import upnp
from .candidates import is_private
from .gateway import Mapping, PcpSession, PmpSession, Refused, Session
from .pcp import NONCE_BYTES
from .routes import ipv4_gateways

__all__ = ["LEASE_S", "NOT_ASKED", "PortMapper", "sessions_of"]

NOT_ASKED = "not asked yet"  # a ``problem``: no search has come to its end

LEASE_S = 3600  # RFC 6886 section 3.3 recommends two hours; after a crash this is over sooner

# Our choices.
HEAD_START_S = 0.25  # of each protocol over the next: a router's answer takes a few ms
FIRST_RETRY_S = 15.0  # a router that starts needs about as long
MAX_RETRY_S = 1800.0  # most networks have no router that maps ports: ask rarely
MIN_RENEW_S = 0.5  # however short a lease the router gives
REMOVE_S = 1.0  # for removing a mapping of no use, before the next thing is tried
MAX_GATEWAYS = 2  # that are asked; a host with more default routes has them for other purposes


def sessions_of(gateway: str, nonce: bytes) -> list[Session]:
    """Every way to ask a router."""
    found: list[Session] = [PcpSession(gateway, nonce), PmpSession(gateway)]
    if upnp.available():
        found.append(upnp.UpnpSession(gateway))
    return found


class PortMapper:
    """``start`` once, ``refresh`` when the network has changed, ``close`` at the end.

    ``spawn`` starts a greenlet; ``on_change`` is called in one when ``mapped`` has changed.
    ``gateways`` and ``sessions`` are asked at each search; the router is asked for ``lease_s``
    seconds.
    """

    def __init__(
        self,
        log: Logger,
        spawn: Callable[..., Any],
        on_change: Callable[[], object],
        *,
        gateways: Callable[[], Sequence[str]] = ipv4_gateways,
        sessions: Callable[[str, bytes], Sequence[Session]] = sessions_of,
        lease_s: int = LEASE_S,
    ) -> None:
        self.mapped: tuple[str, int] | None = None  # how we are reached from outside
        self.method = ""  # "pcp", "nat-pmp" or "upnp" while ``mapped`` is set
        self.problem = NOT_ASKED  # why ``mapped`` is None, for people; else empty
        self._log = log
        self._spawn = spawn
        self._on_change = on_change
        self._gateways = gateways
        self._sessions = sessions
        self._lease_s = lease_s
        self._internal_port = 0
        # A PCP server lets only this nonce renew or remove the mapping.
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._session: Session | None = None  # what has mapped, or is about to
        self._greenlet: Any = None
        self._wake = Event()

    def start(self, internal_port: int) -> None:
        """Map the UDP port ``internal_port`` of this host, in the background."""
        if not upnp.available():
            self._log.info("port mapping: UPnP is off, as miniupnpc is not installed")
        self._internal_port = internal_port
        self._greenlet = self._spawn(self._run)

    def refresh(self) -> None:
        """Look again now: the address, the router or the way to it may be another."""
        self._wake.set()

    def close(self, timeout_s: float = 2.0) -> None:
        """Remove the mapping, waiting for the router at most ``timeout_s`` seconds."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill()
        session, self._session = self._session, None
        if session is not None:
            self._end(session, timeout_s)
        self.mapped, self.method, self.problem = None, "", "closed"

    def _run(self) -> None:
        pause_s = FIRST_RETRY_S
        while True:
            self._wake.clear()
            started = time.monotonic()
            mapping = self._renew() or self._search()
            if mapping is None:
                wait_s = pause_s
                pause_s = min(2 * pause_s, MAX_RETRY_S)
            else:
                # The lease began when it was asked for, or later.
                wait_s = mapping.lease_s / 2 - (time.monotonic() - started)
                pause_s = FIRST_RETRY_S
            if self._wake.wait(max(wait_s, MIN_RENEW_S)):
                pause_s = FIRST_RETRY_S

    def _renew(self) -> Mapping | None:
        """Keep the mapping for another lease; None if there is no mapping any more."""
        session = self._session
        if session is None:
            return None
        self._log.debug("port mapping: %s at %s again", session.method, session.gateway)
        if session.gateway in self._gateways()[:MAX_GATEWAYS]:
            try:
                mapping = self._map(session)
            except KKP2PError as error:
                self._log.info("port mapping: not renewed: %s", error)
            else:
                self._set(mapping, session)
                return mapping
        # A router that we have left does not hear us: there the lease ends by itself.
        self._session = None
        self._end(session, REMOVE_S)
        return None

    def _search(self) -> Mapping | None:
        gateways = self._gateways()[:MAX_GATEWAYS]
        all_ways = [self._sessions(gateway, self._nonce) for gateway in gateways]
        sessions = [session for ways in all_ways for session in ways]
        found: Queue[Session | KKP2PError] = Queue()
        probing = [
            self._spawn(self._probe, session, found, place * HEAD_START_S)
            for ways in all_ways
            for place, session in enumerate(ways)
        ]
        problem = "no router answers" if sessions else "no router is known"
        try:
            for _ in sessions:
                session = found.get()
                if isinstance(session, KKP2PError):
                    # What a router refused tells more than what it did not answer.
                    problem = str(session) if isinstance(session, Refused) else problem
                    continue
                self._session = session
                try:
                    mapping = self._map(session)
                except KKP2PError as error:
                    problem = str(error)
                    self._log.info("port mapping: %s: %s", session.method, error)
                    self._session = None
                    self._end(session, REMOVE_S)
                else:
                    self._set(mapping, session)
                    return mapping
        finally:
            gevent.killall(probing)
            for session in sessions:
                if session is not self._session:
                    session.close()
        self._set(None, None, problem)
        return None

    def _probe(self, session: Session, found: Queue[Session | KKP2PError], delay_s: float) -> None:
        result: Session | KKP2PError = KKP2PError(f"{session.method}: not asked")
        try:
            gevent.sleep(delay_s)
            session.probe()
            result = session
        except KKP2PError as error:
            self._log.debug("port mapping: %s: %s", session.method, error)
            result = error
        finally:  # always: it is waited for
            found.put(result)

    def _map(self, session: Session) -> Mapping:
        """Raises KKP2PError, also when the mapping would be of no use."""
        wanted = self.mapped[1] if self.mapped else self._internal_port
        mapping = session.map(self._internal_port, wanted, self._lease_s)
        if is_private(mapping.ip):
            raise Refused(f"{session.gateway} is behind another NAT: its own address {mapping.ip}")
        return mapping

    def _set(self, mapping: Mapping | None, session: Session | None, problem: str = "") -> None:
        mapped = (mapping.ip, mapping.port) if mapping is not None else None
        self.method = session.method if session is not None else ""
        if problem and problem != self.problem:
            self._log.info("port mapping: none: %s", problem)
        self.problem = problem
        if mapped == self.mapped:
            return
        self.mapped = mapped
        if mapping is not None and session is not None:
            text = "port mapping: UDP port %d is %s:%d outside, by %s, for %d s"
            self._log.info(text, self._internal_port, *mapping[:2], session.method, mapping.lease_s)
        self._on_change()

    def _end(self, session: Session, timeout_s: float) -> None:
        """Remove what the session may have mapped, and let go of it."""
        try:
            with gevent.Timeout(timeout_s, False):
                session.unmap()
        except KKP2PError as error:
            self._log.info("port mapping: not removed: %s", error)
        finally:
            session.close()
