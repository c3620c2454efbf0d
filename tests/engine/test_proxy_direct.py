"""Proxies over direct connections: what TCP programs see of ends, resets and links that break.

What they have in common with relayed ones: test_proxy.py and channels/test_streams.py.
"""

from __future__ import annotations

import ctypes
import functools
import os
import socket as _socket
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import socket

import kkp2p_compat as kkp2p
from helpers.direct_support import LONG, accept, links, settled, until
from helpers.support import PATIENCE_S, SECRET, CloudProcess, Program, read_all, write_all
from kkp2p_compat.engine import proxy
from kkp2p_compat.engine.links import link_table

Address = tuple[str, int]
Dial = Callable[[], tuple[socket.socket, int]]

pytestmark = pytest.mark.usefixtures("on_loopback")

RESET_ON_CLOSE = b"\1\0\0\0\0\0\0\0"  # struct linger: on, for 0 s


@pytest.fixture
def address(engine: kkp2p.engine_t) -> Address:
    """Where a proxy to "peer" listens."""
    proxy_id = ctypes.c_uint32()
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=1, timeout=LONG)
    assert kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx, proxy_id) == 0
    found = kkp2p.proxy_address(engine, proxy_id)
    assert found is not None
    return found


@pytest.fixture
def dial(address: Address, peer: kkp2p.engine_t) -> Iterator[Dial]:
    """A program's connection, and the descriptor that the peer accepted for it."""
    made: list[tuple[socket.socket, int]] = []

    def connect() -> tuple[socket.socket, int]:
        program = socket.create_connection(address)
        made.append((program, accept(peer).fd))
        return made[-1]

    yield connect
    for program, fd in made:
        program.close()
        kkp2p.close_fd(fd)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links that notice within half a second that the peer is gone."""
    monkeypatch.setattr(
        link_table, "TransportSettings",
        functools.partial(link_table.TransportSettings, idle_timeout_s=0.5, keepalive_s=0.1),
    )  # fmt: skip


def receive_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def test_all_connections_share_a_link(
    dial: Dial, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    pairs = [dial() for _ in range(20)]
    for number, (program, fd) in enumerate(pairs):
        program.sendall(b"%d" % number)
        program.shutdown(_socket.SHUT_WR)
        assert read_all(fd) == b"%d" % number
        kkp2p.close_fd(fd)
        assert program.recv(1) == b""
    assert len(links(engine)) == len(links(peer)) == 1
    until(lambda: settled(engine) and settled(peer))


@pytest.mark.parametrize("unsent", [0, 5_000_000])
def test_a_program_resets(dial: Dial, unsent: int) -> None:
    """The channel breaks for the peer, reading and writing; others are not touched."""
    other_program, other_fd = dial()
    program, fd = dial()
    program.sendall(b"before")
    buff = bytearray(10)
    assert kkp2p.read(fd, buff, 10, LONG) == 6
    writing = gevent.spawn(write_all, fd, bytes(unsent)) if unsent else None
    program.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, RESET_ON_CLOSE)
    program.close()
    assert read_all(fd) == b""
    with gevent.Timeout(PATIENCE_S):
        while (result := kkp2p.write(fd, b"x", 1, LONG)) == 1:
            gevent.sleep(0.01)
    assert result == -1
    if writing is not None:
        writing.join()
        assert isinstance(writing.exception, AssertionError)  # write has returned -1
    other_program.sendall(b"fine")
    assert kkp2p.read(other_fd, buff, 10, LONG) == 4


def test_a_peer_that_closes_first_while_the_program_sends(dial: Dial) -> None:
    """The peer does not care for the rest of the request; the program gets the answer all the same.

    The kernel resets a connection whose program sends after SHUT_RD and our end of stream, and
    throws away what the program has not read yet.
    """
    program, fd = dial()
    program.sendall(b"request")
    answer = os.urandom(12 << 20)  # more than the buffers on the way hold

    def serve() -> None:
        with _socket.socket(fileno=os.dup(fd)) as sock:
            sock.shutdown(_socket.SHUT_RD)
        write_all(fd, answer)
        kkp2p.close_fd(fd)

    serving = gevent.spawn(serve)
    received = bytearray()
    while more := program.recv(65536):
        received += more
        program.sendall(b"more of the request")
    serving.get()
    assert received == answer


@pytest.mark.parametrize("how", ["plain", "monkey-patched", "default time-out"])
def test_a_program_that_does_not_read_for_long(
    monkeypatch: pytest.MonkeyPatch, dial: Dial, engine: kkp2p.engine_t, how: str
) -> None:
    """Nothing waits for it in the engine's hub, whatever a new socket is like in this process."""
    dial()  # the link: what follows concerns the proxy's sockets only
    if how == "monkey-patched":
        monkeypatch.setattr(proxy, "_socket", socket)
    if how == "default time-out":
        _socket.setdefaulttimeout(0.01)
    try:
        program, fd = dial()
        program.settimeout(None)
        program.sendall(b"hello")
        assert kkp2p.read(fd, bytearray(5), 5, LONG) == 5
    finally:
        _socket.setdefaulttimeout(None)
    answer = os.urandom(12 << 20)  # more than the buffers on the way hold

    def serve() -> None:
        write_all(fd, answer)
        kkp2p.close_fd(fd)

    serving = gevent.spawn(serve)
    channels = links(engine)[0].connection.streams.by_id
    streams = [channel.receive for channel in channels.values()]
    # Its socket is full, and was asked again whenever more came.
    until(lambda: any(stream.next_offset == stream.window.limit for stream in streams))
    assert receive_all(program) == answer
    serving.get()


