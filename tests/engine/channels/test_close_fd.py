"""The ends of a channel's descriptor, without a cloud: copies of it, and numbers used again."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent import socket as gsocket

import kkp2p_compat as kkp2p
from helpers.cloud_client import tcp_pair
from helpers.line_server import wait_for
from kkp2p_compat.engine.channels.descriptors import DESCRIPTORS
from kkp2p_compat.engine.channels.kinds import Channel
from kkp2p_compat.engine.links.streams import SplicedStream

Make = Callable[[], tuple[kkp2p.channel_t, gsocket.socket]]


@pytest.fixture
def make(lone_engine: kkp2p.engine_t) -> Make:
    """A channel of an engine, and the peer's end of its connection."""

    def make() -> tuple[kkp2p.channel_t, gsocket.socket]:
        ours, theirs = tcp_pair()
        fd = ours.detach()

        def in_engine() -> Channel:
            sock = gsocket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
            return lone_engine.channels.open(SplicedStream(sock, 7), "bob")

        channel = kkp2p.channel_t()
        lone_engine.thread.call(in_engine).describe(channel)
        return channel, theirs

    return make


def rest_of(sock: gsocket.socket) -> bytes:
    """What the peer is sent until the end of the stream; it must be an orderly one."""
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


@pytest.mark.parametrize("close", ["close_fd", "close_channel", "both"])
def test_copies_of_the_descriptor_do_not_hold_up_its_end(
    make: Make, lone_engine: kkp2p.engine_t, close: str
) -> None:
    """Such as a forked child has them."""
    channel, theirs = make()
    copy = os.dup(channel.fd)
    assert kkp2p.write(channel.fd, b"last words", 10, 0) == 10
    if close != "close_fd":
        kkp2p.close_channel(lone_engine, channel.channel_id)
    if close != "close_channel":
        kkp2p.close_fd(channel.fd)
    assert rest_of(theirs) == b"last words"
    theirs.close()
    while kkp2p.write(copy, b"x", 1, 0) > 0:
        gevent.sleep(0.001)
    assert kkp2p.read(copy, bytearray(9), 9, 20_000) == -1
    wait_for(lambda: not lone_engine.channels)
    os.close(copy)
    if close == "close_channel":
        kkp2p.close_fd(channel.fd)


def test_epoll_forgets_a_channel_that_the_peer_has_ended(make: Make) -> None:
    """What was written before still arrives, though no copy is left that could see to it."""
    channel, theirs = make()
    data = os.urandom(8 << 20)
    written = kkp2p.write(channel.fd, data, len(data), 0)  # what the kernel takes
    theirs.shutdown(socket.SHUT_WR)
    assert kkp2p.read(channel.fd, bytearray(9), 9, 20_000) == -1
    with select.epoll() as poll:
        poll.register(channel.fd, select.EPOLLOUT)
        watched = Path(f"/proc/self/fdinfo/{poll.fileno()}")
        assert "tfd:" in watched.read_text()
        kkp2p.close_fd(channel.fd)
        assert "tfd:" not in watched.read_text()
    assert rest_of(theirs) == data[:written]
    theirs.close()


def test_close_fd_twice_leaves_alone_who_has_the_number_now(make: Make) -> None:
    channel, theirs = make()
    kkp2p.close_fd(channel.fd)
    null = os.open("/dev/null", os.O_RDWR)
    if null != channel.fd:
        os.dup2(null, channel.fd)
        os.close(null)
    kkp2p.close_fd(channel.fd)
    assert kkp2p.error_no() == -106
    os.close(channel.fd)  # fails if it was closed
    theirs.close()


def test_a_number_that_the_application_gave_to_another_file(
    make: Make, lone_engine: kkp2p.engine_t
) -> None:
    channel, theirs = make()
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, channel.fd)
    kkp2p.close_fd(channel.fd)
    assert kkp2p.error_no() == -106
    assert os.fstat(channel.fd)
    for fd in (null, channel.fd):
        os.close(fd)
    theirs.close()
    kkp2p.close_channel(lone_engine, channel.channel_id)
    wait_for(lambda: lone_engine.thread.call(sweep, lone_engine))


