"""Clouds and relays that die under live channels, and come back.  Errors and never a hang."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.redis_server import RedisServer
from helpers.support import PATIENCE_S, SECRET, CloudProcess, listen, read_all, write_all
from kkp2p_compat.control import client as client_module
from kkp2p_compat.engine.calls import incoming
from kkp2p_compat.engine.links import link_table

LONG = PATIENCE_S * 1000
ACCOUNT = ("--account", f"peer:{SECRET}")
both_kinds = pytest.mark.parametrize("encrypt", [0, 1], ids=["plain", "encrypted"])


def connect(engine: kkp2p.engine_t, channel: kkp2p.channel_t, encrypt: int = 0) -> int:
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, encrypt_data=encrypt, timeout=LONG)
    return kkp2p.connect(engine, ctx, channel)


@both_kinds
def test_cloud_killed_and_restarted(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
    redis_server: RedisServer,
    encrypt: int,
) -> None:
    """Live channels go on (the relay is another process); calls work again after the restart."""
    monkeypatch.setattr(client_module, "BACKOFF_MOST_S", 1.0)
    fleet = ("--directory", redis_server.url, "--role")
    start_cloud(*fleet, "relay", data="relay")
    track_options = (*fleet, "track", *ACCOUNT)
    track = start_cloud(*track_options)
    callee, caller = make_engine(login_port=track.port), make_engine(login_port=track.port)
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    assert connect(caller, mine, encrypt) == 0
    assert kkp2p.accept(callee, LONG, theirs) == 1

    track.kill()
    write_all(mine.fd, b"through the outage")
    buff = bytearray(100)
    assert kkp2p.read(theirs.fd, buff, 100, LONG) > 0

    start_cloud(*track_options, port=track.port)
    again, accepted = kkp2p.channel_t(), kkp2p.channel_t()
    with gevent.Timeout(PATIENCE_S):
        while connect(caller, again, encrypt) != 0:  # the callee has to log in again first
            gevent.sleep(0.1)
    assert kkp2p.accept(callee, LONG, accepted) == 1
    write_all(mine.fd, b"and after it")
    assert kkp2p.read(theirs.fd, buff, 100, LONG) > 0
    for channel in (mine, theirs, again, accepted):
        kkp2p.close_fd(channel.fd)


def test_tracks_that_die_and_come_back(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
    redis_server: RedisServer,
) -> None:
    """Route, two tracks, relay: a peer is found at whichever track it is, at the other one while
    that is dead, and there still when both live again."""
    monkeypatch.setattr(client_module, "BACKOFF_MOST_S", 1.0)
    fleet = ("--directory", redis_server.url, "--role")
    start_cloud(*fleet, "relay", data="relay")
    options = (*fleet, "track", *ACCOUNT)
    tracks = [start_cloud(*options, data=name) for name in ("one", "two")]
    route = start_cloud(*fleet, "route", data="route")
    callee, caller = make_engine(login_port=route.port), make_engine(login_port=route.port)
    assert kkp2p.join_net(callee, "peer", SECRET) == 0

    def call() -> None:
        mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
        with gevent.Timeout(2 * PATIENCE_S):
            while connect(caller, mine) != 0:
                gevent.sleep(0.1)
        assert kkp2p.accept(callee, LONG, theirs) == 1
        for channel in (mine, theirs):
            kkp2p.close_fd(channel.fd)

    call()
    for track, name in zip(tracks, ("one", "two"), strict=True):
        track.kill()
        call()
        start_cloud(*options, data=name, port=track.port)
        call()


@both_kinds
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_relay_killed(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
    encrypt: int,
    number: int,
) -> None:
    """Channels end with an error on both sides, and do not hang: a sealed one, which could go on
    over another relay, when its peer was silent for too long.
    """
    monkeypatch.setattr(
        link_table,
        "TransportSettings",
        functools.partial(link_table.TransportSettings, idle_timeout_s=2.0, keepalive_s=0.5),
    )
    cloud = start_cloud(*ACCOUNT, "--drain", "0")
    callee, caller = make_engine(login_port=cloud.port), make_engine(login_port=cloud.port)
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    assert connect(caller, mine, encrypt) == 0
    assert kkp2p.accept(callee, LONG, theirs) == 1
    reading = [gevent.spawn(read_all, channel.fd) for channel in (mine, theirs)]
    cloud.end(number)
    for greenlet in reading:
        assert greenlet.get(timeout=PATIENCE_S) == b""
    for channel in (mine, theirs):
        with gevent.Timeout(PATIENCE_S):
            while (result := kkp2p.write(channel.fd, b"x", 1, 1000)) == 1:
                gevent.sleep(0.01)
        assert result == -1
        kkp2p.close_fd(channel.fd)


def test_refused_after_join_net_has_returned(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cloud was away when join_net asked; when it comes it knows no such peer: accept tells."""
    monkeypatch.setattr(incoming, "VERDICT_S", 0.1)
    monkeypatch.setattr(client_module, "BACKOFF_MOST_S", 1.0)
    listener = listen()
    port = listener.getsockname()[1]
    listener.close()
    engine = make_engine(login_port=port)
    assert kkp2p.join_net(engine, "peer", SECRET) == 0
    start_cloud("--account", f"somebody:{SECRET}", port=port)
    assert kkp2p.accept(engine, LONG, kkp2p.channel_t()) == kkp2p.KKP2P_ERROR_INVALID_PEER_ID


def test_refused_when_coming_back(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal by whoever answers at a reconnect proves nothing: the peer goes on trying."""
    monkeypatch.setattr(client_module, "BACKOFF_MOST_S", 1.0)
    cloud = start_cloud(*ACCOUNT)
    engine = make_engine(login_port=cloud.port)
    assert kkp2p.join_net(engine, "peer", SECRET) == 0
    cloud.kill()
    impostor = start_cloud("--account", f"somebody:{SECRET}", data="impostor", port=cloud.port)
    with gevent.Timeout(PATIENCE_S):
        while not any("unknown-peer" in line for line in impostor.output):
            gevent.sleep(0.05)
    impostor.kill()
    start_cloud(*ACCOUNT, port=cloud.port)
    caller, mine = make_engine(login_port=cloud.port), kkp2p.channel_t()
    with gevent.Timeout(PATIENCE_S):
        while connect(caller, mine) != 0:
            gevent.sleep(0.1)
    kkp2p.close_fd(mine.fd)
