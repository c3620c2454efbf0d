"""What strangers send to our STUN responder and client, and tell about their NATs."""

from __future__ import annotations

import dataclasses
import json
import struct
from random import Random

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.cloud.stun import respond_untrusted
from kkp2p_compat.traversal import stun
from kkp2p_compat.traversal.candidates import may_be_peer
from kkp2p_compat.traversal.nat import NatBehaviour
from kkp2p_compat.traversal.nat_discovery import EXTRA_SOCKETS, MAX_MAPPED, Discovery

__all__ = ["LIES", "fuzz_behaviour", "fuzz_discovery", "fuzz_responder"]

SOURCE, ASKED = ("192.0.2.9", 4000), ("203.0.113.1", 3080)
OTHERS = [("203.0.113.2", 3081), ("203.0.113.1", 3081)]
EXTRA = {number: 4000 + number for number in range(1, EXTRA_SOCKETS + 1)}
# Two servers' ports, the fresh sockets, another port and address, two filters, two hairpins; each
# four times.
MAX_SENT = 4 * (4 + EXTRA_SOCKETS + 2 + 2 + 2)


def fuzz_responder(data: bytes) -> None:
    for other in OTHERS:
        try:
            reply = respond_untrusted(data, SOURCE, ASKED, other)
        except BadPacket:
            continue
        assert len(reply.data) <= len(data)
        assert reply.to[0] == SOURCE[0]
        assert reply.to[1] == SOURCE[1] or reply.to[1] >= 1024
        answer = stun.parse_untrusted(reply.data)
        assert answer.kind in (stun.Kind.RESPONSE, stun.Kind.ERROR)
        assert answer.mapped == (SOURCE if answer.kind is stun.Kind.RESPONSE else None)


def fuzz_behaviour(data: bytes) -> None:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        behaviour = NatBehaviour.parse_untrusted(told)
    except BadPacket:
        return
    assert NatBehaviour.parse_untrusted(behaviour.fields()) == behaviour
    assert behaviour.text


LIE = struct.Struct(">BBB")  # which question, from where, time in 1/64 s


def lie(question: int, source: int, wait: int, **told: object) -> bytes:
    """One record: an answer, its length and what comes before."""
    message = dataclasses.replace(stun.Message(stun.Kind.RESPONSE, bytes(12)), **told)  # type: ignore[arg-type]
    wire = message.encode(None, fingerprint=False)
    return struct.pack(">H", LIE.size + len(wire)) + LIE.pack(question, source, wait) + wire


LIES = [
    b"".join(
        lie(number, 0, 1, mapped=("198.51.100.7", 4000 + number), other=("203.0.113.2", 3081))
        for number in range(14)
    ),
    lie(0, 0, 3, mapped=("198.51.100.7", 5), other=("198.51.100.99", 7)) + lie(1, 0, 1, error=420),
]


def fuzz_discovery(data: bytes) -> None:
    """A server that answers every question as it likes, from where it likes."""
    now = 0.0
    discovery = Discovery(
        [ASKED, ("203.0.113.5", 9)],
        port=4000,
        open_fresh=lambda count: EXTRA,
        local=["192.168.1.2"],
        now=now,
        random=Random(1),
    )
    sent = poll_all(discovery)
    while len(data) >= 2:
        length = int.from_bytes(data[:2], "big")
        piece, data = data[2 : 2 + length], data[2 + length :]
        if len(piece) < LIE.size + 20:
            continue
        which, where, wait = LIE.unpack_from(piece)
        now += wait / 64
        request, to = sent[which % len(sent)]
        body = piece[LIE.size + 20 :]
        head = piece[LIE.size : LIE.size + 2] + struct.pack(">H", len(body)) + request[4:20]
        source = [to, (*OTHERS[0], *to[2:]), (*OTHERS[1], *to[2:]), SOURCE][where % 4]
        discovery.handle_datagram_untrusted(head + body, source, now)
        sent += poll_all(discovery)
        discovery.handle_timer(now)
        sent += poll_all(discovery)
    while (due := discovery.next_timer()) is not None:
        assert len(sent) <= MAX_SENT
        now = max(now, due)
        discovery.handle_timer(now)
        sent += poll_all(discovery)
    assert discovery.done
    assert len(sent) <= MAX_SENT, len(sent)
    assert len(discovery.mapped) <= MAX_MAPPED
    strange = {to[0] for _, to in sent} - {ASKED[0], "203.0.113.5"}
    assert len(strange) <= 3  # another address of the server's, and two of ours
    assert all(may_be_peer(ip, 1) for ip in strange)
    behaviour = discovery.behaviour
    assert NatBehaviour.parse_untrusted(behaviour.fields()) == behaviour


def poll_all(discovery: Discovery) -> list[tuple[bytes, tuple[str, int] | tuple[str, int, int]]]:
    sent = []
    while (transmit := discovery.poll_transmit()) is not None:
        sent.append(transmit)
        assert len(sent) <= MAX_SENT
    return sent
