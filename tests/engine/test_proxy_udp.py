"""start_proxy_udp: a channel for each client address, and what becomes of datagrams and clients.

Over loopback, where nothing is lost unless a queue drops it.
"""

from __future__ import annotations

import ctypes
import os
import socket as _socket
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pool import Group

import kkp2p_compat as kkp2p
from helpers.direct_support import LONG, links, settled, until
from helpers.support import PATIENCE_S, SECRET, forked_child
from kkp2p_compat._codes import MAX_MESSAGE_BYTES
from kkp2p_compat.engine.links.streams import OpenStream
from kkp2p_compat.engine.proxy import udp_proxy
from kkp2p_compat.engine.proxy.proxied import Proxied
from kkp2p_compat.engine.proxy.udp_proxy import UdpProxy

Address = tuple[str, int]
Client = Callable[[Address], socket.socket]
StartProxy = Callable[..., UdpProxy]

pytestmark = pytest.mark.usefixtures("on_loopback")

LONGEST = 65_507  # bytes, of UDP over IPv4


class Peer:
    """An application that answers each message with ``answer(message)``, on each channel."""

    def __init__(self, engine: kkp2p.engine_t) -> None:
        self.engine = engine
        self.channels: list[socket.socket] = []
        self.ended = 0
        self.answer: Callable[[bytes], list[bytes]] = lambda message: [message]
        self._running = Group()
        self._running.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            channel = kkp2p.channel_t()
            got = kkp2p.accept(self.engine, 1000, channel)
            if got < 0:
                return
            if got:
                assert channel.channel_type == kkp2p.KKP2P_UDP_CHANNEL
                self._running.spawn(self._serve, channel.fd)

    def _serve(self, fd: int) -> None:
        sock = socket.socket(fileno=os.dup(fd))
        self.channels.append(sock)
        try:
            while message := sock.recv(1 << 16):
                for answer in self.answer(message):
                    sock.send(answer)
        finally:
            self.ended += 1
            kkp2p.close_fd(fd)

    def close(self) -> None:
        self._running.kill()
        for sock in self.channels:
            sock.close()


@pytest.fixture
def server(peer: kkp2p.engine_t) -> Iterator[Peer]:
    made = Peer(peer)
    yield made
    made.close()


@pytest.fixture
def proxy(engine: kkp2p.engine_t) -> StartProxy:
    def start(
        peer_id: str = "peer", ip: str = "127.0.0.1", port: int = 0, mode: int = 1
    ) -> UdpProxy:
        ctx = kkp2p.connect_ctx_t(peer_id, kkp2p.KKP2P_UDP_CHANNEL, mode, timeout=LONG)
        proxy_id = ctypes.c_uint32()
        assert kkp2p.start_proxy_udp(engine, ip, port, ctx, proxy_id) == 0
        made = engine.switchboard.proxies.find(proxy_id.value)
        assert isinstance(made, UdpProxy)
        return made

    return start


