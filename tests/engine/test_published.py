"""What peers open is forwarded to targets: refusals, and what ends while a target is dialed."""

from __future__ import annotations

import socket as _socket
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

import kkp2p_compat as kkp2p
from helpers.support import PATIENCE_S, SECRET, read_all, write_all
from kkp2p_compat.engine.calls.asking import Asking
from kkp2p_compat.engine.proxy import published
from kkp2p_compat.engine.proxy.proxied import Proxied
from kkp2p_compat.engine.proxy.targets import GivenTarget, PathTarget, PortTarget
from kkp2p_compat.transport.udp import stream_table

pytestmark = pytest.mark.usefixtures("on_loopback")

LONG = PATIENCE_S * 1000
MakeEngine = Callable[..., kkp2p.engine_t]


class SlowTarget:
    """It answers when it is let."""

    def __init__(self) -> None:
        self.asked, self.let = Event(), Event()  # of the engine's hub
        self.theirs, self._ours = _socket.socketpair()
        self._ours.setblocking(False)
        self.closed = False

    def __str__(self) -> str:
        return "slow"

    def connect(self) -> Any:
        self.asked.set()
        self.let.wait()
        return self._ours


class QuickTarget(SlowTarget):
    """It answers at once."""

    def __init__(self) -> None:
        super().__init__()
        self.let.set()


class InTurns:
    """Each channel has a target of its own."""

    def __init__(self, targets: list[SlowTarget]) -> None:
        self._left = iter(targets)

    def connect(self) -> Any:
        return next(self._left).connect()


class Publisher:
    """An engine that publishes targets as "peer", and what its watch was told."""

    def __init__(self, engine: kkp2p.engine_t, target: Any, is_udp: bool = False) -> None:
        self.engine = engine
        self.told: list[tuple[bool, tuple[str, ...]]] = []  # over, problems
        self.proxied: list[Proxied] = []
        engine.publish({None: target}, is_udp, self._watch)
        assert kkp2p.join_net(engine, "peer", SECRET) == 0

    def _watch(self, proxied: Proxied) -> None:
        self.told.append((proxied.over, tuple(proxied.problems)))
        self.proxied.append(proxied)

    def until(self, count: int) -> None:
        until(lambda: len(self.told) >= count)


def until(condition: Callable[[], object]) -> None:
    with gevent.Timeout(PATIENCE_S):
        while not condition():
            gevent.sleep(0.005)


def call(
    engine: kkp2p.engine_t, mode: int, timeout: int = LONG, encrypt: int = 0
) -> tuple[int, kkp2p.channel_t]:
    channel = kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("peer", 0, mode, encrypt, timeout)
    return kkp2p.connect(engine, ctx, channel), channel


def test_a_caller_waits_until_the_target_answers(make_engine: MakeEngine) -> None:
    slow = SlowTarget()
    publisher = Publisher(make_engine(), slow)
    calling = gevent.spawn(call, make_engine(), 1)
    until(slow.asked.is_set)
    assert not calling.ready()
    assert publisher.told == []
    publisher.engine.thread.post(slow.let.set)
    ret, channel = calling.get()
    assert ret == 0
    write_all(channel.fd, b"hello")
    slow.theirs.settimeout(PATIENCE_S)
    assert gevent.get_hub().threadpool.apply(slow.theirs.recv, (5,)) == b"hello"
    slow.theirs.sendall(b"goodbye")
    slow.theirs.close()
    assert read_all(channel.fd) == b"goodbye"
    kkp2p.close_fd(channel.fd)
    publisher.until(2)
    assert publisher.told == [(False, ()), (True, ())]


