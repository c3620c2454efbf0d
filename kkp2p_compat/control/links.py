"""The links of one engine to the servers of its cloud: one to each, for whoever needs it.

A link is opened by whoever needs it first, and those who come meanwhile wait for the same attempt.
Its certificate is judged by ``trust.py`` as it is opened.
"""

from __future__ import annotations

import functools
import random
import ssl as _stdlib_ssl
import time
from logging import Logger
from typing import Any
from weakref import WeakValueDictionary

import gevent
from gevent.event import AsyncResult
from gevent.lock import RLock

from .._address import HostPort, is_ip
from .._errors import CloudUnreachable, EngineClosed, KKP2PError
from .._sentence import Sentence
from ..transport import dial
from .link import Link, OfferHandler
from .resolver import resolve, split_domain
from .trust import Trust, fingerprint
from .way_out import DIRECT, WayOut

__all__ = ["Links"]

# Our choices, in seconds.
RESOLVE_AGAIN_S = 60  # an older answer for login_domain is asked for again before connecting
RESOLVE_TIMEOUT_S = 5


class Links:
    """``entry`` leads to the cloud, ``open`` to any server; ``close`` at the end."""

    def __init__(
        self,
        login_domain: str,
        port: int,
        addresses: list[str],
        log: Logger,
        on_offer: OfferHandler,
        ca_file: str | None,
        fingerprints: frozenset[bytes],
        way_out: WayOut = DIRECT,
    ) -> None:
        """``addresses``: of ``login_domain``; the rest is as for CloudClient."""
        self.addresses = addresses
        self.closed = False
        self._domain = login_domain
        self._port = port
        self._log = log
        self._on_offer = on_offer
        self._given_way_out = self._way_out = way_out
        self._names = [part for part in split_domain(login_domain) if not is_ip(part)]
        self._name_of: dict[str, str] = {}  # an address: the name that led to it
        self._resolved_at = time.monotonic()
        self.trust = Trust(ca_file, fingerprints, has_name=bool(self._names))
        self._rng = random.Random()
        self._links: dict[HostPort, Link] = {}
        self._left: set[Link] = set()  # open, but not for new uses
        self._locks: WeakValueDictionary[HostPort, RLock] = WeakValueDictionary()
        self._being_opened: set[Link] = set()
        self._entering: AsyncResult[Link] | None = None  # an entry that is being opened
        self._entry_greenlet: gevent.Greenlet[..., None] | None = None
        self._changes = 0  # of the network, as far as we were told
        self._failed: set[str] = set()  # of the login addresses
        self._warned = False  # that a certificate was not verified

    def close(self) -> None:
        self.closed = True
        if self._entry_greenlet is not None:
            self._entry_greenlet.kill(block=False)
        for link in self.all():
            link.close(EngineClosed())

    def all(self) -> list[Link]:
        """Those that are open."""
        links = [*self._links.values(), *self._left]
        return [link for link in links if not link.closed.is_set()]

    def stay(self, link: Link) -> None:
        """It was left, and is good enough after all."""
        self._left.discard(link)
        if not link.closed.is_set():
            self._links.setdefault(link.address, link)

    def leave(self, link: Link) -> None:
        """It stays as long as the cloud lets it, but whoever needs one there gets another one."""
        self.rate(link, is_good=False)
        self._forget(link.address, link)
        self._left.add(link)
        link.closed.rawlink(lambda _: self._left.discard(link))

    def lock(self, address: HostPort) -> RLock:
        """Held while a link there is opened; to be held for a login on it."""
        return self._locks.setdefault(address, RLock())

    def check(self, timeout_s: float) -> None:
        """The network may have changed: find out soon which links are dead.  Does not wait."""
        self._changes += 1
        for link in self.all():
            gevent.spawn(link.check_alive, timeout_s)
        for link in self._being_opened:
            link.stop_opening(CloudUnreachable("the network has changed"))

    # Whom to trust.

    def is_vouched(self, link: Link) -> bool:
        """Whether something vouches for its certificate."""
        return link.is_verified or self.trust.knows(link.certificate)

    def rate(self, link: Link, is_good: bool) -> None:
        """Addresses of the cloud that are not good are tried last."""
        (self._failed.discard if is_good else self._failed.add)(link.address[0])

    # The entry.

    def entry(self) -> Link:
        """An open link to the login address that answers first.

        All who need one wait for the same attempt, each for as long as it has time.
        """
        for host in self.addresses:
            link = self._link((host, self._port))
            if link is not None:
                return link
        if self.closed:
            raise EngineClosed
        if self._entering is None:
            self._entering = AsyncResult()
            self._entry_greenlet = gevent.spawn(self._enter, self._entering)
        return self._entering.get()

    def _enter(self, entering: AsyncResult[Link]) -> None:
        error: KKP2PError = EngineClosed()  # when killed
        try:
            entering.set(self._race_addresses())
        except KKP2PError as caught:
            error = caught
        finally:
            self._entering = self._entry_greenlet = None
            if not entering.ready():
                entering.set_exception(error)

    def look_up(self, timeout_s: float) -> None:
        """Find the addresses of the login domain; raises as ``resolve``."""
        found = resolve(self._domain, timeout_s, self._given_way_out.is_proxied)
        self._way_out = self._given_way_out.knowing(found)
        self.addresses = list(found)
        self._name_of = {ip: part for ip, part in found.items() if not is_ip(part)}

    def _race_addresses(self) -> Link:
        """In random order, as the C SDK does, but those that failed last time come last.

        A server that has taken our connection may be busy with thousands that have come at once,
        and so are the others: with a TLS handshake at each it would be worse.
        """
        if self._names and time.monotonic() - self._resolved_at > RESOLVE_AGAIN_S:
            self._resolve_again()
        hosts = list(self.addresses)
        self._rng.shuffle(hosts)
        hosts = dial.interleave(hosts)
        hosts.sort(key=self._failed.__contains__)
        attempts = [functools.partial(self._try, host) for host in hosts]
        # A spare one is among our links already.
        link = dial.race(attempts, lambda spare: None, self._is_being_served)
        for host in hosts[: hosts.index(link.address[0])]:
            if host in self._failed:
                self._log.info(
                    "cloud %s:%d: no answer yet, going on with another", host, self._port
                )
        return link

    def _is_being_served(self) -> bool:
        return any(link.is_connected for link in self._being_opened)

    def _try(self, host: str) -> Link:
        self._failed.add(host)  # also when another address is quicker
        try:
            link = self.open((host, self._port))
        except CloudUnreachable as error:
            if len(self.addresses) > 1:  # else whoever asked logs it
                self._log.error("%s", error)
            raise
        self._failed.discard(host)
        return link

    def _resolve_again(self) -> None:
        self._resolved_at = time.monotonic()  # also when it fails: else every caller would wait
        try:
            self.look_up(RESOLVE_TIMEOUT_S)
        except KKP2PError as error:
            self._log.error("%s; going on with %s", error, ", ".join(self.addresses))

    # Any server.

    def _link(self, address: HostPort) -> Link | None:
        link = self._links.get(address)
        return None if link is None or link.closed.is_set() else link

    def open(self, address: HostPort, named_by: str | None = None) -> Link:
        """The link there; ``named_by``: the IP address of the server that named this one."""
        with self.lock(address):
            link = self._link(address)
            if link is not None:
                return link
            while link is None:
                changes = self._changes
                try:
                    link = self._connect(address, named_by)
                except CloudUnreachable:
                    if changes == self._changes:
                        raise
            if self.closed:  # meanwhile
                link.close()
                raise EngineClosed
            self._links[address] = link
            link.moving.rawlink(lambda _: self.leave(link))
            link.closed.rawlink(lambda _: self._forget(address, link))
            return link

    def _forget(self, address: HostPort, link: Link) -> None:
        if self._links.get(address) is link:
            del self._links[address]

    def _connect(self, address: HostPort, named_by: str | None) -> Link:
        """Connect, and find out whether anything vouches for the certificate.

        Where nothing does and nothing must, the link may serve to log in, which proves it, and
        before the first proof to call: a caller without an account then trusts the path.
        """
        name = self._certified_name(address[0])
        trust, reason = self.trust, Sentence("no login_ca is set")
        try:
            trust.refresh()
        except KKP2PError as error:
            self._log.warning("%s; the certificates that were in it still count", error)
        if trust.asks_ca:
            link = self._make(address, trust.verified, name, named_by)
            try:
                self._shake_hands(link)
            except _stdlib_ssl.SSLCertVerificationError as error:
                reason = Sentence(error.verify_message)
            else:
                trust.require()
                return link
        link = self._make(address, trust.unverified, None, named_by)
        self._shake_hands(link)
        if self.is_vouched(link):
            return link
        if trust.is_required:
            link.close()
            raise CloudUnreachable(
                "{host}:{port}: certificate refused: {reason}; it is sha256:{digest}",
                host=address[0],
                port=address[1],
                reason=reason,
                digest=fingerprint(link.certificate).hex(),
            )
        if not self._warned:
            self._warned = True  # once: each reconnect would say it again
            self._log.warning("cloud %s: certificate not verified: %s", name, reason)
        return link

    def _make(
        self, address: HostPort, context: Any, name: str | None, named_by: str | None
    ) -> Link:
        return Link(address, self._log, self._on_offer, context, name, named_by, self._way_out)

    def _certified_name(self, host: str) -> str:
        """What the certificate of a server there has to name."""
        if not self._names or not is_ip(host):
            return host
        return self._name_of.get(host, self._names[0])  # a server of the same cloud

    def _shake_hands(self, link: Link) -> None:
        self._being_opened.add(link)
        try:
            link.open()
        finally:
            self._being_opened.discard(link)
