"""An HTTP client: a local port that leads to the peer, and a URL with that port."""

from __future__ import annotations

import ctypes
import urllib.request

import kkp2p_compat as kkp2p


def fetch(engine: kkp2p.engine_t, peer_id: str, path: str) -> bytes:
    ctx = kkp2p.connect_ctx_t(peer_id=peer_id, timeout=5000)
    proxy_id = ctypes.c_uint32()
    started = kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx, proxy_id)  # port 0: a free one
    if started < 0 or (address := kkp2p.proxy_address(engine, proxy_id)) is None:
        raise OSError(kkp2p.error_text())
    try:
        url = f"http://{address[0]}:{address[1]}{path}"
        direct = urllib.request.ProxyHandler({})  # past the HTTP proxy of the environment, if any
        with urllib.request.build_opener(direct).open(url, timeout=10) as response:
            return bytes(response.read())
    finally:
        kkp2p.stop_proxy(engine, proxy_id)
