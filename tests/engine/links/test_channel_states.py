"""A channel of a link in each of its states, and what may follow."""

from __future__ import annotations

import itertools
import math
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from helpers.support import PATIENCE_S
from kkp2p_compat._errors import CallRefused, KKP2PError, LinkLost
from kkp2p_compat.engine.links import link_channels
from kkp2p_compat.engine.links.link_channels import _NEXT, LinkChannel, LinkChannels, State
from kkp2p_compat.transport.udp import events as e
from kkp2p_compat.transport.udp.liveness import Hearing
from kkp2p_compat.transport.udp.pipe import Pipe
from kkp2p_compat.transport.udp.stream_table import REFUSED_BUSY, REFUSED_MOVED


class FakeStreams:
    """As much of a StreamTable as channels see, with a list of what was asked of it."""

    def __init__(self) -> None:
        self.by_id: dict[int, object] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.room = 0  # for a writer
        self.line: dict[int, None] = {}
        self.credited_at = -math.inf
        self.written = b""
        self._ids = itertools.count(0, 2)

    def open(self, *_: int) -> int:
        stream_id = next(self._ids)
        self.by_id[stream_id] = object()
        return stream_id

    def refuse(self, stream_id: int, reason: int) -> None:
        del self.by_id[stream_id]
        self.asked.append(("refuse", stream_id, reason))

    def accept(self, stream_id: int) -> None:
        self.asked.append(("accept", stream_id))

    def reset(self, stream_id: int, _: int) -> None:
        self.asked.append(("reset", stream_id))

    def stop(self, stream_id: int) -> None:
        self.asked.append(("stop", stream_id))

    def writable_bytes(self, _: int) -> int:
        self.asked.append(("room",))
        return self.room

    def write(self, _: int, data: bytes) -> None:
        self.room -= len(data)
        self.written += data

    def peek(self, _: int) -> list[bytes]:
        return []

    def at_end(self, _: int) -> bool:
        return False


class Case:
    """A link's channels, as the link's owner and its connection use them."""

    def __init__(self) -> None:
        self.streams = FakeStreams()
        self.connection = self  # as a link has one
        self.packer = SimpleNamespace(data_credit=1)
        self.liveness = SimpleNamespace(hearing=Hearing.HEARD)
        self.channels = LinkChannels(self)  # type: ignore[arg-type]
        self.ends: list[tuple[KKP2PError | None, bool]] = []

    def wake(self) -> None:
        pass

    def open(self) -> gevent.Greenlet[..., int]:
        opening = gevent.spawn(self.channels.open, 0, 0, 0)
        gevent.sleep(0)
        return opening

    def forget(self, stream_id: int) -> None:
        """What the connection does when a channel is over."""
        del self.streams.by_id[stream_id]
        self.channels.handle_event(e.Ended(stream_id))

    def pipe(self, stream_id: int, sock: socket.socket) -> Pipe:
        return self.channels.pipe(
            stream_id, 0, sock, lambda *end: self.ends.append(end), lambda: None
        )


@pytest.fixture
def case() -> Iterator[Case]:
    with gevent.Timeout(PATIENCE_S):
        yield Case()


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours


def test_what_the_table_does_not_list_raises_and_changes_nothing() -> None:
    for before, after in itertools.product(State, State):
        channel = LinkChannel(0, before)
        if after in _NEXT[before]:
            channel.become(after)
            assert channel.state is after
        else:
            with pytest.raises(RuntimeError):
                channel.become(after)
            assert channel.state is before


def test_a_channel_that_nobody_waits_for_is_given_up_when_the_peer_takes_it(case: Case) -> None:
    opening = case.open()
    assert not case.channels.drained.is_set()
    opening.kill()
    assert case.channels.drained.is_set()
    assert case.streams.asked == []
    case.channels.handle_event(e.ChannelOpened(0))
    assert case.streams.asked == [("reset", 0), ("stop", 0)]
    case.forget(0)
    assert len(case.channels) == 0


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (e.ChannelRefused(0, REFUSED_BUSY), CallRefused),
        (e.ChannelRefused(0, REFUSED_MOVED), LinkLost),
        (e.ChannelRefused(0, 99), CallRefused),
        (e.Ended(0), CallRefused),
    ],
)
def test_a_channel_that_the_peer_does_not_take(
    case: Case, event: e.Event, kind: type[KKP2PError]
) -> None:
    opening = case.open()
    del case.streams.by_id[0]
    case.channels.handle_event(event)
    with pytest.raises(kind):
        opening.get()
    assert len(case.channels) == 0
    assert case.channels.drained.is_set()


