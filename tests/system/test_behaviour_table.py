"""Every row of the C SDK's behaviour table ("What v2.0.1 was seen to do"), one test a row.

The row stands in the test's docstring, ours after it where we differ; docs/porting.rst and
docs/status.rst say the same.  Waiting times are not asserted: a test that waits out a time-out
checks what was returned, and that an event (not the clock) ended it where one should.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.support import ENDLESS_BYTES, PATIENCE_S, SECRET, read_all, write_all
from kkp2p_compat.engine.calls import incoming

LONG = PATIENCE_S * 1000

Pair = tuple[kkp2p.channel_t, kkp2p.channel_t]


KINDS = {"direct": (1, 0), "plain": (2, 0), "encrypted": (2, 1)}  # connect_mode, encrypt_data


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, make_pair: Callable[..., Pair]) -> Pair:
    mode, encrypt = KINDS[request.param]
    return make_pair(mode=mode, encrypt=encrypt)


@pytest.mark.parametrize("kind", KINDS)
def test_fd_of_a_tcp_channel(make_pair: Callable[..., Pair], kind: str) -> None:
    """channel fd of a TCP channel | AF_UNIX stream socket, O_NONBLOCK set

    Ours: so for all but relayed ones without encryption, which are the TCP socket itself.
    """
    mode, encrypt = KINDS[kind]
    family = socket.AF_INET if kind == "plain" else socket.AF_UNIX
    for channel in make_pair(mode=mode, encrypt=encrypt):
        assert stat.S_ISSOCK(os.fstat(channel.fd).st_mode)
        assert not os.get_blocking(channel.fd)
        with socket.socket(fileno=os.dup(channel.fd)) as sock:
            assert (sock.family, sock.type) == (family, socket.SOCK_STREAM)


def test_fd_of_a_udp_channel(make_pair: Callable[..., Pair]) -> None:
    """channel fd of a UDP channel | datagram socket

    Ours: SOCK_SEQPACKET, which keeps the boundaries of messages too, and tells of the end.
    """
    for channel in make_pair(mode=1, kind=kkp2p.KKP2P_UDP_CHANNEL):
        assert channel.channel_type == kkp2p.KKP2P_UDP_CHANNEL
        assert not os.get_blocking(channel.fd)
        with socket.socket(fileno=os.dup(channel.fd)) as sock:
            assert (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_accept_results(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, make_pair: Callable[..., Pair]
) -> None:
    """accept | 1 on success, 0 after the time-out; accept with timeout 0 returns 0 at once"""
    channel = kkp2p.channel_t()
    assert kkp2p.accept(peer, 0, channel) == 0
    assert kkp2p.accept(peer, 50, channel) == 0
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, timeout=LONG)
    mine = kkp2p.channel_t()
    waiting = gevent.spawn(kkp2p.accept, peer, LONG, channel)
    assert kkp2p.connect(engine, ctx, mine) == 0
    assert waiting.get() == 1
    kkp2p.close_fd(mine.fd)
    kkp2p.close_fd(channel.fd)


def test_channel_id_and_desc(make_pair: Callable[..., Pair]) -> None:
    """channel_id | random 32 bits, different on the two sides; connect_desc arrives as sent,
    negative ones too"""
    ids = set()
    for desc in (0, 1, -1, -(2**31), 2**31 - 1):
        caller, callee = make_pair(desc=desc)
        ids |= {caller.channel_id, callee.channel_id}
        assert caller.connect_desc == callee.connect_desc == desc
    assert len(ids) == 10
    assert all(0 < number < 2**32 for number in ids)
    assert max(ids) > 2**24  # ten 32-bit numbers below 2**24: once in 10**24 runs


def test_peer_id_of_an_accepted_channel(pair: Pair) -> None:
    """accept's channel.peer_id | the accepting peer's own id"""
    assert pair[1].peer_id == "peer"
    assert pair[0].peer_id == "peer"  # the caller's names whom it called


@pytest.mark.parametrize("mode", [0, 2, 9])
def test_lan_search_wants_mode_1(engine: kkp2p.engine_t, mode: int) -> None:
    """lan_search with connect_mode 0, 2 or 9 | -112 at once (LAN search wants mode 1)"""
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=mode, timeout=3_600_000)
    assert kkp2p.lan_search(engine, ctx, kkp2p.channel_t()) == -112


@pytest.mark.parametrize("timeout", [150, 0])
def test_lan_search_unknown_peer(lan_pair: tuple[kkp2p.engine_t, ...], timeout: int) -> None:
    """lan_search, unknown peer, timeout 1500 | -109 after 1500 ms; timeout 0: -109 at once"""
    ctx = kkp2p.connect_ctx_t("nobody", connect_mode=1, timeout=timeout)
    assert kkp2p.lan_search(lan_pair[0], ctx, kkp2p.channel_t()) == -109


def test_lan_search_found(lan_pair: tuple[kkp2p.engine_t, ...]) -> None:
    """lan_search found | 6 to 13 ms (measured in benchmarks/, not here)"""
    caller, callee = lan_pair
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("lan-peer", connect_mode=1, timeout=LONG, connect_desc=-3)
    assert kkp2p.lan_search(caller, ctx, mine) == 0
    assert kkp2p.accept(callee, LONG, theirs) == 1
    assert (mine.transmit_mode, theirs.transmit_mode, theirs.connect_desc) == (1, 1, -3)
    assert (mine.peer_id, theirs.peer_id) == ("lan-peer", "lan-peer")
    write_all(mine.fd, b"hello")
    kkp2p.close_fd(mine.fd)
    assert read_all(theirs.fd) == b"hello"
    kkp2p.close_fd(theirs.fd)


@pytest.mark.parametrize("kind", [2, 7])
def test_lan_search_channel_type(engine: kkp2p.engine_t, kind: int) -> None:
    """lan_search, channel_type 2 or 7 | -106"""
    ctx = kkp2p.connect_ctx_t("peer", kind, connect_mode=1, timeout=3_600_000)
    assert kkp2p.lan_search(engine, ctx, kkp2p.channel_t()) == -106


def test_join_lan_long_id(lan_pair: tuple[kkp2p.engine_t, ...], engine: kkp2p.engine_t) -> None:
    """join_lan, peer_id of 40 characters | -110"""
    for one in (lan_pair[0], engine):  # with and without a lan_search_port
        assert kkp2p.join_lan(one, "x" * 40) == -110
    assert kkp2p.join_net(engine, "x" * 33, "secret") == -110


@pytest.mark.usefixtures("on_loopback")
def test_connect_without_login_domain(
    make_engine: Callable[..., kkp2p.engine_t], lan_port: int
) -> None:
    """connect without a login_domain | -109 after the time-out"""
    engine = make_engine(login_domain=None, lan_search_port=lan_port)
    ctx = kkp2p.connect_ctx_t("peer", timeout=150)
    assert kkp2p.connect(engine, ctx, kkp2p.channel_t()) == -109


def test_domain_that_does_not_resolve(tmp_path: Path) -> None:
    """engine_init, domain that does not resolve | NULL; error_no -101 or -102

    Here -101 is for malformed ones only; porting.rst says so.
    """
    conf = kkp2p.engine_conf_t("no-such-name.invalid", 3080, log_path=str(tmp_path))
    assert kkp2p.engine_init(conf, LONG) is None
    assert kkp2p.error_no() in (-102, -103)


@pytest.mark.usefixtures("quick_backoff")
def test_cloud_that_does_not_answer(
    make_engine: Callable[..., kkp2p.engine_t], monkeypatch: pytest.MonkeyPatch
) -> None:
    """engine_init, an IP where no server answers | an engine: logging in is retried"""
    monkeypatch.setattr(incoming, "VERDICT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    engine = make_engine(login_port=port)  # nobody listens there now
    assert engine is not None
    assert kkp2p.join_net(engine, "peer", SECRET) == 0
    with gevent.Timeout(PATIENCE_S), socket.create_server(("127.0.0.1", port)) as again:
        gevent.socket.wait_read(again.fileno())  # it tries by itself


def test_arguments_of_read_and_write(pair: Pair) -> None:
    """write of length 0 | -106; read with a negative timeout: -106; read with timeout 0 and
    nothing there: 0"""
    fd, buff = pair[0].fd, bytearray(10)
    assert kkp2p.write(fd, b"data", 0, 1000) == -106
    assert kkp2p.read(fd, buff, 10, -1) == -106
    assert kkp2p.write(fd, b"data", 4, -1) == -106
    assert kkp2p.read(fd, buff, 10, 0) == 0
    assert kkp2p.read(fd, buff, 10, 20) == 0


def test_descriptor_that_is_not_open() -> None:
    """read/write on an fd that is not open | -1"""
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    for bad in (fd, -1, 10**6):
        assert kkp2p.read(bad, bytearray(1), 1, 1000) == -1
        assert kkp2p.write(bad, b"x", 1, 1000) == -1


@pytest.mark.parametrize("size", [1, 300_000])
def test_read_after_the_peer_closed(pair: Pair, engine: kkp2p.engine_t, size: int) -> None:
    """read after the peer closed | first everything that was sent, then -1"""
    data = os.urandom(size)
    write_all(pair[0].fd, data)
    kkp2p.close_fd(pair[0].fd)
    kkp2p.close_channel(engine, pair[0].channel_id)
    assert read_all(pair[1].fd) == data
    assert kkp2p.read(pair[1].fd, bytearray(1), 1, 1000) == -1


def test_write_after_the_peer_closed(pair: Pair, engine: kkp2p.engine_t) -> None:
    """write after the peer closed | -1

    As with TCP, what is already under way when the peer closes is taken: so write until told.
    """
    kkp2p.close_fd(pair[0].fd)
    kkp2p.close_channel(engine, pair[0].channel_id)
    assert read_all(pair[1].fd) == b""
    with gevent.Timeout(PATIENCE_S):
        while (result := kkp2p.write(pair[1].fd, b"x", 1, 1000)) == 1:
            gevent.sleep(0.01)
    assert result == -1


def test_peer_calls_close_fd_only(pair: Pair) -> None:
    """peer calls close_fd but not close_channel | this side is not told (we tell it)"""
    write_all(pair[1].fd, b"last words")
    kkp2p.close_fd(pair[1].fd)
    assert read_all(pair[0].fd) == b"last words"


def test_peer_never_reads(pair: Pair) -> None:
    """peer never reads | write takes about 420 KB, then returns 0 (time-out) each time

    Ours takes what the buffers on the way hold, a bounded amount too.
    """
    chunk, taken, refused = bytes(65536), 0, 0
    while refused < 4:  # in a row: TCP's buffers grow while they fill
        count = kkp2p.write(pair[0].fd, chunk, len(chunk), 300)
        assert count >= 0
        taken += count
        refused = 0 if count else refused + 1
        assert taken < ENDLESS_BYTES
    assert taken > 100_000
    kkp2p.close_fd(pair[0].fd)
    assert len(read_all(pair[1].fd)) == taken


def test_start_proxy_errors(engine: kkp2p.engine_t) -> None:
    """start_proxy, port taken, or an IP that is not this host's | -113; timeout 0: -106"""
    ctx = kkp2p.connect_ctx_t("peer", timeout=1000)
    proxy_id = type("Id", (), {"value": 0})()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert kkp2p.start_proxy(engine, "127.0.0.1", port, ctx, proxy_id) == -113
    assert kkp2p.start_proxy(engine, "192.0.2.1", 0, ctx, proxy_id) == -113
    ctx.timeout = 0
    assert kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx, proxy_id) == -106
    assert proxy_id.value == 0


