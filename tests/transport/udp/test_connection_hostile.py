"""Packets that are forged, cut, replayed or sent back change nothing; a peer's breach ends it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

import pytest

from helpers.sim.drive import HEADER, Peer
from helpers.sim.pair import CIPHER, Pair, mbit_per_s
from helpers.sim.simnet import Conditions
from helpers.udp_streams import encode_stream
from kkp2p_compat._codes import KKP2P_TCP_CHANNEL
from kkp2p_compat._errors import KKP2PError
from kkp2p_compat.transport.udp import frames as f
from kkp2p_compat.transport.udp.events import ChannelOffered, Ended
from kkp2p_compat.transport.udp.packing import MAX_CONTROL_FRAMES
from kkp2p_compat.transport.udp.protection import PacketSealer

PATH = Conditions(rate_bytes_per_s=mbit_per_s(50), delay_s=0.005)

Attack = Callable[[bytes, Random], list[bytes]]


def _cut(packet: bytes, random: Random) -> list[bytes]:
    return [packet[: random.randrange(len(packet))]]


def _lengthened(packet: bytes, random: Random) -> list[bytes]:
    return [packet + random.randbytes(random.randrange(1, 30))]


def _noise(packet: bytes, random: Random) -> list[bytes]:
    return [packet[:16] + random.randbytes(random.randrange(200)) for _ in range(3)]


def _far_ahead(packet: bytes, random: Random) -> list[bytes]:
    """Numbers that are far away: of other key epochs, and the largest there is."""
    first, connection_id = HEADER.unpack_from(packet)
    numbers = [first + 1000, first + (1 << 23), first + (1 << 40), (0x40 << 56) | ((1 << 56) - 1)]
    return [HEADER.pack(number, connection_id) + packet[16:] for number in numbers]


def _changed(packet: bytes, random: Random) -> list[bytes]:
    place = random.randrange(len(packet))
    return [
        packet[:place] + bytes([packet[place] ^ 1 << random.randrange(8)]) + packet[place + 1 :]
    ]


def _copied(packet: bytes, random: Random) -> list[bytes]:
    return [packet] * 3


def _joined(packet: bytes, random: Random) -> list[bytes]:
    return [packet + packet]


ATTACKS: dict[str, Attack] = {
    "cut": _cut,
    "lengthened": _lengthened,
    "noise": _noise,
    "far ahead": _far_ahead,
    "changed": _changed,
    "copied": _copied,
    "joined": _joined,
}


def _attack(pair: Pair, attack: Attack) -> None:
    """The attacker's packets come right before or right behind the genuine one."""
    random = pair.network.random("attack")

    def both(packet: bytes) -> list[bytes]:
        forged = attack(packet, random)
        return [*forged, packet] if random.random() < 0.5 else [packet, *forged]

    pair.there.filter = pair.back.filter = both


@pytest.mark.parametrize("attack", ATTACKS)
def test_forged_packets_change_nothing(attack: str) -> None:
    pair = Pair(attack, PATH)
    _attack(pair, ATTACKS[attack])
    took = pair.transfer(300_000, 600_000, 20)
    assert took < 2
    assert {type(event) for event in pair.callee.events} <= {ChannelOffered, Ended}
    dropped = sum(pair.callee.connection.dropped.values()) + pair.callee.strays
    assert dropped >= 20  # most of the longer ones are too long for the path
    pair.there.filter = pair.back.filter = None
    pair.finish()


def test_packets_sent_back_to_their_sender_change_nothing() -> None:
    pair = Pair("reflected", PATH)
    network = pair.network

    def reflect(to: Peer, source: Peer) -> Callable[[bytes], list[bytes]]:
        def send_back(packet: bytes) -> list[bytes]:
            number, _ = HEADER.unpack_from(packet)
            mine = HEADER.pack(number, to.connection.local_id) + packet[16:]
            network.after(
                0.001,
                lambda: network.deliver(
                    [(packet, source.address), (mine, source.address)], to.address
                ),
            )
            return [packet]

        return send_back

    pair.there.filter = reflect(pair.caller, pair.callee)
    pair.back.filter = reflect(pair.callee, pair.caller)
    pair.transfer(300_000, 100_000, 20)
    assert sum(pair.caller.connection.dropped.values()) >= 200
    pair.there.filter = pair.back.filter = None
    pair.finish()


