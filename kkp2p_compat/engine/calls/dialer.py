"""connect: by the LAN, by p2p, by the relay, or by p2p with the relay as the second way.

Runs in the engine's hub.  The policy and nothing else: ``remote`` knows the peers, ``caller`` and
``lan`` reach them, ``cloud_call`` uses the relay.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from logging import Logger
from typing import Any

import gevent

from ... import _codes
from ..._errors import (
    KKP2PError,
    LinkLost,
    NoPath,
    NotSupported,
    OurFault,
    ParameterError,
    TimedOut,
)
from ..._io import time_limit
from ..._sentence import said
from ..._structs import connect_ctx_t
from ...control.client import CloudClient
from ..links.link_table import LinkTable
from ..links.peer_link import PeerLink
from ..links.pins import PLAIN, Pins
from ..links.streams import LinkStream, OpenStream
from ..paths.network import Network
from ..runtime.engine_settings import EngineSettings
from ..runtime.timeline import Timeline
from .caller import RELAY_PLAN, CloudCaller
from .cloud_call import is_spliced, make_call
from .lan import LanCaller
from .remote import OnAsked, Remote, Remotes

__all__ = ["Dialer"]

# Our choice: of limits that end at the same time, as the attempt's may, either can be seen first.
SAME_S = 0.02


class Dialer:
    """``connect`` makes a stream to a peer, ``redial`` finds new paths for a link."""

    def __init__(
        self,
        client: CloudClient | None,
        lan_port: int,
        network: Network,
        links: LinkTable,
        pins: Pins,
        settings: EngineSettings,
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:
        self._client = client
        self._lan_port = lan_port
        self._log = log
        self._udp = network.udp
        self._pins = pins
        self._lan = LanCaller(lan_port, network, pins, log)
        self._by_lan = Remotes(
            self._lan.meet, links, _codes.CONNECT_P2P, True, settings, log, spawn
        )
        self._cloud: CloudCaller | None = None
        self._by_mode: dict[int, Remotes] = {}
        self.outcomes: Counter[tuple[int, str]] = Counter()  # of connect: by code and path
        self.seconds: defaultdict[str, float] = defaultdict(
            float
        )  # that it took altogether, where it succeeded
        if client is not None:
            self._cloud = cloud = CloudCaller(client, network, pins)
            for mode in (_codes.CONNECT_AUTO, _codes.CONNECT_P2P, _codes.CONNECT_RELAY):
                self._by_mode[mode] = Remotes(cloud.meet, links, mode, False, settings, log, spawn)

    def check(self, ctx: connect_ctx_t, over_lan: bool = False) -> None:
        """Raises what every ``connect`` would raise at once, whatever the peer does."""
        if self._client is not None and not over_lan:
            return
        if ctx.connect_mode == _codes.CONNECT_RELAY:
            raise KKP2PError("no relay on the LAN", _codes.KKP2P_ERROR_LANMODE_MUSTUSE_P2P)
        if not self._lan_port:
            raise ParameterError("nobody can be found: the engine's lan_search_port is 0")
        if self._udp.is_off:
            raise NotSupported("a LAN search goes by UDP, which tcp_only excludes")

    def connect(self, ctx: connect_ctx_t, over_lan: bool = False) -> OpenStream:
        """By the path that ctx asks for; ctx.timeout is the budget for all of it."""
        began = time.monotonic()
        deadline = began + ctx.timeout / 1000
        try:
            with time_limit(ctx.timeout / 1000, lambda: self._too_late(ctx, over_lan)):
                stream = self._connect(ctx, over_lan, deadline)
        except KKP2PError as error:
            self.outcomes[error.code, ""] += 1
            if isinstance(error, TimedOut) and time.monotonic() >= deadline - SAME_S:
                raise self._too_late(ctx, over_lan) from error
            raise
        self._count(stream, time.monotonic() - began)
        return stream

    def _count(self, stream: OpenStream, set_up_s: float) -> None:
        stream.set_up_s, path = set_up_s, stream.path_word
        self.outcomes[_codes.KKP2P_SUCCESS, path] += 1
        self.seconds[path] += set_up_s

    def _too_late(self, ctx: connect_ctx_t, over_lan: bool) -> TimedOut:
        """It says what the user can look for."""
        limit = ctx.timeout
        if self._client is None or over_lan:
            return TimedOut(
                "not connected within {ms} ms, by a LAN search on port {port}",
                ms=limit,
                port=self._lan_port,
            )
        if self._client.problem is not None and not self._client.online:
            return TimedOut(
                "not connected within {ms} ms: we are not logged in: {why}",
                ms=limit,
                why=said(self._client.problem),
            )
        return TimedOut("not connected within {ms} ms", ms=limit)

    def ask(
        self, ctx: connect_ctx_t, done: OnAsked, early: bytes = b""
    ) -> Callable[[], object] | None:
        """Open a channel on the live link, without a greenlet; None: there is no such link.

        ``done`` gets the stream, or why there is none; None: the link does not take it, and
        ``connect`` may find another way.  Returns what calls it off, before ``done`` is called.
        ``early``: the first bytes, if there are, at most EARLY_BYTES: they save a round trip.  The
        peer may have got those of a TCP channel, without a word of it: then there is no other way.
        """
        if is_spliced(ctx):
            return None
        began = time.monotonic()

        def answered(answer: LinkStream | KKP2PError | None) -> None:
            if isinstance(answer, KKP2PError):
                self.outcomes[answer.code, ""] += 1
            elif answer is not None:
                self._count(answer, time.monotonic() - began)
            done(answer)

        return self.remote(ctx.peer_id, ctx.connect_mode).ask(ctx, answered, early)

    def _connect(self, ctx: connect_ctx_t, over_lan: bool, deadline: float) -> OpenStream:
        client = self._client
        self.check(ctx, over_lan)
        if client is None or over_lan:
            return self._by_lan.of(ctx.peer_id).open(ctx, deadline)
        if is_spliced(ctx):
            return self._make_call(client, ctx, deadline, RELAY_PLAN.reason)
        try:
            return self.remote(ctx.peer_id, ctx.connect_mode).open(ctx, deadline)
        except (NoPath, NotSupported, TimedOut, LinkLost, OurFault) as error:
            if ctx.connect_mode == _codes.CONNECT_P2P and isinstance(error, NoPath | NotSupported):
                raise NoPath("no p2p: {why}", why=said(error)) from error
            is_auto = ctx.connect_mode == _codes.CONNECT_AUTO
            if not is_auto or ctx.encrypt_data or ctx.channel_type != _codes.KKP2P_TCP_CHANNEL:
                raise
            self._log.info("%s: by the relay as it is: %s", ctx.peer_id, error)
            return self._make_call(client, ctx, deadline, said(error))

    def _make_call(
        self, client: CloudClient, ctx: connect_ctx_t, deadline: float, why_relay: str
    ) -> OpenStream:
        self._pins.check_unproven(ctx.peer_id, PLAIN)
        return make_call(client, ctx, deadline - time.monotonic(), why_relay)

    def redial(self, link: PeerLink, budget_s: float, needs_tcp: bool) -> None:
        """Look for new paths to the peer of a link that we made, until it has one.

        ``needs_tcp``: also for one over TCP to a relay.
        """
        if link.info.is_lan or self._cloud is None:
            self._lan.redial(link, budget_s)
        else:
            self._cloud.redial(link, budget_s, needs_tcp)

    def remote(
        self, peer_id: str, mode: int = _codes.CONNECT_AUTO, over_lan: bool = False
    ) -> Remote:
        """What is known of a peer that we call.

        Without a cloud peers are reached over the LAN only, whatever is asked for.
        """
        return (self._by_lan if over_lan else self._by_mode.get(mode, self._by_lan)).of(peer_id)

    def last_attempt(self, peer_id: str, mode: int, over_lan: bool = False) -> Timeline | None:
        """How the last one to reach a peer directly went, whatever came of it."""
        return self.remote(peer_id, mode, over_lan).timeline

    def handle_network_change(self) -> None:
        """Whom we could not meet before, we may meet now."""
        for remotes in (self._by_lan, *self._by_mode.values()):
            remotes.forget_blocked()

    @property
    def busy(self) -> bool:
        """Whether a path is being looked for."""
        return any(remotes.busy for remotes in (self._by_lan, *self._by_mode.values()))
