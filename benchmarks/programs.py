"""The processes of a benchmark: ``python -m benchmarks.programs NAME ARGS...``.

Each prints one line of JSON when it is ready, serves until its standard input ends, and so cannot
outlive the benchmark.  All work on descriptors with plain blocking sockets, so that a direct TCP
connection and a channel are treated exactly alike.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

CHUNK = 1 << 18
REQUEST = struct.Struct("!cQ")  # what to do, how many bytes


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def serve_stream(sock: socket.socket) -> None:
    """Answer requests on one connection: U takes bytes, D gives them, E gives one back."""
    buffer = bytearray(CHUNK)
    zeros = memoryview(bytes(CHUNK))
    with sock:
        sock.settimeout(None)
        while head := sock.recv(REQUEST.size, socket.MSG_WAITALL):
            if len(head) < REQUEST.size:
                return
            what, count = REQUEST.unpack(head)
            while what == b"U" and count:
                count -= (got := sock.recv_into(buffer, min(CHUNK, count)))
                if not got:
                    return
            while what == b"D" and count:
                sock.sendall(zeros[: min(CHUNK, count)])
                count -= min(CHUNK, count)
            sock.sendall(b"k")


def tcp_server() -> None:
    """A plain TCP server: the baseline."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    say(port=listener.getsockname()[1])
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve_stream, args=(sock,), daemon=True).start()


def peer_server(port: str, peer: str, secret: str) -> None:
    """The same behind kkp2p: every accepted channel is served by its descriptor."""
    import kkp2p_compat as kkp2p

    engine = kkp2p.engine_init(kkp2p.engine_conf_t("127.0.0.1", int(port)), 5000)
    assert engine is not None
    assert kkp2p.join_net(engine, peer, secret) == 0
    say(joined=True)
    channel = kkp2p.channel_t()
    while kkp2p.accept(engine, 3_600_000, channel) > 0:
        sock = socket.socket(fileno=channel.fd)
        threading.Thread(target=serve_stream, args=(sock,), daemon=True).start()


def proxy(port: str, *peers: str) -> None:
    """A proxy to each PEER/MODE/ENCRYPT/TCP_ONLY; those with a 1 have an engine without UDP."""
    import kkp2p_compat as kkp2p

    engines: dict[str, kkp2p.engine_t] = {}
    ports = []
    for peer in peers:
        peer_id, mode, encrypt, tcp_only = peer.split("/")
        if tcp_only not in engines:
            conf = kkp2p.engine_conf_t("127.0.0.1", int(port), tcp_only=int(tcp_only))
            made = kkp2p.engine_init(conf, 5000)
            assert made is not None
            engines[tcp_only] = made
        engine = engines[tcp_only]
        ctx = kkp2p.connect_ctx_t(peer_id, connect_mode=int(mode), timeout=20000)
        ctx.encrypt_data = int(encrypt)
        proxy_id = ctypes.c_uint32()
        assert kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx, proxy_id) == 0
        address = kkp2p.proxy_address(engine, proxy_id)
        assert address is not None
        ports.append(address[1])
    say(ports=ports)
    threading.Event().wait()


def online_peers(port: str, prefix: str, secret: str, first: str, count: str) -> None:
    """``count`` peers that are online, each on a TLS connection of its own, with heartbeats."""
    import logging

    import gevent
    from gevent import ssl
    from gevent.pool import Pool

    from kkp2p_compat.control.link import Link

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    links: list[Link] = []

    def log_in(number: int) -> None:
        link = Link(("127.0.0.1", int(port)), logging.getLogger(), lambda *_: None, context, None)
        link.open()
        link.login(f"{prefix}{number}", secret)
        links.append(link)

    started = time.monotonic()
    pool = Pool(64)
    pool.map(log_in, range(int(first), int(first) + int(count)))
    say(online=len(links), seconds=round(time.monotonic() - started, 2))
    while True:
        gevent.sleep(1)
        lost = sum(link.closed.is_set() for link in links)
        if lost:
            say(lost=lost)
            return


def storm_peers(port: str, prefix: str, secret: str, first: str, count: str) -> None:
    """``count`` peers that stay online by themselves, as those of an engine do.

    Whenever that has changed it tells how many are online, and how many tries have failed by then.
    """
    import functools
    import hashlib
    import logging

    import gevent
    from gevent.pool import Pool

    from kkp2p_compat.control.client import CloudClient

    # SCRAM's key derivation, which each peer does on a machine of its own, would take most of this
    # process's time.
    vars(hashlib)["pbkdf2_hmac"] = functools.cache(hashlib.pbkdf2_hmac)
    failures = 0

    class Failures(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nonlocal failures
            failures += "next try" in record.getMessage()

    log = logging.getLogger("storm")
    log.addHandler(Failures())
    log.propagate = False
    clients = [
        CloudClient(
            "127.0.0.1",
            int(port),
            ["127.0.0.1"],
            log,
            ca_file=None,
            on_offer=lambda *_: None,
            on_login_lost=lambda _: None,
        )
        for _ in range(int(count))
    ]

    def log_in(number: int) -> None:
        clients[number].login(f"{prefix}{int(first) + number}", secret).get()

    started = time.monotonic()
    Pool(64).map(log_in, range(int(count)))
    say(online=int(count), seconds=round(time.monotonic() - started, 2))
    before = int(count)
    while True:
        gevent.sleep(0.1)
        online = sum(client.online for client in clients)
        if online != before:
            before = online
            say(at=time.monotonic(), online=online, failures=failures)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    import os

    os._exit(0)


if __name__ == "__main__":
    programs: dict[str, Callable[..., None]] = {
        "tcp_server": tcp_server,
        "peer_server": peer_server,
        "proxy": proxy,
        "online_peers": online_peers,
        "storm_peers": storm_peers,
    }
    threading.Thread(target=_end_with_parent, daemon=True).start()
    programs[sys.argv[1]](*sys.argv[2:])
