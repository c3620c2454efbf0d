"""One call for many datagrams, and what happens where the kernel refuses it."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from helpers.support import PATIENCE_S
from kkp2p_compat._address import Address
from kkp2p_compat._io import READ, wait_fd
from kkp2p_compat.transport.udp import batch_socket
from kkp2p_compat.transport.udp.batch_socket import BatchSocket

log = logging.getLogger("test")
IPS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
UDP = 17
UDP_SEGMENT, UDP_GRO = 103, 104


class Faulty(socket.socket):
    """A real socket; ``fault(call, data)`` may raise in place of the kernel, and records."""

    calls: list[tuple[str, int]]
    fault: Callable[[str, bytes], None] | None
    refused_options: tuple[int, ...]

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        (data,) = buffers
        self._called("sendmsg", data)
        return super().sendmsg(buffers, *rest)

    def sendto(self, data: Any, *rest: Any) -> int:
        self._called("sendto", data)
        return super().sendto(data, *rest)

    def _called(self, name: str, data: bytes) -> None:
        Faulty.calls.append((name, len(data)))
        if Faulty.fault is not None:
            Faulty.fault(name, data)

    def setsockopt(self, level: int, option: int, *rest: Any) -> None:
        if level == UDP and option in Faulty.refused_options:
            raise OSError(errno.ENOPROTOOPT, "not here")
        super().setsockopt(level, option, *rest)


@pytest.fixture(autouse=True)
def _faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    Faulty.calls, Faulty.fault, Faulty.refused_options = [], None, ()
    monkeypatch.setattr(batch_socket, "_new_socket", Faulty)


@pytest.fixture(params=list(IPS), ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> socket.AddressFamily:
    return request.param


@pytest.fixture
def make(family: socket.AddressFamily) -> Iterator[Callable[[], BatchSocket]]:
    made: list[BatchSocket] = []

    def one() -> BatchSocket:
        made.append(BatchSocket(family, log))
        return made[-1]

    yield one
    for each in made:
        each.close()


@pytest.fixture
def pair(make: Callable[[], BatchSocket]) -> tuple[BatchSocket, BatchSocket]:
    return make(), make()


def address_of(bound: BatchSocket) -> Address:
    return IPS[bound.family], bound.port


def wait(bound: BatchSocket) -> tuple[bytes, int, Address]:
    while (got := bound.receive()) is None:
        assert wait_fd(bound.fileno(), READ, PATIENCE_S)
    return got


def cut(data: bytes, segment_bytes: int) -> list[bytes]:
    return [data[start : start + segment_bytes] for start in range(0, len(data), segment_bytes)]


def datagrams(count: int, size: int, last: int) -> bytes:
    return b"".join(bytes([number % 256]) * size for number in range(count)) + b"l" * last


def receive_all(bound: BatchSocket, total: int) -> list[bytes]:
    received: list[bytes] = []
    while sum(map(len, received)) < total:
        data, segment_bytes, _ = wait(bound)
        received += cut(data, segment_bytes)
    assert bound.receive() is None
    return received


SHAPES = [(1, 1, 0), (1, 1200, 0), (44, 1472, 0), (44, 1472, 5), (64, 1000, 0), (2, 65487, 0)]
LARGE_SHAPES = [(64, 1472, 9), (65, 100, 0), (300, 40, 7)]  # more than one call takes


@pytest.mark.parametrize("shape", [*SHAPES, *LARGE_SHAPES])
@pytest.mark.parametrize("refused", [(), (UDP_GRO,), (UDP_SEGMENT,)])
def test_datagrams_arrive_as_they_were(
    refused: tuple[int, ...], shape: tuple[int, int, int], make: Callable[[], BatchSocket]
) -> None:
    Faulty.refused_options = refused
    sender, receiver = make(), make()
    data = datagrams(*shape)
    assert sender.send(data, shape[1], address_of(receiver)) == len(data)
    assert receive_all(receiver, len(data)) == cut(data, shape[1])
    assert not sender.failures
    assert not receiver.failures


def test_a_batch_is_one_call_at_either_end(pair: tuple[BatchSocket, BatchSocket]) -> None:
    sender, receiver = pair
    if not sender.can_segment:
        pytest.skip("this kernel has no UDP_SEGMENT")
    data = datagrams(44, 1472, 30)
    sender.send(data, 1472, address_of(receiver))
    assert Faulty.calls == [("sendmsg", len(data))]
    assert wait(receiver) == (data, 1472, address_of(sender))


def test_a_single_datagram_is_not_segmented(pair: tuple[BatchSocket, BatchSocket]) -> None:
    sender, receiver = pair
    sender.send(b"small", 1472, address_of(receiver))
    assert Faulty.calls == [("sendto", 5)]
    assert wait(receiver) == (b"small", 5, address_of(sender))


def test_an_empty_datagram(pair: tuple[BatchSocket, BatchSocket]) -> None:
    with socket.socket(pair[1].family, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"", address_of(pair[1]))
        assert wait(pair[1])[:2] == (b"", 0)


def test_the_port_is_ours_and_no_family_takes_the_others(family: socket.AddressFamily) -> None:
    first = BatchSocket(family, log)
    other = socket.AF_INET if family == socket.AF_INET6 else socket.AF_INET6
    try:
        with pytest.raises(OSError, match="in use"):
            BatchSocket(family, log, first.port)
        BatchSocket(other, log, first.port).close()
    finally:
        first.close()


# Refused segmentation.


def raise_for(name: str, number: int) -> Callable[[str, bytes], None]:
    def fault(call: str, data: bytes) -> None:
        if call == name:
            raise OSError(number, os.strerror(number))

    return fault


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EMSGSIZE])
def test_a_refused_batch_goes_one_by_one_and_so_does_the_next(
    number: int, pair: tuple[BatchSocket, BatchSocket]
) -> None:
    sender, receiver = pair
    if not sender.can_segment:
        pytest.skip("this kernel has no UDP_SEGMENT")
    Faulty.fault = raise_for("sendmsg", number)
    data = datagrams(3, 1000, 10)
    for attempts in ("sendmsg", "sendto", "sendto", "sendto", "sendto"), ("sendto",) * 4:
        Faulty.calls.clear()
        assert sender.send(data, 1000, address_of(receiver)) == len(data)
        assert [name for name, _ in Faulty.calls] == list(attempts)
        assert receive_all(receiver, len(data)) == cut(data, 1000)
    if sender.family == socket.AF_INET:  # it is about one host
        Faulty.calls.clear()
        sender.send(data, 1000, ("127.0.0.2", receiver.port))
        assert Faulty.calls[0][0] == "sendmsg"


def test_segments_above_the_mtu_are_lost_without_a_word(
    pair: tuple[BatchSocket, BatchSocket], caplog: pytest.LogCaptureFixture
) -> None:
    """The interface's; a shorter last one passes, and so does a batch of smaller ones."""
    sender, receiver = pair

    def fault(name: str, data: bytes) -> None:
        if len(data) > 1400 and (name == "sendto" or len(data) % 1400):
            raise OSError(errno.EMSGSIZE, "too long")

    Faulty.fault = fault
    with caplog.at_level(logging.INFO):
        data = datagrams(3, 1500, 100)
        assert sender.send(data, 1500, address_of(receiver)) == len(data)
        assert receive_all(receiver, 100) == [b"l" * 100]
        Faulty.calls.clear()
        sender.send(bytes(2800), 1400, address_of(receiver))
        assert receive_all(receiver, 2800) == [bytes(1400)] * 2
    if sender.can_segment:
        assert Faulty.calls == [("sendmsg", 2800)], "taken for a host without segmentation"
    assert sender.failures == {"EMSGSIZE": 3}
    assert not caplog.records


