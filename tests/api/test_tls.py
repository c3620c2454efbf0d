"""TLS over descriptors: both modes, both worlds (greenlets, threads), and every bad end."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event
from OpenSSL import SSL

from kkp2p_compat import tls
from kkp2p_compat.cli.demo import make_certificate

Pair = tuple[tls.Connection, tls.Connection]


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(60):
        yield


@pytest.fixture(scope="module")
def server_context(tmp_path_factory: pytest.TempPathFactory) -> SSL.Context:
    key, certificate = make_certificate(tmp_path_factory.mktemp("tls"))
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_privatekey_file(key)
    context.use_certificate_file(certificate)
    return context


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pair(server_context: SSL.Context, sockets: tuple[socket.socket, socket.socket]) -> Pair:
    """A server and a client after their handshake, over non-blocking descriptors."""
    for sock in sockets:
        sock.setblocking(False)
    return _handshake(server_context, sockets)


def _client(fd: int) -> tls.Connection:
    return tls.Connection(SSL.Context(SSL.TLS_METHOD), fd)


def _handshake(context: SSL.Context, sockets: tuple[socket.socket, socket.socket]) -> Pair:
    server = tls.Connection(context, sockets[0].fileno())
    client = _client(sockets[1].fileno())
    accepting = gevent.spawn(server.accept)
    assert client.connect("peer.example") == 1, client.error_string()
    assert accepting.get() == 1, server.error_string()
    return server, client


def _pattern(length: int, seed: int) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(length)


def _read_all(ssl: tls.Connection) -> tuple[bytes, int]:
    """Everything up to the end, and the SSL_ERROR_* that ended it."""
    parts = []
    while data := ssl.read(100_000):
        parts.append(data)
    return b"".join(parts), ssl.get_error(0)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_conversation(
    server_context: SSL.Context, sockets: tuple[socket.socket, socket.socket], blocking: bool
) -> None:
    """Both ends in greenlets of one thread: on blocking descriptors any real wait would hang."""
    for sock in sockets:
        sock.setblocking(blocking)
    server, client = _handshake(server_context, sockets)
    assert server.ssl.get_servername() == b"peer.example"
    assert client.ssl.get_peer_certificate() is not None
    assert client.write(b"GET / HTTP/1.1\r\n\r\n") == 18
    buff = bytearray(100)
    assert server.read_into(buff, 100) == 18
    assert buff[:18] == b"GET / HTTP/1.1\r\n\r\n"
    assert server.write(b"") == 0
    assert server.get_error(0) == tls.SSL_ERROR_NONE
    assert server.write(memoryview(b"answer")) == 6
    assert server.shutdown() == 0  # sent
    assert client.read(4) == b"answ"
    assert client.read(100) == b"er"
    assert client.read(100) == b""
    assert client.get_error(0) == tls.SSL_ERROR_ZERO_RETURN
    assert client.read_into(buff) == 0
    assert client.shutdown() == 1  # both
    assert server.shutdown() == 1
    assert [sock.getblocking() for sock in sockets] == [blocking, blocking]


@pytest.mark.parametrize(
    ("length", "buffer_bytes"),
    [(20_000_000, None), (2_000_000, 4608)],
    ids=["20MB", "tiny buffers"],
)
def test_full_duplex(
    server_context: SSL.Context,
    sockets: tuple[socket.socket, socket.socket],
    length: int,
    buffer_bytes: int | None,
) -> None:
    """One reader and one writer at each end, all at once; each byte arrives, once."""
    if buffer_bytes is not None:
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    ends = _handshake(server_context, sockets)
    sent = [_pattern(length, seed) for seed in range(2)]

    def write(ssl: tls.Connection, data: bytes) -> int:
        count = ssl.write(data)
        assert ssl.shutdown() >= 0
        return count

    writers = [gevent.spawn(write, ssl, data) for ssl, data in zip(ends, sent, strict=True)]
    readers = [gevent.spawn(_read_all, ssl) for ssl in ends]
    assert [writer.get() for writer in writers] == [length, length]
    for reader, data in zip(readers, reversed(sent), strict=True):
        received, end = reader.get()
        assert received == data
        assert end == tls.SSL_ERROR_ZERO_RETURN


def _in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Run each in a plain thread; the results, once every thread has shown to have no hub."""
    results: list[Any] = [None] * len(functions)

    def run(place: int, function: Callable[[], Any]) -> None:
        results[place] = function()
        assert get_hub_if_exists() is None

    threads = [
        threading.Thread(target=run, args=item, daemon=True) for item in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("blocking", [True, False])
def test_native_threads(
    server_context: SSL.Context, sockets: tuple[socket.socket, socket.socket], blocking: bool
) -> None:
    for sock in sockets:
        sock.setblocking(blocking)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    server = tls.Connection(server_context, sockets[0].fileno())
    client = _client(sockets[1].fileno())
    assert _in_threads(server.accept, client.connect) == [1, 1]
    data = _pattern(1_000_000, 1)

    def read() -> bytes:
        parts = b""
        while len(parts) < len(data):
            parts += client.read(65536)
        return parts

    def read_at_server() -> bytes:
        return server.read(10)

    written, received, back, _ = _in_threads(
        lambda: server.write(data), read, read_at_server, lambda: client.write(b"duplex")
    )
    assert written == len(data)
    assert received == data
    assert back == b"duplex"
    assert server.read(1, timeout=0) == b""
    assert server.get_error(0) == tls.SSL_ERROR_WANT_READ


def test_others_run_while_calls_wait(
    server_context: SSL.Context, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """On blocking descriptors: the ticker counts on during accept, read, write and shutdown."""
    server = tls.Connection(server_context, sockets[0].fileno())
    client = _client(sockets[1].fileno())
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            gevent.sleep(0)

    def while_waiting(call: Callable[[], Any], then: Callable[[], Any]) -> Any:
        waiting = gevent.spawn(call)
        goal = ticks + 100
        while ticks < goal:
            gevent.sleep(0)
        assert not waiting.dead
        then()
        return waiting.get()

    ticker = gevent.spawn(tick)
    try:
        assert while_waiting(server.accept, client.connect) == 1
        assert while_waiting(lambda: server.read(9), lambda: client.write(b"x")) == b"x"
        big = b"x" * 5_000_000

        def drain() -> None:
            left = len(big)
            while left:
                left -= len(client.read(65536))

        assert while_waiting(lambda: server.write(big), drain) == len(big)
        assert server.shutdown() == 0
        assert while_waiting(server.shutdown, client.shutdown) == 1
    finally:
        ticker.kill()


GARBAGE = {
    "plain http": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", tls.SSL_ERROR_SSL),
    "noise": (bytes(range(256)) * 4, tls.SSL_ERROR_SSL),
    "half a hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 20, None),
    "nothing": (b"", None),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_handshake_with_garbage(
    server_context: SSL.Context, sockets: tuple[socket.socket, socket.socket], name: str
) -> None:
    ours, theirs = sockets
    data, code = GARBAGE[name]
    server = tls.Connection(server_context, ours.fileno())
    theirs.sendall(data)
    if code is None:
        assert server.accept(timeout=0) == -1
        assert server.get_error(-1) == tls.SSL_ERROR_WANT_READ
        theirs.shutdown(socket.SHUT_WR)
        code = tls.SSL_ERROR_SYSCALL
    assert server.accept() == -1
    assert server.get_error(-1) == code
    assert server.error_string()
    assert server.shutdown() == -1
    assert server.get_error(-1) == tls.SSL_ERROR_SSL
    assert server.accept() == -1


def test_a_wrong_certificate(
    server_context: SSL.Context, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """The alert that the client sends tells the server why."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_verify(SSL.VERIFY_PEER)
    server = tls.Connection(server_context, sockets[0].fileno())
    client = tls.Connection(context, sockets[1].fileno())
    accepting = gevent.spawn(server.accept)
    assert client.connect() == -1
    assert client.get_error(-1) == tls.SSL_ERROR_SSL
    assert "certificate verify failed" in client.error_string()
    assert accepting.get() == -1
    assert server.get_error(-1) == tls.SSL_ERROR_NONE  # no call of this greenlet has failed
    assert server.accept() == -1
    assert server.get_error(-1) == tls.SSL_ERROR_SSL
    assert "unknown ca" in server.error_string()


def test_truncation_is_no_proper_end(
    pair: Pair, sockets: tuple[socket.socket, socket.socket]
) -> None:
    server, client = pair
    server.write(b"half of it")
    sockets[0].close()
    assert client.read(100) == b"half of it"
    assert client.read(100) == b""
    assert client.get_error(0) == tls.SSL_ERROR_SYSCALL
    assert client.error_string() == "unexpected end of stream"
    assert client.read_into(bytearray(1)) == -1
    assert client.write(b"x") == -1
    assert client.get_error(-1) == tls.SSL_ERROR_SYSCALL


def test_the_handshake_of_a_peer_that_reads_no_more(
    server_context: SSL.Context, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """It is an error at once, although more input could come."""
    client = _client(sockets[1].fileno())
    sockets[0].shutdown(socket.SHUT_RD)
    assert client.connect() == -1
    assert client.get_error(-1) == tls.SSL_ERROR_SYSCALL


def test_reading_in_time_or_later(pair: Pair) -> None:
    server, client = pair
    buff = bytearray(10)
    assert server.read_into(buff, 10, timeout=20) == -1
    assert server.get_error(-1) == tls.SSL_ERROR_WANT_READ
    client.write(b"late")
    assert server.read_into(buff, 10, timeout=20) == 4
    assert server.get_error(4) == tls.SSL_ERROR_NONE
    assert server.error_string() == ""


@pytest.mark.parametrize("interrupted", [False, True], ids=["own time-out", "gevent.Timeout"])
def test_an_unfinished_write_made_again(pair: Pair, interrupted: bool) -> None:
    """However it was cut short, the same write goes on, and each byte is sent once."""
    server, client = pair
    data = _pattern(3_000_000, 3)
    if interrupted:
        with gevent.Timeout(0.05) as mine, pytest.raises(gevent.Timeout) as caught:
            server.write(data)
        assert caught.value is mine
    else:
        assert server.write(data, timeout=50) == -1
        assert server.get_error(-1) == tls.SSL_ERROR_WANT_WRITE
    reader = gevent.spawn(_read_all, client)
    assert server.write(data) == len(data)
    assert server.write(b"tail") == 4
    assert server.shutdown() == 0
    assert reader.get() == (data + b"tail", tls.SSL_ERROR_ZERO_RETURN)


def test_another_write_after_an_unfinished_one(pair: Pair) -> None:
    """As in OpenSSL it fails: a part of the first is gone, and nobody would know which."""
    server, _ = pair
    assert server.write(bytes(3_000_000), timeout=20) == -1
    assert server.write(b"other") == -1
    assert server.get_error(-1) == tls.SSL_ERROR_SSL
    assert "bad write retry" in server.error_string()


def test_memory_of_a_write_is_bounded(
    pair: Pair, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """To a peer that does not read, OpenSSL gets one record beyond what the kernel holds."""
    server, _ = pair
    sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    assert server.write(bytes(50_000_000), timeout=20) == -1
    drained = 0
    while server.shutdown(timeout=0) < 0:
        assert server.get_error(-1) == tls.SSL_ERROR_WANT_WRITE
        drained += len(sockets[1].recv(65536))
    assert 0 < drained < 1_000_000


def _in_greenlets(*functions: Callable[[], Any]) -> list[Any]:
    return [greenlet.get() for greenlet in [gevent.spawn(function) for function in functions]]


@pytest.mark.parametrize("run", [_in_greenlets, _in_threads], ids=["greenlets", "threads"])
def test_a_read_sends_what_an_unfinished_write_left(
    pair: Pair, run: Callable[..., list[Any]]
) -> None:
    """Or both would wait: the peer for the rest of a record, we for the peer's answer."""
    server, client = pair

    def ask() -> bytes:
        assert server.write(bytes(3_000_000), timeout=20) == -1
        unfinished.set()
        return server.read(10)

    def answer() -> int:
        unfinished.wait()
        count = len(client.read(65536))
        while more := client.read(65536, timeout=None if count % tls.RECORD_BYTES else 0):
            count += len(more)
        return client.write(b"answer")

    unfinished = threading.Event() if run is _in_threads else Event()
    assert run(ask, answer) == [b"answer", 6]


def test_free(pair: Pair) -> None:
    server, _ = pair
    server.free()
    server.free()
    for result in (
        server.read_into(bytearray(1)),
        server.write(b"x"),
        server.shutdown(),
        server.accept(),
    ):
        assert result == -1
        assert server.get_error(-1) == tls.SSL_ERROR_SSL
    assert server.error_string() == "the connection was freed"
    with pytest.raises(ValueError, match="freed"):
        _ = server.ssl


def test_wrong_calls(pair: Pair, sockets: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ValueError, match="not 1 to 4"):
        pair[0].read_into(bytearray(4), 5)
    early = _client(sockets[0].fileno())
    assert early.write(b"before the handshake") == -1
    assert early.get_error(-1) == tls.SSL_ERROR_SSL
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        assert _client(write_end).connect() == -1  # no socket
    finally:
        os.close(write_end)


PATCHED = """
from gevent import monkey; monkey.patch_all()
import socket, sys, threading
from OpenSSL import SSL
from kkp2p_compat import tls
from kkp2p_compat.cli.demo import make_certificate
context = SSL.Context(SSL.TLS_METHOD)
context.use_privatekey_file(sys.argv[1])
context.use_certificate_file(sys.argv[2])
ours, theirs = socket.socketpair()
server = tls.Connection(context, ours.fileno())
client = tls.Connection(SSL.Context(SSL.TLS_METHOD), theirs.fileno())
def serve():
    assert server.accept() == 1
    assert server.write(b"x" * 1000000) == 1000000
    assert server.shutdown() == 0
thread = threading.Thread(target=serve)
thread.start()
assert client.connect() == 1
count = 0
while data := client.read(65536):
    count += len(data)
thread.join()
ours.close()
theirs.close()
print(count, client.get_error(0))
"""


def test_under_monkey_patching(tmp_path: Path) -> None:
    """threading and socket are gevent's there: two "threads", one hub."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PATCHED, *make_certificate(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.stdout, run.stderr) == (f"1000000 {tls.SSL_ERROR_ZERO_RETURN}\n", "")
