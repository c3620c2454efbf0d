"""The channels on a link, from when one side asks for one until the connection has forgotten it.

Runs in the engine's hub.  ``open`` waits, in a greenlet; everything else may be called from the
callbacks of watchers, and never waits.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

from gevent.event import AsyncResult, Event

from ..._codes import KKP2P_UDP_CHANNEL
from ..._errors import CallRefused, KKP2PError, LinkLost, PeerMoved
from ..._sentence import Sentence
from ...transport.pair import Mark
from ...transport.tcp import STANDSTILL_S
from ...transport.udp import events as e
from ...transport.udp.liveness import Hearing
from ...transport.udp.pipe import Carrier, MessagePipe, MessagePort, OnEnd, Pipe, StreamPipe
from ...transport.udp.stream_table import (
    REFUSED_BUSY,
    REFUSED_MOVED,
    REFUSED_SILENT,
    REFUSED_UNSUPPORTED,
)

__all__ = ["LinkChannels", "State"]

# Our choices.
UNUSED_S = 30.0  # how long a channel may wait for whoever asked for it
MAX_EARLY_MESSAGES = 16  # of a UDP channel that was opened a moment ago

GIVEN_UP = Sentence("the peer gave the channel up")
_REFUSALS = {
    REFUSED_BUSY: Sentence("the peer's accept queue is full"),
    REFUSED_UNSUPPORTED: Sentence("the peer takes no such channel here"),
    REFUSED_SILENT: Sentence("nothing answers where the peer would forward it to"),
}


OnAnswer = Callable[[KKP2PError | None], object]


class State(Enum):
    __hash__ = object.__hash__  # in C; each member is there once
    ASKED = "asked for"  # by us: somebody waits for the peer's answer
    ABANDONED = "abandoned"  # asked for by us, and nobody waits for the answer any more
    OFFERED = "offered"  # by the peer: we have not answered
    OPEN = "open"  # the peer has taken it; whoever asked for it has not come for it yet
    CARRIED = "carried"  # by a pipe
    LEAVING = "leaving"  # its pipe has ended; what was written is on its way
    GIVEN_UP = "given up"  # both directions are reset; the peer has not confirmed it


# All that can follow, besides being forgotten.
_NEXT = {
    State.ASKED: (State.OPEN, State.ABANDONED),
    State.ABANDONED: (State.GIVEN_UP,),  # once the peer has it: before, it could not be told
    State.OFFERED: (State.CARRIED,),
    State.OPEN: (State.CARRIED, State.GIVEN_UP),
    State.CARRIED: (State.LEAVING,),
    State.LEAVING: (State.GIVEN_UP,),
    State.GIVEN_UP: (),
}


class LinkChannel:
    """One channel as its link sees it."""

    __slots__ = ("arrived_bytes", "early", "on_answer", "pipe", "since", "state", "stream_id")

    def __init__(self, stream_id: int, state: State) -> None:
        self.stream_id = stream_id
        self.state = state
        # When it came into this state; after a close, when something of it last arrived.
        self.since = time.monotonic()
        self.arrived_bytes = 0  # at the last sweep
        self.on_answer: OnAnswer | None = None  # as long as somebody waits for the peer's answer
        self.early: tuple[e.Event, ...] = ()  # what the pipe will have to be told
        self.pipe: Pipe | MessagePort | None = None  # while CARRIED

    def become(self, state: State) -> None:
        if state not in _NEXT[self.state]:
            raise RuntimeError(f"a channel that is {self.state.value} cannot be {state.value}")
        self.state = state
        self.since = time.monotonic()

    def tell(self, error: KKP2PError | None) -> None:
        """Wake whoever waits for the peer's answer.  None: the peer takes the channel."""
        on_answer, self.on_answer = self.on_answer, None
        if on_answer is not None:
            on_answer(error)

    def keep(self, event: e.Event) -> None:
        """Remember what a pipe must be told; data are not: a pipe looks for them by itself."""
        is_end = isinstance(event, e.Stopped | e.ResetReceived)
        is_message = isinstance(event, e.MessageReceived) and len(self.early) < MAX_EARLY_MESSAGES
        if self.state in (State.ASKED, State.OFFERED, State.OPEN) and (is_end or is_message):
            self.early += (event,)


_TO_PIPE: dict[type, Callable[[Any, Any], None]] = {
    e.Readable: lambda pipe, event: pipe.handle_data(),
    e.Writable: lambda pipe, event: pipe.handle_room(),
    e.Stopped: lambda pipe, event: pipe.handle_stopped(),
    e.ResetReceived: lambda pipe, event: pipe.handle_broken(LinkLost(GIVEN_UP)),
    e.MessageReceived: lambda pipe, event: pipe.handle_message(event.data),
}