# Full sockets and failures.


def test_a_full_socket_takes_nothing_of_a_batch(pair: tuple[BatchSocket, BatchSocket]) -> None:
    sender, receiver = pair
    Faulty.fault = raise_for("sendmsg", errno.EAGAIN)
    if sender.can_segment:
        assert sender.send(bytes(2000), 1000, address_of(receiver)) == 0
    Faulty.fault = raise_for("sendto", errno.EAGAIN)
    assert sender.send(bytes(1000), 1000, address_of(receiver)) == 0
    assert not sender.failures
    assert receiver.receive() is None


@pytest.mark.parametrize("shape", [(10, 1000, 1), (150, 1000, 1)])
@pytest.mark.parametrize("refused", [(), (UDP_SEGMENT,)])
def test_the_rest_is_sent_from_where_the_socket_was_full(
    shape: tuple[int, int, int], refused: tuple[int, ...], make: Callable[[], BatchSocket]
) -> None:
    Faulty.refused_options = refused
    sender, receiver = make(), make()
    data = datagrams(*shape)
    room = [0]

    def fault(name: str, data: bytes) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise BlockingIOError(errno.EAGAIN, "full")

    Faulty.fault = fault
    received, rest, rounds = [], data, 0
    while rest:
        room[0] = 1
        done = sender.send(rest, 1000, address_of(receiver))
        assert done, "a socket with room took nothing"
        received += receive_all(receiver, done)
        rest, rounds = rest[done:], rounds + 1
    assert received == cut(data, 1000)
    assert rounds == len(Faulty.calls) - rounds + 1


