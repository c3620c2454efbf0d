"""What peers open, on its way into ``accept``: who gets a place, and what the others see."""

from __future__ import annotations

import logging
from typing import TypeVar

import pytest
from gevent import select, socket

import kkp2p_compat as kkp2p
from helpers.cloud_client import tcp_pair
from helpers.cloud_fixtures import LONG
from helpers.line_server import wait_for
from helpers.support import PATIENCE_S
from kkp2p_compat._errors import CallRefused, OutOfDescriptors
from kkp2p_compat.engine.channels import table
from kkp2p_compat.engine.channels.accept_queue import AcceptQueue
from kkp2p_compat.engine.channels.acceptor import Acceptor
from kkp2p_compat.engine.channels.table import ChannelTable
from kkp2p_compat.engine.links.background import Background
from kkp2p_compat.engine.links.streams import SplicedStream

T = TypeVar("T")


class World:
    """An acceptor with one place, in an engine's thread."""

    def __init__(self, engine: kkp2p.engine_t, patience_s: float = PATIENCE_S) -> None:
        self.call = engine.thread.call
        log = logging.getLogger("acceptor")
        self.background = Background(engine.thread, log)
        self.channels = ChannelTable(self.background)
        self.acceptor = self.call(Acceptor, self.channels, AcceptQueue(1), patience_s, log)

    def take(self) -> socket.socket:
        """A stream that alice has opened; returns her end."""
        ours, theirs = tcp_pair()
        fd = ours.detach()

        def in_engine() -> None:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
            self.acceptor.take(SplicedStream(sock, 7), "bob", "alice", "'alice'", "alice")

        self.call(in_engine)
        return theirs

    def accept(self) -> None:
        channel = self.acceptor.queue.take(0)
        assert channel is not None
        assert (channel.peer_id, channel.caller_id, channel.stream.desc) == ("bob", "alice", 7)
        self.call(self.channels.discard, channel)

    def close(self) -> None:
        self.call(self.acceptor.close)
        assert not self.channels
        self.call(self.background.kill)


@pytest.fixture
def world(lone_engine: kkp2p.engine_t) -> World:
    return World(lone_engine)


def sees_a_reset(sock: socket.socket) -> bool:
    with sock, pytest.raises(ConnectionResetError):
        sock.recv(1)
    return True


def test_who_comes_when_all_places_are_taken(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """He counts as connected, so he sees a cut; the log tells of the first one only."""
    first = world.take()
    for _ in range(2):
        assert sees_a_reset(world.take())
    told = "bob: calls are refused: the accept queue is full"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        told
    ]
    world.accept()
    assert sees_a_reset(first)
    second = world.take()  # there is room again
    assert sees_a_reset(world.take())
    assert caplog.text.count(told) == 2
    world.accept()
    second.close()
    world.close()


def test_out_of_descriptors(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The place is free again."""

    def fail(*_: object) -> None:
        raise OutOfDescriptors("none left")

    with monkeypatch.context() as patch:
        patch.setattr(table, "make_channel", fail)
        assert sees_a_reset(world.take())
    assert "bob: a channel from 'alice' failed: none left" in caplog.text
    theirs = world.take()
    world.accept()
    theirs.close()
    world.close()


def test_what_nobody_accepts(world: World) -> None:
    theirs = world.take()
    world.close()
    assert sees_a_reset(theirs)
    assert sees_a_reset(world.take())


def test_what_nobody_accepts_in_time(
    lone_engine: kkp2p.engine_t, caplog: pytest.LogCaptureFixture
) -> None:
    """Its place and its descriptors are free again, and nothing is there for ``accept``."""
    world = World(lone_engine, patience_s=0)
    for _ in range(2):
        theirs = world.take()
        (channel_id,) = world.channels
        assert len(select.select([world.acceptor.queue.fd], [], [], 0)[0]) == 1
        world.call(world.acceptor.sweep)
        assert sees_a_reset(theirs)
        assert f"bob: channel {channel_id}: cut: not accepted within 0 s" in caplog.text
        assert not world.channels
        assert not select.select([world.acceptor.queue.fd], [], [], 0)[0]
        assert world.acceptor.queue.take(0) is None
    world.close()


def test_what_has_time_left(world: World) -> None:
    theirs = world.take()
    world.call(world.acceptor.sweep)
    world.accept()
    theirs.close()
    world.close()


@pytest.mark.tuned(accept_s=0.0)
@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.usefixtures("on_loopback")
def test_a_caller_whom_nobody_accepts(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, mode: int
) -> None:
    channel = kkp2p.channel_t()
    assert kkp2p.connect(engine, kkp2p.connect_ctx_t("peer", 0, mode, 0, LONG), channel) == 0
    wait_for(lambda: peer.channels)  # the relay has told the caller first
    peer.thread.call(peer.sweep)
    assert kkp2p.read(channel.fd, bytearray(1), 1, LONG) == -1
    assert kkp2p.error_no() == -107
    assert kkp2p.accept(peer, 0, kkp2p.channel_t()) == 0
    kkp2p.close_fd(channel.fd)


@pytest.mark.parametrize("held", [True, False])
def test_a_place_for_a_call_under_way(world: World, held: bool) -> None:
    """Only one that is held keeps others out."""

    def in_engine() -> None:
        with world.acceptor.place("bob", "alice", held=held):
            if held:
                with pytest.raises(CallRefused):
                    world.acceptor.check("bob", "carol")
            else:
                world.acceptor.check("bob", "carol")
        world.acceptor.check("bob", "carol")

    world.call(in_engine)
    world.close()