class LinkChannels:
    """``open`` or ``ask``, or ``accept`` what the peer offers; then ``pipe``, or ``give_up``."""

    def __init__(self, link: Carrier) -> None:
        self.drained = Event()  # no channel has anything on its way
        self.drained.set()
        self._link = link
        self._streams = link.connection.streams
        self._channels: dict[int, LinkChannel] = {}
        self._used_at = time.monotonic()
        self._broken: KKP2PError | None = None  # why the link carries nothing any more

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def carried(self) -> bool:
        """Whether a pipe is at work."""
        return any(channel.pipe is not None for channel in self._channels.values())

    def unused_for(self, seconds: float) -> bool:
        """Whether there has been no channel for so long."""
        return not self._streams.by_id and time.monotonic() - self._used_at >= seconds

    # From the engine.

    def ask(
        self,
        channel_type: int,
        encrypt_data: int,
        desc: int,
        on_answer: OnAnswer,
        early: bytes = b"",
    ) -> int:
        """Open a channel; ``on_answer(None)`` when the peer has taken it, else with an error.

        That is CallRefused or LinkLost.  It is not called after ``give_up``.
        ``early``: what is peeked at in the socket that ``pipe`` will get, at most EARLY_BYTES.
        """
        if self._broken is not None:
            raise self._broken
        stream_id = self._streams.open(channel_type, encrypt_data, desc, early)
        channel = self._channels[stream_id] = LinkChannel(stream_id, State.ASKED)
        channel.on_answer = on_answer
        self.drained.clear()
        self._link.wake()
        return stream_id

    def open(self, channel_type: int, encrypt_data: int, desc: int) -> int:
        """Open a channel and wait for the peer's answer; raises CallRefused or LinkLost."""
        answer: AsyncResult[KKP2PError | None] = AsyncResult()
        stream_id = self.ask(channel_type, encrypt_data, desc, answer.set)
        try:
            error = answer.get()
        except BaseException:
            self.give_up(stream_id)
            raise
        if error is not None:
            raise error
        return stream_id

    def accept(self, stream_id: int) -> None:
        """Take what the peer offers; ``pipe`` may come before this, as it is what can fail.

        The peer may have given it up, or be lost: then a pipe is told, as it is of an open one.
        """
        if stream_id in self._streams.by_id and self._broken is None:
            self._streams.accept(stream_id)
            self.drained.clear()
            self._link.wake()

    def refuse(self, stream_id: int, reason: int) -> None:
        if stream_id in self._streams.by_id and self._broken is None:
            self._streams.refuse(stream_id, reason)
            self._link.wake()
        self._forget(self._channels[stream_id])

    def give_up(self, stream_id: int) -> None:
        """Nobody here wants this channel any more.  (One that the peer offers is refused.)"""
        channel = self._channels.get(stream_id)
        if channel is None:  # refused, or at its end
            return
        if channel.state is State.ASKED:
            channel.on_answer = None
            channel.become(State.ABANDONED)
            self._look_if_drained()
        elif channel.state is State.OPEN:
            self._give_up(channel)

    def pipe(
        self, stream_id: int, channel_type: int, sock: Any, on_end: OnEnd, mark: Mark | None
    ) -> Pipe:
        """Carry a channel to and from a plain non-blocking socket, until ``on_end``.

        ``mark``: see StreamPipe.
        """
        ended = functools.partial(self._handle_pipe_end, stream_id, on_end)
        if channel_type == KKP2P_UDP_CHANNEL:
            pipe: Pipe = MessagePipe(self._link, stream_id, sock, ended)
        else:
            pipe = StreamPipe(self._link, stream_id, sock, ended, mark)
        self._carry(stream_id, pipe)
        return pipe

    def exchange(
        self,
        stream_id: int,
        on_message: Callable[[bytes], object],
        on_end: Callable[[KKP2PError | None], object],
    ) -> MessagePort:
        """Use a UDP channel without a socket; see MessagePort."""
        ended = functools.partial(self._handle_pipe_end, stream_id, on_end)
        port = MessagePort(self._link, stream_id, on_message, ended)
        self._carry(stream_id, port)
        return port

    def _carry(self, stream_id: int, pipe: Pipe | MessagePort) -> None:
        channel = self._channels[stream_id]
        channel.become(State.CARRIED)
        channel.pipe = pipe
        early, channel.early = channel.early, ()
        for event in early:
            self.handle_event(event)  # before the end of a stream that ``start`` may find
        pipe.start()
        if self._broken is not None:
            pipe.handle_broken(self._broken)

    def _handle_pipe_end(self, stream_id: int, on_end: Callable[..., object], *ended: Any) -> None:
        channel = self._channels[stream_id]
        channel.pipe = None
        if stream_id in self._streams.by_id:
            channel.become(State.LEAVING)
        else:
            self._forget(channel)
        on_end(*ended)

    # From the link.

    def offer(self, stream_id: int) -> None:
        """The peer opens a channel: ``accept`` or ``refuse`` follows."""
        self._channels[stream_id] = LinkChannel(stream_id, State.OFFERED)

    def handle_event(self, event: Any) -> None:
        """Take an event of one channel; it means nothing if the channel is forgotten."""
        channel = self._channels.get(event.stream_id)
        if channel is None:
            return
        tell_pipe = _TO_PIPE.get(type(event))
        if tell_pipe is None:
            self._handlers[type(event)](self, channel, event)
        elif channel.pipe is not None:
            tell_pipe(channel.pipe, event)
        else:
            channel.keep(event)

    def _handle_opened(self, channel: LinkChannel, event: e.ChannelOpened) -> None:
        if channel.state is State.ABANDONED:
            self._give_up(channel)
        else:
            channel.become(State.OPEN)
            channel.tell(None)

    def _handle_refused(self, channel: LinkChannel, event: e.ChannelRefused) -> None:
        text = _REFUSALS.get(event.reason) or Sentence(
            "refused: reason {number}", number=event.reason
        )
        channel.tell(PeerMoved() if event.reason == REFUSED_MOVED else CallRefused(text))
        self._forget(channel)

    def _handle_ended(self, channel: LinkChannel, event: e.Ended) -> None:
        if channel.state in (State.OFFERED, State.OPEN, State.CARRIED):
            self._note_use()  # there still is a pipe to be told, or to come
            return
        channel.tell(CallRefused(GIVEN_UP))  # this overtook its OPENED
        self._forget(channel)

    _handlers: dict[type, Callable[[Any, LinkChannel, Any], None]] = {  # noqa: RUF012
        e.ChannelOpened: _handle_opened,
        e.ChannelRefused: _handle_refused,
        e.Ended: _handle_ended,
    }

    def handle_closed(self, error: KKP2PError) -> None:
        self._broken = error
        for channel in list(self._channels.values()):
            channel.tell(error)
            if channel.pipe is not None:
                channel.pipe.handle_broken(error)
        self.drained.set()

    def sweep(self) -> None:
        """Every few seconds: notice what no event tells, and give up what takes too long."""
        now = time.monotonic()
        for channel in list(self._channels.values()):
            if channel.pipe is not None:
                channel.pipe.check()
        for channel in list(self._channels.values()):
            waited_s = now - channel.since
            if channel.state is State.OPEN and waited_s >= UNUSED_S:
                self._give_up(channel)
            elif channel.state in (State.CARRIED, State.LEAVING):
                if self._gets_on(channel, now):
                    channel.since = now
                elif waited_s >= STANDSTILL_S:
                    self._give_up_rest(channel)

    def _gets_on(self, channel: LinkChannel, now: float) -> bool:
        """Whether it is in use, or what was written before a close may all arrive yet.

        Only a peer that does not take it ends that.  A path may be slow, and have other channels to
        carry; whether it is dead is for the connection to judge, by its idle time-out.
        """
        pipe, streams, connection = channel.pipe, self._streams, self._link.connection
        if isinstance(pipe, MessagePort) or (pipe is not None and not pipe.is_left):
            return True
        stream = streams.by_id.get(channel.stream_id)
        if stream is None:
            return False
        before, channel.arrived_bytes = channel.arrived_bytes, stream.send.acked_bytes
        has_credit = connection.packer.data_credit or now - streams.credited_at < STANDSTILL_S
        waits_for_turn = stream.send.sendable(1) or channel.stream_id in streams.line
        is_silent = connection.liveness.hearing is Hearing.SUSPECTED
        return (has_credit and waits_for_turn) or is_silent or channel.arrived_bytes > before

    def _give_up_rest(self, channel: LinkChannel) -> None:
        if isinstance(channel.pipe, Pipe):
            channel.pipe.abort(LinkLost("the peer does not take what was written"))
        else:
            self._give_up(channel)

    # Inside.

    def _give_up(self, channel: LinkChannel) -> None:
        channel.become(State.GIVEN_UP)
        if channel.stream_id not in self._streams.by_id:
            self._forget(channel)
            return
        self._streams.reset(channel.stream_id, 0)
        self._streams.stop(channel.stream_id)
        self._link.wake()

    def _forget(self, channel: LinkChannel) -> None:
        del self._channels[channel.stream_id]
        self._note_use()

    def _note_use(self) -> None:
        self._used_at = time.monotonic()
        self._look_if_drained()

    def _look_if_drained(self) -> None:
        """A channel that nobody wants any more does not count."""
        channels = self._channels
        if all(
            stream_id in channels and channels[stream_id].state is State.ABANDONED
            for stream_id in self._streams.by_id
        ):
            self.drained.set()
