"""The relay by UDP, over real sockets: what it forwards, from where, and how it ends."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from helpers.cloud_client import running_cloud, until
from helpers.shared_directory import KEY, running_node
from helpers.support import PATIENCE_S
from helpers.usage_support import new_session
from kkp2p_compat._address import Address
from kkp2p_compat.cloud import lane_table
from kkp2p_compat.cloud.lane import LaneRelay
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.cloud.udp_port import HomedSocket, UdpPort, homes_of, ip_of, number_of
from kkp2p_compat.transport import lane_wire, relay_wire
from kkp2p_compat.transport.udp import lane as lane_client
from kkp2p_compat.transport.udp.batch_socket import BatchSocket
from kkp2p_compat.transport.udp.header import FIRST_BYTE, OVERHEAD_BYTES
from kkp2p_compat.transport.udp.lane import LaneClient, LaneState
from kkp2p_compat.traversal.stun import Kind, Message, parse_untrusted

HERE, HERE_6 = "127.0.0.1", "::1"
log = logging.getLogger(__name__)


class Peer:
    """One side: a socket, and its lane."""

    def __init__(
        self, spot: Address, side: int, session: bytes, local_id: int, key: bytes = KEY
    ) -> None:
        family = socket.AF_INET6 if ":" in spot[0] else socket.AF_INET
        self.sock = BatchSocket(family, log)
        token = relay_wire.make_token(key, session, side, int(time.time()) + 60)
        self.spot = spot
        self.lane = LaneClient(spot, token, local_id, time.monotonic())
        self.got: list[bytes] = []
        self.sources: set[Address] = set()
        self.buffers = 0  # in which it came
        self.read_on()

    def read_on(self) -> None:
        self.reader = gevent.spawn(self._read)

    def move(self) -> None:
        """As a NAT does that has forgotten its mapping: from another port from now on."""
        self.reader.kill()
        self.sock.close()
        self.sock = BatchSocket(self.sock.family, log)
        self.read_on()

    def _read(self) -> None:
        while True:
            self.poll()
            gevent.socket.wait_read(self.sock.fileno())
            while (received := self.sock.receive()) is not None:
                data, segment_bytes, source = received
                if data.startswith(lane_wire.MAGIC):
                    self.lane.handle_datagram_untrusted(data, source, time.monotonic())
                else:
                    self.sources.add(source)
                    self.buffers += 1
                    self.got += [
                        data[at : at + segment_bytes] for at in range(0, len(data), segment_bytes)
                    ]

    def poll(self) -> None:
        while (transmit := self.lane.poll_transmit()) is not None:
            data, address = transmit
            self.sock.send(data, len(data), address)

    def send(self, packets: list[bytes]) -> None:
        data = b"".join(packets)
        assert self.sock.send(data, len(packets[0]), self.spot) == len(data)

    def wait_for(self, state: LaneState) -> None:
        until(lambda: self.lane.state is state)

    def close(self) -> None:
        self.reader.kill()
        self.sock.close()


ID_A, ID_B = 0xA, 0xB << 56


def packets(to: int, count: int = 1, size: int = 1472) -> list[bytes]:
    head = bytes([FIRST_BYTE]) + bytes(7) + to.to_bytes(8, "big")
    return [head + number.to_bytes(4, "big") + os.urandom(size - 20) for number in range(count)]


class Scene:
    def __init__(self, cloud: Cloud, stack: ExitStack) -> None:
        assert cloud.lane is not None
        self.cloud = cloud
        self.lane: LaneRelay = cloud.lane
        self.port = cloud.address[1]
        self._stack = stack

    def peers(self, a: str = HERE, b: str = HERE) -> tuple[Peer, Peer]:
        session = new_session(KEY)
        made = Peer((a, self.port), 0, session, ID_A), Peer((b, self.port), 1, session, ID_B)
        for each in made:
            self._stack.callback(each.close)
            each.wait_for(LaneState.PAIRED)
        return made


Start = Callable[..., Scene]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def start(**settings: Any) -> Scene:
            settings = {"role": "relay", **settings}
            return Scene(stack.enter_context(running_node(**settings)), stack)

        yield start


@pytest.fixture
def scene(start: Start) -> Scene:
    return start()


# What it forwards.


def test_a_train_arrives_as_it_was_sent(scene: Scene) -> None:
    a, b = scene.peers()
    there, back = packets(ID_B, 40), packets(ID_A, 30, 1200)
    a.send(there)
    b.send(back)
    until(lambda: (len(a.got), len(b.got)) == (30, 40))
    assert (a.got, b.got) == (back, there)
    assert a.sources == b.sources == {(HERE, scene.port)}
    size = sum(map(len, there + back))
    assert scene.lane.bytes_forwarded == size
    assert not scene.lane.counts["packets without a lane"]
    if a.sock.can_segment:
        assert b.buffers < 40, "what came joined went on joined"


@pytest.mark.parametrize("size", [OVERHEAD_BYTES, 100, 9000])
def test_packets_of_any_size(scene: Scene, size: int) -> None:
    a, b = scene.peers()
    for each in packets(ID_B, 20, size):
        a.send([each])
    until(lambda: len(b.got) == 20)
    assert {len(each) for each in b.got} == {size}


def test_between_ipv4_and_ipv6(start: Start) -> None:
    a, b = start(host="::").peers(HERE, HERE_6)
    there, back = packets(ID_B, 3), packets(ID_A, 3)
    a.send(there)
    b.send(back)
    until(lambda: (b.got, a.got) == (there, back))


@pytest.mark.parametrize(("host", "asked"), [("0.0.0.0", "127.0.0.77"), ("::", "127.0.0.77")])
def test_from_the_address_that_was_asked(start: Start, host: str, asked: str) -> None:
    """A NAT lets in nothing else."""
    a, b = start(host=host).peers(asked, HERE)
    b.send(packets(ID_A, 3))
    b.send(packets(ID_A))
    until(lambda: len(a.got) == 4)
    assert a.sources == {(asked, a.spot[1])}
    a.send(packets(ID_B))
    until(lambda: b.got)
    assert b.sources == {(HERE, b.spot[1])}


def test_two_sessions_of_the_same_sockets(scene: Scene) -> None:
    """One buffer with packets for two peers is cut apart."""
    a, b = scene.peers()
    session, third = new_session(KEY), Peer(a.spot, 1, new_session(KEY), 0xC)
    token = relay_wire.make_token(KEY, session, 1, int(time.time()) + 60)
    third.lane = LaneClient(a.spot, token, 0xC, time.monotonic())
    try:
        token = relay_wire.make_token(KEY, session, 0, int(time.time()) + 60)
        again = LaneClient(a.spot, token, 0xAA, time.monotonic(), a.lane.cookie)
        third.poll()
        third.wait_for(LaneState.HERE)
        transmit = again.poll_transmit()
        assert transmit is not None
        a.send([transmit[0]])
        third.wait_for(LaneState.PAIRED)
        mixed = [packets(to)[0] for to in (ID_B, ID_B, 0xC, ID_B, 0xC)]
        a.send(mixed)
        until(lambda: (len(b.got), len(third.got)) == (3, 2))
        assert [*b.got, *third.got] == [mixed[place] for place in (0, 1, 3, 2, 4)]
    finally:
        third.close()


def test_a_side_whose_address_changes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first packet is answered with WHO, so it shows itself again at once."""
    a, b = scene.peers()
    b.lane.remote_id = ID_A
    monkeypatch.setattr(lane_client, "WHO_EVERY_S", 0.0)  # else none counts soon after a SHOW
    b.move()
    b.send(packets(ID_A))
    until(lambda: scene.lane.counts["packets without a lane"])

    def told() -> bool:
        b.poll()
        return scene.lane.table.route(probe(b), ID_A.to_bytes(8, "big"), 0, 0) is not None

    until(told)
    sent = packets(ID_A, 2)
    b.send(sent)
    until(lambda: a.got == sent)
    a.send(sent := packets(ID_B, 2))
    until(lambda: b.got == sent)


