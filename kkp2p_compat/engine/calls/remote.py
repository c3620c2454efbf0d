"""What we know of the peers that we call: the live link, the attempt, and how earlier ones went.

Runs in the engine's hub.  A link serves all channels to its peer: the first connect makes it, those
that come meanwhile wait for it, and later ones open a channel on it in one round trip.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from logging import Logger
from typing import Any

import gevent
from gevent.event import AsyncResult

from ..._codes import CONNECT_AUTO
from ..._errors import CallRefused, EngineClosed, KKP2PError, LinkLost, NoPath, OurFault, TimedOut
from ..._sentence import Sentence
from ..._structs import connect_ctx_t
from ..links.link_table import LinkTable
from ..links.peer_link import LinkInfo, PeerLink
from ..links.streams import LinkStream
from ..paths.meeting import Met
from ..runtime.engine_settings import EngineSettings
from ..runtime.timeline import Timeline
from .asking import Asking, OnAnswer, stream_on
from .attempts import Attempt

__all__ = ["Meet", "OnAsked", "Remote", "Remotes", "Take"]

# Our choices.
RETRY_S = 1.0  # where less time is left, a failed attempt is the last one
BLOCKED_S = 60.0  # in auto mode: how long the relay is taken at once where no path was found
MAX_REMEMBERED = 1024  # peers
MAX_TIMELINES = 16  # of the last attempts


# How a peer is met once: ``meet(ctx, deadline, attempt, worked, take)``.  ``worked`` is the kind of
# plan that last led to it.  ``take`` makes a link of the first path, and of no other.  Returns the
# kind of plan that has led to a direct path; "" if none was looked for.  Raises KKP2PError; NoPath
# and TimedOut mean that there was no direct path, even if a relay was taken.
Take = Callable[[Met], PeerLink]
Meet = Callable[[connect_ctx_t, float, Attempt, str, Take], str]


# What became of ``ask``: see Dialer.ask.
OnAsked = Callable[[LinkStream | KKP2PError | None], object]


class Remotes:
    """The peers that are reached by one ``meet`` in one mode: over the cloud, or over the LAN.

    A link is of one mode: its path must never be one that the mode excludes.
    """

    def __init__(
        self,
        meet: Meet,
        links: LinkTable,
        mode: int,
        is_lan: bool,
        settings: EngineSettings,
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:
        self.meet = meet
        self.mode = mode
        self._links = links
        self._is_lan = is_lan
        self.settings = settings
        self.log = log
        self.spawn = spawn
        self._by_id: dict[str, Remote] = {}

    def of(self, peer_id: str) -> Remote:
        """The one of that peer, which is the youngest from now on."""
        remote = self._by_id.pop(peer_id, None) or Remote(self, peer_id)
        self._by_id[peer_id] = remote
        if len(self._by_id) > MAX_REMEMBERED:
            self._drop_oldest()
        return remote

    def _drop_oldest(self) -> None:
        for peer_id, remote in self._by_id.items():
            if not remote.searches and remote.link is None:
                del self._by_id[peer_id]
                return

    def add_link(self, peer_id: str, met: Met) -> PeerLink:
        name = f"{peer_id} (LAN)" if self._is_lan else peer_id
        info = LinkInfo(name=name, peer_id=peer_id, is_lan=self._is_lan, mode=self.mode, met=met)
        return self._links.add(info)

    @property
    def busy(self) -> bool:
        """Whether a path is being looked for."""
        return any(remote.searches for remote in self._by_id.values())

    def forget_blocked(self) -> None:
        """The network has changed."""
        for remote in self._by_id.values():
            remote.blocked_until = 0.0

    def bound_timelines(self) -> None:
        """A timeline may be large, so only the youngest peers keep theirs."""
        told = [remote for remote in self._by_id.values() if remote.timeline is not None]
        for remote in told[:-MAX_TIMELINES]:
            remote.timeline = None


class Remote:
    """One peer that we call, in one mode."""

    def __init__(self, remotes: Remotes, peer_id: str) -> None:
        self.peer_id = peer_id
        self.searches: set[Attempt] = set()  # some of which may have led to a link by a relay
        self.worked = ""  # the kind of the plan that last led to the peer
        self.blocked_until = 0.0  # by the monotonic clock
        self.timeline: Timeline | None = None  # of the last attempt; of a few peers it is kept
        self._attempt: Attempt | None = None  # that has led to nothing yet
        self._link: weakref.ref[PeerLink] | None = None
        self._remotes = remotes
        self._settings = remotes.settings
        self._log = remotes.log

    @property
    def link(self) -> PeerLink | None:
        """The live link that the next channel is opened on."""
        link = None if self._link is None else self._link()
        return None if link is None or link.closed is not None else link

    def open(self, ctx: connect_ctx_t, deadline: float) -> LinkStream:
        """A channel to the peer, on the live link or by an attempt."""
        link = self._usable_link()
        if link is not None:
            try:
                return self._open_soon(link, ctx, deadline)
            except KKP2PError as error:
                if isinstance(error, CallRefused):
                    raise  # anything else is in the log, and an attempt may do better
        while True:
            attempt, is_mine = self._attempt, False
            if attempt is None:
                attempt, is_mine = self._begin(ctx, deadline), True
            try:
                link = self._wait_for(attempt, deadline)
                if self._remotes.mode == CONNECT_AUTO:  # the path may carry checks and nothing more
                    return self._open_first(link, ctx, deadline)
                return _open_on(link, ctx)
            except TimedOut:
                no_more = attempt.was_quick or deadline - time.monotonic() < RETRY_S
                if is_mine and no_more:
                    raise

    def ask(
        self, ctx: connect_ctx_t, done: OnAsked, early: bytes = b""
    ) -> Callable[[], object] | None:
        """See Dialer.ask."""
        link = self._usable_link()
        if link is None or link.is_proving:  # nothing of a channel goes to who is not known yet
            return None
        deadline = time.monotonic() + ctx.timeout / 1000
        asking = self._asking(link, ctx, lambda answer, may: done(None if may else answer))
        asking.begin(self._settings.reuse_of(deadline), early, deadline)
        return asking.call_off

    def _wait_for(self, attempt: Attempt, deadline: float) -> PeerLink:
        """Its link; whoever has less time than the one who began it does not lose it."""
        hurry = gevent.get_hub().loop.timer(self._settings.head_start_of(deadline))
        hurry.start(attempt.hurried.set)
        try:
            return attempt.wait()
        finally:
            hurry.close()

    def _usable_link(self) -> PeerLink | None:
        """One that is not fit for more goes on with the channels that it has."""
        link = self.link
        if link is not None and not link.is_fit:
            self._link = link = None
        return link

    def _open_soon(self, link: PeerLink, ctx: connect_ctx_t, deadline: float) -> LinkStream:
        """Leave time for another way; the caller ends the wait for a peer that is there."""
        answer: AsyncResult[LinkStream | KKP2PError] = AsyncResult()
        asking = self._asking(link, ctx, lambda result, _: answer.set(result))
        asking.begin(self._settings.reuse_of(deadline))
        try:
            result = answer.get()
        except BaseException:
            asking.call_off()
            raise
        if isinstance(result, KKP2PError):
            raise result
        return result

    def _asking(self, link: PeerLink, ctx: connect_ctx_t, done: OnAnswer) -> Asking:
        drop = functools.partial(self._drop_link, link)
        return Asking(link, ctx, self._settings.reuse_s, drop, done)

    def _drop_link(self, link: PeerLink, error: KKP2PError) -> None:
        if self._link is not None and self._link() is link:
            self._link = None
            self._log.info("%s: the link is not used any more: %s", self.peer_id, error)

    def _open_first(self, link: PeerLink, ctx: connect_ctx_t, deadline: float) -> LinkStream:
        try:
            return self._open_soon(link, ctx, deadline)
        except (TimedOut, LinkLost) as error:
            self._log.info("%s: the path carries nothing: %s", self.peer_id, error)
            self._block()
            raise

    @property
    def is_blocked(self) -> bool:
        """Whether auto mode takes the relay at once, as no path was found a moment ago."""
        return time.monotonic() < self.blocked_until

    # Attempts.

    def _begin(self, ctx: connect_ctx_t, deadline: float) -> Attempt:
        head_start_s = self._settings.head_start_of(deadline)
        why_relay = Sentence("no path within the head start")
        if self.is_blocked:
            head_start_s, why_relay = 0.0, Sentence("no path was found a moment ago")
        attempt = self._attempt = Attempt(self._settings.attempt_s, head_start_s, why_relay)
        self.searches.add(attempt)
        self.timeline = attempt.timeline
        self._remotes.bound_timelines()
        self._remotes.spawn(self._run, attempt, ctx, deadline)
        return attempt

    def _run(self, attempt: Attempt, ctx: connect_ctx_t, deadline: float) -> None:
        error: KKP2PError = EngineClosed()  # when killed
        try:
            self._meet(attempt, ctx, deadline)
        except KKP2PError as caught:
            error = caught
            if attempt.is_over:
                self._log.info("%s: no direct path yet: %s", self.peer_id, error)
        except Exception as bug:  # noqa: BLE001 - logged; whoever waits may have another way
            self._log.exception("bug in the search for a path to %s", self.peer_id)
            error = OurFault(f"a fault of ours: {bug!r}")
        finally:
            self.searches.discard(attempt)
            if not attempt.is_over:
                self._settle(attempt, self.link or error)

    def _settle(self, attempt: Attempt, outcome: PeerLink | KKP2PError) -> None:
        self._attempt = None
        attempt.settle(outcome)

    def _meet(self, attempt: Attempt, ctx: connect_ctx_t, deadline: float) -> None:
        def take(met: Met) -> PeerLink:
            link = self._remotes.add_link(self.peer_id, met)
            self._link = weakref.ref(link)
            self._settle(attempt, link)
            return link

        try:
            worked = self._remotes.meet(ctx, deadline, attempt, self.worked, take)
        except (TimedOut, NoPath) as error:
            # A short search says nothing about the path, but a plan that there can be none does.
            if isinstance(error, NoPath) or self._settings.is_telling(attempt.searched_s):
                self._block()
            raise
        self.blocked_until, self.worked = 0.0, worked

    def _block(self) -> None:
        self.worked = ""
        self.blocked_until = time.monotonic() + BLOCKED_S


def _open_on(link: PeerLink, ctx: connect_ctx_t) -> LinkStream:
    stream_id = link.channels.open(ctx.channel_type, ctx.encrypt_data, ctx.connect_desc)
    return stream_on(link, stream_id, ctx)
