"""What the tests of direct connections share: peers named "peer", their channels and links."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gevent

import kkp2p_compat as kkp2p
from helpers.support import PATIENCE_S, write_all
from kkp2p_compat.engine.links.peer_link import PeerLink

LONG = PATIENCE_S * 1000
MakeEngine = Callable[..., kkp2p.engine_t]


def ctx_to(peer_id: str, mode: int = 1, timeout: int = LONG, desc: int = 0) -> kkp2p.connect_ctx_t:
    return kkp2p.connect_ctx_t(peer_id, connect_mode=mode, timeout=timeout, connect_desc=desc)


def udp_ctx(mode: int, timeout: int) -> kkp2p.connect_ctx_t:
    ctx = ctx_to("peer", mode, timeout)
    ctx.channel_type = kkp2p.KKP2P_UDP_CHANNEL
    return ctx


def connect(engine: kkp2p.engine_t, mode: int = 1, desc: int = 0) -> kkp2p.channel_t:
    channel = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx_to("peer", mode, desc=desc), channel) == 0
    return channel


def accept(engine: kkp2p.engine_t) -> kkp2p.channel_t:
    channel = kkp2p.channel_t()
    assert kkp2p.accept(engine, LONG, channel) == 1
    return channel


def close(*made: kkp2p.channel_t) -> None:
    for channel in made:
        kkp2p.close_fd(channel.fd)


def check_carries(one: kkp2p.channel_t, other: kkp2p.channel_t) -> None:
    """Says something each way, and closes both."""
    for source, target in ((one, other), (other, one)):
        write_all(source.fd, b"hello")
        buff = bytearray(5)
        assert kkp2p.read(target.fd, buff, 5, LONG) == 5
        assert buff == b"hello"
    close(one, other)


def links(engine: kkp2p.engine_t) -> list[PeerLink]:
    return engine.thread.call(lambda: list(engine.links))


def until(condition: Callable[[], object]) -> None:
    with gevent.Timeout(PATIENCE_S):
        while not condition():
            gevent.sleep(0.005)


def settled(engine: kkp2p.engine_t) -> bool:
    """Nothing is left of any channel."""
    return not (engine.channels or engine.busy() or any(link.channels for link in links(engine)))


def log_of(tmp_path: Path, number: int) -> str:
    return (tmp_path / f"engine{number}" / "kkp2p_engine.log").read_text()
