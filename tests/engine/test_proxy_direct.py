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
from kkp2p_compat.engine.links import link_table
from kkp2p_compat.engine.links.peer_link import PeerLink
from kkp2p_compat.engine.proxy import tcp_proxy

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
        link_table,
        "TransportSettings",
        functools.partial(link_table.TransportSettings, idle_timeout_s=0.5, keepalive_s=0.1),
    )


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
        monkeypatch.setattr(tcp_proxy, "_socket", socket)
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


def answers(sock: socket.socket, fd: int) -> bool:
    """Whether a program and the peer's application are the two ends of one stream."""
    sock.sendall(b"ask")
    buff = bytearray(3)
    return kkp2p.read(fd, buff, 3, LONG) == 3 and kkp2p.write(fd, buff, 3, LONG) == 3 == len(
        sock.recv(3, _socket.MSG_WAITALL)
    )


def test_a_burst_of_programs(
    monkeypatch: pytest.MonkeyPatch, dial: Dial, address: Address, peer: kkp2p.engine_t
) -> None:
    """More than are accepted in one turn, before the link is there and after."""
    monkeypatch.setattr(tcp_proxy, "ACCEPTS_PER_TURN", 2)
    for _ in range(2):
        programs = [socket.create_connection(address) for _ in range(9)]
        for program in programs:
            program.sendall(b"%d" % program.getsockname()[1])
        told = []
        for _ in programs:
            fd, buff = accept(peer).fd, bytearray(5)
            told.append(bytes(buff[: kkp2p.read(fd, buff, 5, LONG)]))
            kkp2p.close_fd(fd)
        assert sorted(told) == sorted(b"%d" % one.getsockname()[1] for one in programs)
        for program in programs:
            assert program.recv(1) == b""
            program.close()


@pytest.mark.tuned(accept_queue_places=1)
def test_refused_on_a_live_link(dial: Dial, address: Address, peer: kkp2p.engine_t) -> None:
    """The one program is told; others are not touched, and the next one gets on."""
    first = dial()
    with socket.create_connection(address) as waiting:
        gevent.socket.wait_read(kkp2p.listen_fd(peer), timeout=PATIENCE_S)
        with (
            gevent.Timeout(PATIENCE_S),
            pytest.raises(ConnectionResetError),
            socket.create_connection(address) as refused,
        ):
            refused.recv(1)
        fd = accept(peer).fd
        assert answers(waiting, fd)
        kkp2p.close_fd(fd)
    assert answers(*first)
    assert answers(*dial())


def with_early_bytes(engine: kkp2p.engine_t, address: Address, data: bytes) -> socket.socket:
    """A program that has written before the engine, whose thread this keeps, sees it."""

    def connect() -> int:
        with _socket.create_connection(address) as program:
            program.sendall(data)
            return os.dup(program.fileno())

    return socket.socket(fileno=engine.thread.call(connect))


@pytest.mark.parametrize("size", [1, 400, 401, 100_000])
def test_what_a_program_has_written_by_then(
    dial: Dial, address: Address, engine: kkp2p.engine_t, peer: kkp2p.engine_t, size: int
) -> None:
    """It goes along with the request for a channel, and arrives once."""
    dial()
    data = os.urandom(size)
    with with_early_bytes(engine, address, data) as program:
        fd = accept(peer).fd
        program.sendall(b"more")
        program.shutdown(_socket.SHUT_WR)
        assert read_all(fd) == data + b"more"
        write_all(fd, b"answer")
        kkp2p.close_fd(fd)
        assert receive_all(program) == b"answer"
    (link,) = links(peer)
    until(lambda: len(link.channels) == 1)


@pytest.mark.parametrize("data", [b"", b"request"])
def test_a_program_that_resets_at_once(
    dial: Dial, address: Address, engine: kkp2p.engine_t, peer: kkp2p.engine_t, data: bytes
) -> None:
    """It asks for nothing; or what it asks is cut, not ended."""
    first = dial()

    def connect_and_reset() -> None:
        with _socket.create_connection(address) as program:
            program.sendall(data)
            program.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, RESET_ON_CLOSE)

    engine.thread.call(connect_and_reset)
    if data:
        fd = accept(peer).fd
        assert read_all(fd) in (b"", data)
        assert kkp2p.error_no() == -107
        kkp2p.close_fd(fd)
    assert answers(*dial())
    assert answers(*first)


Offers = list[Callable[[], object]]


