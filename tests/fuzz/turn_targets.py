"""What a TURN server may send us, and what a cloud may say of one."""

from __future__ import annotations

import contextlib
import hmac
import json
import struct
from random import Random

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal.candidates import may_be_peer
from kkp2p_compat.traversal.channel_data import unwrap_untrusted
from kkp2p_compat.traversal.stun import Message, TurnKind
from kkp2p_compat.traversal.turn import (
    MAX_CHANNELS,
    MAX_LIFETIME_S,
    MAX_PERMISSIONS,
    TurnClient,
    TurnState,
)
from kkp2p_compat.traversal.turn_server import MAX_TEXT, parse_untrusted

__all__ = ["SERVERS", "TURN_PLACES", "fuzz_turn", "fuzz_turn_place"]

SERVER = ("198.51.100.1", 3478)
PEERS = [("192.0.2.7", 4000), ("192.0.2.7", 4001), ("203.0.113.5", 4000), ("2001:db8::1", 4000)]
# Of a piece: what is done (ACTS), whether the answer is signed, to which of the last requests, the
# time that passes in s.
HEAD = struct.Struct(">BBBB")
RAW, ANSWER, SEND, TIME = range(4)
MAX_AT_ONCE = 4 * (1 + MAX_PERMISSIONS + MAX_CHANNELS)


def piece(what: int, signed: int, which: int, wait: int, rest: bytes = b"") -> bytes:
    return struct.pack(">H", HEAD.size + len(rest)) + HEAD.pack(what, signed, which, wait) + rest


def body_of(message: Message) -> bytes:
    """Type and attributes: what an answer has beside the id of its request."""
    wire = message.encode(None, fingerprint=False)
    return wire[:2] + wire[20:]


def challenge(kind: TurnKind, error: int, nonce: bytes) -> bytes:
    return body_of(Message(kind, bytes(12), error=error, realm="r", nonce=nonce))


ALLOCATED = body_of(
    Message(TurnKind.ALLOCATE_DONE, bytes(12), relayed=("203.0.113.9", 50000), lifetime_s=600)
)
DATA = Message(TurnKind.DATA, bytes(12), peer=PEERS[0], data=b"data").encode(None)
BEGUN = piece(ANSWER, 0, 0, 0, challenge(TurnKind.ALLOCATE_ERROR, 401, b"n")) + piece(
    ANSWER, 1, 0, 0, ALLOCATED
)
SERVERS = [
    BEGUN
    + piece(SEND, 0, 0, 0, b"hello")
    + piece(ANSWER, 1, 0, 0, body_of(Message(TurnKind.CREATE_PERMISSION_DONE, bytes(12))))
    + piece(RAW, 0, 0, 0, DATA)
    + piece(SEND, 0, 0, 0, b"again")
    + piece(ANSWER, 1, 0, 0, body_of(Message(TurnKind.CHANNEL_BIND_DONE, bytes(12))))
    + piece(RAW, 0, 0, 0, b"\x40\x00\x00\x04data")
    + piece(TIME, 0, 0, 250),
    BEGUN
    + piece(TIME, 0, 0, 26)
    + piece(ANSWER, 0, 0, 0, challenge(TurnKind.REFRESH_ERROR, 438, b"m")),
]


def fuzz_turn(data: bytes) -> None:
    now = 0.0
    client = TurnClient(SERVER, "user", "password", now, Random(1))
    requests: list[bytes] = []
    _poll(client, requests)
    while len(data) >= 2:
        length = int.from_bytes(data[:2], "big")
        one, data = data[2 : 2 + length], data[2 + length :]
        if len(one) < HEAD.size:
            continue
        what, signed, which, wait = HEAD.unpack_from(one)
        rest = one[HEAD.size :]
        now += wait
        if what == RAW:
            _hear(client, rest, now)
        elif what == ANSWER and requests and len(rest) >= 2:
            _hear(client, _answer(client, requests[-1 - which % len(requests)], rest, signed), now)
        elif what == SEND:
            client.indication(rest, PEERS[which % len(PEERS)], now)
        else:
            client.handle_timer(now)
            due = client.next_timer()
            assert due is None or due > now
        _poll(client, requests)
        _judge(client)
    client.close()
    assert client.next_timer() is None


def _answer(client: TurnClient, request: bytes, rest: bytes, signed: int) -> bytes:
    """``rest`` as the body of an answer to it; a liar may well have the key."""
    body = rest[2:]
    key = client._key
    if not signed or key is None:
        return rest[:2] + struct.pack(">H", len(body)) + request[4:20] + body
    head = rest[:2] + struct.pack(">H", len(body) + 24) + request[4:20]
    integrity = hmac.digest(key, head + body, "sha1")
    return head + body + struct.pack(">HH", 0x0008, 20) + integrity


def _hear(client: TurnClient, data: bytes, now: float) -> None:
    for channel, datagrams, size in unwrap_untrusted(data, len(data)):
        assert len(datagrams) == size <= len(data)
        if channel == 0:
            client.handle_datagram_untrusted(datagrams, now)


def _poll(client: TurnClient, requests: list[bytes]) -> None:
    count = 0
    while (transmit := client.poll_transmit()) is not None:
        assert transmit[1] == SERVER
        requests.append(transmit[0])
        count += 1
        assert count <= MAX_AT_ONCE
    del requests[:-8]


def _judge(client: TurnClient) -> None:
    assert len(client.channels) == len(client.numbers) <= MAX_CHANNELS
    if client.state is TurnState.ALLOCATED:
        assert client.relayed is not None
        assert may_be_peer(*client.relayed)
        assert client._allocation.lasts_s <= MAX_LIFETIME_S
    elif client.state is TurnState.OVER:
        assert client.reason
        assert not client.channels
        assert client.next_timer() is None


def fuzz_turn_place(data: bytes) -> None:
    with contextlib.suppress(BadPacket, ValueError, RecursionError):
        server = parse_untrusted(json.loads(data))
        assert server.host.isascii()
        assert 0 < server.port < 65536
        for text in (server.username, server.password):
            assert 0 < len(text) <= MAX_TEXT
            assert text.isascii()
            assert text.isprintable()


TURN_PLACES = [b'["turn.example.org",3478,"2000000000:me","a/+="]']
