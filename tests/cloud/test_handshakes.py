"""Thousands come at once: how many TLS handshakes are under way, and what those cost that wait."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from helpers.cloud_client import Client, running_cloud, time_passes, until
from kkp2p_compat.cloud import handshakes, server
from kkp2p_compat.cloud.control_connection import ControlConnection
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.transport import tcp

PEERS = [f"peer{number}" for number in range(40)]
HERE, THERE = "127.0.0.1", "127.0.0.2"


@contextmanager
def _recorded(
    monkeypatch: pytest.MonkeyPatch, at_once: int = handshakes.AT_ONCE, slow_s: float = 3600.0
) -> Iterator[tuple[Cloud, list[ControlConnection]]]:
    """A cloud, and the connections whose handshakes it has begun."""
    monkeypatch.setattr(handshakes, "AT_ONCE", at_once)
    monkeypatch.setattr(handshakes, "SLOW_S", slow_s)
    begun: list[ControlConnection] = []

    class Recorded(ControlConnection):
        def start(self) -> None:
            begun.append(self)
            super().start()

    monkeypatch.setattr(server, "ControlConnection", Recorded)
    with running_cloud(dict.fromkeys(PEERS, "secret")) as cloud:
        yield cloud, begun


def _waiting(cloud: Cloud) -> int:
    assert cloud.handshakes is not None
    return len(cloud.handshakes.waiting)


def _begin_only(cloud: Cloud, source: str = HERE) -> gsocket.socket:
    """Whoever begins a handshake, and goes on no further."""
    sock = gsocket.create_connection(cloud.address, source_address=(source, 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    sock.sendall(outgoing.read())
    return sock


def test_no_handshake_of_a_storm_is_wasted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few are under way at once, each of them leads to a login, and all are served."""
    most = 0
    with _recorded(monkeypatch, 4) as (cloud, begun):

        def log_in(peer_id: str) -> Client:
            nonlocal most
            client = Client(cloud.address)
            most = max(most, sum(connection.is_arriving for connection in begun))
            assert client.login(peer_id, "secret")["op"] == "welcome"
            return client

        logins = [gevent.spawn(log_in, peer_id) for peer_id in PEERS]
        clients = [login.get() for login in logins]
        assert cloud.track is not None
        assert cloud.track.online == len(begun) == len(PEERS)
        assert 1 <= most <= 4
        for client in clients:
            client.close()


def test_an_address_has_so_many_and_another_s_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with _recorded(monkeypatch, 2) as (cloud, begun):
        socks = [_begin_only(cloud) for _ in range(4)]
        until(lambda: len(begun) == 2 and _waiting(cloud) == 2)
        with Client(cloud.address, source=THERE) as other:
            assert other.login(PEERS[0], "secret")["op"] == "welcome"
        assert [connection.host for connection in begun] == [HERE, HERE, THERE]
        socks[0].close()  # its place is another's now
        until(lambda: len(begun) == 4)
        assert _waiting(cloud) == 1
        for sock in socks:
            sock.close()


def test_a_slow_one_loses_its_place_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with _recorded(monkeypatch, 1, slow_s=0.0) as (cloud, begun):
        socks = [_begin_only(cloud) for _ in range(3)]
        until(lambda: len(begun) == 3)
        assert not any(tcp.left(sock) for sock in socks)
        for sock in socks:
            sock.close()


def test_who_has_waited_half_of_its_time_is_sent_away_unserved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It could not be served in time, and may try another node while it has some left."""
    monkeypatch.setattr(handshakes, "PER_TURN", 0)
    with _recorded(monkeypatch) as (cloud, begun):
        sock = _begin_only(cloud)
        until(lambda: _waiting(cloud) == 1)
        limit_s = cloud.gate.limits.handshake_s
        time_passes(cloud, 0.4 * limit_s)
        assert not tcp.left(sock)
        time_passes(cloud, 0.6 * limit_s)
        assert _received(sock) == b""
        assert cloud.gate.connections == 0
        monkeypatch.setattr(handshakes, "PER_TURN", 8)
        until(lambda: _waiting(cloud) == 0)
        assert begun == []


def _received(sock: Any) -> bytes:
    with sock:
        try:
            return bytes(sock.recv(65536))
        except ConnectionResetError:
            return b""