def deaf(engine: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch) -> Offers:
    """The callee's end of the only link does not answer any more when a channel is opened.

    What is returned makes it answer after all, in its engine's thread.
    """
    (link,) = links(engine)
    answer, held = link._on_offered, []
    monkeypatch.setattr(link, "_on_offered", lambda *offered: held.append(lambda: answer(*offered)))
    return held


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no peer acknowledged a request for a channel."""
    monkeypatch.setattr(PeerLink, "has_heard", lambda *_: False)


def check_arrives(peer: kkp2p.engine_t, program: socket.socket) -> None:
    """The request, and what the program sends after it."""
    fd, buff = accept(peer).fd, bytearray(9)
    assert kkp2p.read(fd, buff, 9, LONG) == 5
    assert answers(program, fd)
    kkp2p.close_fd(fd)


def nobody_waits(engine: kkp2p.engine_t) -> bool:
    """To be accepted."""
    return kkp2p.accept(engine, 0, kkp2p.channel_t()) == 0


@pytest.mark.tuned(reuse_s=0.05)
def test_a_live_link_that_takes_no_channel(
    silent: None,
    monkeypatch: pytest.MonkeyPatch,
    dial: Dial,
    engine: kkp2p.engine_t,
    peer: kkp2p.engine_t,
) -> None:
    """The peer is called again; who was connected before goes on."""
    first = dial()
    deaf(peer, monkeypatch)
    assert answers(*dial())
    assert len(links(engine)) == 2
    assert answers(*first)
    assert answers(*dial())
    assert len(links(engine)) == 2


@pytest.mark.tuned(reuse_s=0.05)
def test_a_request_that_waits_for_a_silent_link(
    silent: None,
    monkeypatch: pytest.MonkeyPatch,
    dial: Dial,
    address: Address,
    engine: kkp2p.engine_t,
    peer: kkp2p.engine_t,
) -> None:
    """It is not sent again, even where others have got another link."""
    dial()
    held = deaf(peer, monkeypatch)
    with with_early_bytes(engine, address, b"early") as program:
        until(lambda: held and engine.dialer.remote("peer", 1).link is None)
        dial()
        assert len(links(engine)) == 2
        assert nobody_waits(peer)
        peer.thread.call(held[0])
        check_arrives(peer, program)
    assert nobody_waits(peer)


@pytest.mark.tuned(reuse_s=0.05)
@pytest.mark.parametrize("how", ["the deadline", "the link's end"])
def test_a_request_without_an_answer_is_not_sent_again(
    silent: None,
    monkeypatch: pytest.MonkeyPatch,
    dial: Dial,
    address: Address,
    engine: kkp2p.engine_t,
    peer: kkp2p.engine_t,
    how: str,
) -> None:
    """The peer may have got it, and may carry it out: the program is told, and decides."""
    dial()
    held = deaf(peer, monkeypatch)
    if how == "the deadline":
        engine.switchboard.proxies.find(1).ctx.timeout = 200
    with gevent.Timeout(PATIENCE_S), with_early_bytes(engine, address, b"early") as program:
        until(lambda: held)
        if how == "the link's end":
            peer.thread.call(links(peer)[0].close, "a test")
        with pytest.raises(ConnectionResetError):
            program.recv(1)
    assert nobody_waits(peer)
    assert not engine.dialer.busy


def test_a_request_to_a_peer_that_is_elsewhere(
    dial: Dial, address: Address, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """Where it was sent first nobody got it: it goes to where the peer is now."""
    dial()
    (old,) = links(peer)
    old.retired = True
    with with_early_bytes(engine, address, b"early") as program:
        check_arrives(peer, program)
    assert len(links(engine)) == 2
    assert nobody_waits(peer)


@pytest.mark.tuned(reuse_s=10 * PATIENCE_S)
def test_stopped_while_the_peer_is_asked(
    monkeypatch: pytest.MonkeyPatch,
    dial: Dial,
    address: Address,
    engine: kkp2p.engine_t,
    peer: kkp2p.engine_t,
) -> None:
    dial()
    deaf(peer, monkeypatch)
    (link,) = links(engine)
    with gevent.Timeout(PATIENCE_S), socket.create_connection(address) as program:
        until(lambda: len(link.channels) == 2)
        kkp2p.stop_proxy(engine, 1)
        assert kkp2p.proxy_address(engine, 1) is None
        with pytest.raises(ConnectionResetError):
            program.recv(1)


def test_the_engine_has_no_descriptor_left(
    monkeypatch: pytest.MonkeyPatch,
    dial: Dial,
    address: Address,
    engine: kkp2p.engine_t,
    peer: kkp2p.engine_t,
) -> None:
    """The program waits until there is one."""
    dial()
    left = [OSError(24, "Too many open files"), OSError(103, "Software caused connection abort")]
    (one,) = engine.switchboard.proxies._by_id.values()
    accept_one = one._listener.accept

    def failing() -> object:
        if left:
            raise left.pop(0)
        return accept_one()

    monkeypatch.setattr(one._listener, "accept", failing)
    with gevent.Timeout(PATIENCE_S), socket.create_connection(address) as program:
        fd = accept(peer).fd
        assert answers(program, fd)
        kkp2p.close_fd(fd)
    assert not left


def test_a_link_that_breaks(
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    dial: Dial,
    engine: kkp2p.engine_t,
    peer: kkp2p.engine_t,
) -> None:
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
    impatient: None,
    address: Address,
    cloud: CloudProcess,
    start_program: Callable[..., Program],
    engine: kkp2p.engine_t,
) -> None:
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
