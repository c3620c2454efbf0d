"""What we know of the peers that we call: the live link, the attempts, and how earlier ones went.

Runs in the engine's hub.  A link serves all channels to its peer: the first connect makes it, those
that come meanwhile wait for it, and later ones open a channel on it in one round trip.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from logging import Logger
from typing import Any

import gevent

from ..._errors import (
    CallRefused,
    EngineClosed,
    KKP2PError,
    LinkLost,
    NoPath,
    OurFault,
    TimedOut,
)
from ..._io import time_limit
from ..._structs import connect_ctx_t
from ..links.link_table import LinkTable
from ..links.peer_link import LinkInfo, PeerLink
from ..links.streams import DirectStream, OpenStream
from ..paths.meeting import Met
from ..runtime.engine_settings import EngineSettings
from ..runtime.timeline import Timeline
from .attempts import Attempt, State

__all__ = ["Meet", "OnAsked", "Remote", "Remotes"]

# Our choices.
RETRY_S = 1.0  # with less time left, a failed attempt is not followed by another
BLOCKED_S = 60.0  # in auto mode: how long a peer that could not be met counts as such
MAX_REMEMBERED = 1024  # peers
MAX_TIMELINES = 16  # of the last attempts


# How a peer is met once: ``meet(ctx, deadline, attempt, worked)``, where ``worked`` is the kind of
# plan that last led to it.  Raises KKP2PError; NoPath and TimedOut say something of the peer.
Meet = Callable[[connect_ctx_t, float, Attempt, str], Met]


# What became of ``ask``: see Dialer.ask.
OnAsked = Callable[[DirectStream | CallRefused | None], object]


class Remotes:
    """The peers that are reached by one ``meet``: over the cloud, or over the LAN."""

    def __init__(
        self, meet: Meet, links: LinkTable, is_lan: bool, settings: EngineSettings, log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:  # fmt: skip
        self.meet = meet
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
            if not remote.attempts and remote.link is None:
                del self._by_id[peer_id]
                return

    def add_link(self, peer_id: str, met: Met) -> PeerLink:
        name = f"{peer_id} (LAN)" if self._is_lan else peer_id
        return self._links.add(LinkInfo(name=name, peer_id=peer_id, is_lan=self._is_lan, met=met))

    @property
    def busy(self) -> bool:
        """Whether a path is being looked for."""
        return any(remote.attempts for remote in self._by_id.values())

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
    """One peer that we call."""

    def __init__(self, remotes: Remotes, peer_id: str) -> None:
        self.peer_id = peer_id
        # By whether the relay may be taken, too: who may must not wait for as long as others.
        self.attempts: dict[bool, Attempt] = {}
        self.worked = ""  # the kind of the plan that last led to the peer
        self.blocked_until = 0.0  # in auto mode, by the monotonic clock
        self.timeline: Timeline | None = None  # of the last attempt; of a few peers it is kept
        self._why_blocked = ""
        self._link: weakref.ref[PeerLink] | None = None
        self._remotes = remotes
        self._settings = remotes.settings
        self._log = remotes.log

    @property
    def link(self) -> PeerLink | None:
        """The live link that the next channel is opened on."""
        link = None if self._link is None else self._link()
        return None if link is None or link.closed is not None else link

    def open(self, ctx: connect_ctx_t, deadline: float, may_be_relayed: bool) -> OpenStream:
        """A channel to the peer, on the live link or by an attempt.

        Where the relay is a way, NoPath, NotSupported, TimedOut, LinkLost and OurFault mean: call
        by it.
        """
        link = self._usable_link()
        if link is not None:
            try:
                return self._open_soon(link, ctx, deadline)
            except CallRefused:
                raise
            except KKP2PError as error:
                self._note_unused(error)
        while True:
            attempt = self.attempts.get(may_be_relayed)
            mine = attempt is None
            if attempt is None:
                attempt = self._begin(ctx, deadline, may_be_relayed)
            elif attempt.state is State.RELAYED:
                raise NoPath("a path is still being looked for")
            try:
                outcome = (
                    attempt.wait_first() if mine else self._join(attempt, may_be_relayed, deadline)
                )
                if isinstance(outcome, OpenStream):
                    return outcome
                if may_be_relayed:  # the path may carry checks and nothing more
                    return self._open_first(outcome, ctx, deadline)
                return _open_on(outcome, ctx)
            except TimedOut:
                no_more = attempt.was_quick or deadline - time.monotonic() < RETRY_S
                if may_be_relayed or (mine and no_more):
                    raise

    def ask(
        self, ctx: connect_ctx_t, done: OnAsked, early: bytes = b""
    ) -> Callable[[], object] | None:
        """See Dialer.ask."""
        link = self._usable_link()
        if link is None:
            return None
        began = time.monotonic()
        stream_id = -1

        def answered(error: KKP2PError | None) -> None:
            late.close()
            if error is None:
                stream = _stream_on(link, stream_id, ctx)
                stream.set_up_s = time.monotonic() - began
                done(stream)
            elif isinstance(error, CallRefused):
                done(error)
            else:
                self._drop_link(link)
                self._note_unused(error)
                done(None)

        def call_off() -> None:
            late.close()
            link.channels.give_up(stream_id)

        def give_up() -> None:
            call_off()
            answered(_too_late())

        late = gevent.get_hub().loop.timer(self._settings.reuse_of(began + ctx.timeout / 1000))
        late.start(give_up)
        stream_id = link.channels.ask(
            ctx.channel_type, ctx.encrypt_data, ctx.connect_desc, answered, early
        )
        return call_off

    def _note_unused(self, error: KKP2PError) -> None:
        self._log.info("%s: the link is not used any more: %s", self.peer_id, error)

    def _join(self, attempt: Attempt, may_be_relayed: bool, deadline: float) -> PeerLink:
        """What another connect's attempt leads to; the relay is not kept waiting for it."""
        if not may_be_relayed:
            return attempt.wait()
        late = NoPath("a path is still being looked for")
        with time_limit(self._settings.head_start_of(deadline), late):
            return attempt.wait()

    def _usable_link(self) -> PeerLink | None:
        """One that is not fit for more goes on with the channels that it has."""
        link = self.link
        if link is not None and not link.is_fit:
            self._link = link = None
        return link

    def _open_soon(self, link: PeerLink, ctx: connect_ctx_t, deadline: float) -> DirectStream:
        """Leave time for another way; what does not answer is not used again."""
        try:
            with time_limit(self._settings.reuse_of(deadline), _too_late):
                return _open_on(link, ctx)
        except CallRefused:
            raise
        except KKP2PError:
            self._drop_link(link)
            raise

    def _drop_link(self, link: PeerLink) -> None:
        if self.link is link:
            self._link = None

    def _open_first(self, link: PeerLink, ctx: connect_ctx_t, deadline: float) -> DirectStream:
        try:
            return self._open_soon(link, ctx, deadline)
        except (TimedOut, LinkLost) as error:
            self._block(f"a path was found, but it carries nothing: {error}")
            raise

    @property
    def is_blocked(self) -> bool:
        """Whether auto mode takes the relay at once, as no path was found a moment ago."""
        return time.monotonic() < self.blocked_until

    # Attempts.

    def _begin(self, ctx: connect_ctx_t, deadline: float, may_be_relayed: bool) -> Attempt:
        if may_be_relayed and self.is_blocked:
            why = self._why_blocked
            raise NoPath(f"could not be met directly a moment ago: {why}")
        attempt = self.attempts[may_be_relayed] = Attempt(self._settings.attempt_s)
        self.timeline = attempt.timeline
        self._remotes.bound_timelines()
        self._remotes.spawn(self._run, attempt, ctx, deadline, may_be_relayed)
        return attempt

    def _run(
        self, attempt: Attempt, ctx: connect_ctx_t, deadline: float, may_be_relayed: bool
    ) -> None:
        error: KKP2PError = EngineClosed()  # when killed
        try:
            self._meet(attempt, ctx, deadline)
        except KKP2PError as caught:
            error = caught
        except Exception as bug:  # noqa: BLE001 - logged; whoever waits may have another way
            self._log.exception("bug in the search for a path to %s", self.peer_id)
            error = OurFault(f"a fault of ours: {bug!r}")
        finally:
            del self.attempts[may_be_relayed]
            attempt.settle(self.link or error)  # the link may be another attempt's

    def _meet(self, attempt: Attempt, ctx: connect_ctx_t, deadline: float) -> None:
        try:
            met = self._remotes.meet(ctx, deadline, attempt, self.worked)
        except (TimedOut, NoPath) as error:
            # A short search says nothing about the path, but a plan that there can be none does.
            if isinstance(error, NoPath) or self._settings.is_telling(attempt.searched_s):
                self._block(str(error))
            raise
        self._link = weakref.ref(self._remotes.add_link(self.peer_id, met))
        self.blocked_until, self.worked = 0.0, met.plan.kind

    def _block(self, reason: str) -> None:
        self.worked = ""
        self.blocked_until = time.monotonic() + BLOCKED_S
        self._why_blocked = reason


def _open_on(link: PeerLink, ctx: connect_ctx_t) -> DirectStream:
    stream_id = link.channels.open(ctx.channel_type, ctx.encrypt_data, ctx.connect_desc)
    return _stream_on(link, stream_id, ctx)


def _stream_on(link: PeerLink, stream_id: int, ctx: connect_ctx_t) -> DirectStream:
    return DirectStream(link, stream_id, ctx.channel_type, ctx.encrypt_data, ctx.connect_desc)


def _too_late() -> TimedOut:
    return TimedOut("the link does not answer")