def test_asynchronous_connect(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """async connect that fails | callback with result -1 and channel.fd -1; found: result 0 and
    the channel"""
    calls: gevent.queue.Queue[tuple[int, kkp2p.channel_t, object]] = gevent.queue.Queue()
    ctx = kkp2p.connect_ctx_t(
        "nobody", connect_mode=2, timeout=LONG, func=lambda *call: calls.put(call), func_param=7
    )
    assert kkp2p.connect(engine, ctx, None) == 0
    result, channel, param = calls.get(timeout=PATIENCE_S)
    assert (result, channel.fd, param) == (-1, -1, 7)

    ctx.peer_id = "peer"
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx, mine) == 0
    result, channel, param = calls.get(timeout=PATIENCE_S)
    assert (result, channel, param) == (0, mine, 7)
    assert kkp2p.accept(peer, LONG, theirs) == 1
    write_all(mine.fd, b"hello")
    kkp2p.close_fd(mine.fd)
    assert read_all(theirs.fd) == b"hello"
    kkp2p.close_fd(theirs.fd)


def test_message_and_answer(pair: Pair) -> None:
    """a message and its answer of 1 byte | about 250 us (measured in benchmarks/, not here)"""
    for number in range(100):
        for one, other in (pair, pair[::-1]):
            assert kkp2p.write(one.fd, bytes([number]), 1, LONG) == 1
            buff = bytearray(10)
            assert kkp2p.read(other.fd, buff, 10, LONG) == 1
            assert buff[0] == number


