"""Channels that move between a relay and a direct path while they are used."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import (
    LONG,
    MakeEngine,
    accept,
    check_carries,
    close,
    connect,
    ctx_to,
    links,
    udp_ctx,
    until,
)
from helpers.support import PATIENCE_S, SECRET, CloudProcess, write_all
from kkp2p_compat.engine.paths.path_kind import PathKind

pytestmark = [pytest.mark.usefixtures("on_loopback"), pytest.mark.tuned(head_start_s=0.1)]


class Wall:
    """Between the UDP sockets of engines; the cloud is reached through it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *engines: kkp2p.engine_t) -> None:
        self.is_up = True
        endpoints = [engine.network.underlay().endpoint for engine in engines]
        ports = {port for endpoint in endpoints for port in endpoint.ports().values()}
        for endpoint in endpoints:
            for door in endpoint._doors.main.values():
                for name in ("send", "send_with_ttl"):
                    monkeypatch.setattr(door.socket, name, self._behind(door.socket, name, ports))

    def _behind(self, sock: Any, name: str, ports: set[int]) -> Callable[..., int]:
        send = getattr(sock, name)

        def send_or_drop(data: bytes, *arguments: Any) -> int:
            target = next(each for each in arguments if isinstance(each, tuple))
            if self.is_up and target[1] in ports:
                return len(data)
            sent: int = send(data, *arguments)
            return sent

        return send_or_drop


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> Wall:
    return Wall(monkeypatch, engine, peer)


def kind_of(engine: kkp2p.engine_t) -> PathKind:
    (link,) = links(engine)
    return link.paths.kind


def path_of(engine: kkp2p.engine_t, channel: kkp2p.channel_t) -> str:
    stats = kkp2p.channel_stats(engine, channel.channel_id)
    assert stats is not None
    return stats.path


class Transfer:
    """Numbered blocks, from one descriptor to another, until ``end``."""

    def __init__(self, source: int, target: int) -> None:
        self._ends = False
        self._sent, self._received = hashlib.sha256(), hashlib.sha256()
        self.bytes_sent = self.bytes_received = 0
        self._target = target
        self._writing = gevent.spawn(self._write, source)
        self._reading = gevent.spawn(self._read)

    def _write(self, source: int) -> None:
        block = os.urandom(2000)
        while not self._ends:
            write_all(source, block)
            self._sent.update(block)
            self.bytes_sent += len(block)
            gevent.sleep(0.002)
        with socket.socket(fileno=os.dup(source)) as sock:
            sock.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        buff = bytearray(1 << 16)
        while (count := kkp2p.read(self._target, buff, len(buff), LONG)) > 0:
            self._received.update(buff[:count])
            self.bytes_received += count

    def goes_on(self) -> bool:
        """More arrives."""
        before = self.bytes_received
        until(lambda: self.bytes_received > before or self._reading.ready())
        return not self._reading.ready()

    def end(self) -> None:
        self._ends = True
        for part in (self._writing, self._reading):
            part.get(timeout=PATIENCE_S)
        assert self._received.digest() == self._sent.digest()


