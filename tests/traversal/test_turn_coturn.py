"""Our TURN client with coturn, on loopback: one more socket of an endpoint."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import gevent
import pytest
from gevent.event import Event

from helpers.coturn import HOME, SECRET, TURN, running
from helpers.endpoint_support import added, arrives, log, make, ours, packet, stranger
from helpers.ports import free_port
from helpers.support import PATIENCE_S
from kkp2p_compat._address import Address, HostPort
from kkp2p_compat._errors import LinkLost
from kkp2p_compat.engine.paths.turn_allocation import TurnAllocation
from kkp2p_compat.transport.udp.batch_socket import BatchSocket
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.transport.udp.events import Transmit
from kkp2p_compat.traversal.stun import TurnKind, parse_untrusted
from kkp2p_compat.traversal.turn import TurnClient, TurnState
from kkp2p_compat.traversal.turn_server import TurnServer, time_limited

__all__ = ["make", "ours", "stranger"]

CHECK = bytes(20)  # begins as a STUN message
ID = 7

Allocate = Callable[..., TurnAllocation]


def nobody(number: int) -> None:
    """Nobody wants to know that an allocation is over."""


@pytest.fixture
def options() -> tuple[str, ...]:
    return ()


@pytest.fixture
def server(tmp_path: Path, options: tuple[str, ...]) -> Iterator[HostPort]:
    port = free_port()
    with running(tmp_path, port, *TURN, *options):
        yield HOME, port


@pytest.fixture
def allocate(server: HostPort, ours: Endpoint) -> Iterator[Allocate]:
    made: list[TurnAllocation] = []

    def one(secret: bytes = SECRET, seconds: int = 100) -> TurnAllocation:
        credentials = time_limited(secret, "me", int(time.time()) + seconds)
        made.append(TurnAllocation(ours, TurnServer(*server, *credentials), log, nobody))
        return made[-1]

    yield one
    for allocation in made:
        allocation.close()


class Checks:
    """What an endpoint hears of STUN, and from where."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.heard: list[tuple[bytes, Address]] = []
        self._changed = Event()
        endpoint.on_stun = self._hear

    def _hear(self, data: bytes, address: Address) -> None:
        self.heard.append((data, address))
        self._changed.set()

    def wait(self, count: int) -> None:
        with gevent.Timeout(PATIENCE_S):
            while len(self.heard) < count:
                self._changed.clear()
                self._changed.wait()


def place_of(sock: BatchSocket) -> HostPort:
    return HOME, sock.port


def answer(peer: BatchSocket, relayed: HostPort, data: bytes) -> None:
    assert peer.send(data, len(data), relayed) == len(data)


def meet(ours: Endpoint, peer: BatchSocket, allocation: TurnAllocation) -> Address:
    """Both have heard each other, and there is a channel; returns the peer's address."""
    relayed = allocation.wait()
    address = (*place_of(peer), allocation.number)
    checks = Checks(ours)
    ours.send_check(CHECK, address)
    assert arrives(peer) == [CHECK]
    answer(peer, relayed, CHECK + b"yes")
    checks.wait(1)
    assert checks.heard == [(CHECK + b"yes", address)]
    ours.send_check(CHECK, address)  # asks for the channel
    assert arrives(peer) == [CHECK]
    client = allocation._client
    with gevent.Timeout(PATIENCE_S):
        while place_of(peer) not in client.channels:
            gevent.sleep(0.001)
    return address


def test_a_check_and_its_answer(ours: Endpoint, stranger: BatchSocket, allocate: Allocate) -> None:
    allocation = allocate()
    meet(ours, stranger, allocation)
    assert allocation.relayed is not None
    assert allocation.relayed[0] == HOME
    assert not ours.failures()


