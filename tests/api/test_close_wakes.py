"""close_fd while others wait on the descriptor, and numbers that have changed hands."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import monkey
from OpenSSL import SSL

import kkp2p_compat as kkp2p
from helpers.support import PATIENCE_S, read_all, write_all
from kkp2p_compat import _descriptors, _io, tls

LONG = PATIENCE_S * 1000
KINDS = {"direct": (1, 0, 0), "plain": (2, 0, 0), "encrypted": (2, 1, 0), "messages": (1, 0, 1)}
Pair = tuple[kkp2p.channel_t, kkp2p.channel_t]
MakePair = Callable[..., Pair]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, make_pair: MakePair) -> Callable[[], Pair]:
    mode, encrypt, kind = KINDS[request.param]
    return lambda: make_pair(mode=mode, encrypt=encrypt, kind=kind)


class InGreenlet:
    """Runs a function; ``result`` waits for what it returns."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._greenlet = gevent.spawn(function)

    def result(self) -> Any:
        return self._greenlet.get(timeout=PATIENCE_S / 2)


class InThread(InGreenlet):
    """In a native thread that has no hub."""

    def __init__(self, function: Callable[[], Any]) -> None:
        ended = _io.Signal()
        results: list[Any] = []
        start: Any = monkey.get_original("_thread", "start_new_thread")
        start(lambda: (results.append(function()), ended.set()), ())

        def wait() -> Any:
            try:
                ended.wait()
            finally:
                ended.close()
            return results[0]

        super().__init__(wait)


@pytest.fixture(params=[InGreenlet, InThread])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], InGreenlet]:
    return request.param  # type: ignore[no-any-return]


def wait_until_waited_for(fd: int, count: int = 1) -> None:
    with gevent.Timeout(PATIENCE_S):
        while len(_descriptors._waiters.get(fd, ())) < count:
            gevent.sleep(0.001)


def fill(fd: int) -> None:
    while kkp2p.write(fd, bytes(4096), 4096, 0) > 0:
        pass


@pytest.mark.parametrize("close", [kkp2p.close_fd, kkp2p.abort_fd])
def test_readers_are_told_at_once(
    make: Callable[[], Pair], run: Callable[..., InGreenlet], close: Callable[[int], object]
) -> None:
    ours, theirs = make()
    readers = [run(lambda: kkp2p.read(ours.fd, bytearray(9), 9, LONG)) for _ in range(2)]
    wait_until_waited_for(ours.fd, 2)
    close(ours.fd)
    others = make()
    assert os.fstat(ours.fd)  # somebody has the number again
    for channel in others:
        write_all(channel.fd, b"not yours")
    assert [reader.result() for reader in readers] == [-1, -1]
    assert not _descriptors._waiters
    assert kkp2p.read(theirs.fd, bytearray(9), 9, LONG) == -1
    for channel in others:
        buff = bytearray(9)
        assert kkp2p.read(channel.fd, buff, 9, LONG) == 9
        assert buff == b"not yours"


def test_an_interrupted_abort_closes_and_cuts_all_the_same(make: Callable[[], Pair]) -> None:
    ours, theirs = make()
    before = os.fstat(ours.fd)
    with contextlib.suppress(gevent.Timeout), gevent.Timeout(0):
        kkp2p.abort_fd(ours.fd)
    with contextlib.suppress(OSError):  # unless somebody has the number again
        assert not os.path.samestat(os.fstat(ours.fd), before)
    assert kkp2p.read(theirs.fd, bytearray(9), 9, LONG) == -1
    assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_CONN_DISCONNECT, kkp2p.error_text()


