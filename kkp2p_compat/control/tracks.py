"""Where a peer is: links to its tracks, and which of them are good enough to call by.

A link is good enough once something vouches for it (``trust.py``); where nothing does, our own
login proves it.  With an account a call is made as who we are, on any track that knows us.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from logging import Logger

from .._address import HostPort
from .._errors import CloudUnreachable, KKP2PError, LoginRefused
from .._sentence import said
from .link import Link
from .links import Links
from .trust import fingerprint

__all__ = ["Tracks"]

# Our choices.
CACHE_S = 30  # how long a route's answer is believed
CACHE_SIZE = 1024
TRACKS_TO_TRY = 2

ANYBODY = "anybody"  # whose track is asked for when only the way there matters

Account = tuple[str, str]  # a peer id and its secret


class Tracks:
    """``find`` leads to a peer; ``log_in_to_call`` and ``handle_proved`` are for logins elsewhere.

    ``account``: as whom calls are made; None: as a stranger.
    """

    def __init__(self, links: Links, log: Logger, on_relays: Callable[[Link], object]) -> None:
        """``on_relays``: the link's server has told of relays."""
        self.account: Account | None = None
        self._links = links
        self._trust = links.trust
        self._log = log
        self._on_relays = on_relays
        self._known: OrderedDict[str, tuple[float, str, list[HostPort]]] = OrderedDict()
        self._iterations: dict[str, int] = {}  # by peer id: of its last login
        self._unknown_at: set[HostPort] = set()  # tracks that do not know our account

    def use(self, account: Account) -> None:
        """From now on calls are made as this one."""
        self.account = account
        self._unknown_at.clear()

    def least_iterations(self, peer_id: str) -> int:
        """What a login may not go below: no server may ask for less than it did last."""
        return self._iterations.get(peer_id, 0)

    def prepare(self) -> None:
        """Open what the next ``find`` needs; raises as it does."""
        entry = self._links.entry()
        if not entry.serves_all:
            self._route(entry, ANYBODY)

    def forget(self, peer_id: str) -> None:
        """It is not where its route said: ask again next time."""
        self._known.pop(peer_id, None)

    def find(self, peer_id: str, for_calls: bool) -> Iterator[Link]:
        """Open links to where the peer should be; ``for_calls``: only those that are vouched for.

        The second track is for older clouds, whose tracks know nothing of each other: one that was
        dead for a while gets its callers back before its peers, which are still on the next one.
        """
        expires, route_ip, tracks = self._known.get(peer_id, (0.0, "", []))
        if time.monotonic() > expires:
            entry = self._links.entry()
            if for_calls:
                self._check(entry)
            route_ip = entry.reached[0]
            tracks = [] if entry.serves_all else self._route(entry, peer_id)
            if not tracks:
                yield self._introduce(entry, None) if for_calls else entry
                return
            self._known[peer_id] = time.monotonic() + CACHE_S, route_ip, tracks
            while len(self._known) > CACHE_SIZE:
                self._known.popitem(last=False)
        problem: KKP2PError | None = None
        tried = 0
        for address in tracks:
            try:
                link = self._links.open(address, route_ip)
                if for_calls:
                    link = self._introduce(link, route_ip)
            except CloudUnreachable as error:
                problem = error
                continue
            yield link
            tried += 1
            if tried == TRACKS_TO_TRY:
                break
        self.forget(peer_id)
        if not tried and problem is not None:
            raise problem

    def _route(self, link: Link, peer_id: str) -> list[HostPort]:
        tracks = link.route(peer_id)
        self._on_relays(link)
        if self._links.is_vouched(link):
            self._trust.add_named_untrusted(link.named)
        return tracks

    def _check(self, link: Link) -> None:
        """Raise CloudUnreachable unless something vouches for a link: if need be, log in there."""
        if self._links.is_vouched(link) or not self._trust.is_strict:
            return
        error = CloudUnreachable(
            "cloud {host}:{port}: nothing vouches for its certificate sha256:{digest}",
            host=link.address[0],
            port=link.address[1],
            digest=fingerprint(link.certificate).hex(),
        )
        self._links.rate(link, is_good=False)
        if self.account is None:
            link.close(error)
            raise error
        try:
            self.log_in_to_call(link, *self.account)
        except KKP2PError as problem:
            raise CloudUnreachable(
                "{error}, nor does a login: {why}", error=said(error), why=said(problem)
            ) from problem
        self._links.rate(link, is_good=True)

    def _introduce(self, link: Link, named_by: str | None) -> Link:
        """The link, or a fresh one, for calls: as whom we have logged in, if we are known there."""
        self._check(link)
        if self.account is None or link.peer_id is not None or link.address in self._unknown_at:
            return link
        try:
            self.log_in_to_call(link, *self.account)
        except KKP2PError as error:
            if isinstance(error, LoginRefused):
                self._unknown_at.add(link.address)
            self._log.info("cloud %s:%d: calling as a stranger: %s", *link.address, error)
            link = self._links.open(link.address, named_by)
            self._check(link)
        return link

    def log_in_to_call(self, link: Link, peer_id: str, secret: str) -> None:
        with self._links.lock(link.address):
            if link.peer_id is None:
                least = self.least_iterations(peer_id)
                link.login(peer_id, secret, call_only=True, least_iterations=least)
                self.handle_proved(link)

    def handle_proved(self, link: Link) -> None:
        """A login has proved a link's certificate."""
        assert link.peer_id is not None
        self._iterations[link.peer_id] = link.iterations
        if self._trust.is_strict and not self._links.is_vouched(link):
            self._log.warning(
                "cloud %s:%d: shows another certificate, sha256:%s, which the login proves",
                *link.address,
                fingerprint(link.certificate).hex(),
            )
        self._trust.add(link.certificate)
        self._trust.add_named_untrusted(link.named)