def test_batches_go_both_ways_by_a_channel(
    ours: Endpoint, stranger: BatchSocket, allocate: Allocate
) -> None:
    allocation = allocate()
    address = meet(ours, stranger, allocation)
    link = added(ours, ID)
    # Not more than its buffers have room for, whoever gets the processor.
    sent = [packet(ID, b"%d" % number, 1200) for number in range(40)] + [packet(ID, b"end", 700)]
    link.connection.transmits.append(Transmit(b"".join(sent), 1200, address))
    ours.wake(link)
    stranger.grow()
    received: list[bytes] = []
    while len(received) < len(sent):
        received += arrives(stranger)
    assert received == sent
    assert allocation.relayed is not None
    for piece in sent:
        answer(stranger, allocation.relayed, piece)
    link.connection.wait_for(lambda: len(link.connection.received) == len(sent))
    assert link.connection.received == sent
    assert not ours.failures()


def test_nobody_gets_in_to_whom_nothing_was_sent(
    ours: Endpoint, stranger: BatchSocket, allocate: Allocate
) -> None:
    """Not from another address, which here is one of loopback's."""
    allocation = allocate()
    meet(ours, stranger, allocation)
    checks = Checks(ours)
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.bind(("127.0.0.2", 0))
        other.sendto(CHECK + b"let me in", allocation.relayed or ("", 0))
    answer(stranger, allocation.relayed or ("", 0), CHECK + b"behind it")
    checks.wait(1)
    assert [data for data, _ in checks.heard] == [CHECK + b"behind it"]


class Wire:
    """A client and a plain socket.  The client's clock is set by hand: the server's goes on."""

    def __init__(self, server: HostPort, seconds: int) -> None:
        self.now = 0.0
        self.errors: list[int] = []
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.settimeout(PATIENCE_S)
        credentials = time_limited(SECRET, "me", int(time.time()) + seconds)
        self.client = TurnClient(server, *credentials, self.now, Random(1))
        self.exchange()
        assert self.client.state is TurnState.ALLOCATED

    def exchange(self) -> None:
        while (transmit := self.client.poll_transmit()) is not None:
            self._sock.sendto(*transmit)
            answer = self._sock.recv(2048)
            error = parse_untrusted(answer, 2048, TurnKind).error
            self.errors += [] if error is None else [error]
            assert self.client.handle_datagram_untrusted(answer, self.now) is None

    def refresh(self) -> None:
        """As when it is due.  The server's clock is one that nobody can set."""
        gevent.sleep(2.5)
        self.errors.clear()
        due = self.client.next_timer()
        assert due is not None
        self.now = due
        self.client.handle_timer(due)
        self.exchange()

    def close(self) -> None:
        self.client.close()
        self._sock.close()


@pytest.mark.parametrize("options", [("--stale-nonce=1",)])
def test_a_stale_nonce(server: HostPort) -> None:
    with contextlib.closing(Wire(server, 100)) as wire:
        wire.refresh()
        assert wire.errors == [438]
        assert wire.client.state is TurnState.ALLOCATED


def test_an_allocation_outlives_its_credentials(server: HostPort) -> None:
    """coturn looks at the time in the username once, so short-lived ones do for long calls."""
    with contextlib.closing(Wire(server, 2)) as wire:
        wire.refresh()
        assert wire.errors == []
        assert wire.client.state is TurnState.ALLOCATED


def test_a_wrong_secret(allocate: Allocate) -> None:
    with pytest.raises(LinkLost, match="401 Unauthorized"):
        allocate(secret=b"another").wait()


def test_credentials_that_have_expired(allocate: Allocate) -> None:
    with pytest.raises(LinkLost, match="401 Unauthorized"):
        allocate(seconds=-10).wait()


@pytest.mark.parametrize("options", [("--user-quota=1",)])
def test_what_is_closed_is_given_back(ours: Endpoint, allocate: Allocate) -> None:
    first = allocate()
    first.wait()
    with pytest.raises(LinkLost, match="486 Allocation Quota Reached"):
        allocate().wait()
    first.close()
    with gevent.Timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(LinkLost):
                allocate().wait()
                return
