"""For the tests of the endpoint: a recording stand-in for a PeerConnection, and its owner."""

from __future__ import annotations

import logging
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.event import Event as Flag

from helpers.support import PATIENCE_S
from kkp2p_compat._address import Address
from kkp2p_compat.transport.udp.batch_socket import BatchSocket
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.transport.udp.events import Event, Readable, Transmit

log = logging.getLogger("test")
IPS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def packet(local_id: int, text: bytes, size: int = 100) -> bytes:
    return (struct.pack(">QQ", 0x40 << 56, local_id) + text).ljust(size, b".")


class Recorder:
    """In place of a PeerConnection: every call in ``calls``; ``bugs`` names those that raise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.received: list[bytes] = []
        self.events: deque[Event] = deque()
        self.transmits: deque[Transmit] = deque()
        self.deadline: float | None = None
        self.gathers_s = 0.0
        self.bugs: set[str] = set()
        self.changed = Flag()

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.changed.set()
        if name in self.bugs:
            raise ZeroDivisionError(name)

    def handle_datagrams(
        self, data: bytes, segment_bytes: int, address: Address, now: float
    ) -> bool:
        self._called("datagrams")
        for start in range(0, len(data), segment_bytes):
            self.received.append(data[start : start + segment_bytes])
            self.events.append(Readable(0))
        return bool(self.events)

    def handle_timer(self, now: float) -> None:
        assert self.deadline is not None
        assert now >= self.deadline
        self.deadline = None
        self._called("timer")

    def poll_event(self) -> Event | None:
        if self.events:
            self._called("event")
            return self.events.popleft()
        return None

    def poll_transmit(self, now: float) -> Transmit | None:
        if self.transmits:
            self._called("transmit")
            return self.transmits.popleft()
        return None

    def gather_s(self, now: float) -> float:
        if "gather" in self.bugs:  # it is asked too often to be told in ``calls``
            self._called("gather")
        return self.gathers_s

    def next_timer(self) -> float | None:
        self._called("next timer")
        return self.deadline

    def close(self, code: int, reason: str, now: float) -> None:
        self._called(f"close {code}")

    def wait_for(self, condition: Callable[[], object]) -> None:
        with gevent.Timeout(PATIENCE_S):
            while not condition():
                self.changed.clear()
                self.changed.wait()


class Link:
    """The owner of a connection; ``on_event`` is the application's part."""

    def __init__(self, local_id: int) -> None:
        self.local_id = local_id
        self.connection = Recorder()
        self.events: list[Event] = []
        self.on_event: Callable[[Event], object] = lambda event: None

    def handle_event(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)
        self.connection.changed.set()


@pytest.fixture
def make() -> Iterator[Callable[[], Endpoint]]:
    made: list[Endpoint] = []

    def one() -> Endpoint:
        made.append(Endpoint(log))
        return made[-1]

    yield one
    for each in made:
        each.close()


@pytest.fixture
def ours(make: Callable[[], Endpoint]) -> Endpoint:
    return make()


@pytest.fixture
def stranger() -> Iterator[BatchSocket]:
    made = BatchSocket(socket.AF_INET, log)
    yield made
    made.close()


def added(ours: Endpoint, local_id: int) -> Link:
    link = Link(local_id)
    ours.add(link)
    gevent.sleep(0)  # it is driven once, so that what a connection wants at its start happens
    assert link.connection.calls == ["next timer"]
    link.connection.calls.clear()
    return link


def place(ours: Endpoint, family: socket.AddressFamily = socket.AF_INET) -> Address:
    return IPS[family], ours.ports()[family]


def send(stranger: BatchSocket, ours: Endpoint, *datagrams: bytes) -> None:
    """In one batch: all but the last are of one size."""
    data = b"".join(datagrams)
    assert stranger.send(data, len(datagrams[0]), place(ours)) == len(data)


def arrives(stranger: BatchSocket) -> list[bytes]:
    with gevent.Timeout(PATIENCE_S):
        while (got := stranger.receive()) is None:
            gevent.socket.wait_read(stranger.fileno())
    data, segment_bytes, _ = got
    return [data[start : start + segment_bytes] for start in range(0, len(data), segment_bytes)]
