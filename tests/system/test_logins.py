"""Logging in, and calling by the cloud: refusals, a second login, several addresses."""

from __future__ import annotations

from collections.abc import Callable

import gevent

import kkp2p_compat as kkp2p
from helpers.support import PATIENCE_S, SECRET, CloudProcess

LONG = PATIENCE_S * 1000


def connect(engine: kkp2p.engine_t, channel: kkp2p.channel_t, encrypt: int = 0) -> int:
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, encrypt_data=encrypt, timeout=LONG)
    return kkp2p.connect(engine, ctx, channel)


def test_wrong_secret_and_unknown_peer(engine: kkp2p.engine_t) -> None:
    assert kkp2p.join_net(engine, "peer", "wrong") == kkp2p.KKP2P_ERROR_INVALID_PEER_KEY
    assert kkp2p.join_net(engine, "stranger", "any") == kkp2p.KKP2P_ERROR_INVALID_PEER_ID
    assert kkp2p.join_net(engine, "peer", SECRET) == 0  # the same engine may try again


def test_peer_that_is_not_online(engine: kkp2p.engine_t) -> None:
    """-109 by the cloud's word: the hour of the time-out is not waited for."""
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, timeout=3_600_000)
    assert kkp2p.connect(engine, ctx, kkp2p.channel_t()) == kkp2p.KKP2P_ERROR_CONNECT_TIMEOUT


def test_duplicate_login(
    peer: kkp2p.engine_t, make_engine: Callable[..., kkp2p.engine_t], engine: kkp2p.engine_t
) -> None:
    """The old login's accept reports -117, once; calls reach the new one; it may join again."""
    waiting = gevent.spawn(kkp2p.accept, peer, LONG, kkp2p.channel_t())
    new = make_engine()
    assert kkp2p.join_net(new, "peer", SECRET) == 0
    assert waiting.get(timeout=PATIENCE_S) == kkp2p.KKP2P_ERROR_DUPLICATE_ID
    assert kkp2p.accept(peer, 0, kkp2p.channel_t()) == 0
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    assert connect(engine, mine) == 0
    assert kkp2p.accept(new, LONG, theirs) == 1
    assert kkp2p.join_net(peer, "peer", SECRET) == 0
    assert kkp2p.accept(new, LONG, kkp2p.channel_t()) == kkp2p.KKP2P_ERROR_DUPLICATE_ID
    for channel in (mine, theirs):
        kkp2p.close_fd(channel.fd)


def test_several_login_addresses(
    cloud: CloudProcess, make_engine: Callable[..., kkp2p.engine_t]
) -> None:
    """One at random, the others on failure: 127.0.0.2 to .4 have nobody listening."""
    engine = make_engine(login_domain="127.0.0.2|127.0.0.3|127.0.0.1|127.0.0.4")
    assert kkp2p.join_net(engine, "other", SECRET) == 0
    hosts: list[str] = []
    assert kkp2p.get_domainip(engine, hosts) == 4
    ctx = kkp2p.connect_ctx_t("other", connect_mode=2, timeout=LONG)
    mine = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx, mine) == 0
    kkp2p.close_fd(mine.fd)
