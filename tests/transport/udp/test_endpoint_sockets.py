"""Extra sockets of an endpoint, and datagrams that do not go far."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable

import gevent
import pytest

from helpers.endpoint_support import (
    IPS,
    Link,
    added,
    arrives,
    make,
    ours,
    packet,
    place,
    send,
    stranger,
)
from helpers.support import PATIENCE_S
from kkp2p_compat._address import Address
from kkp2p_compat._errors import EngineClosed, LinkLost, OutOfDescriptors
from kkp2p_compat.transport.udp import batch_socket, doors
from kkp2p_compat.transport.udp.batch_socket import BatchSocket
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.transport.udp.events import Transmit

__all__ = ["make", "ours", "stranger"]

IP_RECVTTL = 12  # linux/in.h
STUN = b"\x00\x01".ljust(28, b"s")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("family", list(IPS), ids=["ipv4", "ipv6"])
def test_a_check_by_an_extra_socket(
    family: socket.AddressFamily, make: Callable[[], Endpoint]
) -> None:
    ours, theirs = make(), make()
    (number,) = ours.open_sockets(family, 1)
    came: list[tuple[Endpoint, bytes, Address]] = []
    arrived = gevent.event.Event()

    def note(end: Endpoint, data: bytes, address: Address) -> None:
        came.append((end, data, address))
        arrived.set()

    ours.on_stun = lambda data, address: note(ours, data, address)
    theirs.on_stun = lambda data, address: (
        note(theirs, data, address),
        theirs.send_check(STUN, address),
    )
    ip, port = place(theirs, family)[:2]
    ours.send_check(STUN, (ip, port, number))
    with gevent.Timeout(PATIENCE_S):
        while len(came) < 2:
            arrived.clear()
            arrived.wait()
    assert came == [(theirs, STUN, (ip, ours.port_of(number))), (ours, STUN, (ip, port, number))]
    assert ours.port_of(number) != ours.ports()[family]


def test_a_connection_by_an_extra_socket(ours: Endpoint, stranger: BatchSocket) -> None:
    """Its datagrams come from that socket, and what comes to that socket says so."""
    link = added(ours, 1)
    seen: list[Address] = []
    handle = link.connection.handle_datagrams

    def handle_datagrams(data: bytes, segment_bytes: int, address: Address, now: float) -> None:
        seen.append(address)
        handle(data, segment_bytes, address, now)

    link.connection.handle_datagrams = handle_datagrams  # type: ignore[method-assign]
    (number,) = ours.open_sockets(socket.AF_INET, 1)
    address = "127.0.0.1", stranger.port, number
    link.connection.transmits.append(Transmit(packet(9, b"") * 20, 100, address))
    ours.wake(link)
    with gevent.Timeout(PATIENCE_S):
        while (got := stranger.receive()) is None:
            gevent.socket.wait_read(stranger.fileno())
    assert got == (packet(9, b"") * 20, 100, ("127.0.0.1", ours.port_of(number)))
    stranger.send(packet(1, b"back"), 100, ("127.0.0.1", ours.port_of(number)))
    link.connection.wait_for(lambda: link.connection.received)
    assert seen == [address]


def test_small_until_a_connection_uses_it(
    ours: Endpoint, stranger: BatchSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_socket, "BUFFER_BYTES", 150_000)  # any process may have so much
    link = added(ours, 1)
    (number,) = ours.open_sockets(socket.AF_INET, 1)
    bound = ours._doors.extra[number].socket._sock
    usual = bound.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    ours.send_check(STUN, ("127.0.0.1", stranger.port, number))
    assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == usual
    address = "127.0.0.1", stranger.port, number
    link.connection.transmits.append(Transmit(b"data", 4, address))
    ours.wake(link)
    assert arrives(stranger) + arrives(stranger) == [STUN, b"data"]
    assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 300_000


def test_hundreds_and_their_end(ours: Endpoint) -> None:
    before = open_descriptors()
    first = ours.open_sockets(socket.AF_INET, 256)
    assert open_descriptors() == before + 256
    assert len({ours.port_of(number) for number in first}) == 256
    ours.close_sockets(first)
    ours.close_sockets(first)
    assert open_descriptors() == before
    again = ours.open_sockets(socket.AF_INET, 2)
    assert not set(first) & set(again), "a number came again"
    with pytest.raises(KeyError):
        ours.port_of(first[0])
    ours.send_check(STUN, ("127.0.0.1", 9, first[0]))
    assert ours.dropped == {"no socket": 1}
    ours.close()
    assert open_descriptors() == before - 2
    with pytest.raises(EngineClosed):
        ours.open_sockets(socket.AF_INET, 1)


def test_too_many(ours: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "MAX_EXTRA_SOCKETS", 5)
    ours.open_sockets(socket.AF_INET, 3)
    before = open_descriptors()
    with pytest.raises(OutOfDescriptors, match="no more than 5"):
        ours.open_sockets(socket.AF_INET6, 3)
    assert open_descriptors() == before
    ours.open_sockets(socket.AF_INET6, 2)


def test_no_descriptors_for_all_of_them(ours: Endpoint) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null") as last:
        free = last.fileno()
    before = open_descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 3, hard))
    try:
        with pytest.raises(OutOfDescriptors):
            ours.open_sockets(socket.AF_INET, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_descriptors() == before
    assert len(ours.open_sockets(socket.AF_INET, 20)) == 20


def test_a_family_that_is_not_there(make: Callable[[], Endpoint]) -> None:
    ours = make()
    ours._doors.main.pop(socket.AF_INET6).close()
    with pytest.raises(LinkLost):
        ours.open_sockets(socket.AF_INET6, 1)


@pytest.mark.parametrize("by", ["stun", "event"])
def test_a_socket_closed_by_what_came_to_it(by: str, ours: Endpoint, stranger: BatchSocket) -> None:
    link = added(ours, 1)
    (number,) = ours.open_sockets(socket.AF_INET, 1)
    ours.on_stun = lambda data, address: ours.close_sockets([number])
    link.on_event = lambda event: ours.close_sockets([number])
    port = ours.port_of(number)
    for _ in range(5):
        stranger.send(STUN if by == "stun" else packet(1, b""), 100, ("127.0.0.1", port))
    with gevent.Timeout(PATIENCE_S):
        while number in ours._doors.extra:
            gevent.sleep(0.001)
    send(stranger, ours, packet(1, b"end"))
    link.connection.wait_for(lambda: packet(1, b"end") in link.connection.received)
    assert not ours.failures(), "a closed socket was used"


def test_a_socket_closed_while_a_connection_waits_for_room(
    ours: Endpoint, stranger: BatchSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    link: Link = added(ours, 1)
    (number,) = ours.open_sockets(socket.AF_INET, 1)
    monkeypatch.setattr(ours._doors.extra[number].socket, "send", lambda *_: 0)
    link.connection.transmits.append(Transmit(b"lost", 4, ("127.0.0.1", stranger.port, number)))
    ours.wake(link)
    link.connection.wait_for(lambda: ours._doors.extra[number].waiting)
    link.connection.transmits.append(Transmit(b"main", 4, ("127.0.0.1", stranger.port)))
    ours.close_sockets([number])
    assert arrives(stranger) == [b"main"]


class Stalling:
    """A DoorSocket that takes all, nothing, or, as a FramedSocket that is stuck, loses all."""

    datagram_bytes, port = 1200, 1
    broken = holds_more = False

    def __init__(self, number: int) -> None:
        self.number = number
        self.failures: Counter[str] = Counter()
        self.answers = "full"
        self.asked = 0
        self.sent: list[bytes] = []
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._ours.send(bytes(1 << 16))

    def fileno(self) -> int:
        return self._ours.fileno()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()

    def grow(self) -> None:
        pass

    def receive(self) -> None:
        return None

    def send(self, data: bytes, segment_bytes: int, address: Address) -> int:
        self.asked += 1
        if self.answers == "takes":
            self.sent.append(data)
        return 0 if self.answers == "full" else len(data)

    send_with_ttl = send

    def make_room(self) -> None:
        self.answers = "takes"
        self._theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._theirs.recv(1 << 20):
                pass


@pytest.mark.parametrize("is_closed", [False, True])
def test_what_waits_for_one_socket_has_nothing_to_do_with_another(
    ours: Endpoint, is_closed: bool
) -> None:
    """A connection that has left a stalled path waits for the next one, whatever the first does."""
    made: list[Stalling] = []

    def make_one(number: int) -> Stalling:
        made.append(Stalling(number))
        return made[-1]

    numbers = [ours.adopt(make_one, lambda number: None) for _ in range(2)]
    (first, second), link = made, added(ours, 1)

    def send_by(number: int, data: bytes) -> None:
        link.connection.transmits.append(Transmit(data, len(data), ("192.0.2.1", 443, number)))
        ours.wake(link)

    def until(condition: Callable[[], object]) -> None:
        with gevent.Timeout(PATIENCE_S):
            while not condition():
                gevent.sleep(0.001)

    send_by(numbers[0], b"given up")
    until(lambda: first.asked)
    first.answers = "stuck"
    link.connection.calls.clear()
    until(lambda: "next timer" in link.connection.calls)  # it was given up
    send_by(numbers[1], b"for the second")
    until(lambda: second.asked)
    if is_closed:
        ours.close_sockets(numbers[:1])
    else:
        door = ours._doors.extra[numbers[0]]
        first.make_room()
        until(lambda: not door.writable.active)
    assert first.sent == []
    assert ours._doors.extra[numbers[1]].waiting
    second.make_room()
    until(lambda: second.sent)
    assert second.sent == [b"for the second"]


@pytest.mark.parametrize("family", list(IPS), ids=["ipv4", "ipv6"])
def test_hops(family: socket.AddressFamily, ours: Endpoint) -> None:
    """Of that datagram only."""
    level, wanted, kind = {
        socket.AF_INET: (socket.IPPROTO_IP, IP_RECVTTL, socket.IP_TTL),
        socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, socket.IPV6_HOPLIMIT),
    }[family]
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((IPS[family], 0))
        receiver.setsockopt(level, wanted, 1)
        receiver.settimeout(PATIENCE_S)
        address = IPS[family], receiver.getsockname()[1]
        (number,) = ours.open_sockets(family, 1)
        usual = 64
        for target in address, (*address, number):
            for ttl in 3, None, 1:
                ours.send_check(STUN, target, ttl)
                data, control, _, _ = receiver.recvmsg(100, 100)
                assert data == STUN
                hops = [value for *where, value in control if where == [level, kind]]
                assert [int.from_bytes(value, "little") for value in hops] == [ttl or usual]
    assert not ours.failures() + ours.dropped
    for bad in ("no ip", 9), ("127.0.0.1", 0), ("127.0.0.1", 0, number):
        ours.send_check(STUN, bad, 3)
    assert ours.failures().total() == 3