def test_a_recorded_connection_played_again_changes_nothing() -> None:
    pair = Pair("replayed", PATH)
    recorded: list[bytes] = []

    def record(packet: bytes) -> list[bytes]:
        recorded.append(packet)
        return [packet]

    pair.there.filter = record
    pair.transfer(300_000, 100_000)
    pair.there.filter = None
    pair.run(None, 1.0)
    events, sent = list(pair.callee.events), pair.back.counts["sent"]
    elsewhere = ("203.0.113.66", 666)
    for source in (pair.caller.address, elsewhere):
        for packet in recorded:
            pair.network.deliver([(packet, source)], pair.callee.address)
    pair.run(None, 1.0)
    assert pair.callee.events == events
    assert pair.back.counts["sent"] == sent  # and nothing is answered
    pair.transfer(1000, 1000)
    pair.finish()


def test_a_connection_that_gets_only_noise_sends_no_more_than_without() -> None:
    pair = Pair("noise", PATH)
    pair.transfer(1000)
    pair.run(None, 15)
    random = pair.network.random("noise")
    before = pair.back.counts["sent"]
    for size in range(3000):
        packet = HEADER.pack(0x40 << 56 | size + 10, pair.callee.connection.local_id)
        packet += random.randbytes(size % 1400)
        pair.network.deliver([(packet, pair.caller.address)], pair.callee.address)
    pair.run(None, 1)
    assert pair.back.counts["sent"] == before
    pair.finish()


class Evil:
    """A peer that has the keys and writes what it likes; the victim is the callee."""

    def __init__(self, seed: object) -> None:
        self.pair = pair = Pair(seed, PATH)
        pair.transfer(1000)
        pair.run(None, 30)
        pair.back.filter = lambda packet: []  # the real caller must not wonder at the answers
        self.victim = pair.callee
        self.offered: list[object] = []
        self.victim.on_offer = self.offered.append
        self._sealer = PacketSealer(pair.network.random("secrets 1").randbytes(32), CIPHER)
        self._number = 1_000_000
        self.sent_bytes = 0

    def send(self, *plaintexts: bytes) -> None:
        victim = self.victim
        for plaintext in plaintexts:
            sealed = self._sealer.seal(self._number, victim.connection.local_id, [plaintext])
            self._number += 1
            packet = b"".join(sealed)
            self.sent_bytes += len(packet)
            self.pair.network.deliver([(packet, self.pair.caller.address)], victim.address)

    def end(self) -> Exception | None:
        """What became of the victim."""
        self.pair.run(None, 5)
        return self.victim.closed