def probe(peer: Peer) -> Address:
    return HERE, peer.sock.port, number_of(HERE)


# What it does not.


def test_strangers_packets_go_nowhere(start: Start) -> None:
    scene = start(stun=False)  # which would take what is not a lane's
    a, b = scene.peers()
    with gsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.settimeout(PATIENCE_S)
        (packet,) = packets(ID_B)
        stranger.sendto(packet, a.spot)
        assert stranger.recv(2000) == lane_wire.make_who(packet[8:16])
        for junk in (b"", b"\x40", packet[: OVERHEAD_BYTES - 1], b"junk", b"KKLN", b"\xff" * 99):
            stranger.sendto(junk, a.spot)
        counts = {
            "without a cookie": 2,  # the two sides' first
            "packets without a lane": 1,
            "too short for a packet": 2,
            "not a lane's datagram": 1,
            "not ours": 3,
        }
        until(lambda: scene.lane.counts == counts)
        a.send(last := packets(ID_B))
        until(lambda: b.got == last)


def test_a_peer_that_cannot_take_so_much_loses_packets_and_nobody_else(scene: Scene) -> None:
    """The relay keeps nothing: what finds no room is dropped."""
    a, b = scene.peers()
    c, d = scene.peers()
    b.reader.kill()
    for _ in range(200):
        a.send(packets(ID_B, 40))
        gevent.sleep(0)
    c.send(sent := packets(ID_B))
    until(lambda: d.got == sent)


