"""Greenlets killed, peers that stop, links that break: nothing is left, nobody waits for ever."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent import socket as gsocket
from gevent.event import Event

import kkp2p_compat as kkp2p
from helpers.cloud_client import tcp_pair
from helpers.line_server import LineServer, Visitor, wait_for
from helpers.support import PATIENCE_S
from kkp2p_compat._errors import KKP2PError, LinkLost, TimedOut
from kkp2p_compat._io import time_limit
from kkp2p_compat.control import resolver
from kkp2p_compat.control.link import OutgoingCall
from kkp2p_compat.engine.calls import cloud_call as calls
from kkp2p_compat.engine.calls.cloud_call import Connection, make_call
from kkp2p_compat.engine.channels import kinds as channels
from kkp2p_compat.engine.channels.kinds import Channel, adopt
from kkp2p_compat.transport import carry
from kkp2p_compat.transport.carry import SealedStream
from kkp2p_compat.transport.relay import Visit
from kkp2p_compat.transport.sealed import DirectionKeys, Opener, Sealer

KEYS = DirectionKeys(b"a" * 16, b"a" * 12), DirectionKeys(b"b" * 16, b"b" * 12)
Conf = Callable[..., kkp2p.engine_conf_t]


def test_engine_init_killed_while_the_thread_starts(
    engine_conf: Conf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread comes up when nobody is left to stop it: it must end by itself."""
    gate = monkey.get_original("_thread", "allocate_lock")()
    gate.acquire()
    check = kkp2p.engine.runtime.thread._need_descriptors

    def held_up(count: int) -> None:
        gate.acquire()
        check(count)

    monkeypatch.setattr(kkp2p.engine.runtime.thread, "_need_descriptors", held_up)
    starting = gevent.spawn(kkp2p.engine_init, engine_conf(), 0)
    gevent.sleep(0)
    starting.kill()
    assert isinstance(starting.value, gevent.GreenletExit)
    gate.release()  # the leak check of every test sees whether the thread ends


def test_a_watcher_that_is_left_does_not_keep_the_thread(lone_engine: kkp2p.engine_t) -> None:
    """A bug of ours would be enough, or a program's own watcher in our hub."""
    left, other = socket.socketpair()

    def leave() -> Any:
        watcher = gevent.get_hub().loop.io(left.fileno(), 1)
        watcher.start(int)
        return watcher

    watcher = lone_engine.thread.call(leave)
    with gevent.Timeout(PATIENCE_S):
        kkp2p.engine_destroy(lone_engine)
    del watcher
    left.close()
    other.close()


def test_nobody_logs_in_after_the_end(engine_conf: Conf) -> None:
    conf = engine_conf(login_domain="127.0.0.1", login_port=1)
    engine = kkp2p.engine_init(conf, 0)
    assert engine is not None
    client = engine.client
    kkp2p.engine_destroy(engine)
    assert client is not None
    with pytest.raises(KKP2PError):
        client.login("peer", "secret")


def test_lookups_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come from servers too, and a lookup that hangs holds a thread."""
    gate = monkey.get_original("_thread", "allocate_lock")()
    gate.acquire()

    def stuck(*_: object) -> list[Any]:
        with gate:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]

    monkeypatch.setattr(resolver, "_getaddrinfo", stuck)
    names = [f"host{i}.example" for i in range(resolver.MAX_LOOKUPS)]
    waiting = [gevent.spawn(resolver.resolve, name, PATIENCE_S) for name in names]
    gevent.sleep(0)
    with pytest.raises(KKP2PError, match="are being looked up already") as caught:
        resolver.resolve("one-more.example", PATIENCE_S)
    assert caught.value.code == -102
    gate.release()
    assert [lookup.get() for lookup in waiting] == [["10.0.0.1"]] * resolver.MAX_LOOKUPS
    assert resolver.resolve("one-more.example", PATIENCE_S) == ["10.0.0.1"]


def test_a_name_when_there_are_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    places = len(resolver._free_places)
    monkeypatch.setattr(resolver.monkey, "get_original", lambda *_: refuse)
    with pytest.raises(KKP2PError) as caught:
        resolver.resolve("p2p.example", PATIENCE_S)
    assert caught.value.code == -103
    assert len(resolver._free_places) == places


def test_a_peer_that_never_takes_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its application is gone, the peer lives and does not read: a stranger must not hold us."""
    monkeypatch.setattr(carry, "CLOSE_TIMEOUT_S", 0.01)
    app, plain = gsocket.socketpair()
    wire, peer = tcp_pair()
    stream = SealedStream(plain, wire, Sealer(KEYS[0]), Opener(KEYS[1]), lambda: None)
    running = gevent.spawn(stream.run)
    app.settimeout(0.3)
    with pytest.raises(TimeoutError):
        app.sendall(bytes(100_000_000))
    app.close()
    closing = gevent.spawn(stream.application_closed)
    error = running.get(timeout=PATIENCE_S)
    assert isinstance(error, LinkLost)
    assert "does not take the rest" in str(error)
    wire.close()
    closing.join()
    for sock in (plain, peer):
        sock.close()