@pytest.fixture
def client() -> Iterator[Client]:
    made: list[socket.socket] = []

    def connect(address: Address) -> socket.socket:
        family = _socket.AF_INET6 if ":" in address[0] else _socket.AF_INET
        sock = socket.socket(family, _socket.SOCK_DGRAM)
        made.append(sock)
        sock.connect(address)
        sock.settimeout(PATIENCE_S)
        return sock

    yield connect
    for sock in made:
        sock.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may try again at once."""
    monkeypatch.setattr(udp_proxy, "REOPEN_S", 0.0)
    monkeypatch.setattr(udp_proxy, "REST_FIRST_S", 0.01)
    monkeypatch.setattr(udp_proxy, "REST_MOST_S", 0.01)


def ask(sock: socket.socket, data: bytes) -> bytes:
    sock.send(data)
    return bytes(sock.recv(1 << 16))


def ask_until_answered(sock: socket.socket, data: bytes) -> None:
    """As DNS clients do; answers to earlier ones may still come."""
    sock.settimeout(0.05)
    with gevent.Timeout(PATIENCE_S):
        while True:
            sock.send(data)
            try:
                while sock.recv(1 << 16) != data:
                    pass
            except TimeoutError:
                continue
            break
    sock.settimeout(PATIENCE_S)


# Datagrams.


def test_many_clients(
    proxy: StartProxy, client: Client, server: Peer, engine: kkp2p.engine_t
) -> None:
    """Each has a channel of its own, and gets the answers to its own datagrams."""
    address = proxy().address
    socks = [client(address) for _ in range(50)]
    for number, sock in enumerate(socks):
        sock.send(b"%d" % number)
    for number, sock in enumerate(socks):
        assert sock.recv(100) == b"%d" % number
    for number, sock in enumerate(socks):
        assert ask(sock, b"again %d" % number) == b"again %d" % number
    assert len(server.channels) == 50
    assert len(links(engine)) == 1


@pytest.mark.parametrize("mode", [0, 2])
def test_in_the_other_modes(
    proxy: StartProxy, client: Client, server: Peer, engine: kkp2p.engine_t, mode: int
) -> None:
    address = proxy(mode=mode).address
    socks = [client(address) for _ in range(10)]
    for sock in socks:
        sock.send(b"first")
    for sock in socks:
        assert sock.recv(100) == b"first"
        assert ask(sock, b"next") == b"next"
    assert len(server.channels) == 10
    assert len(links(engine)) == 1


def test_sizes(proxy: StartProxy, client: Client, server: Peer) -> None:
    sock = client(proxy().address)
    for size in (1, 1200, 1500, 9000, LONGEST):
        data = os.urandom(size)
        assert ask(sock, data) == data


def test_an_answer_that_no_datagram_can_hold(
    proxy: StartProxy, client: Client, server: Peer
) -> None:
    """It is dropped and counted; the channel lives."""
    one = proxy()
    server.answer = lambda message: [bytes(MAX_MESSAGE_BYTES), message]
    sock = client(one.address)
    for number in range(3):
        assert ask(sock, b"%d" % number) == b"%d" % number
    until(lambda: one.dropped == {"longer than a datagram": 3})
    assert len(server.channels) == 1


@pytest.mark.parametrize(
    ("ip", "asked"),
    [
        ("::1", "::1"),
        ("127.0.0.2", "127.0.0.2"),
        ("0.0.0.0", "127.0.0.3"),
        ("::", "::1"),
        ("::", "::ffff:127.0.0.3"),
    ],
)
def test_answers_leave_by_the_address_that_was_asked(
    proxy: StartProxy, client: Client, server: Peer, ip: str, asked: str
) -> None:
    """Else a client that has connected its socket would not see them."""
    address = proxy(ip=ip).address
    assert address[0] == ip
    sock = client((asked, address[1]))
    for _ in range(2):
        assert ask(sock, b"hello") == b"hello"


def test_two_addresses_asked_by_one_client(proxy: StartProxy, client: Client, server: Peer) -> None:
    """It has one channel, and each answer comes from where it asked last."""
    port = proxy(ip="0.0.0.0").address[1]
    sock = socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        for host in ("127.0.0.4", "127.0.0.5"):
            sock.sendto(host.encode(), (host, port))
            with gevent.Timeout(PATIENCE_S):
                assert sock.recvfrom(100) == (host.encode(), (host, port))
    finally:
        sock.close()
    assert len(server.channels) == 1


# While the channel is being opened.


@pytest.fixture
def gate(engine: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Event]:
    """Who was dialed, and what lets them through."""
    dialed: list[str] = []
    opened = engine.thread.call(Event)
    connect = engine.dialer.connect

    def wait(ctx: kkp2p.connect_ctx_t, over_lan: bool = False) -> OpenStream:
        dialed.append(ctx.peer_id)
        opened.wait()
        return connect(ctx, over_lan)

    monkeypatch.setattr(engine.dialer, "connect", wait)
    return dialed, opened


def test_what_comes_before_the_channel_is_open(
    proxy: StartProxy,
    client: Client,
    server: Peer,
    engine: kkp2p.engine_t,
    gate: tuple[list[str], Event],
) -> None:
    """It is kept, up to a bound, in its order."""
    one, (_, opened) = proxy(), gate
    sock, lengthy = client(one.address), client(one.address)
    for number in range(udp_proxy.MAX_KEPT + 10):
        sock.send(b"%d" % number)
    for _ in range(5):
        lengthy.send(bytes(60_000))
    too_many = "too many before the channel was open"
    until(lambda: one.dropped[too_many] == 10 + 3)
    assert one.kept_bytes <= 2 * udp_proxy.MAX_KEPT_BYTES
    engine.thread.call(opened.set)
    got = [int(sock.recv(100)) for _ in range(udp_proxy.MAX_KEPT)]
    assert got == list(range(udp_proxy.MAX_KEPT))
    assert [len(lengthy.recv(1 << 16)) for _ in range(2)] == [60_000] * 2
    assert ask(sock, b"and on") == b"and on"
    assert one.kept_bytes == 0
    assert one.dropped == {too_many: 13}


def test_few_are_opened_at_once(
    monkeypatch: pytest.MonkeyPatch,
    proxy: StartProxy,
    client: Client,
    server: Peer,
    engine: kkp2p.engine_t,
    gate: tuple[list[str], Event],
) -> None:
    """The other clients wait, and what all have sent by then is bounded, too."""
    monkeypatch.setattr(udp_proxy, "MAX_OPENING", 3)
    monkeypatch.setattr(udp_proxy, "ALL_KEPT_BYTES", 20 * 5)
    one, (dialed, opened) = proxy(), gate
    socks = [client(one.address) for _ in range(20)]
    for sock in socks:
        sock.send(b"first")
    until(lambda: one.kept_bytes == 20 * 5)
    socks[0].send(b"one more")
    until(lambda: one.dropped.total() == 1)
    assert len(dialed) == 3
    engine.thread.call(opened.set)
    assert [sock.recv(100) for sock in socks] == [b"first"] * 20


# Clients.


def test_idle_clients_end_in_order(
    monkeypatch: pytest.MonkeyPatch,
    proxy: StartProxy,
    client: Client,
    server: Peer,
    engine: kkp2p.engine_t,
    quick: None,
) -> None:
    """The peer reads the end; the client's next datagram opens another channel."""
    monkeypatch.setattr(udp_proxy, "SWEEP_S", 0.01)
    one = proxy()
    sock = client(one.address)
    assert ask(sock, b"one") == b"one"
    with monkeypatch.context() as patch:  # not before: a busy host may take longer to answer
        patch.setattr(udp_proxy, "IDLE_S", 0.05)
        until(lambda: server.ended == 1)
        until(lambda: settled(engine))
    assert ask(sock, b"two") == b"two"
    assert len(server.channels) == 2
    assert not one.dropped