def test_a_channel_that_is_over_before_it_is_carried(case: Case, sock: socket.socket) -> None:
    """The peer took it and gave it up at once: whoever opened it is told when it comes for it."""
    opening = case.open()
    case.channels.handle_event(e.ChannelOpened(0))
    case.channels.handle_event(e.ResetReceived(0, 0))
    case.forget(0)
    assert opening.get() == 0
    assert len(case.channels) == 1
    case.pipe(0, sock)
    (end,) = case.ends
    assert isinstance(end[0], LinkLost)
    assert len(case.channels) == 0


@pytest.mark.parametrize("is_over", [False, True])
def test_a_channel_that_nobody_comes_for(
    monkeypatch: pytest.MonkeyPatch, case: Case, is_over: bool
) -> None:
    opening = case.open()
    case.channels.handle_event(e.ChannelOpened(0))
    opening.get()
    case.channels.sweep()
    assert case.streams.asked == []
    if is_over:
        case.forget(0)
    monkeypatch.setattr(link_channels, "UNUSED_S", 0)
    case.channels.sweep()
    case.channels.sweep()
    assert case.streams.asked == ([] if is_over else [("reset", 0), ("stop", 0)])
    assert len(case.channels) == (0 if is_over else 1)


@pytest.mark.parametrize("is_carried", [False, True])
def test_only_a_standstill_ends_a_channel_that_was_closed(
    monkeypatch: pytest.MonkeyPatch, case: Case, sock: socket.socket, is_carried: bool
) -> None:
    """On a slow path the rest may take minutes, whether the socket is empty by then or not."""
    send = SimpleNamespace(acked_bytes=0, sendable=lambda credit: waits_for_path)
    waits_for_path = False
    case.channels.offer(1)
    case.streams.by_id[1] = SimpleNamespace(send=send)
    pipe = case.pipe(1, sock)
    case.channels.accept(1)
    monkeypatch.setattr(link_channels, "STANDSTILL_S", 0)
    case.channels.sweep()  # a channel in use may stand still
    if is_carried:
        pipe.application_closed()
    else:
        case.channels.handle_event(e.Stopped(1))
        case.channels.handle_event(e.ResetReceived(1, 0))
    case.streams.asked.clear()
    for send.acked_bytes in 1000, 2000:
        case.channels.sweep()
    waits_for_path = True  # which carries other channels meanwhile
    case.channels.sweep()
    waits_for_path = False
    case.streams.line = {1: None}
    case.channels.sweep()
    case.streams.line = {}
    case.liveness.hearing = Hearing.SUSPECTED
    case.channels.sweep()  # a cut path is not the peer's fault
    assert case.streams.asked == []
    case.liveness.hearing = Hearing.WAITING
    waits_for_path = True
    case.packer.data_credit = 0
    case.streams.credited_at = math.inf
    case.channels.sweep()  # others may have used it up for the moment
    assert case.streams.asked == []
    case.streams.credited_at = -math.inf  # the peer gives none
    case.channels.sweep()
    assert case.streams.asked == [("reset", 1), ("stop", 1)]
    assert len(case.ends) == 1


def test_a_channel_is_kept_until_what_was_written_has_arrived(
    case: Case, sock: socket.socket
) -> None:
    case.channels.offer(1)
    case.streams.by_id[1] = object()
    case.pipe(1, sock)
    case.channels.accept(1)
    assert case.channels.carried
    case.channels.handle_event(e.Stopped(1))
    case.channels.handle_event(e.ResetReceived(1, 0))
    assert len(case.ends) == 1
    assert not case.channels.carried
    assert not case.channels.drained.is_set()
    case.forget(1)
    assert len(case.channels) == 0
    assert case.channels.drained.is_set()


