"""UDP channels: boundaries, sizes, bounded queues that drop the oldest, and the end of a channel.

Over loopback, where nothing is lost unless a queue drops it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import LONG, MakeEngine, accept, ctx_to, links, settled, until
from helpers.support import PATIENCE_S, read_all, write_all
from kkp2p_compat._codes import MAX_MESSAGE_BYTES

SIZES = [1, 2, 100, 1199, 1200, 1500, 9000, 65_535, MAX_MESSAGE_BYTES]
Pair = tuple[kkp2p.channel_t, kkp2p.channel_t]


@pytest.fixture(params=["cloud", "LAN"])
def pair(
    request: pytest.FixtureRequest, make_engine: MakeEngine
) -> Iterator[tuple[kkp2p.channel_t, kkp2p.channel_t]]:
    """Two ends of one UDP channel: the caller's and the callee's."""
    name = "peer"
    if request.param == "LAN":
        caller, callee = request.getfixturevalue("lan_pair")
        name = "lan-peer"
    else:
        request.getfixturevalue("on_loopback")
        caller, callee = request.getfixturevalue("engine"), request.getfixturevalue("peer")
    made = kkp2p.channel_t(), kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t(name, kkp2p.KKP2P_UDP_CHANNEL, 1, timeout=LONG)
    assert kkp2p.connect(caller, ctx, made[0]) == 0
    assert kkp2p.accept(callee, LONG, made[1]) == 1
    yield made
    for channel in made:
        kkp2p.close_fd(channel.fd)


def send(fd: int, message: bytes) -> None:
    assert kkp2p.write(fd, message, len(message), LONG) == len(message)


def receive(fd: int) -> bytes:
    buff = bytearray(MAX_MESSAGE_BYTES)
    count = kkp2p.read(fd, buff, len(buff), LONG)
    assert count > 0, count
    return bytes(buff[:count])


def rest_of(fd: int) -> list[bytes]:
    """The messages until the end."""
    buff, found = bytearray(MAX_MESSAGE_BYTES), []
    while (count := kkp2p.read(fd, buff, len(buff), LONG)) > 0:
        found.append(bytes(buff[:count]))
    assert count == -1
    return found


def test_what_both_sides_are_told(pair: Pair) -> None:
    for channel in pair:
        assert channel.channel_type == kkp2p.KKP2P_UDP_CHANNEL
        assert channel.transmit_mode == 1
        with socket.socket(fileno=os.dup(channel.fd)) as sock:
            assert sock.type == socket.SOCK_SEQPACKET


def test_sizes_both_ways(pair: Pair) -> None:
    for size in SIZES:
        message = os.urandom(size)
        for one, other in (pair, pair[::-1]):
            send(one.fd, message)
            assert receive(other.fd) == message


def test_boundaries(pair: Pair) -> None:
    """Many small messages at once stay as many."""
    sent = [b"%d" % number * (number % 7 + 1) for number in range(200)]
    for message in sent:
        send(pair[0].fd, message)
    assert sorted(receive(pair[1].fd) for _ in sent) == sorted(sent)
    assert kkp2p.read(pair[1].fd, bytearray(10), 10, 0) == 0


def test_a_short_buffer_gets_the_beginning(pair: Pair) -> None:
    """As with any datagram socket; the next read has the next message."""
    for message in (b"0123456789", b"next"):
        send(pair[0].fd, message)
    gevent.socket.wait_read(pair[1].fd, timeout=PATIENCE_S)
    buff = bytearray(4)
    assert kkp2p.read(pair[1].fd, buff, 4, LONG) == 4
    assert buff == b"0123"
    assert receive(pair[1].fd) == b"next"


def test_a_message_that_is_too_long(pair: Pair) -> None:
    """Refused by write; what an application sends by itself is dropped.  The channel lives."""
    long = bytes(MAX_MESSAGE_BYTES + 1)
    assert kkp2p.write(pair[0].fd, long, len(long), LONG) == -106
    with socket.socket(fileno=os.dup(pair[0].fd)) as sock:
        sock.setblocking(True)
        assert sock.send(long) == len(long)
    send(pair[0].fd, b"short")
    assert receive(pair[1].fd) == b"short"


def test_an_empty_message(pair: Pair) -> None:
    """Not taken by write, as in C, and passed over by read, for which 0 is the end of its time.

    Sent and received by hand it arrives, as any other; that it is no end only poll tells.
    """
    assert kkp2p.write(pair[0].fd, b"x", 0, LONG) == -106
    with (
        socket.socket(fileno=os.dup(pair[0].fd)) as sock,
        socket.socket(fileno=os.dup(pair[1].fd)) as other,
    ):
        sock.setblocking(True)
        assert sock.send(b"") == sock.send(b"") == 0
        send(pair[0].fd, b"something")
        assert receive(pair[1].fd) == b"something"
        assert sock.send(b"") == 0
        gevent.socket.wait_read(other.fileno(), timeout=PATIENCE_S)
        assert other.recv(10) == b""
        assert kkp2p.read(pair[1].fd, bytearray(10), 10, 0) == 0
        send(pair[0].fd, b"and on")
        assert receive(pair[1].fd) == b"and on"


def test_empty_messages_before_the_end(pair: Pair) -> None:
    """What is behind them still arrives."""
    with socket.socket(fileno=os.dup(pair[0].fd)) as sock:
        sock.setblocking(True)
        for message in (b"", b"one", b"", b"two", b""):
            sock.send(message)
    kkp2p.close_fd(pair[0].fd)
    assert rest_of(pair[1].fd) == [b"one", b"two"]


def test_the_first_words_are_the_callees(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, on_loopback: None
) -> None:
    """They come before the caller has its descriptor, and are not lost."""
    ctx = ctx_to("peer")
    ctx.channel_type = kkp2p.KKP2P_UDP_CHANNEL
    for _ in range(20):
        mine = kkp2p.channel_t()
        connecting = gevent.spawn(kkp2p.connect, engine, ctx, mine)
        theirs = accept(peer)
        send(theirs.fd, b"welcome")
        kkp2p.close_fd(theirs.fd)
        assert connecting.get(timeout=PATIENCE_S) == 0
        assert rest_of(mine.fd) == [b"welcome"]
        kkp2p.close_fd(mine.fd)
    until(lambda: settled(engine) and settled(peer))


def test_both_ways_at_once(pair: Pair) -> None:
    sent = [b"%d" % number for number in range(300)]

    def run(fd: int) -> list[bytes]:
        for message in sent:
            send(fd, message)
        return [receive(fd) for _ in sent]

    running = [gevent.spawn(run, channel.fd) for channel in pair]
    for greenlet in running:
        assert sorted(greenlet.get(timeout=PATIENCE_S)) == sorted(sent)


@pytest.mark.parametrize("closer", [0, 1], ids=["caller", "callee"])
def test_close(pair: Pair, closer: int) -> None:
    """What was written arrives, then the end; a later write fails."""
    mine, theirs = pair[closer], pair[1 - closer]
    sent = [bytes([number]) * 2000 for number in range(20)]
    for message in sent:
        send(mine.fd, message)
    kkp2p.close_fd(mine.fd)
    assert sorted(rest_of(theirs.fd)) == sent
    with gevent.Timeout(PATIENCE_S):
        while (result := kkp2p.write(theirs.fd, b"x", 1, LONG)) == 1:
            gevent.sleep(0.01)
    assert result == -1


def test_half_close(pair: Pair) -> None:
    with socket.socket(fileno=os.dup(pair[0].fd)) as sock:
        send(pair[0].fd, b"question")
        sock.shutdown(socket.SHUT_WR)
    assert rest_of(pair[1].fd) == [b"question"]
    send(pair[1].fd, b"answer")
    kkp2p.close_fd(pair[1].fd)
    assert rest_of(pair[0].fd) == [b"answer"]


def test_a_reader_that_sleeps(pair: Pair) -> None:
    """Write never waits for it; the oldest messages go; the newest, and what follows, arrive."""
    size, count = 10_000, 2000  # 20 MB, far above all that is held
    for number in range(count):
        send(pair[0].fd, number.to_bytes(4, "big") * (size // 4))
    send(pair[0].fd, b"last")
    seen: list[int] = []
    with gevent.Timeout(PATIENCE_S):
        while (message := receive(pair[1].fd)) != b"last":
            assert message == message[:4] * (size // 4)
            seen.append(int.from_bytes(message[:4], "big"))
    assert seen == sorted(set(seen))
    assert len(seen) * size < 8 << 20
    send(pair[0].fd, b"on we go")
    assert receive(pair[1].fd) == b"on we go"


def test_the_end_of_an_engine(pair: Pair, request: pytest.FixtureRequest) -> None:
    send(pair[0].fd, b"last words")
    name = "engine" if pair[0].peer_id == "peer" else "lan_pair"
    engine = request.getfixturevalue(name)
    kkp2p.engine_destroy(engine if name == "engine" else engine[0])
    assert rest_of(pair[1].fd) == [b"last words"]
    assert rest_of(pair[0].fd) == []


def test_beside_tcp_channels_on_one_link(
    make_pair: Callable[..., Pair], engine: kkp2p.engine_t
) -> None:
    """A stream that nobody reads does not hold messages up, nor the other way round."""
    stream, messages = make_pair(mode=1), make_pair(mode=1, kind=kkp2p.KKP2P_UDP_CHANNEL)
    data = os.urandom(8 << 20)
    writing = gevent.spawn(write_all, stream[0].fd, data)
    for number in range(100):
        send(messages[0].fd, b"%d" % number)
        assert receive(messages[1].fd) == b"%d" % number
    for _ in range(200):
        send(messages[0].fd, bytes(MAX_MESSAGE_BYTES))  # nobody reads these
    reading = gevent.spawn(read_all, stream[1].fd)
    writing.get(timeout=PATIENCE_S)
    kkp2p.close_fd(stream[0].fd)
    assert reading.get(timeout=PATIENCE_S) == data
    assert len(links(engine)) == 1


def test_relayed(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """Messages go by the relay as they do directly."""
    for encrypt in (0, 1):
        ctx = kkp2p.connect_ctx_t("peer", kkp2p.KKP2P_UDP_CHANNEL, 2, encrypt, timeout=LONG)
        mine = kkp2p.channel_t()
        assert kkp2p.connect(engine, ctx, mine) == 0
        theirs = accept(peer)
        assert (mine.transmit_mode, theirs.transmit_mode) == (2, 2)
        assert (theirs.channel_type, theirs.encrypt_data) == (kkp2p.KKP2P_UDP_CHANNEL, encrypt)
        for one, other in ((mine, theirs), (theirs, mine)):
            for size in (1, MAX_MESSAGE_BYTES):
                send(one.fd, bytes(size))
                assert receive(other.fd) == bytes(size)
        kkp2p.close_fd(mine.fd)
        kkp2p.close_fd(theirs.fd)
