"""A peer's side of the control plane: staying logged in, and finding the track of a callee.

Runs in the engine's hub.  Links are shared: one to a server carries the login and every call that
goes there, and is opened by whoever needs it first.

When the network has changed (``check_links``) nobody waits for a time-out: what is dead is found by
a heartbeat with little time, a connection being opened is opened anew, and a pause ends.
"""

from __future__ import annotations

import contextlib
import functools
import random
import secrets
import ssl as _stdlib_ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from logging import Logger
from weakref import WeakValueDictionary

import gevent
from gevent import ssl
from gevent.event import AsyncResult, Event
from gevent.lock import RLock

from .._codes import KKP2P_ERROR_PARAMETER
from .._errors import (
    CloudUnreachable,
    DuplicateLogin,
    EngineClosed,
    KKP2PError,
    LinkLost,
    LoginRefused,
)
from ..transport import dial
from .link import Address, Link, OfferHandler
from .resolver import is_address, resolve, split_domain
from .wire import Message

__all__ = ["Backoff", "CloudClient"]

# Our choices, in seconds.
RESOLVE_AGAIN_S = 60  # an older answer for login_domain is asked for again before connecting
RESOLVE_TIMEOUT_S = 5
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 30.0
BACKOFF_SPREAD_S = 5.0  # thousands that lose one cloud come back as fast as it can take them
CHECK_S = 2.0  # for the answer to a heartbeat after the network has changed
HURRY_S = 15.0  # a login lost so soon after a change is lost to it: CHECK_S, and opening a link
HURRY_PAUSE_S = 0.25  # at most, before the first try after a change
SESSION_BYTES = 12  # random; names a login over all its connections
TRACK_CACHE_S = 30  # how long a route's answer is believed
TRACK_CACHE_SIZE = 1024
TRACKS_TO_TRY = 2

ANYBODY = "anybody"  # whose track is asked for when only the way there matters


class Backoff:
    """Pauses between attempts: "decorrelated jitter", so that many peers spread out.

    Each pause is drawn between ``first_s`` and three times the one before, ``most_s`` at most; the
    first between ``first_s`` and ``spread_s``.
    """

    def __init__(
        self, rng: random.Random, first_s: float, most_s: float, spread_s: float
    ) -> None:  # fmt: skip
        self._rng = rng
        self._first_s = first_s
        self._most_s = most_s
        self._spread_s = spread_s
        self._last_s = spread_s / 3

    def next(self) -> float:
        self._last_s = min(self._most_s, self._rng.uniform(self._first_s, self._last_s * 3))
        return self._last_s

    def reset(self) -> None:
        self._last_s = self._spread_s / 3


