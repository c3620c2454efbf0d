"""A peer's side of the control plane: staying logged in, and the way to whom we want to call.

Runs in the engine's hub.  Links are shared: one to a server carries the login and every call that
goes there, and is opened by whoever needs it first.

Before the first login has proved a server, and while a login is lost, the calls of a peer that has
joined wait for it; they use only servers that something vouches for (``trust.py``).

When the network has changed (``check_links``) nobody waits for a time-out: dead links are found by
a heartbeat with little time, a connection that is being opened is opened anew, and a pause ends.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from logging import Logger
from typing import NamedTuple, NoReturn

import gevent
from gevent.event import AsyncResult, Event

from .._errors import DuplicateLogin, EngineClosed, KKP2PError, LinkLost, LoginRefused
from .backoff import Backoff
from .link import Link, OfferHandler
from .links import Links
from .tracks import Tracks
from .way_out import DIRECT, WayOut
from .wire import Message

__all__ = ["CloudClient", "OnOnline"]

# Our choices, in seconds.
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 30.0
BACKOFF_SPREAD_S = 5.0  # thousands that lose one cloud come back as fast as it can take them
KEEP_S = 100.0  # a third of what a cloud lets a caller be quiet (idle_s)
CHECK_S = 2.0  # for the answer to a heartbeat after the network has changed
HURRY_S = 15.0  # so soon after a change a login is lost because of it: CHECK_S, and opening a link
HURRY_PAUSE_S = 0.25  # at most, before the first try after a change
CALL_PAUSE_S = 0.5  # at most, before the next try to log in while a call waits for it
SESSION_BYTES = 12  # random; names a login over all its connections

OnOnline = Callable[[KKP2PError | None], object]

MOVE_FIRST_S = 0.25  # between two tries to log in elsewhere, at first
# The same where our node is cut off.  If all are, a login anywhere leads nowhere: so few are tried.
CUT_OFF_FIRST_S, CUT_OFF_SPREAD_S, CUT_OFF_MOST_S = 5.0, 25.0, 300.0


class _Login(NamedTuple):
    """``session`` names it over all its connections; ``verdict``: the first one of the cloud."""

    peer_id: str
    secret: str
    session: str
    verdict: AsyncResult[None]


class CloudClient:
    """``login`` keeps us online until ``close``; ``links_to`` leads to whom we want to call."""

    def __init__(
        self,
        login_domain: str,
        port: int,
        addresses: list[str],
        log: Logger,
        *,
        ca_file: str | None,
        on_offer: OfferHandler,
        on_login_lost: Callable[[KKP2PError], object],
        on_login: Callable[[], object] | None = None,
        on_relays: Callable[[object, str], object] = lambda relays, by: None,
        callers: str | None = None,
        fingerprints: frozenset[bytes] = frozenset(),
        way_out: WayOut = DIRECT,
    ) -> None:
        """``addresses``: of ``login_domain``, to begin with.  ``fingerprints``: SHA-256s of the
        certificates that the user trusts.  ``callers``: who may call us (engine_conf_t); the tracks
        are told.  ``on_relays``: a server, with that IP address, wants these relays measured
        (as it told, not parsed yet); see ``set_round_trips``.
        """
        self.log = log
        self._links = Links(
            login_domain, port, addresses, log, on_offer, ca_file, fingerprints, way_out
        )
        self._tracks = Tracks(self._links, log, self._handle_relays)
        self._rng = random.Random()
        self._on_login_lost = on_login_lost
        self._on_login = on_login
        self._on_relays = on_relays
        self.on_online: OnOnline = lambda error: None  # None: logged in; else why we are offline
        self.logins = self.logins_lost = 0
        self.problem: KKP2PError | None = None  # what last kept us offline
        self._callers = callers
        self._home: gevent.Greenlet[..., None] | None = None
        self._home_link: Link | None = None
        self._settled = Event()  # logged in, or no login is wanted: calls need not wait
        self._settled.set()
        self._calls_waiting = 0
        self._kept_at = time.monotonic()
        self._nat: Message | None = None
        self._tickets: Callable[[], dict[str, bytes]] = dict
        self._round_trips: Mapping[str, int] = {}
        self._changed_at = -HURRY_S  # the network, as far as we were told
        self._changed = Event()  # ends a pause

    @property
    def addresses(self) -> list[str]:
        """Of ``login_domain``, as it was resolved last."""
        return self._links.addresses

    def look_up(self, timeout_s: float) -> None:
        """Find the addresses of ``login_domain``; raises as ``resolve``."""
        self._links.look_up(timeout_s)

    # Logging in.

    def login(self, peer_id: str, secret: str) -> AsyncResult[None]:
        """Stay logged in from now on; the result is the first verdict of the cloud."""
        if self._links.closed:
            raise EngineClosed
        self.logout()
        verdict: AsyncResult[None] = AsyncResult()
        self._tracks.use((peer_id, secret))
        self._settled.clear()
        self._home = gevent.spawn(self._stay_online, peer_id, secret, verdict)
        return verdict

    def take_up(self, peer_id: str, secret: str, new_secret: str) -> bool:
        """Log in once; nobody can call us by it.  ``secret``: if it is an invitation's, the account
        gets the new one in its place.  Whether it was.  Waits.
        """
        link = next(self._tracks.find(peer_id, for_calls=False))
        self._tracks.log_in_to_call(link, peer_id, secret)
        if link.is_invited:
            link.replace_secret(new_secret)
        return link.is_invited

    def prepare(self) -> None:
        """Connect, and ask where peers are, before the first call: that saves it three round trips.

        Waits.  What goes wrong here the call will tell.
        """
        try:
            self._tracks.prepare()
        except KKP2PError as error:
            self.log.info("cloud: not reached yet: %s", error)

    @property
    def peer_id(self) -> str:
        """As which we are to be logged in; empty: as none."""
        account = self._tracks.account
        return "" if account is None else account[0]

    @property
    def online(self) -> bool:
        """Whether we are logged in now, as far as we know."""
        link = self._home_link
        return link is not None and link.takes_offers and not link.closed.is_set()

    def set_nat(self, fields: Message, tickets: Callable[[], dict[str, bytes]] = dict) -> None:
        """Tell the tracks, and so the other sides of our calls, about our NAT; also later ones.

        ``tickets``: what STUN servers have given us by then, by ip.
        """
        self._nat, self._tickets = fields, tickets
        self._tell_tracks()

    def set_round_trips(self, round_trips: Mapping[str, int]) -> None:
        """Tell the tracks how far relays are from us: "host:port" to milliseconds, up to eight."""
        self._round_trips = round_trips
        self._tell_tracks()

    def _tell_tracks(self) -> None:
        for link in self._links.all():
            if link.is_track and self._nat is not None:
                # A link that breaks here is closed, and has told those who use it.
                with contextlib.suppress(LinkLost):
                    link.tell_nat(self._nat, self._tickets(), self._round_trips)

    def keep_links(self) -> None:
        """Keep the links to tracks, which tell when a peer is gone that we have a channel with.

        To be called now and then, while there are such channels.  The cloud would close a link
        without a login when it is idle; one with a login has heartbeats.
        """
        now = time.monotonic()
        if now - self._kept_at >= KEEP_S:
            self._kept_at = now
            for link in self._links.all():
                if link.is_track and link.peer_id is None:
                    gevent.spawn(link.check_alive)

    def check_links(self) -> None:
        """The network may have changed: find out soon which links are dead.  Does not wait."""
        self._changed_at = time.monotonic()
        self._changed.set()
        self._links.check(CHECK_S)

    def logout(self) -> None:
        if self._home is not None:
            self._home.kill(block=False)
        if self._home_link is not None:
            self._home_link.close()
        self._home = self._home_link = self._tracks.account = None
        self._settled.set()

    def close(self) -> None:
        self.logout()
        self._links.close()

    def _stay_online(self, peer_id: str, secret: str, verdict: AsyncResult[None]) -> None:
        backoff = Backoff(self._rng, BACKOFF_FIRST_S, BACKOFF_MOST_S, BACKOFF_SPREAD_S)
        login = _Login(peer_id, secret, secrets.token_hex(SESSION_BYTES), verdict)
        while True:
            self._home_link, since = None, time.monotonic()
            try:
                self._home_link = next(self._tracks.find(peer_id, for_calls=False))
                self._be_online(self._home_link, login)
            except KKP2PError as error:
                link = self._home_link
                was_online = link is not None and link.takes_offers
                self.logins_lost += was_online
                self._settled.clear()
                self.problem = error
                # A refusal is final, but not on a connection that has proved nothing when we were
                # online before: somebody in the middle could keep us offline with one word.
                is_refusal = isinstance(error, LoginRefused | DuplicateLogin)
                if is_refusal and (was_online or not verdict.ready()):
                    self._give_up(peer_id, error, verdict)
                    return
                # A half-made login cannot be continued on the same connection.
                if link is not None:
                    link.close(error)
                    self._links.rate(link, is_good=False)
                self._tracks.forget(peer_id)
                if was_online and time.monotonic() - since > BACKOFF_MOST_S:
                    backoff.reset()  # a cloud that drops us at once is not asked every second
                self.on_online(error)
                pause_s = self._pause_s(since, backoff)
                self.log.error("%s: offline: %s; next try in %.1f s", peer_id, error, pause_s)
            self._changed.clear()
            if self._changed.wait(pause_s):
                gevent.sleep(self._rng.uniform(0, HURRY_PAUSE_S))

    def _be_online(self, link: Link, login: _Login) -> NoReturn:
        """Log in, and raise why that failed or has ended."""
        self._log_in(link, login)
        while not link.closed.is_set():
            gevent.wait([link.closed, link.moving, link.cut_off], count=1)
            if link.moving.is_set():
                link = self._home_link = self._move(link, login)
            elif link.cut_off.is_set():
                link = self._home_link = self._leave_cut_off(link, login)
        raise link.close_reason or LinkLost()

    def _log_in(self, link: Link, login: _Login, leaves_cut_off: bool = False) -> None:
        peer_id, verdict = login.peer_id, login.verdict
        link.on_relays = self._handle_relays
        with self._links.lock(link.address):
            link.login(
                peer_id,
                login.secret,
                login.session,
                again=verdict.ready(),
                callers=self._callers,
                least_iterations=self._tracks.least_iterations(peer_id),
                leaves_cut_off=leaves_cut_off,
            )
        self._links.rate(link, is_good=True)
        self._tracks.handle_proved(link)
        self._tell_nat(link)
        self._handle_relays(link)
        self._settled.set()
        self.logins += 1
        self.log.warning("%s: logged in at %s:%d", peer_id, *link.address)
        if not verdict.ready():
            verdict.set(None)
        if self._on_login is not None:
            self._on_login()
        self.on_online(None)

    def _move(self, old: Link, login: _Login) -> Link:
        """Log in where else the cloud lets us, while the old link goes on; which one is home then.

        What goes wrong is no verdict on us as long as the old link is there.
        """
        backoff = Backoff(self._rng, MOVE_FIRST_S, BACKOFF_MOST_S, MOVE_FIRST_S)
        while not old.closed.is_set():
            if (link := self._try_elsewhere(login)) is not None:
                return link
            old.closed.wait(backoff.next())
        return old

    def _leave_cut_off(self, old: Link, login: _Login) -> Link:
        """Look for another node now and then, as long as ours is cut off; which link is home then.

        Whoever is at our node can call us meanwhile.
        """
        backoff = Backoff(self._rng, CUT_OFF_FIRST_S, CUT_OFF_MOST_S, CUT_OFF_SPREAD_S)
        self.log.warning("cloud %s:%d: is cut off from its other nodes", *old.address)
        while not gevent.wait([old.closed, old.moving], backoff.next(), count=1):
            if not old.cut_off.is_set():
                break
            self._links.leave(old)
            if (link := self._try_elsewhere(login, leaves_cut_off=True)) is not None:
                return link
            self._links.stay(old)
        return old

    def _try_elsewhere(self, login: _Login, leaves_cut_off: bool = False) -> Link | None:
        self._tracks.forget(login.peer_id)
        link = None
        try:
            link = next(self._tracks.find(login.peer_id, for_calls=False))
            self._log_in(link, login, leaves_cut_off)
            return link
        except KKP2PError as error:
            self.log.info("%s: cannot move yet: %s", login.peer_id, error)
            if link is not None:
                link.close(error)
                self._links.rate(link, is_good=False)
            return None

    def _handle_relays(self, link: Link) -> None:
        self._on_relays(link.relays, link.reached[0])

    def _give_up(self, peer_id: str, error: KKP2PError, verdict: AsyncResult[None]) -> None:
        self.log.error("%s: offline: %s", peer_id, error)
        self._tracks.account = None
        self._settled.set()
        if not verdict.ready():
            verdict.set_exception(error)
        else:
            self._on_login_lost(error)

    def _pause_s(self, since: float, backoff: Backoff) -> float:
        """Before the next try to log in; ``since``: when this one began."""
        hurry = since < self._changed_at and time.monotonic() < self._changed_at + HURRY_S
        pause_s = self._rng.uniform(0, HURRY_PAUSE_S) if hurry else backoff.next()
        return min(pause_s, CALL_PAUSE_S) if self._calls_waiting else pause_s

    # Where a peer is.

    def links_to(self, peer_id: str) -> Iterator[Link]:
        """Open links by which a peer may be called: its track, then the next one that lives.

        Waits for our own login, if there is to be one.
        """
        if not self._settled.is_set():
            self.log.info("%s: the call waits for the login", peer_id)
            self._calls_waiting += 1
            self._changed.set()
            try:
                self._settled.wait()
            finally:
                self._calls_waiting -= 1
        if self._links.closed:
            raise EngineClosed
        for link in self._tracks.find(peer_id, for_calls=True):
            self._tell_nat(link)
            yield link

    def _tell_nat(self, link: Link) -> None:
        if self._nat is not None and link.told_nat is None:  # of changes set_nat tells
            link.tell_nat(self._nat, self._tickets(), self._round_trips)