@pytest.mark.parametrize("spared", [True, False])
def test_thousands_of_source_ports(
    monkeypatch: pytest.MonkeyPatch,
    proxy: StartProxy,
    client: Client,
    server: Peer,
    engine: kkp2p.engine_t,
    spared: bool,
) -> None:
    """Clients are bounded: who was active a moment ago keeps its place, an idle one may lose it."""
    monkeypatch.setattr(udp_proxy, "MAX_CLIENTS", 8)
    monkeypatch.setattr(udp_proxy, "SPARED_S", PATIENCE_S if spared else 0.0)
    one = proxy()
    socks = [client(one.address) for _ in range(8)]
    for sock in socks:
        assert ask(sock, b"in time") == b"in time"
    for _ in range(40):
        client(one.address).send(b"one of many")
    if spared:
        until(lambda: one.dropped == {"over 8 clients": 40})
        for sock in socks:
            assert ask(sock, b"still here") == b"still here"
    else:
        until(lambda: server.ended >= 8 and len(server.channels) - server.ended == 8)
        assert engine.thread.call(lambda: len(one._clients)) == 8
        assert ask(socks[0], b"back again") == b"back again"


def test_new_channels_have_a_pace(
    monkeypatch: pytest.MonkeyPatch, proxy: StartProxy, client: Client, server: Peer
) -> None:
    monkeypatch.setattr(udp_proxy, "OPENED_PER_S", 0.001)
    monkeypatch.setattr(udp_proxy, "OPENED_BURST", 5)
    one = proxy()
    for sock in [client(one.address) for _ in range(9)]:
        sock.send(b"hello")
    until(lambda: one.dropped == {"too many new channels at once": 4})
    until(lambda: len(server.channels) == 5)


