"""start_proxy and stop_proxy against real peers, directly and over a real relay."""

from __future__ import annotations

import ctypes
import hashlib
import os
import socket as _socket
import threading
from collections.abc import Callable

import gevent
import pytest
from gevent import socket

import kkp2p_compat as kkp2p
from helpers.support import PATIENCE_S, SECRET, CloudProcess, Program, forked_child
from kkp2p_compat.control import resolver

GIB = 1 << 30


# connect_mode, encrypt_data
KINDS = {"direct": (1, 0), "plain": (2, 0), "encrypted": (2, 1)}
all_kinds = pytest.mark.parametrize(("mode", "encrypt"), KINDS.values(), ids=list(KINDS))


@pytest.fixture(params=KINDS)
def proxied(
    request: pytest.FixtureRequest, cloud: CloudProcess, start_program: Callable[..., Program]
) -> tuple[int, list[Program]]:
    """The port of a proxy to an echoing peer, all real processes."""
    server = start_program("server", str(cloud.port), "peer", SECRET)
    assert server.first_line == "joined"
    proxy = start_program("proxy", str(cloud.port), "peer", *map(str, KINDS[request.param]))
    return int(proxy.first_line), [server, proxy]


def send_pattern(sock: socket.socket, size: int) -> str:
    """Send ``size`` bytes that do not repeat, end the stream, and return their SHA-256."""
    digest, block = hashlib.sha256(), bytearray(os.urandom(1 << 20))
    for number in range(0, size, len(block)):
        block[:8] = number.to_bytes(8, "big")
        piece = memoryview(block)[: size - number]
        digest.update(piece)
        sock.sendall(piece)
    sock.shutdown(_socket.SHUT_WR)
    return digest.hexdigest()


def receive_digest(sock: socket.socket) -> tuple[int, str]:
    digest, buffer, size = hashlib.sha256(), bytearray(1 << 18), 0
    while count := sock.recv_into(buffer):
        digest.update(memoryview(buffer)[:count])
        size += count
    return size, digest.hexdigest()


