"""Our TURN client with a server's core, on a virtual clock."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest

from helpers.turn_server import PASSWORD, RELAYED, USERNAME, TurnServerCore, long_term_key
from kkp2p_compat.traversal.stun import Message, TurnKind, parse_untrusted
from kkp2p_compat.traversal.turn import (
    IDLE_S,
    MAX_CHALLENGES,
    MAX_CHANNELS,
    MAX_PERMISSIONS,
    RENEW_ALLOCATION_S,
    RENEW_S,
    TurnClient,
    TurnState,
)

SERVER = ("198.51.100.1", 3478)
PEER = ("192.0.2.7", 4000)
ALLOCATE, REFRESH = TurnKind.ALLOCATE, TurnKind.REFRESH
PERMISSION, BIND = TurnKind.CREATE_PERMISSION, TurnKind.CHANNEL_BIND


class Pair:
    """A client and a server, and the time.  ``lost``: what the client sends does not arrive."""

    def __init__(self, server: TurnServerCore | None = None) -> None:
        self.server = server or TurnServerCore()
        self.now = 1000.0
        self.lost = False
        self.client = TurnClient(SERVER, USERNAME, PASSWORD, self.now, Random(1))
        self.exchange()

    def exchange(self) -> None:
        while (transmit := self.client.poll_transmit()) is not None:
            data, to = transmit
            assert to == SERVER
            for answer in [] if self.lost else self.server.handle(data):
                assert self.client.handle_datagram_untrusted(answer, self.now) is None

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.client.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            self.client.handle_timer(self.now)
            self.exchange()
        self.now = until

    def send(self, data: bytes, peer: tuple[str, int] = PEER) -> bool:
        """Whether it could be sent."""
        wire = self.client.indication(data, peer, self.now)
        self.exchange()
        if wire is None:
            return False
        if not self.lost:
            self.server.handle(wire)
        return True

    def hear(
        self, data: bytes, peer: tuple[str, int] = PEER
    ) -> tuple[bytes, tuple[str, int]] | None:
        return self.client.handle_datagram_untrusted(self.server.from_peer(data, peer), self.now)

    def bind(self, peer: tuple[str, int] = PEER) -> int:
        assert self.send(b"are you there", peer)
        assert self.hear(b"yes", peer) == (b"yes", peer)
        assert self.send(b"then let us", peer)
        channel = self.client.channels[peer].channel
        assert channel is not None
        return channel


def test_it_allocates_when_it_is_challenged() -> None:
    pair = Pair()
    assert pair.server.requests == [ALLOCATE, ALLOCATE]
    assert pair.client.state is TurnState.ALLOCATED
    assert pair.client.relayed == RELAYED
    assert not pair.client.dropped


def test_a_request_is_repeated_until_it_is_answered() -> None:
    pair = Pair()
    pair.lost = True
    pair.client = TurnClient(SERVER, USERNAME, PASSWORD, pair.now, Random(1))
    first = pair.client.poll_transmit()
    for wait_s in (0.1, 0.2, 0.4):
        pair.now += wait_s
        assert pair.client.next_timer() == pytest.approx(pair.now)
        pair.client.handle_timer(pair.now)
        assert pair.client.poll_transmit() == first
    pair.lost = False
    for answer in pair.server.handle(first[0] if first else b""):
        pair.client.handle_datagram_untrusted(answer, pair.now)
    pair.exchange()
    assert pair.client.state is TurnState.ALLOCATED


def test_without_an_answer_it_is_over() -> None:
    pair = Pair()
    pair.lost = True
    pair.client = TurnClient(SERVER, USERNAME, PASSWORD, pair.now, Random(1))
    pair.exchange()
    pair.pass_time(1.6)
    assert pair.client.state is TurnState.OVER
    assert pair.client.reason == "the server does not answer"
    assert pair.client.next_timer() is None


def test_a_datagram_follows_the_request_for_its_permission() -> None:
    pair = Pair()
    assert pair.send(b"hello")
    assert pair.server.requests[-1] is PERMISSION
    assert pair.server.sent == [(b"hello", PEER)]
    assert pair.send(b"again")
    assert pair.send(b"elsewhere", (PEER[0], 5000))
    assert pair.server.requests.count(PERMISSION) == 1
    assert pair.server.sent[1:] == [(b"again", PEER), (b"elsewhere", (PEER[0], 5000))]


def test_only_a_peer_that_has_answered_gets_a_channel() -> None:
    pair = Pair()
    for _ in range(5):
        pair.send(b"hello")
    assert BIND not in pair.server.requests
    channel = pair.bind()
    assert pair.server.channels == {channel: PEER}
    assert pair.client.numbers[channel].peer == PEER
    assert 0x4000 <= channel <= 0x4FFF


def test_a_channel_whose_request_is_lost_is_not_used() -> None:
    pair = Pair()
    pair.send(b"hello")
    pair.hear(b"yes")
    pair.lost = True
    assert pair.send(b"again")
    assert not pair.client.channels
    pair.lost = False
    pair.pass_time(0.2)
    assert list(pair.client.channels) == [PEER]


def test_everything_is_renewed_before_it_ends() -> None:
    pair = Pair()
    pair.bind()
    pair.server.requests.clear()
    for _ in range(10):
        pair.client.channels[PEER].used_at = pair.now
        pair.pass_time(RENEW_S / 2)
    counts = [pair.server.requests.count(kind) for kind in (REFRESH, PERMISSION, BIND)]
    assert counts == [5 * RENEW_S // RENEW_ALLOCATION_S, 5, 5]
    assert list(pair.client.channels) == [PEER]


def test_a_peer_with_whom_nothing_is_exchanged_is_forgotten() -> None:
    pair = Pair()
    channel = pair.bind()
    pair.pass_time(IDLE_S + 2 * RENEW_S)
    assert not pair.client.channels
    assert not pair.client.numbers
    pair.server.requests.clear()
    pair.pass_time(IDLE_S)
    assert set(pair.server.requests) == {REFRESH}
    pair.server.channels.clear()
    assert pair.bind() == channel + 1  # the old number may still be its peer's, at the server


def test_a_stale_nonce_is_replaced() -> None:
    pair = Pair()
    pair.server.nonce = b"nonce 2"
    assert pair.send(b"hello")
    assert pair.server.requests[-2:] == [PERMISSION, PERMISSION]
    assert PEER[0] in pair.server.permitted
    pair.server.nonce, pair.server.realm = b"nonce 3", "other.example"
    pair.pass_time(RENEW_ALLOCATION_S)
    assert pair.client.state is TurnState.ALLOCATED
    assert not pair.client.dropped


def test_the_wrong_password_is_refused_once() -> None:
    pair = Pair(TurnServerCore(password="another"))
    assert pair.server.requests == [ALLOCATE, ALLOCATE]
    assert pair.client.state is TurnState.OVER
    assert pair.client.reason == "the server refuses: 401 Unauthorized"


@pytest.mark.parametrize("error", [300, 403, 437, 440, 486, 508, 699])
def test_a_refused_allocation_is_over(error: int) -> None:
    server = TurnServerCore()
    server.refuse[ALLOCATE] = error
    pair = Pair(server)
    assert pair.client.state is TurnState.OVER
    assert str(error) in pair.client.reason
    assert pair.server.requests == [ALLOCATE, ALLOCATE]  # no other server is asked, nor this again


def test_a_short_cut_does_not_end_it() -> None:
    pair = Pair()
    pair.bind()
    pair.lost = True
    pair.pass_time(60)
    pair.lost = False
    pair.pass_time(10)
    pair.server.requests.clear()
    pair.pass_time(RENEW_ALLOCATION_S)
    assert pair.client.state is TurnState.ALLOCATED
    assert pair.server.requests == [REFRESH]


def test_a_long_cut_ends_it_when_the_server_has_forgotten_it() -> None:
    pair = Pair()
    pair.lost = True
    pair.pass_time(590)
    assert pair.client.state is TurnState.ALLOCATED
    pair.pass_time(20)
    assert pair.client.state is TurnState.OVER


def test_an_allocation_that_the_server_does_not_know_is_over() -> None:
    pair = Pair()
    pair.server.is_allocated = False
    assert pair.send(b"hello")
    assert pair.client.state is TurnState.OVER
    assert pair.client.reason == "the server has forgotten it"
    assert not pair.send(b"hello")


def test_a_permission_that_is_refused_is_asked_for_again_after_a_while_only() -> None:
    pair = Pair()
    pair.server.refuse[PERMISSION] = 403
    pair.send(b"hello")
    pair.server.requests.clear()
    assert not any(pair.send(b"again") for _ in range(100))
    pair.pass_time(59)
    assert PERMISSION not in pair.server.requests
    pair.pass_time(2)
    assert pair.server.requests.count(PERMISSION) == 1
    assert pair.client.state is TurnState.ALLOCATED
    pair.server.refuse.clear()
    pair.pass_time(60)
    assert pair.send(b"at last")
    assert pair.server.sent == [(b"at last", PEER)]


def test_the_server_is_not_asked_for_what_cannot_be_a_peer() -> None:
    pair = Pair()
    pair.server.requests.clear()
    for peer in (("224.0.0.1", 5000), ("192.0.2.7", 0), ("2001:db8::1", 5000), ("a name", 5000)):
        assert not pair.send(b"hello", peer)
    assert not pair.server.requests


def test_peers_are_bounded() -> None:
    pair = Pair()
    peers = [(f"192.0.2.{number}", 4000) for number in range(1, MAX_PERMISSIONS + 20)]
    assert [pair.send(b"hello", peer) for peer in peers].count(True) == MAX_PERMISSIONS
    for peer in peers[:MAX_PERMISSIONS]:
        assert pair.hear(b"yes", peer)
        assert pair.send(b"again", peer)
    assert len(pair.client.channels) == MAX_CHANNELS
    assert (b"again", peers[MAX_PERMISSIONS - 1]) in pair.server.sent


def test_closing_gives_it_back() -> None:
    pair = Pair()
    pair.client.close()
    pair.exchange()
    assert pair.server.requests[-1] is REFRESH
    assert not pair.server.is_allocated
    assert pair.client.state is TurnState.OVER
    assert pair.client.next_timer() is None


# Servers that lie.


@pytest.mark.parametrize("seconds", [0, 1, 49, None])
def test_a_server_that_keeps_nothing_is_left(seconds: int | None) -> None:
    server = TurnServerCore()
    server.lifetime_s = seconds
    pair = Pair(server)
    assert pair.client.state is TurnState.OVER
    assert pair.client.reason == f"the server keeps it for {seconds or 0} s only"


def test_a_lifetime_without_end_changes_nothing() -> None:
    server = TurnServerCore()
    server.lifetime_s = 2**32 - 1
    pair = Pair(server)
    pair.server.requests.clear()
    pair.pass_time(RENEW_ALLOCATION_S)
    assert pair.server.requests == [REFRESH]
    pair.lost = True
    pair.pass_time(3700)
    assert pair.client.state is TurnState.OVER


@pytest.mark.parametrize(
    "relayed",
    [
        None,
        ("224.0.0.1", 5),
        ("0.0.0.0", 5),
        ("203.0.113.9", 0),
        ("fe80::1", 5),
        ("10.0.0.1", 5),
        ("127.0.0.1", 5),
        ("fd00::1", 5),
    ],
)
def test_an_address_that_cannot_be_ours_is_refused(relayed: tuple[str, int] | None) -> None:
    server = TurnServerCore()
    server.relayed = relayed
    pair = Pair(server)
    assert pair.client.state is TurnState.OVER
    assert pair.client.relayed is None


class Challenging(TurnServerCore):
    """Another realm and another nonce, for ever."""

    def __init__(self, error: int) -> None:
        super().__init__()
        self._error_code = error

    def handle(self, data: bytes) -> list[bytes]:
        if data[0] >= 4:
            return super().handle(data)
        count = len(self.requests)
        self.realm, self.nonce = f"realm {count}", b"nonce %d" % count
        if count:
            self.refuse = dict.fromkeys(TurnKind, self._error_code)
        return super().handle(data)


@pytest.mark.parametrize("error", [401, 438])
def test_challenges_have_an_end(error: int) -> None:
    pair = Pair(Challenging(error))
    assert pair.client.state is TurnState.OVER
    assert len(pair.server.requests) <= MAX_CHALLENGES + 1


def test_answers_that_are_not_signed_with_our_key_do_not_count() -> None:
    pair = Pair()
    server = TurnServerCore()

    def forge(message: Message) -> Message:
        """As the server would answer, but without knowing the password."""
        if message.kind is TurnKind.ALLOCATE_DONE:
            server.password = "a guess"
        return message

    server.answer = forge
    pair.server = server
    pair.client = TurnClient(SERVER, USERNAME, PASSWORD, pair.now, Random(1))
    transmits = [pair.client.poll_transmit()]
    first = transmits[0]
    assert first is not None
    pair.client.handle_datagram_untrusted(server.handle(first[0])[0], pair.now)
    second = pair.client.poll_transmit()
    assert second is not None
    genuine = server.judge(parse_untrusted(second[0], 65535, TurnKind), long_term_key())
    forged = genuine.encode(long_term_key(password="a guess"))
    for wire in (forged, genuine.encode(None)):
        assert pair.client.handle_datagram_untrusted(wire, pair.now) is None
        assert pair.client.state is TurnState.ALLOCATING
    assert pair.client.dropped["an answer without our integrity"] == 2
    pair.client.handle_datagram_untrusted(genuine.encode(long_term_key()), pair.now)
    assert pair.client.state is TurnState.ALLOCATED


def test_answers_to_nothing_are_dropped() -> None:
    pair = Pair()
    relayed = pair.client.relayed
    for kind in TurnKind:
        message = Message(kind, bytes(12), relayed=("203.0.113.66", 6), lifetime_s=0, error=437)
        pair.client.handle_datagram_untrusted(message.encode(long_term_key()), pair.now)
    for junk in (b"", b"\x00", bytes(20), bytes(2000), b"\x01\x03" + bytes(30)):
        pair.client.handle_datagram_untrusted(junk, pair.now)
    assert pair.client.state is TurnState.ALLOCATED
    assert pair.client.relayed == relayed
    assert pair.client.poll_transmit() is None
    assert pair.client.dropped.total() == len(TurnKind) + 5


def test_data_of_somebody_whom_we_have_not_sent_to_is_dropped() -> None:
    pair = Pair()
    pair.send(b"hello")
    assert pair.hear(b"data", ("192.0.2.8", 4000)) is None
    assert pair.hear(b"data", (PEER[0], 9)) == (b"data", (PEER[0], 9))  # its NAT may be so
    assert pair.client.dropped.total() == 1
    without = dataclasses.replace(Message(TurnKind.DATA, bytes(12)), data=b"data")
    assert pair.client.handle_datagram_untrusted(without.encode(None), pair.now) is None
    assert BIND not in pair.server.requests