def test_the_socket_is_closed_when_the_link_breaks_with_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = tcp_pair()

    class Broken:
        """A link that breaks while the call is being given up."""

        def call(self, to: str, offer: str, budget_ms: int) -> OutgoingCall:
            call = OutgoingCall(1)
            call.relay.set({})
            return call

        def forget(self, call: object, cancel: bool) -> None:
            raise LinkLost("the cloud does not read")

    class Client:
        def links_to(self, peer_id: str) -> list[Broken]:
            return [Broken()]

    visit = Visit([("127.0.0.1", 1)], b"", True)
    visit.sock = ours
    monkeypatch.setattr(calls, "go_to_relay", lambda *_, **__: visit)
    ctx = kkp2p.connect_ctx_t("peer", timeout=10)
    with pytest.raises((LinkLost, TimedOut)), time_limit(0.01, TimedOut()):
        make_call(Client(), ctx, 0.01)  # type: ignore[arg-type]
    assert ours.fileno() == -1
    theirs.close()


@pytest.fixture
def raw(lone_engine: kkp2p.engine_t) -> tuple[Channel, gsocket.socket]:
    ours, theirs = tcp_pair()
    fd = ours.detach()

    def in_engine() -> Channel:
        sock = gsocket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
        return adopt(lone_engine, Connection(sock, 0, 0), "bob")

    return lone_engine.thread.call(in_engine), theirs


def test_a_number_that_changes_hands_while_it_is_duplicated(
    raw: tuple[Channel, gsocket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In engine_destroy, say, while another thread closes the descriptor and opens a file."""
    channel, theirs = raw
    other = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    monkeypatch.setattr(Channel, "owns_fd", lambda self: True)  # it was, a moment ago
    os.dup2(other, channel.fd)
    assert channel.duplicate_fd() is None
    os.close(channel.fd)
    assert channel.duplicate_fd() is None
    os.close(other)
    theirs.close()


def test_a_descriptor_that_the_application_closed_is_forgotten(
    raw: tuple[Channel, gsocket.socket], lone_engine: kkp2p.engine_t
) -> None:
    channel, theirs = raw
    os.close(channel.fd)
    lone_engine.thread.call(channel.sweep)
    wait_for(lambda: not lone_engine.channels)
    assert channels._by_fd.get(channel.fd) is not channel
    theirs.close()


def test_a_connect_that_engine_destroy_cuts_short(
    engine_conf: Conf, serve: Callable[..., LineServer]
) -> None:
    """It is no fault of the network's: -1, as for every other call of an engine that is gone."""
    asked = Event()

    def script(visitor: Visitor) -> None:
        visitor.receive("route")
        asked.set()
        visitor.wait_until_gone()

    port = serve(script).address[1]
    engine = kkp2p.engine_init(engine_conf(login_domain="127.0.0.1", login_port=port), 0)
    assert engine is not None
    ctx = kkp2p.connect_ctx_t("peer", timeout=PATIENCE_S * 1000)
    connecting = gevent.spawn(kkp2p.connect, engine, ctx, kkp2p.channel_t())
    asked.wait()
    kkp2p.engine_destroy(engine)
    assert connecting.get() == kkp2p.KKP2P_ERROR
