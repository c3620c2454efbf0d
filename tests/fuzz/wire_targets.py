"""What is fuzzed: each target takes a stranger's bytes, and may raise nothing but what it asserts.

A parser may refuse with BadPacket.  What it takes must come out the same when it is encoded and
parsed again, and what holds a peer's bytes must keep to its bounds.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from control_targets import (
    LINES,
    MESSAGES,
    NODE_LINES,
    OFFERS,
    ROUTE_LINES,
    SCRAM,
    SEARCHES,
    fuzz_lan_responder,
    fuzz_lines,
    fuzz_link,
    fuzz_login,
    fuzz_nodes,
    fuzz_offers,
    fuzz_relay_hello,
    fuzz_route,
    fuzz_track,
)
from keyed_connection import PEER, SECRETS, keyed_connection, played_peer
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.transport.udp import frames, messages
from kkp2p_compat.transport.udp.events import ChannelOffered, Closed, Event, Readable
from kkp2p_compat.transport.udp.messages import MAX_MESSAGE_BYTES, Assembler, Splitter
from kkp2p_compat.transport.udp.peer_connection import PeerConnection
from kkp2p_compat.transport.udp.protection import CIPHERS, PacketOpener, PacketSealer
from kkp2p_compat.transport.udp.ranges import RangeSet
from kkp2p_compat.traversal import lan_wire, stun
from kkp2p_compat.traversal.candidates import Candidate, parse_untrusted
from kkp2p_compat.traversal.check_table import CheckTable
from kkp2p_compat.traversal.checks import Checks, Credentials
from lane_targets import LANE_ANSWERS, LANES, fuzz_lane, fuzz_lane_answers
from mapping_targets import (
    ANSWERS,
    ROUTERS,
    SEARCH_ANSWERS,
    fuzz_mapping,
    fuzz_router,
    fuzz_search_answer,
)
from nat_targets import LIES, fuzz_behaviour, fuzz_discovery, fuzz_responder
from pair_targets import SCRIPTS, fuzz_pair
from session_targets import (
    CHALLENGES,
    GUESTS,
    LAN_ANSWERS,
    PLACES,
    TRICKLES,
    fuzz_lan_search,
    fuzz_places,
    fuzz_punch,
    fuzz_relay,
    fuzz_scram_client,
)
from turn_targets import SERVERS, TURN_PLACES, fuzz_turn, fuzz_turn_place

__all__ = ["CORPUS", "TARGETS", "Target", "kept"]

CORPUS = Path(__file__).with_name("corpus")  # what long runs found worth keeping, by target


class Target(NamedTuple):
    run: Callable[[bytes], None]
    seeds: list[bytes]  # inputs that get far


def kept(name: str) -> list[bytes]:
    folder = CORPUS / name.replace(" ", "-")
    return [path.read_bytes() for path in sorted(folder.glob("*"))]


def pieces_of(data: bytes) -> list[bytes]:
    """Cut by u16 lengths, so that one input can be several datagrams."""
    pieces = []
    while len(data) >= 2:
        length = int.from_bytes(data[:2], "big")
        pieces.append(data[2 : 2 + length])
        data = data[2 + length :]
    return pieces


def joined(*pieces: bytes) -> bytes:
    return b"".join(struct.pack(">H", len(piece)) + piece for piece in pieces)


# Packets: what was not sealed does not open.


def fuzz_packets(data: bytes) -> None:
    for cipher in CIPHERS:
        opener = PacketOpener(SECRETS[0], cipher)
        genuine = b"".join(PacketSealer(SECRETS[0], cipher).seal(3, 9, [b"hello"]))
        mask = data[: len(genuine)].ljust(len(genuine), b"\0")
        altered = bytes(a ^ b for a, b in zip(genuine, mask, strict=True))
        for packet in (data, altered, genuine + data, genuine[: len(data)]):
            if packet == genuine:
                continue
            try:
                opened = opener.open_untrusted(packet)
            except BadPacket:
                continue
            raise AssertionError(f"a forged packet opened: {packet!r} as {opened}")
        assert opener.open_untrusted(genuine) == (3, b"hello")


# Frames.


def encode_stream(stream: int, offset: int, data: bytes, fin: bool) -> bytes:
    return frames.encode_stream_header(stream, offset, len(data), fin) + data


ENCODERS: dict[type, Callable[..., bytes]] = {
    frames.Stream: encode_stream,
    frames.Datagram: frames.encode_datagram,
    frames.Close: frames.encode_close,
}


def encode_frame(frame: frames.Frame) -> bytes:
    if isinstance(frame, frames.Ack):
        return frames.encode_ack(RangeSet(frame.ranges), frame.delay_s)
    encoder = ENCODERS.get(type(frame))
    return frames.encode(frame) if encoder is None else encoder(*frame)


def fuzz_frames(data: bytes) -> None:
    try:
        parsed = frames.parse_untrusted(data)
    except BadPacket:
        return
    if parsed:
        assert frames.parse_untrusted(b"".join(map(encode_frame, parsed))) == parsed


FRAMES = [
    encode_frame(frame)
    for frame in (
        frames.Ping(),
        frames.Ack(0, 0.001, [(0, 1)]),
        frames.Open(1, 0, 1, -5),
        frames.Stream(1, 0, memoryview(b"abc"), False),
        frames.Stream(1, 5, memoryview(b""), True),
        frames.Open(3, 1, 0, 7),
        frames.Datagram(3, 0, 0, 2, b"x"),
        frames.Datagram(3, 0, 1, 2, b"y"),
        frames.Opened(0),
        frames.Refused(2, 1),
        frames.Reset(1, 5, 2),
        frames.Stop(1),
        frames.MaxData(2**30),
        frames.MaxStreamData(0, 2**30),
        frames.PathChallenge(b"12345678"),
        frames.PathResponse(b"12345678"),
        frames.Close(1, "bye"),
    )
]
ALL_FRAMES = b"".join(FRAMES)
MANY_RANGES = frames.Ack(99, 0.001, [(90, 100), (50, 60), (0, 1)])


# Messages: parts in any order.

PART = struct.Struct(">IHHB")  # message, part, parts, time since the last in 1/64 s


def fuzz_messages(data: bytes) -> None:
    assembler, now = Assembler(), 0.0
    for piece in pieces_of(data):
        if len(piece) < PART.size:
            continue
        message, part, parts, wait = PART.unpack_from(piece)
        now += wait / 64
        # A message's size is reached with short inputs.
        body = piece[PART.size :] * (1 + 64 * (wait & 1))
        try:
            whole = assembler.add_untrusted(message, part, parts, body[:65535], now)
        except BadPacket:
            continue
        assert whole is None or len(whole) <= MAX_MESSAGE_BYTES
        assert assembler._held <= messages.MAX_HELD_BYTES
        assert len(assembler._unfinished) <= messages.MAX_UNFINISHED
        assert len(assembler._done) <= messages.MAX_GAPS
    assert sum(entry.cost for entry in assembler._unfinished.values()) == assembler._held
    # An honest sender's messages get through all the same.
    splitter = Splitter(2)
    splitter._next = (max([assembler._done.largest, *assembler._unfinished]) + 1) % 2**32
    later = now + 2 * messages.MAX_WAIT_S
    encoded = splitter.split(data, 17 + len(data) % 50)
    parts = [frames.parse_untrusted(frame)[0] for frame in encoded]
    received = [
        assembler.add_untrusted(part.message, part.part, part.parts, part.data, later)
        for part in parts
        if isinstance(part, frames.Datagram)
    ]
    assert received == [None] * (len(parts) - 1) + [data]


def part_of(message: int, part: int, parts: int, data: bytes, wait: int = 0) -> bytes:
    return PART.pack(message, part, parts, wait) + data


# A connection whose peer has the keys, and sends what it likes.

MAX_TURNS = 10_000  # of anything that a connection does at one instant


def fuzz_connection(data: bytes) -> None:
    """Pieces: a byte that says how the packet comes, and its plaintext."""
    sealer, _ = played_peer()
    connection = keyed_connection(0.0, is_caller=True)
    connection.streams.write(connection.streams.open(0, 0, 0), bytes(3000))
    connection.streams.open(1, 0, 0)
    number, now, closed = 0, 0.0, 0
    closed += drive(connection, now)
    for piece in pieces_of(data):
        if not piece:
            continue
        how = piece[0]
        number += how & 3
        packet = b"".join(sealer.seal(number, 9, [piece[1:]]))
        number += 1
        now += (how >> 2 & 7) / 32
        source = PEER if how & 32 else ("192.0.2.2", 5000)
        connection.handle_datagrams(packet * (1 + (how >> 6 & 1)), len(packet), source, now)
        closed += drive(connection, now)
        due = connection.next_timer()
        if how & 128 and due is not None:
            now = max(now, due)
            connection.handle_timer(now)
            closed += drive(connection, now)
    for _ in range(MAX_TURNS):  # silence ends it
        due = connection.next_timer()
        if due is None:
            break
        now = max(now, due)
        connection.handle_timer(now)
        closed += drive(connection, now)
    assert closed == 1


def drive(connection: PeerConnection, now: float) -> int:
    """What the endpoint and an application do; returns how often Closed was said."""
    closed = 0
    for _ in range(MAX_TURNS):
        event = connection.poll_event()
        if event is not None:
            closed += isinstance(event, Closed)
            handle(connection, event)
        elif connection.poll_transmit(now) is None:
            event = connection.poll_event()  # the last datagram may have made one
            if event is None:
                return closed
            closed += isinstance(event, Closed)
            handle(connection, event)
    raise AssertionError("events or datagrams without an end")


def handle(connection: PeerConnection, event: Event) -> None:
    if isinstance(event, ChannelOffered) and event.desc % 4 == 3:
        connection.streams.refuse(event.stream_id, 1)
    elif isinstance(event, ChannelOffered):
        connection.streams.accept(event.stream_id)
    elif isinstance(event, Readable):
        size = sum(map(len, connection.streams.peek(event.stream_id)))
        if size:
            connection.streams.consume(event.stream_id, size)
        if connection.streams.at_end(event.stream_id):
            connection.streams.finish(event.stream_id)


def packet_of(frame: bytes, how: int = 32) -> bytes:
    return bytes([how]) + frame


# STUN, alone and behind a call's checks.

LOCAL = Credentials("AAAAAAAA", "B" * 24)
REMOTE = Credentials("CCCCCCCC", "D" * 24)


def fuzz_stun(data: bytes) -> None:
    try:
        message = stun.parse_untrusted(data)
    except BadPacket:
        return
    assert not message.verify(LOCAL.key)  # 160 bits by chance
    again = message.encode(LOCAL.key)
    if len(again) <= stun.MAX_BYTES:
        parsed = stun.parse_untrusted(again)
        assert parsed.verify(LOCAL.key)
        assert dataclasses.replace(parsed, unknown=message.unknown) == message


CHECK = struct.Struct(">BBBIH")  # how it comes, kind and flags, time in 1/64 s, priority, error


def fuzz_checks(data: bytes) -> None:
    """Pieces are authentic messages of the call, or any datagram; nothing is sent without bound."""
    table, random = CheckTable(), Random(1)
    checks = Checks(
        controlling=bool(len(data) & 1),
        local=LOCAL,
        remote=REMOTE,
        local_candidates=[Candidate("host", 2, "192.0.2.9", 4001)],
        candidates=[Candidate("host", 2**24, *PEER)],
        now=0.0,
        random=random,
    )
    table.add(checks)
    now, sent = 0.0, poll_all(checks)
    for piece in pieces_of(data):
        datagram = piece
        source = PEER
        answerable = True
        if len(piece) == CHECK.size:
            how, what, wait, priority, error = CHECK.unpack(piece)
            now += wait / 64
            source = (f"192.0.2.{1 + (how & 15)}", 4000 + (how >> 4))
            datagram = authentic(what, priority, error, sent)
        elif stun_verifies(piece):
            continue
        else:
            answerable = False
        table.handle_datagram_untrusted(datagram, source, now)
        answers = poll_all(checks)
        assert answerable or not answers
        checks.handle_timer(now)
        sent += answers + poll_all(checks)
    turns = 0
    while (due := checks.next_timer()) is not None and not len(data) & 14:  # takes its time
        assert (turns := turns + 1) < MAX_TURNS
        checks.handle_timer(now := max(now, due))
        sent += poll_all(checks)
    assert len(sent) <= 1000 + len(data)  # 800 probes, and an answer to each request


def stun_verifies(datagram: bytes) -> bool:
    try:
        message = stun.parse_untrusted(datagram)
    except BadPacket:
        return False
    return message.verify(LOCAL.key) or message.verify(REMOTE.key)


def authentic(what: int, priority: int, error: int, sent: list[bytes]) -> bytes:
    """A message that the peer of the call could send."""
    kind = list(stun.Kind)[what & 3]
    if kind in (stun.Kind.REQUEST, stun.Kind.INDICATION):
        message = stun.Message(
            kind,
            struct.pack(">III", what >> 6, priority, error),
            username="AAAAAAAA:CCCCCCCC",
            priority=priority if what & 4 else None,
            use_candidate=bool(what & 8),
            controlling=1 if what & 16 else None,
            controlled=1 if what & 32 else None,
        )
        return message.encode(LOCAL.key)
    requests = [datagram for datagram in sent if datagram[:2] == b"\0\x01"]
    transaction_id = requests[priority % len(requests)][8:20] if requests else bytes(12)
    failed = kind is stun.Kind.ERROR
    message = stun.Message(
        kind,
        transaction_id,
        mapped=PEER if what & 4 else None,
        error=300 + error % 400 if failed else None,
    )
    return message.encode(REMOTE.key)


def poll_all(checks: Checks) -> list[bytes]:
    sent = []
    for _ in range(MAX_TURNS):
        transmit = checks.poll_transmit()
        if transmit is None:
            return sent
        sent.append(transmit[0])
    raise AssertionError("datagrams without an end")


def fuzz_candidates(data: bytes) -> None:
    try:
        candidates = parse_untrusted(data.decode("utf-8", "surrogateescape").split("\n"))
    except BadPacket:
        return
    assert parse_untrusted([candidate.text for candidate in candidates]) == candidates


# LAN searches.


def fuzz_lan(data: bytes) -> None:
    memory, now = lan_wire.SearchMemory(), 0.0
    for piece in [data, *pieces_of(data)]:
        for datagram in (piece, piece.ljust(lan_wire.SEARCH_BYTES, b"\0")):
            try:
                message = lan_wire.parse_untrusted(datagram)
            except BadPacket:
                continue
            again = lan_wire.encode(message)
            assert lan_wire.parse_untrusted(again) == message
            assert len(again) == len(datagram)
            now += len(message.text) / 64
            verdict, heard = memory.hear(message.search_id, PEER, now)
            new = verdict is lan_wire.Verdict.NEW
            assert (heard is not None) == (new or verdict is lan_wire.Verdict.REPEAT)
            if heard is not None:
                heard.answer = datagram


REQUEST = stun.Message(
    stun.Kind.REQUEST,
    bytes(12),
    username="AAAAAAAA:CCCCCCCC",
    priority=5,
    controlling=7,
    use_candidate=True,
)
RESPONSE = stun.Message(stun.Kind.RESPONSE, bytes(12), mapped=("2001:db8::1", 9))
REFUSAL = stun.Message(stun.Kind.ERROR, bytes(12), error=420, not_understood=(1, 2))
ASKING = stun.Message(stun.Kind.REQUEST, bytes(12), change_port=True, software="." * 60)
ASKING_MORE = dataclasses.replace(ASKING, change_ip=True, response_port=5000)
SEARCH = lan_wire.encode(lan_wire.Message(lan_wire.SEARCH, bytes(16), "bob", "{}"))
ANSWER = lan_wire.encode(lan_wire.Message(lan_wire.ANSWER, bytes(16), "bob", "{}"))

TARGETS = {
    "packets": Target(fuzz_packets, [bytes(16), b"\x40" + bytes(40)]),
    "frames": Target(fuzz_frames, [ALL_FRAMES, encode_frame(MANY_RANGES)]),
    "messages": Target(
        fuzz_messages,
        [joined(part_of(0, 0, 2, b"a"), part_of(1, 0, 1, b"b", 64), part_of(0, 1, 2, b"c", 1))],
    ),
    "connection": Target(
        fuzz_connection,
        [
            joined(packet_of(ALL_FRAMES)),
            joined(*(packet_of(frame) for frame in FRAMES), packet_of(b"\x08" + bytes(20))),
        ],
    ),
    "pair": Target(fuzz_pair, SCRIPTS),
    "stun": Target(fuzz_stun, [each.encode(b"key") for each in (REQUEST, RESPONSE, REFUSAL)]),
    "checks": Target(
        fuzz_checks,
        [
            joined(*(CHECK.pack(how, what, 1, how, 0) for how, what in ((0, 45), (0, 6), (1, 44)))),
            joined(REQUEST.encode(b"key")),
        ],
    ),
    "stun server": Target(fuzz_responder, [ASKING.encode(None), ASKING_MORE.encode(None)]),
    "nat discovery": Target(fuzz_discovery, LIES),
    "nat behaviour": Target(
        fuzz_behaviour,
        [b'{"mapping":"none","filtering":"unknown","allocation":"sequential","step":-3}'],
    ),
    "turn": Target(fuzz_turn, SERVERS),
    "turn place": Target(fuzz_turn_place, TURN_PLACES),
    "port mapping": Target(fuzz_mapping, ANSWERS),
    "upnp search": Target(fuzz_search_answer, SEARCH_ANSWERS),
    "upnp router": Target(fuzz_router, ROUTERS),
    "candidates": Target(fuzz_candidates, [b"host 5 192.0.2.1 9\nsrflx 7 2001:db8::1 10"]),
    "lines": Target(fuzz_lines, [*(line[1:] for line in LINES), *MESSAGES]),
    "track": Target(fuzz_track, LINES),
    "nodes": Target(fuzz_nodes, NODE_LINES),
    "route": Target(fuzz_route, ROUTE_LINES),
    "login": Target(fuzz_login, SCRAM),
    "link": Target(fuzz_link, MESSAGES),
    "offers": Target(fuzz_offers, OFFERS),
    "lane": Target(fuzz_lane, LANES),
    "lane answers": Target(fuzz_lane_answers, LANE_ANSWERS),
    "relay hello": Target(fuzz_relay_hello, [b"KKRL\x01" + bytes(54), b"KKRL\x02" + b"A" * 72]),
    "relay": Target(fuzz_relay, GUESTS),
    "relay places": Target(fuzz_places, PLACES),
    "scram client": Target(fuzz_scram_client, CHALLENGES),
    "punch": Target(fuzz_punch, TRICKLES),
    "lan search": Target(fuzz_lan_search, LAN_ANSWERS),
    "lan responder": Target(fuzz_lan_responder, SEARCHES),
    "lan": Target(fuzz_lan, [SEARCH, ANSWER, joined(SEARCH, ANSWER, SEARCH)]),
}