class CloudClient:
    """``login`` keeps us online until ``close``; ``links_to`` leads to whom we want to call."""

    def __init__(
        self, login_domain: str, port: int, addresses: list[str], log: Logger, *,
        ca_file: str | None, on_offer: OfferHandler,
        on_login_lost: Callable[[KKP2PError], object],
        on_login: Callable[[], object] | None = None, callers: str | None = None,
    ) -> None:  # fmt: skip
        """``callers``: who may call us (engine_conf_t); the tracks are told."""
        self.addresses = addresses
        self._domain = login_domain
        self._port = port
        self._resolved_at = time.monotonic()
        self._log = log
        self._on_offer = on_offer
        self._on_login_lost = on_login_lost
        self._on_login = on_login
        self._callers = callers
        self._rng = random.Random()
        self._links: dict[Address, Link] = {}
        self._opening: WeakValueDictionary[Address, RLock] = WeakValueDictionary()
        self._being_opened: set[Link] = set()
        self._entering: AsyncResult[Link] | None = None  # an entry that is being opened
        self._entry_greenlet: gevent.Greenlet[..., None] | None = None
        self._tracks: OrderedDict[str, tuple[float, list[Address]]] = OrderedDict()
        self._home: gevent.Greenlet[..., None] | None = None
        self._home_link: Link | None = None
        self._closed = False
        self._nat: Message | None = None
        self._changes = 0  # of the network, as far as we were told
        self._changed_at = -HURRY_S
        self._changed = Event()  # ends a pause
        self._failed: set[str] = set()  # of the login addresses
        self._warned = False  # that a certificate was not verified
        self._name = None if "|" in login_domain or is_address(login_domain) else login_domain
        self._moves = not all(map(is_address, split_domain(login_domain)))
        self._must_verify = ca_file is not None
        self._verified = _system_context() if ca_file is None else _context(ca_file)
        self._unverified = _bare_context()
        self._unverified.check_hostname = False
        self._unverified.verify_mode = ssl.CERT_NONE

    # Logging in.

    def login(self, peer_id: str, secret: str) -> AsyncResult[None]:
        """Stay logged in from now on; the result is the first verdict of the cloud."""
        if self._closed:
            raise EngineClosed
        self.logout()
        verdict: AsyncResult[None] = AsyncResult()
        self._home = gevent.spawn(self._stay_online, peer_id, secret, verdict)
        return verdict

    def prepare(self) -> None:
        """Be connected, and know what to, before the first call: saves it three round trips.

        Waits.  What goes wrong is for the call to tell.
        """
        try:
            entry = self._entry()
            # A cloud that answers for one peer itself does so for all.
            entry.serves_all = entry.serves_all or not entry.route(ANYBODY)
        except KKP2PError as error:
            self._log.info("cloud: not reached yet: %s", error)

    @property
    def online(self) -> bool:
        """Whether we are logged in now, as far as we know."""
        link = self._home_link
        return link is not None and link.peer_id is not None and not link.closed.is_set()

    def set_nat(self, fields: Message) -> None:
        """Tell the tracks, and so the other sides of our calls, about our NAT; also later ones."""
        self._nat = fields
        for link in self._open_links():
            if link.is_track:
                # One that breaks by it is closed, and has told those who use it.
                with contextlib.suppress(LinkLost):
                    link.tell_nat(fields)

    def check_links(self) -> None:
        """The network may have changed: find out soon which links are dead.  Does not wait."""
        self._changes += 1
        self._changed_at = time.monotonic()
        self._changed.set()
        for link in self._open_links():
            gevent.spawn(link.check_alive, CHECK_S)
        for link in self._being_opened:
            link.stop_opening(CloudUnreachable("the network has changed"))

    def logout(self) -> None:
        if self._home is not None:
            self._home.kill(block=False)
        if self._home_link is not None:
            self._home_link.close()
        self._home = self._home_link = None

    def close(self) -> None:
        self._closed = True
        self.logout()
        if self._entry_greenlet is not None:
            self._entry_greenlet.kill(block=False)
        for link in list(self._links.values()):
            link.close(EngineClosed())

    def _stay_online(self, peer_id: str, secret: str, verdict: AsyncResult[None]) -> None:
        backoff = Backoff(self._rng, BACKOFF_FIRST_S, BACKOFF_MOST_S, BACKOFF_SPREAD_S)
        session = secrets.token_hex(SESSION_BYTES)
        while True:
            link, since = None, time.monotonic()
            try:
                link = self._home_link = next(self.links_to(peer_id))
                link.login(peer_id, secret, session, again=verdict.ready(), callers=self._callers)
                self._log.warning("%s: logged in at %s:%d", peer_id, *link.address)
                if not verdict.ready():
                    verdict.set(None)
                if self._on_login is not None:
                    self._on_login()
                link.closed.wait()
                raise link.close_reason or LinkLost()
            except KKP2PError as error:
                was_online = link is not None and link.peer_id is not None
                # A refusal is final, but not on a connection that has proved nothing when we were
                # online before: somebody in the middle could keep us offline with one word.
                if isinstance(error, LoginRefused | DuplicateLogin) and (
                    was_online or not verdict.ready()
                ):
                    self._log.error("%s: offline: %s", peer_id, error)
                    if not verdict.ready():
                        verdict.set_exception(error)
                    else:
                        self._on_login_lost(error)
                    return
                # A half-made login cannot be continued on the same connection.
                if link is not None:
                    link.close(error)
                self._tracks.pop(peer_id, None)
                if was_online and time.monotonic() - since > BACKOFF_MOST_S:
                    backoff.reset()  # a cloud that drops us at once is not asked every second
                hurry = since < self._changed_at and time.monotonic() < self._changed_at + HURRY_S
                pause_s = self._rng.uniform(0, HURRY_PAUSE_S) if hurry else backoff.next()
                self._log.error("%s: offline: %s; next try in %.1f s", peer_id, error, pause_s)
            self._changed.clear()
            if self._changed.wait(pause_s):
                gevent.sleep(self._rng.uniform(0, HURRY_PAUSE_S))

    # Where a peer is.

    def links_to(self, peer_id: str) -> Iterator[Link]:
        """Open links to where the peer should be: its track, then the next one that lives.

        A track that was dead for a while gets its callers back before its peers: those are still
        where the route had sent them meanwhile, which is the next one.
        """
        expires, tracks = self._tracks.get(peer_id, (0.0, []))
        if time.monotonic() > expires:
            entry = self._entry()
            tracks = [] if entry.serves_all else entry.route(peer_id)
            if not tracks:
                entry.serves_all = True
                self._tell_nat(entry)
                yield entry
                return
            self._tracks[peer_id] = time.monotonic() + TRACK_CACHE_S, tracks
            while len(self._tracks) > TRACK_CACHE_SIZE:
                self._tracks.popitem(last=False)
        problem: KKP2PError | None = None
        tried = 0
        for address in tracks:
            try:
                link = self._open(address)
            except CloudUnreachable as error:
                problem = error
                continue
            self._tell_nat(link)
            yield link
            tried += 1
            if tried == TRACKS_TO_TRY:
                break
        self._tracks.pop(peer_id, None)  # not where its route said: ask again next time
        if not tried and problem is not None:
            raise problem

    def _tell_nat(self, link: Link) -> None:
        link.is_track = True
        if self._nat is not None:
            link.tell_nat(self._nat)

    def _entry(self) -> Link:
        """An open link to the login address that answers first.

        All who need one wait for the same attempt, each for as long as it has time.
        """
        for host in self.addresses:
            link = self._link((host, self._port))
            if link is not None:
                return link
        if self._closed:
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

    def _race_addresses(self) -> Link:
        """In random order, as the C SDK does, but those that failed last time come last."""
        if self._moves and time.monotonic() - self._resolved_at > RESOLVE_AGAIN_S:
            self._resolve_again()
        hosts = list(self.addresses)
        self._rng.shuffle(hosts)
        hosts = dial.interleave(hosts)
        hosts.sort(key=self._failed.__contains__)
        attempts = [functools.partial(self._try, host) for host in hosts]
        link = dial.race(attempts, lambda spare: None)  # which is among our links by now
        for host in hosts[: hosts.index(link.address[0])]:
            if host in self._failed:
                self._log.info(
                    "cloud %s:%d: no answer yet, going on with another", host, self._port
                )
        return link

    def _try(self, host: str) -> Link:
        self._failed.add(host)  # also when another address is quicker
        try:
            link = self._open((host, self._port))
        except CloudUnreachable as error:
            if len(self.addresses) > 1:  # else who asks tells
                self._log.error("%s", error)
            raise
        self._failed.discard(host)
        return link

    def _resolve_again(self) -> None:
        self._resolved_at = time.monotonic()  # also when it fails: not every caller shall wait
        try:
            self.addresses = resolve(self._domain, RESOLVE_TIMEOUT_S)
        except KKP2PError as error:
            self._log.error("%s; going on with %s", error, ", ".join(self.addresses))

    def _open_links(self) -> list[Link]:
        return [link for link in self._links.values() if not link.closed.is_set()]

    def _link(self, address: Address) -> Link | None:
        link = self._links.get(address)
        return None if link is None or link.closed.is_set() else link

    def _open(self, address: Address) -> Link:
        with self._opening.setdefault(address, RLock()):
            link = self._link(address)
            if link is not None:
                return link
            while link is None:
                changes = self._changes
                try:
                    link = self._connect(address)
                except CloudUnreachable:
                    if changes == self._changes:
                        raise
            if self._closed:  # meanwhile
                link.close()
                raise EngineClosed
            self._links[address] = link
            link.closed.rawlink(lambda _: self._forget(address, link))
            return link

    def _forget(self, address: Address, link: Link) -> None:
        if self._links.get(address) is link:
            del self._links[address]

    def _connect(self, address: Address) -> Link:
        """Connect, verifying the certificate where something can vouch for it.

        Without login_ca an IP address or a self-signed certificate cannot be verified.  A login is
        safe all the same (SCRAM is bound to the certificate); a caller without one trusts the path.
        """
        name = address[0] if self._name is None or not is_address(address[0]) else self._name
        reason = "no login_ca is set"
        if self._must_verify or self._name is not None:
            link = Link(address, self._log, self._on_offer, self._verified, name)
            try:
                self._shake_hands(link)
            except _stdlib_ssl.SSLCertVerificationError as error:
                if self._must_verify:
                    raise CloudUnreachable(
                        f"{address[0]}:{address[1]}: certificate refused: {error.verify_message}",
                    ) from error
                reason = error.verify_message
            else:
                self._must_verify = True  # it could once: from now on anything less is an attack
                return link
        link = Link(address, self._log, self._on_offer, self._unverified, None)
        self._shake_hands(link)
        if not self._warned:
            self._warned = True  # once: each reconnect would say it again
            self._log.warning("cloud %s: certificate not verified: %s", name, reason)
        return link

    def _shake_hands(self, link: Link) -> None:
        self._being_opened.add(link)
        try:
            link.open()
        finally:
            self._being_opened.discard(link)


def _bare_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


@functools.cache
def _system_context() -> ssl.SSLContext:
    """One for all engines: the system's certificates take megabytes."""
    context = _bare_context()
    context.load_default_certs()
    return context


def _context(ca_file: str) -> ssl.SSLContext:
    context = _bare_context()
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:
        raise KKP2PError(f"login_ca {ca_file}: {error}", KKP2P_ERROR_PARAMETER) from error
    return context
