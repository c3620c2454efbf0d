"""Closing TCP connections in the background: at once where the other side ends, too."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from helpers.cloud_client import tcp_pair
from helpers.direct_support import until
from helpers.support import PATIENCE_S
from kkp2p_compat.engine.links.background import Background
from kkp2p_compat.transport import tcp


class Thread:
    """What is used of an EngineThread."""

    def __init__(self) -> None:
        self.spawned = 0

    def spawn(self, function: Any, *args: Any) -> Any:
        self.spawned += 1
        return gevent.spawn(function, *args)


@pytest.fixture
def thread() -> Thread:
    return Thread()


@pytest.fixture
def background(thread: Thread) -> Iterator[Background]:
    background = Background(thread, logging.getLogger("background"))  # type: ignore[arg-type]
    yield background
    background.kill()
    assert not background.busy


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    ours, theirs = tcp_pair()
    with ours, theirs, gevent.Timeout(PATIENCE_S):
        yield ours, theirs


def test_the_other_side_ends_soon(
    background: Background, thread: Thread, pair: tuple[Any, Any]
) -> None:
    ours, theirs = pair
    ours.sendall(b"the last")
    background.linger(ours)
    assert background.busy
    assert theirs.recv(100) == b"the last"
    assert theirs.recv(1) == b""
    theirs.sendall(b"nobody reads this")
    theirs.close()
    until(lambda: ours.fileno() < 0)
    assert not background.busy
    assert not thread.spawned


def test_the_other_side_has_ended(background: Background, pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    ours.shutdown(socket.SHUT_WR)
    theirs.close()
    until(lambda: tcp.ended(ours))
    background.linger(ours)
    assert ours.fileno() < 0
    assert not background.busy


def test_the_other_side_resets(background: Background, pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    background.linger(ours)
    assert background.busy
    tcp.abort(theirs)
    until(lambda: ours.fileno() < 0)
    assert not background.busy


def test_the_other_side_does_not_end(
    monkeypatch: pytest.MonkeyPatch, background: Background, thread: Thread, pair: tuple[Any, Any]
) -> None:
    """It has all that was written, so we need not wait for it."""
    monkeypatch.setattr(tcp, "GRACE_S", 0.01)
    ours, theirs = pair
    ours.sendall(b"the last")
    background.linger(ours)
    until(lambda: ours.fileno() < 0)
    assert thread.spawned == 1
    assert theirs.recv(100) == b"the last"
    assert theirs.recv(1) == b""


def test_our_side_had_stopped_reading(
    background: Background, thread: Thread, pair: tuple[Any, Any]
) -> None:
    """Then it reads an end that is not the other side's."""
    ours, theirs = pair
    ours.shutdown(socket.SHUT_RD)
    ours.sendall(b"the last")
    background.linger(ours)
    until(lambda: ours.fileno() < 0)
    assert thread.spawned == 1
    assert theirs.recv(100) == b"the last"


def test_drain_waits_for_those_that_take_their_time(
    background: Background, pair: tuple[Any, Any]
) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    written = 0
    with contextlib.suppress(BlockingIOError):  # now both kernels hold all that they take
        while True:
            written += ours.send(bytes(1 << 16))
    background.linger(ours)
    draining = gevent.spawn(background.drain)
    read = len(b"".join(iter(lambda: theirs.recv(1 << 20), b"")))
    draining.get()
    assert read == written
    assert ours.fileno() < 0
