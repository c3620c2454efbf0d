"""One end of a transfer in mode 1: ``python p2p_peer.py receive HOST PORT PEER SECRET`` or
``python p2p_peer.py send HOST PORT PEER BYTES [TIMEOUT_MS]``.

receive: joins, takes one channel to its end.  send: calls, and sends BYTES, the same ones every
time, or fewer when its standard input says anything.  Both print transmit_mode and is_ipv6_p2p, now
and then how much has passed and when, and at the end what the last read or write gave, how much has
passed, and its SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import sys
import time

import kkp2p_compat as kkp2p

CHUNK = 1 << 18
STEP = 1 << 25  # bytes between two words on the progress
PATIENCE_MS = 100_000  # for each read and write


class Count:
    """What has passed."""

    def __init__(self, channel: kkp2p.channel_t) -> None:
        print("mode", channel.transmit_mode, "ipv6", channel.is_ipv6_p2p, flush=True)
        self._digest, self.total = hashlib.sha256(), 0

    def add(self, data: memoryview) -> None:
        self._digest.update(data)
        steps = self.total // STEP
        self.total += len(data)
        if self.total // STEP > steps:
            print("moved", self.total, time.monotonic(), flush=True)

    def end(self, result: int) -> None:
        print("end", result, self.total, self._digest.hexdigest(), flush=True)


def receive(engine: kkp2p.engine_t, peer: str, secret: str) -> None:
    print("joined", kkp2p.join_net(engine, peer, secret), flush=True)
    channel, buffer = kkp2p.channel_t(), bytearray(CHUNK)
    assert kkp2p.accept(engine, PATIENCE_MS, channel) == 1
    passed = Count(channel)
    while (result := kkp2p.read(channel.fd, buffer, CHUNK, PATIENCE_MS)) > 0:
        passed.add(memoryview(buffer)[:result])
    passed.end(result)
    kkp2p.close_fd(channel.fd)


def send(engine: kkp2p.engine_t, peer: str, size: str, timeout: str = "20000") -> None:
    channel = kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t(peer, connect_mode=1, timeout=int(timeout))
    result = kkp2p.connect(engine, ctx, channel)
    print("connect", result, flush=True)
    if result < 0:
        return
    passed, number, piece = Count(channel), 0, memoryview(b"")
    data = memoryview(random.Random(1).randbytes(2 * CHUNK))
    while (left := int(size) - passed.total) and not select.select([sys.stdin], [], [], 0)[0]:
        if not piece:  # no two chunks are alike, so that bytes in the wrong place are wrong
            start, number = number * 7919 % CHUNK, number + 1
            piece = data[start : start + min(CHUNK, left)]
        result = kkp2p.write(channel.fd, piece, len(piece), PATIENCE_MS)
        if result <= 0:
            break
        passed.add(piece[:result])
        piece = piece[result:]
    passed.end(result)
    if result > 0:  # engine_destroy would not wait for longer than 5 s until all has arrived
        with socket.socket(fileno=os.dup(channel.fd)) as sock:
            sock.shutdown(socket.SHUT_WR)
        kkp2p.read(channel.fd, bytearray(1), 1, PATIENCE_MS)
    kkp2p.close_fd(channel.fd)


if __name__ == "__main__":
    name, host, port, *arguments = sys.argv[1:]
    conf = kkp2p.engine_conf_t(host, int(port), log_path=os.environ["TMPDIR"])
    started = kkp2p.engine_init(conf, 5000)
    assert started is not None
    {"receive": receive, "send": send}[name](started, *arguments)
    kkp2p.engine_destroy(started)
