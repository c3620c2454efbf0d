"""A program for tests: ``python echo_peer.py server|proxy PORT ...``; ends with its stdin.

server PORT PEER SECRET [HOST]: logs in, and echoes what each accepted channel sends, by native
threads on blocking descriptors (it never imports gevent itself).
proxy PORT PEER MODE ENCRYPT: a proxy to PEER; prints where it listens.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading

import kkp2p_compat as kkp2p


def echo(channel: kkp2p.channel_t) -> None:
    buffer = bytearray(1 << 18)
    with socket.socket(fileno=os.dup(channel.fd)) as sock:
        sock.settimeout(None)
        try:
            while count := sock.recv_into(buffer):
                sock.sendall(memoryview(buffer)[:count])
            sock.shutdown(socket.SHUT_WR)
            print("ended", flush=True)
        except OSError as error:
            print("broken", error, flush=True)
    kkp2p.close_fd(channel.fd)


def server(engine: kkp2p.engine_t, peer: str, secret: str, _host: str = "") -> None:
    assert kkp2p.join_net(engine, peer, secret) == 0
    print("joined", flush=True)
    while kkp2p.accept(engine, 3_600_000, channel := kkp2p.channel_t()) > 0:
        threading.Thread(target=echo, args=(channel,), daemon=True).start()


def proxy(engine: kkp2p.engine_t, peer: str, mode: str, encrypt: str) -> None:
    proxy_id = ctypes.c_uint32()
    ctx = kkp2p.connect_ctx_t(peer, 0, int(mode), int(encrypt), 20000)
    assert kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx, proxy_id) == 0
    address = kkp2p.proxy_address(engine, proxy_id)
    assert address is not None
    print(address[1], flush=True)
    threading.Event().wait()


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    host = sys.argv[5] if sys.argv[1] == "server" and len(sys.argv) > 5 else "127.0.0.1"
    conf = kkp2p.engine_conf_t(host, int(sys.argv[2]), log_path=os.environ["TMPDIR"])
    started = kkp2p.engine_init(conf, 5000)
    assert started is not None
    {"server": server, "proxy": proxy}[sys.argv[1]](started, *sys.argv[3:])
