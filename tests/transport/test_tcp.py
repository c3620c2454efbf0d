"""TCP sockets that carry channels: dead ones are told from slow ones, closing loses nothing."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from helpers.cloud_client import tcp_pair
from kkp2p_compat.transport import tcp

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks at the Linux kernel's state")
Pair = tuple[gsocket.socket, gsocket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = tcp_pair()
    with ours, theirs, gevent.Timeout(20):
        yield ours, theirs


def _fill(sock: gsocket.socket) -> int:
    """Write until the other side's window and our send buffer are full; bytes written."""
    sent = 0
    sock.settimeout(0)
    try:
        while True:
            sent += sock.send(b"x" * 65536)
    except BlockingIOError:
        return sent


def _read_all(sock: gsocket.socket) -> int:
    count = 0
    while data := sock.recv(65536):
        count += len(data)
    return count


class _SetClock:
    """The hub's loop, and ``time``, while somebody sets the host's clock a day ahead, again and
    again.
    """

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.loop = self
        self._day = 0

    def time(self) -> float:
        self._day += 1
        return time.time() + self._day * 86400.0

    now = time

    def io(self, fd: int, events: int) -> Any:
        return gevent.get_hub().loop.io(fd, events)


@pytest.mark.parametrize("reset", [False, True])
def test_a_clock_that_is_set_cuts_nothing_off(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, reset: bool
) -> None:
    ours, theirs = pair
    sent = _fill(ours)
    monkeypatch.setattr(tcp, "get_hub", _SetClock)
    monkeypatch.setattr(tcp, "time", _SetClock())
    lingering = gevent.spawn(tcp.linger, ours, 20, reset=reset)
    gevent.sleep(0.01)  # it has looked at its clock, and waits
    while sent:
        count = len(theirs.recv(sent))
        assert count > 0
        sent -= count
    assert lingering.get()


def test_a_reset_reaches_the_other_side_although_a_copy_is_open(pair: Pair) -> None:
    """Such as a forked child has."""
    ours, theirs = pair
    with socket.socket(fileno=os.dup(ours.fileno())):
        assert tcp.linger(ours, 20, reset=True)
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