# What fails.


def test_a_peer_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
    proxy: StartProxy,
    client: Client,
    engine: kkp2p.engine_t,
    make_engine: Callable[..., kkp2p.engine_t],
    gate: tuple[list[str], Event],
) -> None:
    """It is tried again at a bounded pace, whoever asks; the proxy works when it is back."""
    monkeypatch.setattr(udp_proxy, "REST_FIRST_S", PATIENCE_S)
    monkeypatch.setattr(udp_proxy, "REST_MOST_S", PATIENCE_S)
    (dialed, opened), one = gate, proxy("other")
    engine.thread.call(opened.set)
    sock = client(one.address)
    sock.send(b"lost")
    until(lambda: one.dropped == {udp_proxy.UNREACHED: 1})
    for _ in range(20):
        sock.send(b"lost")
        client(one.address).send(b"lost, too")
    until(lambda: one.dropped == {udp_proxy.UNREACHED: 41})
    assert len(dialed) == 1
    back = make_engine()
    assert kkp2p.join_net(back, "other", SECRET) == 0
    monkeypatch.setattr(one, "_resting_until", 0.0)
    monkeypatch.setattr(udp_proxy, "REOPEN_S", 0.0)
    server = Peer(back)
    try:
        assert ask(sock, b"at last") == b"at last"
    finally:
        server.close()


@pytest.mark.tuned(accept_queue_places=1)
def test_a_peer_that_refuses(
    proxy: StartProxy, client: Client, peer: kkp2p.engine_t, quick: None
) -> None:
    """The one client's datagrams are lost, for as long as that lasts."""
    one = proxy()
    first, second = client(one.address), client(one.address)
    first.send(b"first")
    socket.wait_read(kkp2p.listen_fd(peer), timeout=PATIENCE_S)
    second.send(b"refused")
    until(lambda: one.dropped == {udp_proxy.UNREACHED: 1})
    server = Peer(peer)
    try:
        assert first.recv(100) == b"first"
        ask_until_answered(second, b"again")
        assert ask(first, b"on") == b"on"
    finally:
        server.close()


def test_a_channel_that_the_peer_ends(
    monkeypatch: pytest.MonkeyPatch, proxy: StartProxy, client: Client, server: Peer
) -> None:
    """The next datagram opens another, but not at once: a peer may end each of them."""
    one = proxy()
    sock, other = client(one.address), client(one.address)
    assert ask(sock, b"one") == ask(other, b"one") == b"one"
    server.channels[0].shutdown(_socket.SHUT_RDWR)
    until(lambda: server.ended == 1)
    until(lambda: sum(held.channel is not None for held in one._clients.values()) == 1)
    monkeypatch.setattr(udp_proxy, "REOPEN_S", PATIENCE_S)
    sock.send(b"too early")
    until(lambda: one.dropped == {"a channel that has just been opened has ended": 1})
    monkeypatch.setattr(udp_proxy, "REOPEN_S", 0.0)
    assert ask(sock, b"two") == b"two"
    assert ask(other, b"two") == b"two"
    assert len(server.channels) == 3


