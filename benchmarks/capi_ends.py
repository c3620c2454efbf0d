"""The ends of ``benchmarks capi``: ``serve PORT``, and a caller by the Python API.

The caller is what capi_ends.c is: ``call PORT PEER_ID MODE TRIPS MEGABYTES``.  Who serves answers
each byte that is an "e", and takes all others.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import NoReturn

import kkp2p_compat as kkp2p

from .relay import PEER

SECRET = "secret"
PATIENCE_MS = 60_000
CHUNK = 1 << 16


def engine_at(port: str) -> kkp2p.engine_t:
    conf = kkp2p.engine_conf_t("127.0.0.1", int(port), disable_upnp=1, log_path=".")
    engine = kkp2p.engine_init(conf, PATIENCE_MS)
    assert engine is not None, kkp2p.error_text()
    return engine


def serve(port: str) -> NoReturn:
    engine = engine_at(port)
    assert kkp2p.join_net(engine, PEER, SECRET) == 0, kkp2p.error_text()
    print("ready", flush=True)
    while True:
        channel = kkp2p.channel_t()
        if kkp2p.accept(engine, PATIENCE_MS, channel) == 1:
            threading.Thread(target=answer, args=(channel.fd,), daemon=True).start()


def answer(fd: int) -> None:
    buff = bytearray(4 * CHUNK)
    while (count := kkp2p.read(fd, buff, len(buff), PATIENCE_MS)) > 0:
        if buff[count - 1] == ord("e"):  # the last byte of all that was sent until it is answered
            kkp2p.write(fd, b"e", 1, PATIENCE_MS)
    kkp2p.close_fd(fd)


def call(port: str, peer_id: str, mode: str, trips: str, megabytes: str) -> None:
    began = time.perf_counter()
    engine = engine_at(port)
    init_s = time.perf_counter() - began
    ctx = kkp2p.connect_ctx_t(peer_id, 0, int(mode), 0, PATIENCE_MS)
    channel, buff = kkp2p.channel_t(), bytearray(CHUNK)
    began = time.perf_counter()
    assert kkp2p.connect(engine, ctx, channel) == 0, kkp2p.error_text()
    connect_s = time.perf_counter() - began
    took = []
    for _ in range(int(trips)):
        began = time.perf_counter()
        write_all(channel.fd, b"e")
        assert kkp2p.read(channel.fd, buff, 1, PATIENCE_MS) == 1, kkp2p.error_text()
        took.append(time.perf_counter() - began)
    took.sort()
    chunk = b"s" * CHUNK
    began = time.perf_counter()
    for _ in range(int(megabytes) * 16):
        write_all(channel.fd, chunk)
    write_all(channel.fd, b"e")
    assert kkp2p.read(channel.fd, buff, 1, PATIENCE_MS) == 1, kkp2p.error_text()
    bulk_s = time.perf_counter() - began
    figures = {
        "engine_init, ms": 1e3 * init_s,
        "connect, ms": 1e3 * connect_s,
        "one byte there and back, p50 us": 1e6 * took[len(took) // 2],
        "one byte there and back, p99 us": 1e6 * took[len(took) * 99 // 100],
        "one channel, MB/s": int(megabytes) * 1.048576 / bulk_s,
    }
    print(json.dumps(figures), flush=True)
    sys.stdin.read()


def write_all(fd: int, data: bytes) -> None:
    while data:
        taken = kkp2p.write(fd, data, len(data), PATIENCE_MS)
        assert taken > 0, kkp2p.error_text()
        data = data[taken:]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    call(*sys.argv[2:])