def test_a_fault_of_ours_costs_its_datagram(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = scene.peers()
    with monkeypatch.context() as patch:
        patch.setattr(scene.lane.table, "route", lambda *_: 1 / 0)
        a.send(packets(ID_B))
        until(lambda: "a fault of ours" in caplog.text)
    a.send(last := packets(ID_B))
    until(lambda: b.got == last)


# Its place in a cloud.


def test_stun_and_lanes_share_a_port(start: Start) -> None:
    scene = start(role="all")
    a, b = scene.peers()
    a.send(sent := packets(ID_B, 2))
    until(lambda: b.got == sent)
    stun = scene.cloud.stun
    assert stun is not None
    with gsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(PATIENCE_S)
        asker.bind((HERE, 0))
        asker.sendto(Message(Kind.REQUEST, bytes(12), software="." * 60).encode(None), a.spot)
        assert parse_untrusted(asker.recv(200)).mapped == asker.getsockname()
        asker.sendto(packets(ID_B)[0], (HERE, stun.ports[1]))
        until(lambda: stun.counts.total() == 2)
    assert (stun.counts["answered"], len(b.got)) == (1, 2), "lanes are at the first port only"


def test_without_stun(start: Start) -> None:
    scene = start(role="all", stun=False)
    a, b = scene.peers()
    a.send(sent := packets(ID_B, 2))
    until(lambda: b.got == sent)
    assert scene.cloud.stun is None


def test_without_lanes() -> None:
    with running_cloud(role="all", lane=False) as cloud:
        assert cloud.lane is None
        assert cloud.stun is not None
    with running_node("relay", stun=False, lane=False) as cloud:
        port = cloud.address[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind((HERE, port))


def test_the_log(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    a, b = start().peers()
    assert f"relay: lane of {HERE} and {HERE}: paired" in caplog.text
    a.send(packets(ID_B, 3, 1000))
    until(lambda: len(b.got) == 3)
    for each in (a, b):
        each.lane.leave()
        each.poll()
    until(lambda: f"relay: lane of {HERE} and {HERE}: 3000 and 0 bytes in" in caplog.text)


def test_a_wrong_key_is_told(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer((HERE, scene.port), 0, bytes(16), ID_A, key=b"x" * 32)
    try:
        peer.wait_for(LaneState.REFUSED)
        assert peer.lane.reason == relay_wire.status_text(relay_wire.BAD)
        assert f"{HERE} refused: relay: lane: {peer.lane.reason}" in caplog.text
    finally:
        peer.close()


def test_a_relay_that_ends_says_so_and_waits_for_its_peers(scene: Scene) -> None:
    a, b = scene.peers()
    stopping = gevent.spawn(scene.cloud.stop, LONG_S)
    for each in (a, b):
        each.wait_for(LaneState.REFUSED)
        assert each.lane.status == relay_wire.CLOSING
    a.send(sent := packets(ID_B))
    until(lambda: b.got == sent)
    assert not stopping.dead
    for each in (a, b):
        each.lane.leave()
        each.poll()
    stopping.join(PATIENCE_S)
    assert stopping.successful(), "it waits for nobody any more"


LONG_S = 600.0


def test_bindings_that_nobody_uses_are_swept(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = scene.peers()
    monkeypatch.setattr(lane_table, "BINDING_S", 0.0)
    until(lambda: scene.lane.table.sessions == 0)
    a.send(packets(ID_B))
    until(lambda: scene.lane.counts["packets without a lane"])
    assert b.got == []


# The port.


@contextmanager
def port_at(host: str) -> Iterator[tuple[UdpPort, list[tuple[bytes, Address]]]]:
    port, got = UdpPort(homes_of(host), 0), []
    port.on_stun = lambda data, segment_bytes, source: got.append((data, source))
    port.start()
    try:
        yield port, got
    finally:
        port.stop()


@pytest.mark.parametrize(
    ("host", "asked"), [(HERE, HERE), (HERE_6, HERE_6), ("0.0.0.0", HERE), ("::", HERE_6)]
)
def test_an_address_tells_which_of_ours_it_is_reached_by(host: str, asked: str) -> None:
    family = socket.AF_INET6 if ":" in asked else socket.AF_INET
    with port_at(host) as (port, got), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.sendto(b"ping", (asked, port.port))
        until(lambda: got)
        ((data, source),) = got
        assert (data, source[:2], ip_of(source)) == (b"ping", (asked, sock.getsockname()[1]), asked)
        assert source[2:] == (number_of(asked),)
        assert port.send(b"pong", 4, source)
        assert sock.recvfrom(10)[1][:2] == (asked, port.port)


def test_a_port_that_is_taken_leaves_nothing_open() -> None:
    with port_at(HERE) as (port, _):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="in use") as caught:
            UdpPort([(int(socket.AF_INET6), ""), (int(socket.AF_INET), HERE)], port.port)
        assert caught.value.errno == errno.EADDRINUSE
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_socket_of_one_address_sends_from_it() -> None:
    sock = HomedSocket((int(socket.AF_INET), "127.0.0.9"), 0)
    try:
        sock.send(b"to ourselves", 12, ("127.0.0.9", sock.port, sock.number))
        gevent.socket.wait_read(sock.fileno())
        assert sock.receive() == (b"to ourselves", 12, ("127.0.0.9", sock.port, sock.number))
    finally:
        sock.close()
