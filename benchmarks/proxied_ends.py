"""The programs that proxied.py starts: ``python -m benchmarks.proxied_ends KIND ARGS...``.

A server and a client of HTTP/1.0, each of one thread with epoll; and of datagrams, which come back.
The server takes connections from a listener or channels from ``accept``; what it does with them is
the same.  The proxy is a program of its own.  Each prints a line of JSON when it is ready, and ends
with its standard input.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import resource
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import kkp2p_compat as kkp2p

CALL_MS = 60_000
SILENCE_S = 0.5  # after which a datagram counts as lost
BACKLOG = 1024
LONGEST_READ = 1 << 16
END_OF_HEAD = b"\r\n\r\n"
PAGE = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n" + b"x" * 100
REQUEST = b"GET / HTTP/1.0\r\nHost: bench\r\nUser-Agent: benchmark\r\n\r\n"
# The server keeps the connection open after the answer.
REQUEST_KEPT = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


class TcpSource:
    """Connections from a listener."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("", 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.fd = self._listener.fileno()
        self.ready = {"port": self._listener.getsockname()[1]}
        self.close = os.close

    def accept(self) -> int:
        """The next one's descriptor, -1: none waits."""
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return -1
        sock.setblocking(False)
        return sock.detach()


class PeerSource:
    """Channels that peers have opened."""

    def __init__(self, port: str, peer: str, secret: str) -> None:
        self._engine = _engine("127.0.0.1", port)
        assert kkp2p.join_net(self._engine, peer, secret) == 0
        self.fd = kkp2p.listen_fd(self._engine)
        self.ready: dict[str, int] = {}
        self.close = kkp2p.close_fd

    def accept(self) -> int:
        channel = kkp2p.channel_t()
        got = kkp2p.accept(self._engine, 0, channel)
        assert got >= 0, kkp2p.error_no()
        return channel.fd if got else -1


def _engine(host: str, port: str) -> Any:
    engine = kkp2p.engine_init(kkp2p.engine_conf_t(host, int(port)), 5000)
    assert engine is not None, kkp2p.error_no()
    return engine