def test_tune(pair: Pair) -> None:
    tcp.tune(pair[0])
    assert pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert pair[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if sys.platform == "linux":
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [pair[0].getsockopt(socket.IPPROTO_TCP, name) for name in options] == [15, 5, 3]
        assert pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


def test_a_peer_that_does_not_read_is_not_unresponsive(pair: Pair) -> None:
    _fill(pair[0])
    assert not tcp.unresponsive(pair[0])
    assert not tcp.unresponsive(pair[0].fileno())


@linux_only
def test_a_connection_that_was_reset_has_ended(pair: Pair) -> None:
    assert not tcp.ended(pair[0])
    pair[0].sendall(b"x")
    pair[1].close()  # with unread data: a reset
    gsocket.wait_read(pair[0].fileno())
    assert tcp.ended(pair[0])
    assert not tcp.ended(pair[0].fileno() + 1000)


def test_other_descriptors_are_not_unresponsive() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert not tcp.unresponsive(left)
        tcp.give_up(left)  # does nothing
        left.sendall(b"x")
    assert not tcp.unresponsive(left.fileno())


@linux_only
def test_give_up_ends_a_stuck_connection(pair: Pair) -> None:
    _fill(pair[0])
    tcp.give_up(pair[0].fileno())
    pair[0].settimeout(None)
    with pytest.raises(OSError, match=r"timed out|pipe") as caught:
        pair[0].sendall(b"x" * 65536)
    assert caught.value.errno in (errno.ETIMEDOUT, errno.EPIPE)


def test_linger_delivers_everything_although_unread_data_is_waiting(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"never read by us")
    sent = _fill(ours)
    closing = gevent.spawn(tcp.linger, ours, 15)
    assert _read_all(theirs) == sent
    theirs.close()
    assert closing.get()
    assert ours.fileno() == -1


def test_linger_is_over_when_the_other_side_has_all_but_stays(pair: Pair) -> None:
    pair[0].sendall(b"bye")
    assert tcp.linger(pair[0], 15) is (sys.platform == "linux")
    assert pair[1].recv(10) == b"bye"


def test_linger_outlasts_a_peer_that_keeps_sending(pair: Pair) -> None:
    ours, theirs = pair
    sent = _fill(ours)

    def flood() -> None:
        while True:
            theirs.sendall(b"y" * 65536)

    flooding = gevent.spawn(flood)
    closing = gevent.spawn(tcp.linger, ours, 15)
    assert _read_all(theirs) == sent
    closing.join()
    with pytest.raises(OSError, match=r"reset|pipe"):
        flooding.get()


def test_linger_is_bounded(pair: Pair) -> None:
    _fill(pair[0])
    assert not tcp.linger(pair[0], 0.05)
    assert pair[0].fileno() == -1


class _SlowPath:
    """``time`` and ``unsent_bytes``, where little by little is acknowledged over a minute."""

    def __init__(self) -> None:
        self._now = 0.0
        self._unsent = 60

    def monotonic(self) -> float:
        self._now += 0.25
        return self._now

    def unsent_bytes(self, _: object) -> int:
        self._now += 1.0
        self._unsent = max(self._unsent - 1, 0)
        return self._unsent


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("patient", [False, True])
def test_a_patient_linger_is_bounded_by_a_standstill_only(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, patient: bool, reset: bool
) -> None:
    path = _SlowPath()
    monkeypatch.setattr(tcp, "time", path)
    monkeypatch.setattr(tcp, "unsent_bytes", path.unsent_bytes)
    monkeypatch.setattr(tcp, "POLL_MAX_S", tcp.POLL_FIRST_S)
    monkeypatch.setattr(tcp, "STANDSTILL_S", 15)
    assert tcp.linger(pair[0], None if patient else 15, reset=reset) is patient
    assert pair[0].fileno() == -1


@pytest.mark.parametrize("reset", [False, True])
def test_a_patient_linger_ends_where_nothing_arrives(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, reset: bool
) -> None:
    _fill(pair[0])
    monkeypatch.setattr(tcp, "STANDSTILL_S", 0.05)
    assert not tcp.linger(pair[0], reset=reset)
    assert pair[0].fileno() == -1


def test_linger_with_reset_delivers_and_then_breaks(pair: Pair) -> None:
    pair[0].sendall(b"half a story")
    assert tcp.linger(pair[0], 15, reset=True)
    assert pair[1].recv(100) == b"half a story"
    with pytest.raises(ConnectionResetError):
        pair[1].recv(100)


def test_linger_on_a_broken_connection_just_closes(pair: Pair) -> None:
    pair[0].sendall(b"x")
    pair[1].close()
    assert not tcp.linger(pair[0], 15)
    assert pair[0].fileno() == -1


@linux_only
def test_linger_frees_a_writer_that_waits_for_room() -> None:
    """After SHUT_RD the kernel tells of no room: the writer would wait for tcp_fin_timeout."""
    ours, theirs = tcp_pair()
    ours.sendall(b"bye")
    theirs.settimeout(0.3)
    with pytest.raises(TimeoutError):
        theirs.sendall(bytes(100_000_000))
    ours.shutdown(socket.SHUT_RDWR)  # the last that the other side hears of: no room
    while ours.recv(1 << 20):
        pass
    theirs.settimeout(None)
    writing = gevent.spawn(theirs.sendall, b"y" * 100_000_000)
    tcp.linger(ours, 15)  # False where the kernel, not we, resets the connection first
    with pytest.raises(OSError, match=r"reset|pipe"), gevent.Timeout(20):
        writing.get()
    assert theirs.recv(100) == b"bye"
    theirs.close()


IP_FREEBIND = 15  # linux/in.h


def test_only_a_connection_whose_address_is_gone_is_stranded() -> None:
    with socket.socket() as listener, socket.socket() as sock:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        sock.connect(listener.getsockname())
        assert not tcp.stranded(sock)
        assert not tcp.stranded(sock.fileno())
    assert not tcp.stranded(sock)  # closed
    for one in socket.socketpair():
        with one:
            assert not tcp.stranded(one)
    for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family) as sock:
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)  # an address that nobody has
            sock.bind((address, 0))
            assert tcp.stranded(sock)


def test_what_is_accepted_inherits_how_its_listener_is_set_up() -> None:
    """Eight system calls fewer for each connection of a proxy."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tcp.tune(listener)
        tcp.reset_if_killed(listener)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                for level, name in (
                    (socket.IPPROTO_TCP, "TCP_NODELAY"),
                    (socket.SOL_SOCKET, "SO_KEEPALIVE"),
                    (socket.SOL_SOCKET, "SO_OOBINLINE"),
                    (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
                    (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
                    (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
                ):
                    if hasattr(socket, name):
                        option = level, getattr(socket, name)
                        set_up = listener.getsockopt(*option)
                        assert set_up
                        assert accepted.getsockopt(*option) == set_up, name
                linger = socket.SOL_SOCKET, socket.SO_LINGER, 8
                assert accepted.getsockopt(*linger) == b"\1\0\0\0\0\0\0\0"


@linux_only
def test_what_is_lost_is_sent_again_soon(pair: Pair) -> None:
    """Where the kernel can be told; where it cannot, nothing fails."""
    tcp.tune(pair[0])
    assert pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    try:
        least_us = pair[0].getsockopt(socket.IPPROTO_TCP, tcp._TCP_RTO_MIN_US)
    except OSError:
        pytest.skip("TCP_RTO_MIN_US came with Linux 6.15")
    assert least_us == tcp.RTO_MIN_US
    assert pair[1].getsockopt(socket.IPPROTO_TCP, tcp._TCP_RTO_MIN_US) > tcp.RTO_MIN_US
