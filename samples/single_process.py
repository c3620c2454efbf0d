"""Server, proxy and https client in one process, as the document's last sentence says.

Run it (a cloud first: `kkp2p account add PEER_ID`, `kkp2p cloud`):

    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem
    python samples/single_process.py PEER_ID PEER_KEY key.pem cert.pem [--login HOST[:PORT]]

PEER_KEY: the secret; - takes it from $KKP2P_SECRET, or asks, because other users of this host
can see a command line.  --login: the cloud (default: $KKP2P_LOGIN, else that of ``kkp2p join``,
else 127.0.0.1:3080), also as HOST:PORT#sha256:HEX, which `kkp2p cloud` prints: then its
certificate must be that one.  --ca FILE: it must verify with this one.  One engine logs in as
PEER_ID, and its own proxy calls PEER_ID.  The page comes through the proxy and is printed, and
the exit status is 0.
"""

from __future__ import annotations

import argparse
import ctypes
import getpass
import os
import sys
import time

import gevent
from gevent import socket, ssl
from OpenSSL import SSL

import kkp2p_compat as kkp2p
from kkp2p_compat import tls

TIMEOUT_MS = 10000


def serve(engine: kkp2p.engine_t, ssl_ctx: SSL.Context) -> None:
    """Answer every call; runs until it is killed."""
    while True:
        channel = kkp2p.channel_t()
        if (ret := kkp2p.accept(engine, TIMEOUT_MS, channel)) < 0:
            print(f"accept: {ret}")
            return
        if ret:
            gevent.spawn(answer, engine, ssl_ctx, channel)


def answer(engine: kkp2p.engine_t, ssl_ctx: SSL.Context, channel: kkp2p.channel_t) -> None:
    print(f"server: a call, mode {channel.transmit_mode}, desc {channel.connect_desc}")
    page = f"{int(time.time())}\n"
    head = f"HTTP/1.1 200 OK\r\nX-Powered-By: kkp2p https\r\nContent-Length: {len(page)}\r\n\r\n"
    conn = tls.Connection(ssl_ctx, channel.fd)
    if conn.accept(TIMEOUT_MS) < 0 or conn.write((head + page).encode(), TIMEOUT_MS) < 0:
        print(f"server: {conn.error_string()}")
    conn.shutdown(TIMEOUT_MS)
    conn.free()
    kkp2p.close_fd(channel.fd)
    kkp2p.close_channel(engine, channel.channel_id)


def fetch(address: tuple[str, int]) -> str:
    """Get a page by https with gevent's version of ssl, so that the server runs meanwhile."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # gevent's; create_default_context is not
    context.check_hostname = False  # as curl --insecure: the certificate is our own
    context.verify_mode = ssl.CERT_NONE
    with (
        gevent.Timeout(TIMEOUT_MS / 1000),
        socket.create_connection(address) as plain,
        context.wrap_socket(plain) as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def main(argv: list[str]) -> int:
    if len(argv) < 5:
        print(f"usage:{argv[0]} peer_id peer_key private_key_file cert_file")
        return -1
    parser = argparse.ArgumentParser()
    parser.add_argument("--login")
    parser.add_argument("--ca")
    options = parser.parse_args(argv[5:])
    ssl_ctx = SSL.Context(SSL.TLS_METHOD)
    try:
        ssl_ctx.use_privatekey_file(argv[3])
        ssl_ctx.use_certificate_file(argv[4])
        ssl_ctx.check_privatekey()
    except SSL.Error as error:
        print(f"{argv[3]}, {argv[4]}: {error}")
        return -1
    conf = kkp2p.engine_conf_t(login_ca=options.ca)
    if kkp2p.set_login(conf, options.login) < 0:
        parser.error("--login is neither HOST[:PORT][#sha256:HEX] nor an invitation")
    peer_key = argv[2]
    if peer_key == "-":
        peer_key = os.environ.get("KKP2P_SECRET") or getpass.getpass("Secret: ")
    engine = kkp2p.engine_init(conf, 5000)
    if engine is None:
        print(f"engine_init: {kkp2p.error_no()} ({kkp2p.error_text()})")
        return -1
    try:
        return run(engine, argv[1], peer_key, ssl_ctx)
    finally:
        kkp2p.engine_destroy(engine)


def run(engine: kkp2p.engine_t, peer_id: str, peer_key: str, ssl_ctx: SSL.Context) -> int:
    if (ret := kkp2p.join_net(engine, peer_id, peer_key)) < 0:
        print(f"join_net: {ret} ({kkp2p.error_text()})")
        return -1
    ctx = kkp2p.connect_ctx_t(peer_id, kkp2p.KKP2P_TCP_CHANNEL, timeout=5000, connect_desc=2)
    proxy_id = ctypes.c_uint32()
    if (ret := kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx, proxy_id)) < 0:
        print(f"start_proxy: {ret} ({kkp2p.error_text()})")
        return -1
    server = gevent.spawn(serve, engine, ssl_ctx)
    try:
        address = kkp2p.proxy_address(engine, proxy_id) or ("", 0)
        print(f"client: https://{address[0]}:{address[1]}/")
        page = fetch(address)
    except (OSError, gevent.Timeout) as error:
        print(f"client: {error}")
        return -1
    finally:
        server.kill()
        kkp2p.stop_proxy(engine, proxy_id)
    print(page, end="")
    return 0 if page.startswith("HTTP/1.1 200 OK\r\n") else -1


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main(sys.argv))