def test_a_writer_that_waits_for_room_is_told_at_once(
    make_pair: MakePair, run: Callable[..., InGreenlet]
) -> None:
    ours, _ = make_pair(mode=2)
    with socket.socket(fileno=os.dup(ours.fd)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    fill(ours.fd)  # and may go on when the relay has taken some
    results: list[int] = []

    def write() -> None:
        while not results or results[-1] >= 0:
            results.append(kkp2p.write(ours.fd, bytes(65536), 65536, LONG))

    writer = run(write)
    wait_until_waited_for(ours.fd)
    kkp2p.close_fd(ours.fd)
    writer.result()
    assert results[-1] == -1


@pytest.mark.parametrize("encrypt", [0, 1])
def test_tls_is_bound_to_the_channel_and_not_to_its_number(
    make_pair: MakePair, run: Callable[..., InGreenlet], encrypt: int
) -> None:
    ours, _ = make_pair(encrypt=encrypt)
    connection = tls.Connection(SSL.Context(SSL.TLS_METHOD), ours.fd)
    handshake = run(lambda: (connection.connect(timeout=LONG), connection.get_error(-1)))
    wait_until_waited_for(ours.fd)
    kkp2p.close_fd(ours.fd)
    others = make_pair(encrypt=encrypt)
    for channel in others:
        write_all(channel.fd, b"not yours")
    assert handshake.result() == (-1, tls.SSL_ERROR_SYSCALL)
    assert connection.connect(timeout=LONG) == -1
    connection.free()
    for channel in others:
        buff = bytearray(99)
        assert kkp2p.read(channel.fd, buff, 99, LONG) == 9
        assert buff[:9] == b"not yours"


def test_a_closed_number_never_leads_to_an_engine_s_own_socket(
    make: Callable[[], Pair], lone_engine: kkp2p.engine_t
) -> None:
    """Whichever numbers a stale loop asks for: what the engines have open is not for it."""
    ours, theirs = make()
    channels = {ours.fd, theirs.fd}
    taken = [int(name) for name in os.listdir("/proc/self/fd")]
    for fd in set(taken) - channels:
        if _descriptors.is_private(fd):
            assert kkp2p.read(fd, bytearray(99), 99, 0) == -1
            assert kkp2p.write(fd, b"x", 1, 0) == -1
    write_all(ours.fd, b"all there")
    buff = bytearray(9)
    assert kkp2p.read(theirs.fd, buff, 9, LONG) == 9
    assert buff == b"all there"


def test_engines_mark_every_socket_of_their_own(
    make: Callable[[], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that read and write would work on: what is open afterwards, and no channel's."""
    before = set(os.listdir("/proc/self/fd"))
    ours, theirs = make()
    for name in set(os.listdir("/proc/self/fd")) - before:
        fd = int(name)
        try:
            is_socket = os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
        except FileNotFoundError:
            continue  # the folder's own, or just closed
        assert not is_socket or fd in (ours.fd, theirs.fd) or _descriptors.is_private(fd), fd


def test_a_socket_of_the_application_s_own_is_its_own(make_pair: MakePair) -> None:
    """Also where its number was a channel's, or an engine's, before."""
    ours, theirs = make_pair(mode=1)
    fds = ours.fd, theirs.fd
    for fd in fds:
        kkp2p.close_fd(fd)
    ends = socket.socketpair()
    assert {end.fileno() for end in ends} & set(fds)
    for end in ends:
        end.setblocking(False)
    write_all(ends[0].fileno(), b"mine")
    ends[0].shutdown(socket.SHUT_WR)
    assert read_all(ends[1].fileno()) == b"mine"
    for end in ends:
        end.close()


@pytest.fixture
def no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(_io.os, "pipe", refuse)


def test_a_native_reader_without_a_free_descriptor(make_pair: MakePair, no_pipe: None) -> None:
    """It cannot be woken, so it looks again and again."""
    ours, _ = make_pair(mode=1)
    started = _io.Signal()
    reader = InThread(lambda: (started.set(), kkp2p.read(ours.fd, bytearray(9), 9, LONG))[1])
    started.wait()
    started.close()
    kkp2p.close_fd(ours.fd)
    assert reader.result() == -1
