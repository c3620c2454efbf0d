"""``python caller.py HOST PORT PEER ENCRYPT``: calls, has one byte echoed, and reads to the end."""

from __future__ import annotations

import os
import sys

import kkp2p_compat as kkp2p

conf = kkp2p.engine_conf_t(sys.argv[1], int(sys.argv[2]), log_path=os.environ["TMPDIR"])
engine = kkp2p.engine_init(conf, 5000)
assert engine is not None
channel, buff = kkp2p.channel_t(), bytearray(10)
ctx = kkp2p.connect_ctx_t(sys.argv[3], connect_mode=2, timeout=10_000)
ctx.encrypt_data = int(sys.argv[4])
result = kkp2p.connect(engine, ctx, channel)
print("connect", result, flush=True)
if result == 0:
    assert kkp2p.write(channel.fd, b"x", 1, 1000) == 1
    print("echo", kkp2p.read(channel.fd, buff, 10, 10_000), flush=True)
    print("end", kkp2p.read(channel.fd, buff, 10, 120_000), flush=True)
    kkp2p.close_fd(channel.fd)
kkp2p.engine_destroy(engine)
