"""An engine, calls out of it and calls into it, as ordinary sockets."""

from __future__ import annotations

import socket

import kkp2p_compat as kkp2p


def start(login: str | None = None) -> kkp2p.engine_t:
    """At the cloud that ``login`` names; None: $KKP2P_LOGIN, or what ``kkp2p join`` has kept."""
    conf = kkp2p.engine_conf_t()
    kkp2p.set_login(conf, login)
    engine = kkp2p.engine_init(conf, 5000)
    if engine is None:
        raise OSError(kkp2p.error_text())
    return engine


def call(engine: kkp2p.engine_t, peer_id: str, desc: int = 0) -> socket.socket:
    ctx = kkp2p.connect_ctx_t(peer_id=peer_id, connect_desc=desc, timeout=5000)
    channel = kkp2p.channel_t()
    if kkp2p.connect(engine, ctx, channel) < 0:
        raise ConnectionError(kkp2p.error_text())
    return as_socket(channel)


def take(engine: kkp2p.engine_t, timeout_ms: int) -> kkp2p.channel_t | None:
    """The next caller's channel; None: nobody has called in that time."""
    channel = kkp2p.channel_t()
    if (ret := kkp2p.accept(engine, timeout_ms, channel)) < 0:
        raise ConnectionError(kkp2p.error_text())
    return channel if ret else None


def as_socket(channel: kkp2p.channel_t) -> socket.socket:
    """The channel ends when the socket is closed."""
    sock = socket.socket(fileno=channel.fd)
    sock.setblocking(True)  # the descriptor is non-blocking, and a new socket object is not
    return sock