@pytest.mark.parametrize("ended_first", [False, True])
def test_a_channel_that_the_connection_forgets_while_it_is_carried(
    case: Case, sock: socket.socket, ended_first: bool
) -> None:
    case.channels.offer(1)
    case.streams.by_id[1] = object()
    case.pipe(1, sock)
    case.channels.accept(1)
    del case.streams.by_id[1]
    events = [e.ResetReceived(1, 0), e.Ended(1)]
    for event in events[::-1] if ended_first else events:
        case.channels.handle_event(event)
    assert len(case.ends) == 1
    assert len(case.channels) == 0
    assert case.channels.drained.is_set()


def test_a_channel_that_cannot_be_carried_is_refused(case: Case) -> None:
    case.channels.offer(1)
    case.streams.by_id[1] = object()
    case.channels.give_up(1)  # by whoever had no descriptor for it
    case.channels.refuse(1, REFUSED_BUSY)
    assert case.streams.asked == [("refuse", 1, REFUSED_BUSY)]
    assert len(case.channels) == 0


def test_the_end_of_the_link_is_told_to_all(case: Case, sock: socket.socket) -> None:
    opening, carried, taken = case.open(), case.open(), case.open()
    for stream_id in (2, 4):
        case.channels.handle_event(e.ChannelOpened(stream_id))
    case.pipe(carried.get(), sock)
    error = LinkLost("silent")
    case.channels.handle_closed(error)
    with pytest.raises(LinkLost):
        opening.get()
    assert case.ends == [(error, True)]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        case.pipe(taken.get(), ours)
    assert case.ends == 2 * [(error, True)]
    with pytest.raises(LinkLost):
        case.channels.open(0, 0, 0)
    assert case.channels.drained.is_set()


def test_a_socket_is_not_looked_at_while_there_is_no_room(case: Case) -> None:
    opening = case.open()
    case.channels.handle_event(e.ChannelOpened(0))
    assert opening.get() == 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        case.streams.room = 3
        case.pipe(0, ours)
        theirs.send(b"123456789")
        while not case.streams.written:
            gevent.sleep(0.001)
        asked = len(case.streams.asked)
        gevent.sleep(0.02)
        assert len(case.streams.asked) == asked
        assert case.streams.written == b"123"
        case.streams.room = 10
        case.channels.handle_event(e.Writable(0))
        assert case.streams.written == b"123456789"
        theirs.send(b"x")  # there is room left, so it is looked at again
        while not case.streams.written.endswith(b"x"):
            gevent.sleep(0.001)
        case.channels.handle_closed(LinkLost("over"))


def offer_given_up(case: Case) -> None:
    """By the peer, both ways, before we have answered."""
    case.streams.by_id[1] = object()
    case.channels.offer(1)
    case.channels.handle_event(e.Stopped(1))
    case.channels.handle_event(e.ResetReceived(1, 0))
    case.forget(1)


def test_an_offer_that_is_given_up_before_it_is_taken(case: Case, sock: socket.socket) -> None:
    offer_given_up(case)
    case.channels.accept(1)
    assert case.streams.asked == []
    case.pipe(1, sock)
    ((error, is_cut),) = case.ends
    assert (type(error), is_cut) == (LinkLost, True)
    assert len(case.channels) == 0


def test_an_offer_that_is_given_up_before_it_is_refused(case: Case) -> None:
    offer_given_up(case)
    case.channels.refuse(1, REFUSED_BUSY)
    assert case.streams.asked == []
    assert len(case.channels) == 0


def test_an_offer_whose_link_breaks_before_it_is_taken(case: Case, sock: socket.socket) -> None:
    case.streams.by_id[1] = object()
    case.channels.offer(1)
    error = LinkLost("gone")
    case.channels.handle_closed(error)
    case.channels.accept(1)
    assert case.streams.asked == []
    case.pipe(1, sock)
    assert case.ends == [(error, True)]