STREAM = 2000  # a channel that the evil peer opens
OPEN = f.encode(f.Open(STREAM, KKP2P_TCP_CHANNEL, 0, 0))
BREACHES = {
    "a packet with nothing in it": [b""],
    "an unknown frame": [b"\xff"],
    "a cut STREAM": [bytes([f.STREAM, 0, 0, 0])],
    "a cut ACK": [bytes([2, 0, 0])],
    "a cut message": [bytes([0x0C]) + bytes(13)],
    "an ACK of what was never sent": [struct.pack(">BQIIB", 2, 1 << 50, 0, 0, 0)],
    "an ACK of numbers below zero": [struct.pack(">BQIIB", 2, 5, 0, 6, 0)],
    "data beyond the limit": [OPEN, encode_stream(STREAM, 1 << 40, b"x", False)],
    "an end beyond the limit": [OPEN, encode_stream(STREAM, 1 << 40, b"", True)],
    "two ends": [OPEN, encode_stream(STREAM, 9, b"x", True), encode_stream(STREAM, 8, b"x", True)],
    "data behind the end": [
        OPEN,
        encode_stream(STREAM, 9, b"x", True),
        encode_stream(STREAM, 10, b"x", False),
    ],
    "a reset before what came": [
        OPEN,
        encode_stream(STREAM, 9, b"x", False),
        f.encode(f.Reset(STREAM, 9, 0)),
    ],
    "a reset beyond the limit": [OPEN, f.encode(f.Reset(STREAM, 1 << 40, 0))],
    "a channel opened under our number": [f.encode(f.Open(1, KKP2P_TCP_CHANNEL, 0, 0))],
    "far more than the windows": [OPEN]
    + [encode_stream(STREAM, offset, bytes(1000), False) for offset in range(0, 1 << 21, 1001)],
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_ends_the_connection(breach: str) -> None:
    evil = Evil(breach)
    evil.send(f.encode(f.Ping()), *BREACHES[breach])
    assert isinstance(evil.end(), KKP2PError)


ODD = {
    "padding": [bytes(1000)],
    "an ACK twice": [struct.pack(">BQIIB", 2, 0, 0, 0, 0)] * 2,
    "limits that fall": [OPEN, f.encode(f.MaxData(0)), f.encode(f.MaxStreamData(STREAM, 0))],
    "limits without end": [f.encode(f.MaxData((1 << 64) - 1))],
    "OPEN twice": [OPEN, OPEN],
    "words about channels that are not": [
        f.encode(f.Opened(77)),
        f.encode(f.Refused(78, 1)),
        f.encode(f.Reset(79, 0, 0)),
        f.encode(f.Stop(80)),
        f.encode(f.MaxStreamData(81, 1 << 63)),
    ],
    "a response that nobody asked for": [f.encode(f.PathResponse(bytes(8)))],
    "a message for a TCP channel": [OPEN, struct.pack(">BIIHHH", 0x0C, STREAM, 0, 0, 1, 1) + b"x"],
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_but_no_breach_changes_nothing(odd: str) -> None:
    evil = Evil(odd)
    evil.send(*ODD[odd])
    assert evil.end() is None
    assert len(evil.offered) == (OPEN in ODD[odd])
    assert evil.victim.messages == []


def test_channels_without_end_are_refused() -> None:
    evil = Evil("channels")
    for first in range(100, 20_000, 60):
        evil.send(
            b"".join(
                f.encode(f.Open(2 * number, KKP2P_TCP_CHANNEL, 0, 0))
                for number in range(first, first + 60)
            )
        )
    assert len(evil.offered) == len(evil.victim.connection.streams.by_id) == 16_384


def test_channels_to_refuse_without_end_and_never_an_acknowledgement() -> None:
    evil = Evil("refused")
    victim = evil.victim.connection
    evil.victim.on_offer = lambda offer: victim.streams.refuse(offer.stream_id, 1)
    for first in range(100, 80_000, 100):
        evil.send(
            b"".join(
                f.encode(f.Open(2 * number, KKP2P_TCP_CHANNEL, 0, 0))
                for number in range(first, first + 100)
            )
        )
        frames = sum(len(flight.frames) for flight in victim.recovery.flights)
        assert frames <= MAX_CONTROL_FRAMES + 100  # it is counted when a packet has come
    assert isinstance(evil.end(), KKP2PError)


def test_padding_without_end_is_not_remembered() -> None:
    evil = Evil("padding")
    for _ in range(1000):
        evil.send(bytes(1))
        evil._number += 1  # a gap
    received = evil.victim.connection._received
    assert len(received._reported) <= 64
    evil.send(f.encode(f.Ping()))
    assert evil.end() is None


def test_challenges_without_end_get_no_more_back_than_they_are() -> None:
    evil = Evil("challenges")
    before = evil.pair.back.counts["sent"]
    answers: list[int] = []

    def note(packet: bytes) -> list[bytes]:
        answers.append(len(packet))
        return []

    evil.pair.back.filter = note
    evil.send(*[f.encode(f.PathChallenge(bytes(8))) * 100] * 100)
    assert evil.end() is None
    assert 0 < sum(answers) <= evil.sent_bytes
    assert evil.pair.back.counts["sent"] == before