def serve(source: Any) -> None:
    """Answer requests for ever."""
    say(**source.ready)
    epoll = select.epoll()
    epoll.register(source.fd, select.EPOLLIN)
    heads: dict[int, bytes] = {}

    def handle(fd: int) -> None:
        try:
            data = os.read(fd, LONGEST_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        heads[fd] += data
        if END_OF_HEAD in heads[fd]:
            os.write(fd, PAGE)
            if b"keep-alive" in heads[fd]:
                heads[fd] = b""
                return
        elif data:
            return
        del heads[fd]
        source.close(fd)

    while True:
        for fd, _ in epoll.poll():
            if fd != source.fd:
                handle(fd)
                continue
            while (accepted := source.accept()) >= 0:
                heads[accepted] = b""
                epoll.register(accepted, select.EPOLLIN)


def udp_server() -> None:
    """Echo datagrams for ever."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", 0))
    say(port=sock.getsockname()[1])
    while True:
        data, client = sock.recvfrom(LONGEST_READ)
        sock.sendto(data, client)


def peer_udp_server(port: str, peer: str, secret: str) -> None:
    """Echo the messages of every channel for ever."""
    source = PeerSource(port, peer, secret)
    say(**source.ready)
    epoll = select.epoll()
    epoll.register(source.fd, select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            if fd == source.fd:
                while (accepted := source.accept()) >= 0:
                    epoll.register(accepted, select.EPOLLIN)
                continue
            try:
                while data := os.read(fd, LONGEST_READ):
                    os.write(fd, data)
            except BlockingIOError:
                continue
            source.close(fd)


def proxy(
    host: str,
    port: str,
    peer: str,
    mode: str,
    encrypt: str,
    kind: int = kkp2p.KKP2P_TCP_CHANNEL,
    start: Any = kkp2p.start_proxy,
) -> None:
    engine = _engine(host, port)
    context = kkp2p.connect_ctx_t(peer, kind, int(mode), int(encrypt), timeout=CALL_MS)
    number = ctypes.c_uint32()
    assert start(engine, "127.0.0.1", 0, context, number) == 0
    address = kkp2p.proxy_address(engine, number)
    assert address is not None
    say(port=address[1])
    threading.Event().wait()


class Client:
    """The commands, one a line."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def short(self, host: str, port: int, seconds: float, at_once: int) -> dict[str, Any]:
        """Connect, ask, read to the end, close: again and again, so many at once."""
        got: dict[int, tuple[socket.socket, int]] = {}
        times: list[float] = []
        begin = time.monotonic()
        end = begin + seconds
        begun: dict[int, float] = {}

        def connect() -> None:
            sock = socket.socket()
            sock.setblocking(False)
            fd = sock.fileno()
            begun[fd] = time.monotonic()
            sock.connect_ex((host, port))
            self._epoll.register(fd, select.EPOLLOUT)
            got[fd] = sock, 0

        for _ in range(at_once):
            connect()
        while got:
            for fd, events in self._epoll.poll():
                sock, count = got[fd]
                if events & select.EPOLLOUT:
                    sock.send(REQUEST)
                    self._epoll.modify(fd, select.EPOLLIN)
                    continue
                data = sock.recv(LONGEST_READ)
                if data:
                    got[fd] = sock, count + len(data)
                    continue
                assert count == len(PAGE), f"an answer of {count} bytes"
                now = time.monotonic()
                times.append(now - begun.pop(fd))
                del got[fd]
                sock.close()
                if now < end:
                    connect()
        took_s = time.monotonic() - begin
        times.sort()
        return {
            "per_s": len(times) / took_s,
            "count": len(times),
            "p50_us": times[len(times) // 2] * 1e6,
            "p99_us": times[len(times) * 99 // 100] * 1e6,
        }

    def kept(self, host: str, port: int, count: int) -> dict[str, Any]:
        """Requests on one connection, one after the other."""
        times = []
        with socket.create_connection((host, port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(count):
                begin = time.perf_counter()
                sock.sendall(REQUEST_KEPT)
                left = len(PAGE)
                while left:
                    data = sock.recv(left)
                    assert data, "the connection ended"
                    left -= len(data)
                times.append(time.perf_counter() - begin)
        times.sort()
        return {"p50_us": times[count // 2] * 1e6, "p99_us": times[count * 99 // 100] * 1e6}

    def datagrams(
        self, host: str, port: int, seconds: float, size: int, at_once: int
    ) -> dict[str, Any]:
        """Send the next when one is back, so many on their way; who is silent has lost them."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, port))
            sock.settimeout(SILENCE_S)
            data, sent, count, silences = bytes(size), 0, 0, 0.0
            begin = time.monotonic()
            while time.monotonic() - begin < seconds:
                while sent - count < at_once:
                    sock.send(data)
                    sent += 1
                try:
                    sock.recv(LONGEST_READ)
                    count += 1
                except TimeoutError:
                    silences += sent - count
                    sent = count
            took_s = time.monotonic() - begin
        return {"per_s": count / took_s, "count": count, "lost": silences / (count + silences)}

    def pings(self, host: str, port: int, count: int, size: int) -> dict[str, Any]:
        """One after the other."""
        times: list[float] = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, port))
            sock.settimeout(SILENCE_S)
            for number in range(count):
                ping = number.to_bytes(size, "big")
                begin = time.perf_counter()
                sock.send(ping)
                try:
                    while sock.recv(LONGEST_READ) != ping:
                        pass
                except TimeoutError:
                    continue
                times.append(time.perf_counter() - begin)
        times.sort()
        return {
            "p50_us": times[len(times) // 2] * 1e6,
            "p99_us": times[len(times) * 99 // 100] * 1e6,
            "lost": 1 - len(times) / count,
        }


def client() -> None:
    commands = Client()
    say()
    for line in sys.stdin:
        command = json.loads(line)
        say(**getattr(commands, command.pop("do"))(**command))
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kinds: dict[str, Callable[..., None]] = {
        "tcp_server": lambda: serve(TcpSource()),
        "peer_server": lambda *args: serve(PeerSource(*args)),
        "proxy": proxy,
        "udp_server": udp_server,
        "peer_udp_server": peer_udp_server,
        "udp_proxy": functools.partial(
            proxy, kind=kkp2p.KKP2P_UDP_CHANNEL, start=kkp2p.start_proxy_udp
        ),
        "client": client,
    }
    if sys.argv[1] != "client":
        threading.Thread(target=_end_with_parent, daemon=True).start()
    kinds[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
