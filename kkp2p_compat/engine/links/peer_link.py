"""A live connection with a peer, and the channels on it.

Runs in the engine's hub.  ``open`` waits, in a greenlet; everything else is called by the endpoint
from the callbacks of its watchers, or from there by others, and never waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gevent
from gevent.event import AsyncResult, Event

from ..._codes import KKP2P_UDP_CHANNEL
from ..._errors import CallRefused, EngineClosed, KKP2PError, LinkLost
from ...transport.pair import Mark
from ...transport.udp import events as e
from ...transport.udp.endpoint import Endpoint
from ...transport.udp.events import Address
from ...transport.udp.peer_connection import CLOSE_NORMAL, PeerConnection
from ...transport.udp.pipe import MessagePipe, OnEnd, Pipe, StreamPipe
from ...transport.udp.stream_table import REFUSED_BUSY, REFUSED_MOVED, REFUSED_UNSUPPORTED
from ...traversal.plan import Plan
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer

__all__ = ["LinkInfo", "PeerLink"]

# Our choices, in seconds.
IDLE_S = 60.0  # how long a link without channels is kept for the next one
UNUSED_S = 30.0  # how long a channel that nobody has (any more) may take for what was written

MAX_EARLY_MESSAGES = 16  # our choice: of a UDP channel that was opened a moment ago

_REFUSALS = {
    REFUSED_BUSY: "the peer's accept queue is full",
    REFUSED_UNSUPPORTED: "the peer takes no such channel here",
    REFUSED_MOVED: "the peer is elsewhere now",
}


@dataclass(frozen=True)
class LinkInfo:
    """How a link came to be."""

    name: str  # the peer's, for the log
    own_id: str  # under which the peer called us; "" if we called
    timeline: Timeline
    plan: Plan
    ours: DirectOffer
    theirs: DirectOffer
    dials: str | None  # whom to call again when the path is dead; None: the peer will call us
    caller_id: str = ""  # of who called us, if the cloud vouches for it

    @property
    def is_caller(self) -> bool:
        return not self.own_id


class Roams(Protocol):
    """Looks for another path when a peer is not heard any more."""

    def handle_suspected(self, link: PeerLink) -> None: ...
    def handle_end(self, link: PeerLink) -> None: ...


class PeerLink:
    """``on_offered(link, event)`` accepts or refuses a channel that the peer opens."""

    def __init__(
        self, endpoint: Endpoint, connection: PeerConnection, info: LinkInfo, log: logging.Logger,
        on_offered: Callable[[PeerLink, e.ChannelOffered], object],
        on_closed: Callable[[PeerLink], object], roaming: Roams,
    ) -> None:  # fmt: skip
        self.connection = connection
        self.local_id = connection.local_id
        self.info = info
        self.name = info.name
        self.search: gevent.Greenlet[..., Any] | None = None  # for another path
        self.set_up_s = info.timeline.elapsed_s
        self.retired = False  # we are not that peer any more
        self.call = ""  # the last one of the peer that we have answered, as the track names it
        self.closed: KKP2PError | None = None
        self.drained = Event()  # no channel has anything on its way
        self.drained.set()
        self._endpoint = endpoint
        self._log = log
        self._on_offered = on_offered
        self._on_closed = on_closed
        self._roaming = roaming
        self._used = False
        self._sockets: set[int] = set()  # extra ones of the endpoint, which are ours
        self._tried = connection.address  # the last one that checks have found
        self._keep_socket(connection.address)
        self._pipes: dict[int, Pipe] = {}
        self._waiting: dict[int, AsyncResult[None]] = {}
        self._unused: dict[int, float] = {}  # channels without a pipe, and since when
        self._early: dict[int, list[e.Event]] = {}  # what came before our side has its pipe
        self._abandoned: set[int] = set()  # not opened yet, and not wanted any more
        self._used_at = time.monotonic()
        endpoint.add(self)

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.connection.address[0]

    def wake(self) -> None:
        self._endpoint.wake(self)

    def describe(self) -> str:
        """Where the peer is, why there, and how long it took to find out."""
        address = self.connection.address
        rtt_s = self.connection.recovery.rtt.smoothed_s
        info = self.info
        return (
            f"p2p with {address[0]} port {address[1]}, round trip {1000 * rtt_s:.1f} ms, "
            f"{info.plan.kind}: {info.plan.reason}; {info.timeline.summary}"
        )

    def describe_use(self) -> str:
        """How the next channel comes to be: the first one tells of the link, too."""
        if self._used:
            return "p2p, on the live connection"
        self._used = True
        return self.describe()

    # The path.

    def ask(self) -> None:
        """Something may have happened to the path: find out whether the peer is there."""
        self.connection.ping()
        self.wake()

    def handle_gone(self) -> None:
        """The cloud has lost the peer: is it there all the same?"""
        if self.connection.doubt(time.monotonic()):
            self._log.info("%s: gone, says the cloud: asking", self.name)
            self.wake()

    def handle_back(self) -> None:
        self.connection.trust()

    def try_path(self, address: Address) -> None:
        """Checks say that the peer is (again) at this address."""
        self._tried = address
        self._keep_socket(address)
        if self.closed is not None:
            self._endpoint.close_sockets(self._sockets)
        self.connection.try_path(address, time.monotonic())
        self.wake()

    def _keep_socket(self, address: Address) -> None:
        if len(address) == 3:
            self._sockets.add(address[2])

    # Channels.

    def open(self, channel_type: int, encrypt_data: int, desc: int) -> int:
        """Open a channel and wait for the peer's word; raises CallRefused or LinkLost."""
        if self.closed is not None:
            raise self.closed
        stream_id = self.connection.streams.open(channel_type, encrypt_data, desc)
        self.drained.clear()
        result = self._waiting[stream_id] = AsyncResult()
        self._early[stream_id] = []
        self.wake()
        try:
            result.get()
        except BaseException:
            self.give_up(stream_id)
            raise
        finally:
            del self._waiting[stream_id]
        self._unused[stream_id] = time.monotonic()
        return stream_id

    def accept(self, stream_id: int) -> None:
        self.connection.streams.accept(stream_id)
        self.drained.clear()

    def refuse(self, stream_id: int, reason: int) -> None:
        self.connection.streams.refuse(stream_id, reason)
        self._look_if_drained()

    def give_up(self, stream_id: int) -> None:
        """Nobody wants this channel.

        One that is not opened yet is given up when it is: the peer would not know what is meant.
        """
        self._early.pop(stream_id, None)
        channel = self.connection.streams.by_id.get(stream_id)
        if channel is not None and not channel.opened:
            if channel.ours:
                self._abandoned.add(stream_id)
                self._look_if_drained()
            return
        self.connection.streams.reset(stream_id, 0)
        self.connection.streams.stop(stream_id)
        self.wake()

    def pipe(
        self, stream_id: int, channel_type: int, sock: Any, on_end: OnEnd, mark: Mark | None
    ) -> Pipe:
        """Carry a channel to and from a plain non-blocking socket, until ``on_end``.

        ``mark``: see StreamPipe.
        """

        def ended(error: KKP2PError | None, is_cut: bool) -> None:
            del self._pipes[stream_id]
            if stream_id in self.connection.streams.by_id:
                self._unused[stream_id] = time.monotonic()
            on_end(error, is_cut)

        self._unused.pop(stream_id, None)
        if channel_type == KKP2P_UDP_CHANNEL:
            pipe: Pipe = MessagePipe(self, stream_id, sock, ended)
        else:
            pipe = StreamPipe(self, stream_id, sock, ended, mark)
        self._pipes[stream_id] = pipe
        for event in self._early.pop(stream_id, ()):
            self.handle_event(event)  # before the end of a stream that ``start`` may find
        pipe.start()
        if self.closed is not None:
            pipe.handle_broken(self.closed)
        return pipe

    # From the endpoint.

    def handle_event(self, event: e.Event) -> None:
        self._handlers[type(event)](self, event)

    def _handle_readable(self, event: e.Readable) -> None:
        pipe = self._pipes.get(event.stream_id)
        if pipe is not None:
            pipe.handle_data()

    def _handle_writable(self, event: e.Writable) -> None:
        pipe = self._pipes.get(event.stream_id)
        if pipe is not None:
            pipe.handle_room()

    def _handle_stopped(self, event: e.Stopped) -> None:
        pipe = self._pipes.get(event.stream_id)
        if pipe is not None:
            pipe.handle_stopped()
        else:
            self._keep(event.stream_id, event)

    def _handle_reset(self, event: e.ResetReceived) -> None:
        pipe = self._pipes.get(event.stream_id)
        if pipe is not None:
            pipe.handle_broken(LinkLost("the peer gave the channel up"))
        else:
            self._keep(event.stream_id, event)

    def _handle_message(self, event: e.MessageReceived) -> None:
        pipe = self._pipes.get(event.stream_id)
        if isinstance(pipe, MessagePipe):
            pipe.handle_message(event.data)
        elif len(self._early.get(event.stream_id, ())) < MAX_EARLY_MESSAGES:
            self._keep(event.stream_id, event)

    def _keep(self, stream_id: int, event: e.Event) -> None:
        """Until whoever opened the channel has been woken and asks for a pipe."""
        if stream_id in self._early:
            self._early[stream_id].append(event)

    def _handle_offered(self, event: e.ChannelOffered) -> None:
        self._used_at = time.monotonic()
        self._on_offered(self, event)

    def _handle_opened(self, event: e.ChannelOpened) -> None:
        result = self._waiting.get(event.stream_id)
        if result is not None:
            result.set(None)
        elif event.stream_id in self._abandoned:
            self._abandoned.discard(event.stream_id)
            self.give_up(event.stream_id)

    def _handle_refused(self, event: e.ChannelRefused) -> None:
        result = self._waiting.get(event.stream_id)
        if result is not None:
            text = _REFUSALS.get(event.reason, f"refused: reason {event.reason}")
            kind = LinkLost if event.reason == REFUSED_MOVED else CallRefused
            result.set_exception(kind(text))
        self._forget(event.stream_id)

    def _handle_ended(self, event: e.Ended) -> None:
        result = self._waiting.get(event.stream_id)
        if result is not None and not result.ready():  # its end overtook its OPENED
            result.set_exception(CallRefused("the peer gave the channel up"))
        self._forget(event.stream_id)

    def _forget(self, stream_id: int) -> None:
        self._unused.pop(stream_id, None)
        self._abandoned.discard(stream_id)
        self._used_at = time.monotonic()
        self._look_if_drained()

    def _look_if_drained(self) -> None:
        if len(self.connection.streams.by_id) == len(self._abandoned):
            self.drained.set()

    def _handle_path_changed(self, event: e.PathChanged) -> None:
        self._keep_socket(event.address)
        in_use = {address[2] for address in (event.address, self._tried) if len(address) == 3}
        self._endpoint.close_sockets(self._sockets - in_use)
        self._sockets &= in_use
        self._log.warning("%s: the peer is now at %s port %d", self.name, *event.address[:2])

    def _handle_path_suspected(self, event: e.PathSuspected) -> None:
        self._roaming.handle_suspected(self)

    def _handle_path_recovered(self, event: e.PathRecovered) -> None:
        self._roaming.handle_end(self)

    def _handle_closed(self, event: e.Closed) -> None:
        self.closed = event.error
        level = logging.WARNING if self._pipes else logging.INFO
        self._log.log(level, "%s: p2p connection ended: %s", self.name, event.error)
        self._roaming.handle_end(self)
        self._endpoint.remove(self)
        self._endpoint.close_sockets(self._sockets)
        for result in self._waiting.values():
            result.set_exception(event.error)
        for pipe in list(self._pipes.values()):
            pipe.handle_broken(event.error)
        self.drained.set()
        self._on_closed(self)

    _handlers: dict[type, Callable[[Any, Any], None]] = {  # noqa: RUF012
        e.Readable: _handle_readable,
        e.Writable: _handle_writable,
        e.Stopped: _handle_stopped,
        e.ResetReceived: _handle_reset,
        e.MessageReceived: _handle_message,
        e.ChannelOffered: _handle_offered,
        e.ChannelOpened: _handle_opened,
        e.ChannelRefused: _handle_refused,
        e.Ended: _handle_ended,
        e.PathChanged: _handle_path_changed,
        e.PathSuspected: _handle_path_suspected,
        e.PathRecovered: _handle_path_recovered,
        e.Closed: _handle_closed,
    }

    # The end.

    def sweep(self) -> None:
        """Every few seconds: end what nobody uses."""
        now = time.monotonic()
        for pipe in list(self._pipes.values()):
            pipe.check()
        for stream_id, since in list(self._unused.items()):
            if now - since >= UNUSED_S:
                del self._unused[stream_id]
                self.give_up(stream_id)
        if not self.connection.streams.by_id and now - self._used_at >= IDLE_S:
            self.close("not in use")

    def close(self, reason: str) -> None:
        """Tell the peer; ``on_closed`` follows."""
        self.connection.close(CLOSE_NORMAL, reason, time.monotonic())
        self.wake()

    def destroy(self) -> None:
        """The engine ends: the peer is told once, nothing is waited for."""
        self.close("the engine is destroyed")
        self._endpoint.remove(self)
        self._handle_closed(e.Closed(EngineClosed()))