def test_a_link_that_breaks(
    proxy: StartProxy, client: Client, server: Peer, engine: kkp2p.engine_t, quick: None
) -> None:
    sock = client(proxy().address)
    assert ask(sock, b"one") == b"one"
    (link,) = links(engine)
    engine.thread.call(link.close, "a test")
    ask_until_answered(sock, b"two")
    assert len(server.channels) == 2


# Its end.


def test_stop(proxy: StartProxy, client: Client, server: Peer, engine: kkp2p.engine_t) -> None:
    """The peer reads the end; the port is free, and other proxies live on."""
    one, other = proxy(), proxy()
    sock, living = client(one.address), client(other.address)
    assert ask(sock, b"one") == ask(living, b"one") == b"one"
    assert ask(sock, b"last words") == b"last words"
    kkp2p.stop_proxy(engine, one.proxy_id)
    assert kkp2p.proxy_address(engine, one.proxy_id) is None
    until(lambda: server.ended == 1)
    assert proxy(port=one.address[1]).address == one.address
    assert ask(living, b"two") == b"two"


def test_a_forked_child_does_not_keep_the_port(
    proxy: StartProxy, client: Client, server: Peer, engine: kkp2p.engine_t
) -> None:
    started = proxy()
    sock = client(started.address)
    with gevent.Timeout(PATIENCE_S), forked_child():
        assert ask(sock, b"by the parent") == b"by the parent"
        kkp2p.stop_proxy(engine, started.proxy_id)
        again = proxy(port=started.address[1])
        assert again.address == started.address
        assert ask(sock, b"again") == b"again"


def test_stop_while_channels_are_opened(
    monkeypatch: pytest.MonkeyPatch,
    proxy: StartProxy,
    client: Client,
    engine: kkp2p.engine_t,
    peer: kkp2p.engine_t,
    gate: tuple[list[str], Event],
) -> None:
    monkeypatch.setattr(udp_proxy, "MAX_OPENING", 2)
    one, (dialed, _) = proxy(), gate
    for sock in [client(one.address) for _ in range(5)]:
        sock.send(b"never")
    until(lambda: one.kept_bytes == 25)
    with gevent.Timeout(PATIENCE_S):
        kkp2p.stop_proxy(engine, one.proxy_id)
    assert len(dialed) == 2
    assert one.kept_bytes == 0
    until(lambda: settled(engine))


def test_an_address_that_cannot_be_had(engine: kkp2p.engine_t, proxy: StartProxy) -> None:
    """UDP has no TIME_WAIT: two programs never share a port."""
    ctx = kkp2p.connect_ctx_t("peer", kkp2p.KKP2P_UDP_CHANNEL, 1, timeout=LONG)
    port = proxy().address[1]
    for ip, number in (("127.0.0.1", port), ("192.0.2.1", 0), ("nowhere", 0)):
        assert kkp2p.start_proxy_udp(engine, ip, number, ctx, ctypes.c_uint32()) == -113


def test_what_is_told_of_each_client(client: Client, server: Peer, engine: kkp2p.engine_t) -> None:
    told: list[tuple[int, bool]] = []
    last: list[Proxied] = []

    def watch(proxied: Proxied) -> None:
        told.append((proxied.port, proxied.over))
        last.append(proxied)

    ctx = kkp2p.connect_ctx_t("peer", kkp2p.KKP2P_UDP_CHANNEL, 1, timeout=LONG)
    one = engine.start_proxy("127.0.0.1", 0, ctx, watch)
    server.answer = lambda message: [message] * 2
    sock = client(one.address)
    for _ in range(3):
        assert ask(sock, b"12345") == sock.recv(100) == b"12345"
    assert engine.stop_proxy(one.proxy_id)
    port = sock.getsockname()[1]
    assert told == [(port, False), (port, True)]
    (proxied,) = set(last)
    assert (proxied.path, proxied.problems) == ("p2p", [])
    assert proxied.set_up_s is not None
    assert (proxied.datagrams_sent, proxied.datagrams_received) == (3, 6)
    assert (proxied.bytes_sent, proxied.bytes_received) == (15, 30)
