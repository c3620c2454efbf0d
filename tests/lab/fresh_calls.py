"""``python fresh_calls.py HOST PORT PEER MODE COUNT``: calls, each with an engine of its own.

For each "call RESULT TRANSMIT_MODE MS", the time with that of engine_init, and "echo 1" where the
peer has sent a byte back.
"""

from __future__ import annotations

import os
import sys
import time

import kkp2p_compat as kkp2p

host, port, peer, mode, count = sys.argv[1:]
for _ in range(int(count)):
    conf = kkp2p.engine_conf_t(host, int(port), log_path=os.environ["TMPDIR"], disable_upnp=1)
    began = time.monotonic()
    engine = kkp2p.engine_init(conf, 5000)
    assert engine is not None
    channel, buff = kkp2p.channel_t(), bytearray(1)
    result = kkp2p.connect(
        engine, kkp2p.connect_ctx_t(peer, connect_mode=int(mode), timeout=10_000), channel
    )
    took_ms = 1000 * (time.monotonic() - began)
    print("call", result, channel.transmit_mode, f"{took_ms:.0f}", flush=True)
    if result == 0:
        assert kkp2p.write(channel.fd, b"x", 1, 10_000) == 1
        print("echo", kkp2p.read(channel.fd, buff, 1, 10_000), flush=True)
        kkp2p.close_fd(channel.fd)
    kkp2p.engine_destroy(engine)