def test_a_link_that_breaks(
    impatient: None, monkeypatch: pytest.MonkeyPatch, dial: Dial,
    engine: kkp2p.engine_t, peer: kkp2p.engine_t,
) -> None:  # fmt: skip
    """Programs must not take it for the end of their data; the proxy lives on."""
    pairs = [dial() for _ in range(3)]
    endpoints = [one.network.underlay().endpoint for one in (engine, peer)]
    with monkeypatch.context() as broken:
        for endpoint in endpoints:
            assert endpoint is not None
            for door in endpoint._doors:
                broken.setattr(door.socket, "send", lambda data, *_: len(data))
        for program, fd in pairs:
            with pytest.raises(ConnectionResetError):
                program.recv(1)
            assert read_all(fd) == b""
        until(lambda: not links(engine) and not links(peer))
    program, fd = dial()
    program.sendall(b"again")
    buff = bytearray(10)
    assert kkp2p.read(fd, buff, 10, LONG) == 5


def test_a_peer_that_is_killed(
    impatient: None, address: Address, cloud: CloudProcess,
    start_program: Callable[..., Program], engine: kkp2p.engine_t,
) -> None:  # fmt: skip
    """SIGKILL in the middle of a transfer; the proxy works again when the peer is back."""
    for _ in range(2):
        server = start_program("server", str(cloud.port), "peer", SECRET)
        assert server.first_line == "joined"
        program = socket.create_connection(address)

        def pump(sock: socket.socket = program) -> None:
            while True:
                sock.sendall(bytes(65536))

        pumping = gevent.spawn(pump)
        assert program.recv(65536)
        server.kill()
        receiving = gevent.spawn(receive_all, program)
        gevent.joinall([pumping, receiving], timeout=PATIENCE_S)
        errors = [greenlet.exception for greenlet in (pumping, receiving)]
        # The kernel tells of a reset once: one of the two hears of it, the other of what follows.
        assert any(isinstance(error, ConnectionResetError) for error in errors), errors
        program.close()
        until(lambda: not links(engine))


def test_an_orderly_end_of_the_peers_engine(dial: Dial, peer: kkp2p.engine_t) -> None:
    program, fd = dial()
    write_all(fd, b"last words")
    kkp2p.engine_destroy(peer)
    assert program.recv(100) == b"last words"
    assert program.recv(1) == b""
