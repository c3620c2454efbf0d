"""A TurnSocket with a server that says what a test wants, on loopback."""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Iterator
from random import Random

import pytest

from helpers.support import PATIENCE_S
from helpers.turn_server import PASSWORD, USERNAME, TurnServerCore
from kkp2p_compat._address import Address, HostPort
from kkp2p_compat.transport.udp.batch_socket import BatchSocket
from kkp2p_compat.traversal.channel_data import wrap
from kkp2p_compat.traversal.stun import Message, TurnKind
from kkp2p_compat.traversal.turn import TurnClient, TurnState
from kkp2p_compat.traversal.turn_socket import MAX_FUTILE, TurnSocket

log = logging.getLogger("test")
HOME = "127.0.0.1"
NUMBER = 5
PEER = ("192.0.2.7", 4000)
PLACE = (*PEER, NUMBER)


class Talk:
    """Ours, and the server's socket.  Everything the client says is answered in ``pump``."""

    def __init__(self) -> None:
        self.core = TurnServerCore()
        self.server = BatchSocket(socket.AF_INET, log)
        self.polls = 0
        place = (HOME, self.server.port)
        self.client = TurnClient(place, USERNAME, PASSWORD, time.monotonic(), Random(1))
        self.ours = TurnSocket(place, self.client, NUMBER, log, self._poll)
        self.place: HostPort = (HOME, self.ours.port)
        self._poll()
        while self.client.state is TurnState.ALLOCATING:
            self.answer(1)
            assert self.receive() is None

    def _poll(self) -> None:
        self.polls += 1
        while (transmit := self.client.poll_transmit()) is not None:
            self.ours.send_check(*transmit)

    def answer(self, count: int) -> None:
        """What the server says to the next datagrams, which must come."""
        while count > 0:
            data, size, _ = self._heard()
            for start in range(0, len(data), size):
                count -= 1
                for reply in self.core.handle(data[start : start + size]):
                    self.say(reply)

    def _heard(self) -> tuple[bytes, int, Address]:
        while (heard := self.server.receive()) is None:
            assert select.select([self.server], [], [], PATIENCE_S)[0]
        return heard

    def say(self, data: bytes, size: int | None = None) -> None:
        assert self.server.send(data, size or len(data), self.place) == len(data)

    def receive(self) -> tuple[bytes, int, Address] | None:
        if not self.ours.holds_more:
            assert select.select([self.ours.fileno()], [], [], PATIENCE_S)[0]
        return self.ours.receive()

    def bind(self) -> int:
        """Makes a channel with PEER, and returns its number."""
        assert self.ours.send(b"hello", 5, PLACE) == 5
        self.answer(2)  # the permission, and what follows it
        assert self.receive() is None
        self.say(self.core.from_peer(b"yes", PEER))
        assert self.receive() == (b"yes", 3, PLACE)
        assert self.ours.send(b"again", 5, PLACE) == 5
        self.answer(2)
        assert self.receive() is None
        assert self.core.sent == [(b"hello", PEER), (b"again", PEER)]
        self.core.sent.clear()
        (channel,) = self.core.channels
        return channel

    def close(self) -> None:
        self.ours.close()
        self.server.close()


@pytest.fixture
def talk() -> Iterator[Talk]:
    made = Talk()
    yield made
    made.close()


def test_a_batch_goes_out_in_channel_data(talk: Talk) -> None:
    talk.bind()
    talk.ours.grow()
    data = Random(3).randbytes(64 * 1000 + 17)
    pieces = [data[start : start + 1000] for start in range(0, len(data), 1000)]
    assert talk.ours.send(data, 1000, PLACE) == len(data)
    talk.answer(len(pieces))
    assert talk.core.sent == [(piece, PEER) for piece in pieces]
    assert not talk.ours.failures


def test_a_batch_comes_in_as_one(talk: Talk) -> None:
    channel = talk.bind()
    for each in (talk.ours, talk.server):
        each.grow()
    data = Random(4).randbytes(10 * 1000)
    talk.say(wrap(channel, data, 1000), 1004)
    parts: list[bytes] = []
    while len(b"".join(parts)) < len(data):
        received = talk.receive()
        assert received is not None
        assert received[1:] == (1000, PLACE)
        parts.append(received[0])
    assert b"".join(parts) == data


def test_more_than_one_peer_in_what_the_kernel_has_joined(talk: Talk) -> None:
    channel = talk.bind()
    for each in (talk.ours, talk.server):
        each.grow()
    other = (PEER[0], 5000)
    message = Message(TurnKind.DATA, bytes(12), peer=other, data=b"d" * 40)
    indication = message.encode(None, fingerprint=False)
    ours = wrap(channel, b"c" * (len(indication) - 4), len(indication))
    talk.say(ours + indication + ours + indication, len(indication))
    received: list[tuple[bytes, Address]] = []
    while len(received) < 4:
        one = talk.receive()
        assert one is not None
        received.append((one[0][:1], one[2]))
    assert received == [(b"c", PLACE), (b"d", (*other, NUMBER))] * 2
    assert not talk.ours.holds_more
    assert talk.ours.receive() is None


def test_only_the_server_is_heard(talk: Talk) -> None:
    channel = talk.bind()
    stranger = BatchSocket(socket.AF_INET, log)
    try:
        data = wrap(channel, b"not the server's", 100)
        assert stranger.send(data, len(data), talk.place) == len(data)
        assert talk.receive() is None
    finally:
        stranger.close()
    assert talk.ours.failures == {"not from the TURN server": 1}


def test_what_a_lying_server_brings_is_counted_and_dropped(talk: Talk) -> None:
    channel = talk.bind()
    for data in (
        wrap(channel + 1, b"of nobody", 100),
        wrap(0x4FFF, b"of nobody", 100),
        Message(TurnKind.DATA, bytes(12), peer=("203.0.113.1", 1), data=b"x").encode(None),
        Message(TurnKind.ALLOCATE_ERROR, bytes(12), error=437).encode(None),
        wrap(channel, b"cut short", 100)[:-1],
        b"\x40",
        b"\xff" * 50,
        bytes(30),
    ):
        talk.say(data)
        assert talk.receive() is None, data
    assert talk.ours.failures == {"by a channel that we have not bound": 2}
    assert talk.client.dropped.total() == 3
    assert talk.client.state is TurnState.ALLOCATED
    talk.say(wrap(channel, b"genuine", 100))
    assert talk.receive() == (b"genuine", 7, PLACE)


def test_a_flood_does_not_keep_us(talk: Talk) -> None:
    """The descriptor stays readable, so the loop comes back after the others had their turn."""
    channel = talk.bind()
    for _ in range(2 * MAX_FUTILE):
        talk.say(b"junk of a server")
    talk.say(wrap(channel, b"behind it", 100))
    futile = 0
    while (received := talk.receive()) is None:
        futile += 1
    assert received == (b"behind it", 9, PLACE)
    assert futile == 2


def test_nothing_goes_to_a_peer_that_may_not_be_sent_to(talk: Talk) -> None:
    talk.core.refuse[TurnKind.CREATE_PERMISSION] = 403
    assert talk.ours.send(b"hello", 5, PLACE) == 5
    talk.answer(2)
    assert talk.receive() is None
    assert talk.ours.send(b"a" * 100, 10, PLACE) == 100
    assert talk.ours.failures == {"no permission to send to that peer": 10}
    assert not talk.core.sent
    assert talk.server.receive() is None


def test_a_hop_limit_is_for_direct_paths(talk: Talk) -> None:
    talk.bind()
    assert talk.ours.send_with_ttl(b"hello", PLACE, 3) == 5
    assert talk.server.receive() is None