@pytest.mark.tuned(head_start_s=PATIENCE_S)
@pytest.mark.parametrize("encrypt", [0, 1])
@pytest.mark.parametrize("mode", [0, 1])
def test_a_slow_target_is_no_dead_link(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: int, encrypt: int
) -> None:
    """Longer than a link may be silent; it is not left, nor is the relay taken instead."""
    asked: list[Asking] = []
    wait = Asking._wait

    def wait_for_test(asking: Asking, seconds: float) -> None:
        asked.append(asking)
        wait(asking, PATIENCE_S)

    monkeypatch.setattr(Asking, "_wait", wait_for_test)

    def look() -> bool:
        """As when its time has come, once the peer has heard the request."""
        has_heard = bool(asked) and asked[-1]._link.has_heard(asked[-1]._stream_id)
        if has_heard:
            asked[-1]._look()
        return has_heard

    targets = [SlowTarget(), SlowTarget()]
    if mode == 1:  # the first channel makes the link, which nobody waits for
        targets.insert(0, QuickTarget())
    publisher, caller = Publisher(make_engine(), InTurns(targets)), make_engine()
    for target in targets:
        asked.clear()
        calling = gevent.spawn(call, caller, mode, encrypt=encrypt)
        if not isinstance(target, QuickTarget):
            until(target.asked.is_set)
            for _ in range(2):
                until(lambda: caller.thread.call(look))
            publisher.engine.thread.post(target.let.set)
        ret, channel = calling.get()
        assert (ret, channel.transmit_mode, channel.encrypt_data) == (0, 1, encrypt)
        kkp2p.close_fd(channel.fd)
        target.theirs.close()
    assert len(caller.thread.call(lambda: list(caller.links))) == 1
    assert not caller.dialer.remote("peer", mode).is_blocked


def test_a_caller_that_gives_up_before_the_target_answers(make_engine: MakeEngine) -> None:
    slow = SlowTarget()
    publisher, caller = Publisher(make_engine(), slow), make_engine()
    calling = gevent.spawn(call, caller, 1)
    until(slow.asked.is_set)
    calling.kill()
    kkp2p.engine_destroy(caller)
    until(lambda: not list(publisher.engine.links))
    publisher.engine.thread.post(slow.let.set)
    publisher.until(2)
    (over, problems) = publisher.told[1]
    assert over
    assert problems != ()
    slow.theirs.close()


