"""``python echoed.py answer HOST PORT PEER SECRET``: joins, and sends back what one channel sends.
``python echoed.py call HOST PORT PEER MODE BYTES TIMEOUT_MS``: calls, and has them sent back.
Without a cloud, on the LAN, HOST is "lan" and PORT that of the search; SECRET does not matter.

The caller prints what connect gives, transmit_mode, and whether the bytes came back as they were.
"""

from __future__ import annotations

import os
import random
import sys

import gevent

import kkp2p_compat as kkp2p

CHUNK = 1 << 16
PATIENCE_MS = 100_000  # for each read and write


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        count = kkp2p.write(fd, view, len(view), PATIENCE_MS)
        assert count > 0, count
        view = view[count:]


def answer(engine: kkp2p.engine_t, peer: str, secret: str) -> None:
    if engine.conf.login_domain is None:
        print("joined", kkp2p.join_lan(engine, peer), flush=True)
    else:
        print("joined", kkp2p.join_net(engine, peer, secret), flush=True)
    while kkp2p.accept(engine, PATIENCE_MS, channel := kkp2p.channel_t()) == 1:
        gevent.spawn(echo, channel.fd)


def echo(fd: int) -> None:
    buffer = bytearray(CHUNK)
    while (count := kkp2p.read(fd, buffer, CHUNK, PATIENCE_MS)) > 0:
        write_all(fd, bytes(buffer[:count]))
    kkp2p.close_fd(fd)


def call(engine: kkp2p.engine_t, peer: str, mode: str, size: str, timeout: str) -> None:
    channel = kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t(peer, connect_mode=int(mode), timeout=int(timeout))
    print("connect", kkp2p.connect(engine, ctx, channel), flush=True)
    if channel.fd < 0:
        return
    data, back, buffer = random.Random(1).randbytes(int(size)), bytearray(), bytearray(CHUNK)
    writing = gevent.spawn(write_all, channel.fd, data)
    while len(back) < len(data):
        count = kkp2p.read(channel.fd, buffer, CHUNK, PATIENCE_MS)
        assert count > 0, (count, len(back))
        back += buffer[:count]
    writing.get()
    print("mode", channel.transmit_mode, "the same" if back == data else "different", flush=True)
    kkp2p.close_fd(channel.fd)


if __name__ == "__main__":
    name, host, port, *arguments = sys.argv[1:]
    conf = kkp2p.engine_conf_t(disable_upnp=1, log_path=os.environ["TMPDIR"])
    if host == "lan":
        conf.lan_search_port = int(port)
    else:
        conf.login_domain, conf.login_port = host, int(port)
    kkp2p.log_switch_level(3)
    started = kkp2p.engine_init(conf, 5000)
    assert started is not None
    {"answer": answer, "call": call}[name](started, *arguments)
    kkp2p.engine_destroy(started)