def sweep(engine: kkp2p.engine_t) -> bool:
    engine.channels.sweep()
    return not engine.channels


def test_a_channel_that_nobody_took(lone_engine: kkp2p.engine_t, make: Make) -> None:
    channel, theirs = make()
    channels = lone_engine.channels
    lone_engine.thread.call(channels.discard, channels[channel.channel_id])
    with pytest.raises(ConnectionResetError):  # it must not look like a short answer
        rest_of(theirs)
    kkp2p.close_fd(channel.fd)
    assert kkp2p.error_no() == -106
    theirs.close()
    wait_for(lambda: not lone_engine.channels)


def test_closed_after_its_engine(make: Make, lone_engine: kkp2p.engine_t) -> None:
    channel, theirs = make()
    reading = gevent.spawn(rest_of, theirs)
    kkp2p.write(channel.fd, b"last words", 10, 0)
    kkp2p.engine_destroy(lone_engine)
    assert reading.get() == b"last words"
    assert kkp2p.read(channel.fd, bytearray(9), 9, 20_000) == -1
    kkp2p.close_fd(channel.fd)
    assert kkp2p.error_no() == 0
    theirs.close()
    assert DESCRIPTORS.find(channel.fd) is None


@pytest.fixture
def raw(lone_engine: kkp2p.engine_t) -> tuple[Channel, gsocket.socket]:
    ours, theirs = tcp_pair()
    fd = ours.detach()

    def in_engine() -> Channel:
        sock = gsocket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
        return lone_engine.channels.open(SplicedStream(sock, 0), "bob")

    return lone_engine.thread.call(in_engine), theirs


def test_a_number_that_changes_hands_while_it_is_duplicated(
    raw: tuple[Channel, gsocket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In engine_destroy, say, while another thread closes the descriptor and opens a file."""
    channel, theirs = raw
    other = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    monkeypatch.setattr(Channel, "owns_fd", lambda self: True)  # it was, a moment ago
    os.dup2(other, channel.fd)
    assert channel.duplicate_fd() is None
    os.close(channel.fd)
    assert channel.duplicate_fd() is None
    os.close(other)
    theirs.close()


def test_a_descriptor_that_the_application_closed_is_forgotten(
    raw: tuple[Channel, gsocket.socket], lone_engine: kkp2p.engine_t
) -> None:
    channel, theirs = raw
    os.close(channel.fd)
    lone_engine.thread.call(channel.sweep)
    wait_for(lambda: not lone_engine.channels)
    assert DESCRIPTORS.find(channel.fd) is not channel
    theirs.close()


def test_a_descriptor_that_another_process_has(make: Make, lone_engine: kkp2p.engine_t) -> None:
    """The engine keeps no copy, and forgets the channel; what comes back is closed in order."""
    channel, theirs = make()
    copy = os.dup(channel.fd)  # the other process's
    DESCRIPTORS.lend(channel.fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(channel.fd)
    wait_for(lambda: channel.channel_id not in lone_engine.channels)
    assert kkp2p.write(copy, b"last words", 10, 0) == 10
    theirs.sendall(b"is never read")  # so that a mere close would be a reset
    lone_engine.linger(copy)
    assert rest_of(theirs) == b"last words"
    theirs.close()
    wait_for(lambda: not lone_engine.busy())


def test_what_comes_back_too_late_is_closed(make: Make, lone_engine: kkp2p.engine_t) -> None:
    channel, theirs = make()
    copy = os.dup(channel.fd)
    DESCRIPTORS.lend(channel.fd)
    kkp2p.engine_destroy(lone_engine)
    lone_engine.linger(copy)
    assert theirs.recv(1) == b""
    theirs.close()