def echo_through(port: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sending = gevent.spawn(send_pattern, sock, size)
        received = receive_digest(sock)
        assert received == (size, sending.get())


def test_much_both_ways_at_once(
    proxied: tuple[int, list[Program]], request: pytest.FixtureRequest
) -> None:
    """A GiB; a quarter of it where the transport is ours, too."""
    port, programs = proxied
    size = GIB if "plain" in request.node.name else GIB // 4
    echo_through(port, 32 << 20)  # what a first transfer allocates once
    before = [program.peak_kb() for program in programs]
    with gevent.Timeout(20 * PATIENCE_S):
        echo_through(port, size)
    grown = [program.peak_kb() - kb for program, kb in zip(programs, before, strict=True)]
    assert max(grown) < 32 << 10, f"KB more at the peak: {grown}"


def test_200_connections_at_once(proxied: tuple[int, list[Program]]) -> None:
    port, _ = proxied
    with gevent.Timeout(6 * PATIENCE_S):
        echoes = [gevent.spawn(echo_through, port, 100_000 + number) for number in range(200)]
        gevent.joinall(echoes, raise_error=True)


def test_half_closes_and_empty_connections(proxied: tuple[int, list[Program]]) -> None:
    port, _ = proxied
    for size in (0, 1, 70_000):
        echo_through(port, size)


@pytest.fixture
def proxy(
    on_loopback: None, engine: kkp2p.engine_t
) -> Callable[..., tuple[ctypes.c_uint32, tuple[str, int]]]:
    """A proxy in this process: its id and where it listens."""

    def start_proxy(
        peer_id: str, ip: str = "127.0.0.1", mode: int = 2, encrypt: int = 0
    ) -> tuple[ctypes.c_uint32, tuple[str, int]]:
        ctx = kkp2p.connect_ctx_t(peer_id, 0, mode, encrypt, 20_000)
        proxy_id = ctypes.c_uint32()
        assert kkp2p.start_proxy(engine, ip, 0, ctx, proxy_id) == 0
        address = kkp2p.proxy_address(engine, proxy_id)
        assert address is not None
        return proxy_id, address

    return start_proxy


Start = Callable[..., tuple[ctypes.c_uint32, tuple[str, int]]]
StartCall = Callable[..., int]


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_peer_that_is_away(
    proxy: Start, make_engine: Callable[..., kkp2p.engine_t], mode: int
) -> None:
    """The local connection is ended at once, and the proxy works when the peer is back."""
    _, address = proxy("other", mode=mode)
    with gevent.Timeout(PATIENCE_S):
        for _ in range(3):
            with pytest.raises(ConnectionResetError), socket.create_connection(address) as sock:
                sock.recv(1)
    back = make_engine()
    assert kkp2p.join_net(back, "other", SECRET) == 0
    with gevent.Timeout(PATIENCE_S), socket.create_connection(address) as sock:
        channel = kkp2p.channel_t()
        assert kkp2p.accept(back, PATIENCE_S * 1000, channel) == 1
        assert kkp2p.write(channel.fd, b"here", 4, 1000) == 4
        kkp2p.close_fd(channel.fd)
        assert sock.recv(10) == b"here"
        assert sock.recv(10) == b""


@all_kinds
def test_stop_proxy_ends_its_connections(
    proxy: Start, engine: kkp2p.engine_t, peer: kkp2p.engine_t, mode: int, encrypt: int
) -> None:
    proxy_id, address = proxy("peer", mode=mode, encrypt=encrypt)
    _, other_address = proxy("peer", mode=mode, encrypt=encrypt)
    channels = [kkp2p.channel_t(), kkp2p.channel_t()]
    with gevent.Timeout(PATIENCE_S):
        stopped = socket.create_connection(address)
        assert kkp2p.accept(peer, PATIENCE_S * 1000, channels[0]) == 1
        living = socket.create_connection(other_address)
        assert kkp2p.accept(peer, PATIENCE_S * 1000, channels[1]) == 1
        kkp2p.stop_proxy(engine, proxy_id)
        with pytest.raises(ConnectionResetError):
            stopped.recv(1)
        assert kkp2p.read(channels[0].fd, bytearray(1), 1, PATIENCE_S * 1000) == -1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        living.sendall(b"x")  # the other proxy is not touched
        assert kkp2p.read(channels[1].fd, bytearray(1), 1, PATIENCE_S * 1000) == 1
    assert kkp2p.proxy_address(engine, proxy_id) is None
    kkp2p.stop_proxy(engine, proxy_id)  # twice is harmless
    assert kkp2p.error_no() == -106
    for sock in (stopped, living):
        sock.close()
    for channel in channels:
        kkp2p.close_fd(channel.fd)


@pytest.mark.parametrize("destroyed", [False, True], ids=["stop_proxy", "engine_destroy"])
@all_kinds
def test_a_forked_child_keeps_neither_the_port_nor_its_connections(
    proxy: Start,
    engine: kkp2p.engine_t,
    peer: kkp2p.engine_t,
    mode: int,
    encrypt: int,
    destroyed: bool,
    make_engine: Callable[..., kkp2p.engine_t],
) -> None:
    """multiprocessing forks, too; its children have copies of every descriptor."""
    proxy_id, address = proxy("peer", mode=mode, encrypt=encrypt)
    channel = kkp2p.channel_t()
    with gevent.Timeout(2 * PATIENCE_S), socket.create_connection(address) as program:
        assert kkp2p.accept(peer, PATIENCE_S * 1000, channel) == 1
        with forked_child():
            if destroyed:
                kkp2p.engine_destroy(engine)
            else:
                kkp2p.stop_proxy(engine, proxy_id)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            with pytest.raises(ConnectionResetError):
                program.recv(1)
            assert kkp2p.read(channel.fd, bytearray(1), 1, PATIENCE_S * 1000) == -1
            again, ctx = make_engine(), kkp2p.connect_ctx_t("peer", 0, mode, encrypt, 20_000)
            assert kkp2p.start_proxy(again, *address, ctx, ctypes.c_uint32()) == 0
    kkp2p.close_fd(channel.fd)


def test_ipv6_listener(proxy: Start, peer: kkp2p.engine_t) -> None:
    _, address = proxy("peer", "::1")
    channel = kkp2p.channel_t()
    with gevent.Timeout(PATIENCE_S), socket.create_connection(address) as sock:
        sock.sendall(b"six")
        assert kkp2p.accept(peer, PATIENCE_S * 1000, channel) == 1
        buff = bytearray(3)
        assert kkp2p.read(channel.fd, buff, 3, PATIENCE_S * 1000) == 3
        assert bytes(buff) == b"six"
    kkp2p.close_fd(channel.fd)


@pytest.mark.parametrize("ip", ["localhost", "127.1"])
@pytest.mark.parametrize("start", [kkp2p.start_proxy, kkp2p.start_proxy_udp])
def test_a_listener_by_name(lone_engine: kkp2p.engine_t, start: StartCall, ip: str) -> None:
    proxy_id, ctx = ctypes.c_uint32(), kkp2p.connect_ctx_t("peer", timeout=1)
    assert start(lone_engine, ip, 0, ctx, proxy_id) == 0
    address = kkp2p.proxy_address(lone_engine, proxy_id)
    assert address is not None
    assert address[0] == "127.0.0.1"


@pytest.mark.parametrize("start", [kkp2p.start_proxy, kkp2p.start_proxy_udp])
def test_a_slow_resolver_keeps_nobody_else_waiting(
    lone_engine: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch, start: StartCall
) -> None:
    asked: list[str] = []
    answer = threading.Event()

    def getaddrinfo(name: str, *_: object) -> list[object]:
        asked.append(name)
        answer.wait()
        if name == "unknown.example":
            raise _socket.gaierror(_socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (ip, 0)) for ip in ("::1", "127.0.0.1")]

    monkeypatch.setattr(resolver, "_getaddrinfo", getaddrinfo)
    names, ctx = ("ours.example", "unknown.example"), kkp2p.connect_ctx_t("peer", timeout=1)
    ids = [ctypes.c_uint32() for _ in names]
    starting = [
        gevent.spawn(start, lone_engine, name, 0, ctx, number)
        for name, number in zip(names, ids, strict=True)
    ]
    try:
        with gevent.Timeout(PATIENCE_S):
            while sorted(asked) != sorted(names):
                gevent.sleep(0.005)
        assert lone_engine.thread.call(lambda: "here") == "here"
    finally:
        answer.set()
    assert [one.get(timeout=PATIENCE_S) for one in starting] == [0, -113]
    address = kkp2p.proxy_address(lone_engine, ids[0])
    assert address is not None
    assert address[0] == "127.0.0.1"


@all_kinds
def test_local_reset_reaches_the_peer(
    proxy: Start, peer: kkp2p.engine_t, mode: int, encrypt: int
) -> None:
    """A program that breaks its connection breaks that channel only."""
    _, address = proxy("peer", mode=mode, encrypt=encrypt)
    channel = kkp2p.channel_t()
    sock = socket.create_connection(address)
    assert kkp2p.accept(peer, PATIENCE_S * 1000, channel) == 1
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    assert kkp2p.read(channel.fd, bytearray(1), 1, PATIENCE_S * 1000) == -1
    kkp2p.close_fd(channel.fd)
    with gevent.Timeout(PATIENCE_S), socket.create_connection(address):
        assert kkp2p.accept(peer, PATIENCE_S * 1000, channel) == 1
    kkp2p.close_fd(channel.fd)
