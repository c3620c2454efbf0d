"""What peers open, on its way into ``accept``: who gets a place, and what the others see."""

from __future__ import annotations

import logging
from typing import TypeVar

import pytest
from gevent import socket

import kkp2p_compat as kkp2p
from helpers.cloud_client import tcp_pair
from kkp2p_compat._errors import CallRefused, OutOfDescriptors
from kkp2p_compat.engine.channels import table
from kkp2p_compat.engine.channels.acceptor import Acceptor
from kkp2p_compat.engine.channels.table import ChannelTable
from kkp2p_compat.engine.links.background import Background
from kkp2p_compat.engine.links.streams import SplicedStream

T = TypeVar("T")


class World:
    """An acceptor with one place, in an engine's thread."""

    def __init__(self, engine: kkp2p.engine_t) -> None:
        self.call = engine.thread.call
        log = logging.getLogger("acceptor")
        self.background = Background(engine.thread, log)
        self.channels = ChannelTable(self.background)
        self.acceptor = self.call(Acceptor, self.channels, 1, log)

    def take(self) -> socket.socket:
        """A stream that alice has opened; returns her end."""
        ours, theirs = tcp_pair()
        fd = ours.detach()

        def in_engine() -> None:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
            self.acceptor.take(SplicedStream(sock, 7), "bob", "alice", "'alice'")

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