def test_the_rest_of_the_second_part(pair: tuple[BatchSocket, BatchSocket]) -> None:
    """Segmentation is refused, and the socket is full, beyond what one call can take."""
    sender, receiver = pair
    room = [90]

    def fault(name: str, data: bytes) -> None:
        if name == "sendmsg":
            raise OSError(errno.EIO, "not through this device")
        room[0] -= 1
        if room[0] < 0:
            raise BlockingIOError(errno.EAGAIN, "full")

    Faulty.fault = fault
    data = datagrams(150, 1000, 1)
    assert sender.send(data, 1000, address_of(receiver)) == 90_000
    assert receive_all(receiver, 90_000) == cut(data[:90_000], 1000)


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EPERM, errno.ENOBUFS])
@pytest.mark.parametrize("data", [bytes(100), bytes(5000)])
def test_a_failure_is_counted_and_logged_once(
    data: bytes,
    number: int,
    pair: tuple[BatchSocket, BatchSocket],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in "sendto", "sendmsg":
        Faulty.fault = raise_for(name, number)
        with caplog.at_level(logging.INFO):
            for _ in range(3):
                assert pair[0].send(data, 1000, address_of(pair[1])) == len(data)
    assert set(pair[0].failures) <= {errno.errorcode[number]}
    assert pair[0].failures[errno.errorcode[number]] == 3
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "address",
    [
        ("localhost", 9),
        ("example.com", 9),
        ("", 9),
        ("<broadcast>", 9),
        ("1.2.3", 9),
        ("fe80::1%lo", 9),
        ("127.0.0.1", 0),
        ("::1", 0),
        ("127.0.0.1", 65536),
        ("::1", -1),
    ],
)
def test_no_name_is_resolved_and_no_odd_port_used(
    address: Address, pair: tuple[BatchSocket, BatchSocket]
) -> None:
    assert pair[0].send(b"x", 1, address) == 1
    assert Faulty.calls == []
    assert pair[0].failures.total() == 1


def test_what_is_remembered_is_bounded(
    pair: tuple[BatchSocket, BatchSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_socket, "MAX_REMEMBERED", 3)
    sender, receiver = pair
    for port in range(1, 50):
        sender.send(b"x", 1, (address_of(receiver)[0], port))
        assert len(sender._targets) <= 3
    sender.send(b"y", 1, address_of(receiver))
    assert wait(receiver)[0] == b"y"


def test_an_error_instead_of_a_datagram(
    pair: tuple[BatchSocket, BatchSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "of an earlier datagram")

    with monkeypatch.context() as patch:
        patch.setattr(Faulty, "recvmsg", refused, raising=False)
        assert pair[1].receive() is None
    assert pair[1].failures == {"ECONNREFUSED": 1}
    pair[0].send(b"x", 1, address_of(pair[1]))
    assert wait(pair[1])[0] == b"x"


def test_no_descriptors(family: socket.AddressFamily) -> None:
    gevent.sleep(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            BatchSocket(family, log)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