def test_to_the_direct_path_and_back(
    wall: Wall, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """As often as the wall falls and rises; no byte is lost or repeated."""
    mine, theirs = connect(engine, 0), accept(peer)
    assert (mine.transmit_mode, theirs.transmit_mode) == (2, 2)
    there, back = Transfer(mine.fd, theirs.fd), Transfer(theirs.fd, mine.fd)
    for _ in range(3):
        wall.is_up = False
        until(lambda: kind_of(engine) is PathKind.DIRECT and kind_of(peer) is PathKind.DIRECT)
        assert path_of(engine, mine) == path_of(peer, theirs) == "p2p"
        assert there.goes_on()
        assert back.goes_on()
        wall.is_up = True
        until(lambda: kind_of(engine) is PathKind.LANE and kind_of(peer) is PathKind.LANE)
        assert path_of(engine, mine) == "relay"
        assert there.goes_on()
        assert back.goes_on()
    there.end()
    back.end()
    close(mine, theirs)


def test_messages(wall: Wall, engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """Of a UDP channel: none is lost on the way to the better path."""
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    assert kkp2p.connect(engine, udp_ctx(0, LONG), mine) == 0
    assert kkp2p.accept(peer, LONG, theirs) == 1
    assert (mine.transmit_mode, theirs.transmit_mode) == (2, 2)
    wall.is_up = False
    sent = 0
    while kind_of(engine) is not PathKind.DIRECT or kind_of(peer) is not PathKind.DIRECT:
        sent += 1
        message = b"%d" % sent
        assert kkp2p.write(mine.fd, message, len(message), LONG) == len(message)
        buff = bytearray(20)
        count = kkp2p.read(theirs.fd, buff, len(buff), LONG)
        assert buff[:count] == message
    close(mine, theirs)


def test_mode_1_and_mode_2_stay(
    monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """A link has the paths that its mode allows, and no other."""
    direct, relayed = kkp2p.channel_t(), kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx_to("peer", 1), direct) == 0
    close(direct, accept(peer))
    ctx = ctx_to("peer", 2)
    ctx.encrypt_data = 1
    assert kkp2p.connect(engine, ctx, relayed) == 0
    theirs = accept(peer)
    assert (relayed.transmit_mode, relayed.encrypt_data) == (2, 1)
    by_mode = {link.info.mode: link for link in links(engine)}
    until(lambda: by_mode[2].paths.has_relay)
    assert not by_mode[1].paths.has_relay
    assert by_mode[2].info.met.ours.candidates == []
    assert by_mode[2].info.met.theirs.candidates == []
    check_carries(relayed, theirs)


def test_another_call_for_a_link_of_mode_2_leaves_it_its_relay(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """Also when the time of that call is over."""
    mine = kkp2p.channel_t()
    assert kkp2p.connect(engine, udp_ctx(2, LONG), mine) == 0
    theirs = accept(peer)
    ((ours,), (other,)) = links(engine), links(peer)
    engine.thread.call(lambda: engine.dialer.redial(ours, 1.0, needs_tcp=False))
    until(lambda: not peer.thread.call(lambda: peer.switchboard.incoming.busy))
    assert ours.paths.has_relay
    assert other.paths.has_relay
    assert kkp2p.write(mine.fd, b"still there", 11, LONG) == 11
    assert kkp2p.read(theirs.fd, bytearray(11), 11, LONG) == 11
    close(mine, theirs)


def test_without_a_lane_packets_go_by_tcp(cloud: CloudProcess, make_engine: MakeEngine) -> None:
    """Of a relay whose UDP port nothing reaches."""
    callee, caller = (make_engine() for _ in range(2))
    assert kkp2p.join_net(callee, "peer", SECRET) == 0

    def deafen(engine: kkp2p.engine_t) -> None:
        underlay = engine.network.underlay()
        assert underlay.searches.lanes  # which listens from now on
        underlay.endpoint.on_lane = None

    for engine in (callee, caller):
        engine.thread.call(deafen, engine)
    ctx = ctx_to("peer", 2)
    ctx.channel_type = kkp2p.KKP2P_UDP_CHANNEL
    mine = kkp2p.channel_t()
    assert kkp2p.connect(caller, ctx, mine) == 0
    theirs = accept(callee)
    assert kind_of(caller) is kind_of(callee) is PathKind.FRAMED
    assert kkp2p.write(mine.fd, b"x" * 60000, 60000, LONG) == 60000
    assert kkp2p.read(theirs.fd, bytearray(60000), 60000, LONG) == 60000
    close(mine, theirs)


@pytest.mark.parametrize("who", ["caller", "callee", "both"])
def test_without_udp(make_engine: MakeEngine, who: str) -> None:
    """By the wish of either side no datagram is sent; both use TCP, and each mode but p2p works."""
    caller, callee = (
        make_engine(tcp_only=int(who in (name, "both"))) for name in ("caller", "callee")
    )
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    ctx = ctx_to("peer", 2)
    ctx.encrypt_data = 1
    mine = kkp2p.channel_t()
    assert kkp2p.connect(caller, ctx, mine) == 0
    check_carries(mine, accept(callee))
    assert kind_of(caller) is kind_of(callee) is PathKind.FRAMED
    mine, theirs = connect(caller, 0), accept(callee)
    assert all(link.paths.kind.is_tcp for link in [*links(caller), *links(callee)])
    check_carries(mine, theirs)


def test_what_needs_udp(make_engine: MakeEngine) -> None:
    engine = make_engine(tcp_only=1, lan_search_port=5)
    assert kkp2p.join_lan(engine, "me") == -106
    assert kkp2p.lan_search(engine, ctx_to("peer"), kkp2p.channel_t()) == -106
