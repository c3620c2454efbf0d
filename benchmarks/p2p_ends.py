"""One end of a turn between two hosts (p2p.py): ``python -m benchmarks.p2p_ends KIND ARGS...``.

Says ``{}`` when it is ready.  Takes one command a line, a JSON object, and answers each by one
line.  What it does with a descriptor is the same for a channel and for kernel TCP: blocking native
calls, of 256 KB where there are bytes to move; several descriptors at once by epoll.  Times are of
the monotonic clock, which all processes of a machine share.  A command that hangs ends the process.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import gevent.pool
import gevent.socket

import kkp2p_compat as kkp2p

from .floor import FloorEnd

CHUNK = 1 << 18
MANY_CHUNK = 1 << 16  # of each of many channels, so that all get their turn
COMMAND_S = 300  # longest that a command may take
CALL_MS = 60_000
BATCH = 32  # calls at once, when new channels are counted
REST_S = 0.5


class TcpServer:
    def __init__(self, port: str, congestion: str) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _tune(self._listener, congestion)
        self._listener.bind(("", int(port)))
        self._listener.listen(1024)

    def connect(self) -> socket.socket:
        return self._listener.accept()[0]


class TcpClient:
    def __init__(self, host: str, port: str, congestion: str) -> None:
        self._address = host, int(port)
        self._congestion = congestion

    def connect(self) -> socket.socket:
        sock = socket.socket()
        _tune(sock, self._congestion)
        sock.connect(self._address)
        return sock

    def connect_and_close(self) -> None:
        with gevent.socket.socket() as sock:
            sock.connect(self._address)


class PeerServer:
    def __init__(self, port: str, peer: str, secret: str) -> None:
        self._engine = _engine("127.0.0.1", port)
        _succeed(kkp2p.join_net(self._engine, peer, secret))

    def connect(self) -> socket.socket:
        channel = kkp2p.channel_t()
        if _succeed(kkp2p.accept(self._engine, CALL_MS, channel)) == 0:
            raise RuntimeError("nobody called")
        return _blocking(channel.fd)


class PeerClient:
    def __init__(self, host: str, port: str, peer: str, mode: str, encrypt: str) -> None:
        self._cloud = host, port
        self._context = kkp2p.connect_ctx_t(
            peer, kkp2p.KKP2P_TCP_CHANNEL, int(mode), encrypt_data=int(encrypt), timeout=CALL_MS
        )
        self._engine = _engine(host, port)
        self._engines: list[kkp2p.engine_t] = []

    def connect(self) -> socket.socket:
        return _blocking(self._call(self._engine))

    def connect_and_close(self) -> None:
        kkp2p.close_fd(self._call(self._engine))

    def connect_new(self) -> socket.socket:
        """A channel on a connection of its own: by a new engine."""
        self._engines.append(_engine(*self._cloud))
        return _blocking(self._call(self._engines[-1]))

    def call_once(self) -> dict[str, float]:
        """By a new engine: a channel, one byte there and back, and the end of the engine."""
        cpu = [time.process_time()]
        engine = _engine(*self._cloud)
        cpu.append(time.process_time())
        begin = time.perf_counter()
        fd = self._call(engine)
        took_s = time.perf_counter() - begin
        _there_and_back(fd)
        kkp2p.close_fd(fd)
        cpu.append(time.process_time())
        kkp2p.engine_destroy(engine)
        cpu.append(time.process_time())
        init_s, connect_s, destroy_s = (after - before for before, after in pairwise(cpu))
        return {"took": took_s, "init": init_s, "connect": connect_s, "destroy": destroy_s}

    def _call(self, engine: kkp2p.engine_t) -> int:
        channel = kkp2p.channel_t()
        _succeed(kkp2p.connect(engine, self._context, channel))
        if channel.transmit_mode != self._context.connect_mode:
            raise RuntimeError(f"the channel is of mode {channel.transmit_mode}")
        return channel.fd


class LanServer:
    def __init__(self, port: str, peer: str) -> None:
        self._engine = _lan_engine(port)
        _succeed(kkp2p.join_lan(self._engine, peer))
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        channel = kkp2p.channel_t()
        while _succeed(kkp2p.accept(self._engine, CALL_MS, channel)) >= 0:
            if channel.fd >= 0:
                kkp2p.close_fd(channel.fd)
                channel = kkp2p.channel_t()


class LanClient:
    def __init__(self, port: str, peer: str) -> None:
        self._port = port
        self._context = kkp2p.connect_ctx_t(peer, connect_mode=1, timeout=CALL_MS)

    def search(self) -> dict[str, float]:
        """By an engine that has just started, again by the same, and by one that has rested."""
        with _lan_engine_of_its_own(self._port) as engine:
            cold_s, warm_s = self._search(engine), self._search(engine)
        with _lan_engine_of_its_own(self._port) as engine:
            time.sleep(REST_S)  # what an engine does at its start is over
            rested_s = self._search(engine)
        return {"cold": cold_s, "rested": rested_s, "warm": warm_s}

    def _search(self, engine: kkp2p.engine_t) -> float:
        channel = kkp2p.channel_t()
        begin = time.perf_counter()
        _succeed(kkp2p.lan_search(engine, self._context, channel))
        took_s = time.perf_counter() - begin
        kkp2p.close_fd(channel.fd)
        return took_s


@contextmanager
def _lan_engine_of_its_own(port: str) -> Iterator[kkp2p.engine_t]:
    engine = _lan_engine(port)
    yield engine
    kkp2p.engine_destroy(engine)


def _lan_engine(port: str) -> kkp2p.engine_t:
    return _started(kkp2p.engine_conf_t(lan_search_port=int(port)))


def _engine(host: str, port: str) -> kkp2p.engine_t:
    return _started(kkp2p.engine_conf_t(host, int(port)))


def _started(conf: kkp2p.engine_conf_t) -> kkp2p.engine_t:
    engine = kkp2p.engine_init(conf, 5000)
    if engine is None:
        raise RuntimeError(f"no engine: {kkp2p.error_no()}")
    return engine


def _succeed(result: int) -> int:
    if result < 0:
        raise RuntimeError(f"{kkp2p.error_no()}: see kkp2p_engine.log")
    return result


def _there_and_back(fd: int) -> None:
    buff = bytearray(1)
    if (
        kkp2p.write(fd, b"!", 1, CALL_MS) != 1
        or kkp2p.read(fd, buff, 1, CALL_MS) != 1
        or buff != b"!"
    ):
        raise RuntimeError("a byte did not come back")


def _blocking(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.setblocking(True)
    return sock


def _tune(sock: socket.socket, congestion: str) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class End:
    """The commands, by name.  Those of the serving end are first in each pair."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._socks: list[socket.socket] = []

    def open(self, count: int) -> dict[str, Any]:
        """Both ends: ``count`` more channels, connected or accepted."""
        self._socks += [self._transport.connect() for _ in range(count)]
        return {}

    def open_new(self, count: int) -> dict[str, Any]:
        self._socks += [self._transport.connect_new() for _ in range(count)]
        return {}

    def close(self) -> dict[str, Any]:
        while self._socks:
            self._socks.pop().close()
        return {}

    def receive(self) -> dict[str, Any]:
        """All of every channel, to its end."""
        return receive(self._socks)

    def send(self, seconds: float) -> dict[str, Any]:
        """On every channel for so long, then the end."""
        return send(self._socks, seconds)

    def echo(self) -> dict[str, Any]:
        (sock,) = self._socks
        while data := sock.recv(1):
            sock.send(data)
        return {}

    def trips(self, count: int) -> dict[str, Any]:
        """One byte there and back, ``count`` times."""
        (sock,) = self._socks
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            sock.send(b"x")
            if sock.recv(1) != b"x":
                raise RuntimeError("the channel ended")
            times.append(time.perf_counter() - begin)
        sock.shutdown(socket.SHUT_WR)
        times.sort()
        return {"p50_us": times[count // 2] * 1e6, "p99_us": times[count * 99 // 100] * 1e6}

    def answer_calls(self, count: int) -> dict[str, Any]:
        """Send back the one byte of each channel, until the caller closes it."""
        for _ in range(count):
            with self._transport.connect() as sock:
                while data := sock.recv(1):
                    sock.send(data)
        return {}

    def calls(self, count: int) -> dict[str, Any]:
        """Seconds of each call, and the processor's share of its parts, in this process."""
        return _columns([self._transport.call_once() for _ in range(count)])

    def search(self, count: int) -> dict[str, Any]:
        return _columns([self._transport.search() for _ in range(count)])

    def accept_and_close(self, count: int) -> dict[str, Any]:
        for _ in range(count):
            self._transport.connect().close()
        return {"last_s": time.monotonic()}

    def connect_and_close(self, count: int) -> dict[str, Any]:
        begin = time.monotonic()
        pool = gevent.pool.Pool(BATCH)
        calls = [pool.spawn(self._transport.connect_and_close) for _ in range(count)]
        for call in calls:
            call.get()
        return {"first_s": begin}


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def receive(socks: list[socket.socket]) -> dict[str, Any]:
    buffer = memoryview(bytearray(CHUNK))
    counts = dict.fromkeys((sock.fileno() for sock in socks), 0)
    last_s = 0.0
    if len(socks) == 1:
        sock = socks[0]
        total = 0
        while got := sock.recv_into(buffer):
            last_s = time.monotonic()
            total += got
        counts[sock.fileno()] = total
    else:
        left = len(socks)
        with _polled(socks, select.EPOLLIN) as ready:
            for sock in ready():
                got = sock.recv_into(buffer, MANY_CHUNK)
                if got:
                    last_s = time.monotonic()
                    counts[sock.fileno()] += got
                else:
                    ready.forget(sock)
                    left -= 1
                    if not left:
                        break
    return {"bytes": sum(counts.values()), "last_s": last_s, "smallest": min(counts.values())}


def send(socks: list[socket.socket], seconds: float) -> dict[str, Any]:
    data = memoryview(os.urandom(CHUNK))
    total = 0
    begin = time.monotonic()
    end = begin + seconds
    if len(socks) == 1:
        while time.monotonic() < end:
            socks[0].sendall(data)
            total += CHUNK
    else:
        with _polled(socks, select.EPOLLOUT) as ready:
            for sock in ready():
                if time.monotonic() > end:
                    break
                total += sock.send(data[:MANY_CHUNK])
    for sock in socks:
        sock.shutdown(socket.SHUT_WR)
    return {"bytes": total, "first_s": begin}


class _polled:
    """Gives sockets as they become ready, non-blocking, for ever."""

    def __init__(self, socks: list[socket.socket], events: int) -> None:
        self._socks = {sock.fileno(): sock for sock in socks}
        self._epoll = select.epoll()
        for sock in socks:
            sock.setblocking(False)
            self._epoll.register(sock, events)

    def __enter__(self) -> _polled:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()

    def __call__(self) -> Iterator[socket.socket]:
        while True:
            for fd, _ in self._epoll.poll():
                yield self._socks[fd]

    def forget(self, sock: socket.socket) -> None:
        self._epoll.unregister(sock)


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kinds: dict[str, Callable[..., Any]] = {
        "tcp_server": TcpServer,
        "tcp_client": TcpClient,
        "peer_server": PeerServer,
        "peer_client": PeerClient,
        "lan_server": LanServer,
        "lan_client": LanClient,
        "floor": FloorEnd,
    }
    transport = kinds[sys.argv[1]](*sys.argv[2:])
    end = End(transport)
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        command = json.loads(line)
        signal.alarm(COMMAND_S)
        answer = getattr(end, command.pop("do"))(**command)
        signal.alarm(0)
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