@pytest.mark.parametrize("mode", [1, 2])
def test_a_target_that_does_not_answer(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setattr(published, "CONNECT_S", 0.05)
    slow = SlowTarget()
    publisher = Publisher(make_engine(), slow)
    ret, channel = call(make_engine(), mode)
    if mode == 1:
        assert ret < 0  # refused; a relayed one is there already, and breaks
    else:
        assert kkp2p.read(channel.fd, bytearray(1), 1, LONG) == -1
        assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_CONN_DISCONNECT
        kkp2p.close_fd(channel.fd)
    publisher.until(1)
    assert publisher.told == [(True, ("slow: no answer in 0 s",))]
    slow._ours.close()
    slow.theirs.close()


def test_the_end_while_a_target_is_dialed(make_engine: MakeEngine) -> None:
    slow = SlowTarget()
    publisher = Publisher(make_engine(), slow)
    calling = gevent.spawn(call, make_engine(), 1)
    until(slow.asked.is_set)
    publisher.engine.unpublish()
    assert publisher.told == [(True, ("it is not published any more",))]
    assert calling.get()[0] < 0
    slow._ours.close()
    slow.theirs.close()


class SlowReader:
    """It takes datagrams, and does not read them."""

    def __init__(self) -> None:
        self.theirs, self._ours = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        self._ours.setblocking(False)

    def udp_addresses(self) -> list[object]:
        return [self]

    @staticmethod
    def socket(reader: SlowReader) -> Any:
        return reader._ours


def test_datagrams_that_are_lost_are_counted(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the target does not take, and those that the path does not."""
    monkeypatch.setattr(stream_table, "MIN_QUEUE_BYTES", 0)
    monkeypatch.setattr(stream_table, "MAX_QUEUED_S", 0)
    monkeypatch.setattr(published, "connected_udp", SlowReader.socket)
    slow = SlowReader()
    publisher, caller = Publisher(make_engine(), slow, is_udp=True), make_engine()
    channel = kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("peer", kkp2p.KKP2P_UDP_CHANNEL, 1, timeout=LONG)
    assert kkp2p.connect(caller, ctx, channel) == 0
    publisher.until(1)
    (proxied,) = publisher.proxied
    for count in range(1, 1001):
        write_all(channel.fd, b"datagram")
        until(lambda n=count: proxied.datagrams_received + proxied.datagrams_lost.total() == n)
        if proxied.datagrams_lost:
            break
    assert proxied.datagrams_lost == {"the socket is full": 1}
    answers = range(5)  # in one turn of the engine, which has room for one
    publisher.engine.thread.call(lambda: [slow.theirs.send(b"answer") for _ in answers])
    assert kkp2p.read(channel.fd, bytearray(100), 100, LONG) == 6
    kkp2p.close_fd(channel.fd)
    publisher.until(2)
    assert proxied.datagrams_sent == 5
    assert proxied.datagrams_lost == {
        "the socket is full": 1,
        "too many waited for the path to the peer": 4,
    }
    slow.theirs.close()


def test_a_given_socket_is_for_one_caller(make_engine: MakeEngine) -> None:
    ours, theirs = _socket.socketpair()
    ours.setblocking(False)
    publisher, caller = Publisher(make_engine(), GivenTarget(ours, "given")), make_engine()
    ret, channel = call(caller, 1)
    assert ret == 0
    assert call(caller, 1)[0] < 0
    assert publisher.told == [(False, ()), (True, ("given: given is another caller's",))]
    theirs.close()
    assert read_all(channel.fd) == b""
    kkp2p.close_fd(channel.fd)


def test_the_places_of_callers_are_given_back(make_engine: MakeEngine, held_port: int) -> None:
    publisher = Publisher(make_engine(), PortTarget(("127.0.0.1",), held_port))
    queue = publisher.engine.acceptor.queue
    places, caller = queue._places, make_engine()
    for count in (1, 2):
        assert call(caller, 1)[0] < 0
        publisher.until(count)
    assert queue._places == places


def test_one_caller_leaves_connections_for_others(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "MAX_CONNECTIONS", 4)  # strangers may have three of them
    with _socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(PATIENCE_S)
        publisher = Publisher(make_engine(), PortTarget(("127.0.0.1",), service.getsockname()[1]))
        stranger, other = make_engine(), make_engine()
        assert kkp2p.join_net(other, "other", SECRET) == 0
        taken = [call(caller, 1) for caller in (stranger, stranger, stranger, other)]
        assert [result for result, _ in taken] == [0, 0, -108, 0]
        assert publisher.told[2] == (True, ("too many connections",))
        carried = [gevent.get_hub().threadpool.apply(service.accept)[0] for _ in range(3)]
        for (_, channel), local in ((taken[0], carried[0]), (taken[3], carried[2])):
            kkp2p.close_fd(channel.fd)
            local.close()
        publisher.until(6)
        taken.append(call(stranger, 1))
        assert taken[-1][0] == 0
        carried[1].close()
        for _, channel in (taken[1], taken[-1]):
            kkp2p.close_fd(channel.fd)


def test_targets_by_name() -> None:
    assert str(PortTarget(("::1", "127.0.0.1"), 80)) == "[::1]:80"
    assert str(PathTarget("/run/x")) == "unix:/run/x"
    with pytest.raises(FileNotFoundError):
        PathTarget("/nowhere/x").connect()


def test_a_unix_socket_whose_backlog_is_full(tmp_path: Any) -> None:
    path = str(tmp_path / "service")
    with _socket.socket(_socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        first = PathTarget(path).connect()
        second = gevent.spawn(PathTarget(path).connect)
        gevent.sleep(0.05)
        assert not second.ready()
        listener.accept()[0].close()
        second.get(timeout=PATIENCE_S).close()
        first.close()