@pytest.mark.usefixtures("on_loopback")
def test_what_crashed_in_c(
    engine: kkp2p.engine_t, make_engine: Callable[..., kkp2p.engine_t], lan_port: int
) -> None:
    """It crashed on: NULL arguments, using a proxy with no login_domain, an async search with a
    NULL channel, large datagrams.  A port of it must not."""
    nothing = None
    assert kkp2p.engine_init(nothing, 1000) is None
    for function, *arguments in (
        (kkp2p.join_net, "peer", None),
        (kkp2p.accept, 0, None),
        (kkp2p.connect, None, None),
        (kkp2p.connect, kkp2p.connect_ctx_t("peer"), None),
        (kkp2p.start_proxy, None, 0, None, None),
        (kkp2p.get_domainip, None),
    ):
        for handle in (engine, None):
            assert function(handle, *arguments) == kkp2p.KKP2P_ERROR_PARAMETER, function
    assert kkp2p.read(0, None, 1, 0) == kkp2p.write(0, None, 1, 0) == -106
    kkp2p.engine_destroy(None)

    alone = make_engine(login_domain=None, lan_search_port=lan_port)
    proxy_id = type("Id", (), {"value": 0})()
    ctx = kkp2p.connect_ctx_t("peer", timeout=100)
    assert kkp2p.start_proxy(alone, "127.0.0.1", 0, ctx, proxy_id) == 0
    with socket.create_connection(kkp2p.proxy_address(alone, proxy_id)) as sock:
        gevent.socket.wait_read(sock.fileno(), timeout=PATIENCE_S)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)

    calls: gevent.queue.Queue[int] = gevent.queue.Queue()
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=1, timeout=100)
    ctx.func = lambda result, channel, param: calls.put(result)
    assert kkp2p.lan_search(alone, ctx, None) == 0
    assert calls.get(timeout=PATIENCE_S) == -1


def test_listen_fd(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """listen_fd | an fd that polls readable when accept has something (of the functions' table)"""
    fd = kkp2p.listen_fd(peer)
    assert select.select([fd], [], [], 0)[0] == []
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, timeout=LONG)
    assert kkp2p.connect(engine, ctx, mine) == 0
    gevent.socket.wait_read(fd, timeout=PATIENCE_S)
    assert kkp2p.accept(peer, 0, theirs) == 1
    assert select.select([fd], [], [], 0)[0] == []
    kkp2p.close_fd(mine.fd)
    kkp2p.close_fd(theirs.fd)
