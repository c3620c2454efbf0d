"""``python lan_proxy.py LAN_PORT LISTEN_PORT PEER DESC``: a proxy to a peer on the LAN."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import kkp2p_compat as kkp2p

lan_port, listen_port, peer, desc = sys.argv[1:]
conf = kkp2p.engine_conf_t(lan_search_port=int(lan_port), log_path=os.environ["TMPDIR"])
engine = kkp2p.engine_init(conf, 5000)
assert engine is not None
ctx = kkp2p.connect_ctx_t(peer, connect_mode=1, timeout=5000, connect_desc=int(desc))
assert kkp2p.start_proxy(engine, "127.0.0.1", int(listen_port), ctx, ctypes.c_uint32()) == 0
print("success", flush=True)
threading.Event().wait()
