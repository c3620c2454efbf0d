"""``python p2p_peer.py NAME HOST PORT PEER SECRET BYTES``: one end of a transfer in mode 1.

receive: joins, takes one channel to its end; prints how many bytes came, and their SHA-256.
send: calls, and sends BYTES; prints the same of what went out.  Both print their mode, and the
result of the call that failed.
"""

from __future__ import annotations

import hashlib
import os
import sys

import kkp2p_compat as kkp2p

CHUNK = 1 << 18
PATIENCE_MS = 60_000


def receive(engine: kkp2p.engine_t, peer: str, secret: str, _: int) -> None:
    print("joined", kkp2p.join_net(engine, peer, secret), flush=True)
    channel = kkp2p.channel_t()
    assert kkp2p.accept(engine, PATIENCE_MS, channel) == 1
    print("mode", channel.transmit_mode, flush=True)
    digest, total, buffer = hashlib.sha256(), 0, bytearray(CHUNK)
    while (count := kkp2p.read(channel.fd, buffer, CHUNK, PATIENCE_MS)) > 0:
        digest.update(memoryview(buffer)[:count])
        total += count
    print("end", count, total, digest.hexdigest(), flush=True)
    kkp2p.close_fd(channel.fd)


def send(engine: kkp2p.engine_t, peer: str, _: str, size: int) -> None:
    channel = kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t(peer, connect_mode=1, timeout=20_000)
    result = kkp2p.connect(engine, ctx, channel)
    assert result >= 0, result
    print("mode", channel.transmit_mode, flush=True)
    digest, total = hashlib.sha256(), 0
    data = memoryview(os.urandom(CHUNK + 1))
    while total < size:
        start = total % (CHUNK // 3)  # so that bytes in the wrong place are not the same ones
        piece = data[start : start + size - total]
        count = kkp2p.write(channel.fd, piece, len(piece), PATIENCE_MS)
        if count <= 0:
            break
        digest.update(piece[:count])
        total += count
    print("end", total - size, total, digest.hexdigest(), flush=True)
    kkp2p.close_fd(channel.fd)
    kkp2p.engine_destroy(engine)


if __name__ == "__main__":
    name, host, port, peer_id, key, number = sys.argv[1:]
    conf = kkp2p.engine_conf_t(host, int(port), log_path=os.environ["TMPDIR"])
    started = kkp2p.engine_init(conf, 5000)
    assert started is not None
    {"receive": receive, "send": send}[name](started, peer_id, key, int(number))
