"""What strangers and servers send on the control plane, and to a peer that answers on the LAN.

The state machines behind the parsers are the real ones, at sockets that only keep what is sent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
from gevent import ssl

from kkp2p_compat._errors import BadPacket, KKP2PError
from kkp2p_compat.cloud import abroad as abroad_module
from kkp2p_compat.cloud import control_connection, limits, relay, track
from kkp2p_compat.cloud import nodes as nodes_module
from kkp2p_compat.cloud.certificate import TLSIdentity
from kkp2p_compat.cloud.control_connection import ControlConnection, Service
from kkp2p_compat.cloud.directory import Account, Node, Presence, Verifier
from kkp2p_compat.cloud.directory_local import LocalDirectory
from kkp2p_compat.cloud.limits import Gatekeeper, Limits
from kkp2p_compat.cloud.login import Login
from kkp2p_compat.cloud.messages import Asked
from kkp2p_compat.cloud.nodes import MAX_NODE_LINE_BYTES, Nodes
from kkp2p_compat.cloud.route import Route
from kkp2p_compat.cloud.track import Track
from kkp2p_compat.cloud.usage import Usage
from kkp2p_compat.control import link as link_module
from kkp2p_compat.control.wire import MAX_LINE_BYTES, LineReader, encode
from kkp2p_compat.engine.signalling import offer
from kkp2p_compat.engine.signalling.direct_offer import DirectOffer
from kkp2p_compat.transport import relay_wire
from kkp2p_compat.traversal import lan, lan_wire

__all__ = [
    "ALICE",
    "LINES",
    "MESSAGES",
    "NODE_LINES",
    "OFFERS",
    "ROUTE_LINES",
    "SCRAM",
    "SEARCHES",
    "Wire",
    "fuzz_lan_responder",
    "fuzz_lines",
    "fuzz_link",
    "fuzz_login",
    "fuzz_nodes",
    "fuzz_offers",
    "fuzz_relay_hello",
    "fuzz_route",
    "fuzz_track",
    "no_faults_of_ours",
]

ALICE, SECRET = "alice", "fuzz"
KEY = bytes(32)


# Those that go on after a fault.
FAULTY = (abroad_module, control_connection, limits, nodes_module, relay, track)

log = logging.Logger("fuzz", logging.CRITICAL)


@contextlib.contextmanager
def no_faults_of_ours() -> Iterator[None]:
    """The cloud goes on after an exception that nobody expected, and logs it as one."""
    faults: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info:
            faults.append(record)
        return False  # nothing of it is shown

    loggers = [module.log for module in FAULTY]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
    assert not faults, faults[0].exc_info


class Wire:
    """A TLS or UDP socket that has nothing more to say than it was given."""

    def __init__(self) -> None:
        self.heard: deque[Any] = deque()
        self.sent = b""
        self.datagrams: list[tuple[bytes, Any]] = []

    def fileno(self) -> int:
        return -1  # as of one that is closed

    def recv(self, size: int) -> Any:
        if not self.heard:
            raise ssl.SSLWantReadError
        return self.heard.popleft()

    def recvfrom(self, size: int) -> Any:
        if not self.heard:
            raise BlockingIOError
        return self.heard.popleft()

    def send(self, data: Any) -> int:
        self.sent += bytes(data)
        return len(data)

    def sendto(self, data: bytes, to: Any) -> None:
        self.datagrams.append((data, to))

    def close(self) -> None:
        pass

    unwrap = close


def fuzz_lines(data: bytes) -> None:
    """Whole or in pieces, the same messages; what is held is bounded."""
    whole, pieces = LineReader(), LineReader()
    told = _read(whole, [data])
    step = 1 + len(data) % 7
    assert _read(pieces, [data[at : at + step] for at in range(0, len(data), step)]) == told
    for message in told[0]:
        json.dumps(message, ensure_ascii=False).encode()  # what logs and hashes do


def _read(reader: LineReader, pieces: list[bytes]) -> tuple[list[Any], bool]:
    found = []
    try:
        for piece in pieces:
            reader.feed(piece)
            for message in reader.messages():
                found.append(message)
    except BadPacket:
        return found, True
    return found, False


# The track.  A piece: one byte (whose connection, and what happens besides), and a line.

STRANGERS = 2
TRACKS = [("one.example", 1), ("two.example", 2)]
CALL_ID = b"@call@"  # in a line: the name of the last call that was offered to that connection


@functools.cache
def _directory() -> LocalDirectory:
    """One account, and no file behind it."""
    return LocalDirectory(None, {ALICE: SECRET})


def fuzz_track(data: bytes) -> None:
    with no_faults_of_ours():
        _fuzz_track(data)


def _fuzz_track(data: bytes) -> None:
    gate = Gatekeeper(Limits())
    directory = _directory()
    nodes, usage = Nodes(directory, Node), Usage(KEY, directory)
    service = Track(gate, directory, nodes, KEY, usage)
    ends = [_end(gate, service, f"192.0.2.{number}") for number in range(STRANGERS + 2)]
    for name, (connection, _) in zip((ALICE, "bob"), ends, strict=False):
        _log_in(connection, service, name)
    now = time.monotonic()
    for how, line in _pieces(data):
        connection, wire = ends[how & 3]
        wire.heard.append(line.replace(CALL_ID, _last_call(wire)) + b"\n")
        if how & 4:
            wire.heard.append(b"")  # it leaves
        connection._on_readable()
        gevent.sleep(0)
        if how & 8:
            service.sweep(now := now + 30)
    for connection, wire in ends:
        connection._fail("the end")
        gevent.sleep(0)
        for line in wire.sent.splitlines():
            assert len(line) < MAX_LINE_BYTES
            assert json.loads(line)["op"]
    gevent.sleep(0)
    assert (service.online, service.calls) == (0, 0)
    assert not gate.open_calls
    assert not gate.kept_calls


def _end(gate: Gatekeeper, service: Service, host: str) -> tuple[ControlConnection, Wire]:
    wire = Wire()
    closing: Any = SimpleNamespace(spawn=lambda _: None)
    identity = TLSIdentity(None, b"binding", "", 0.0)
    connection = ControlConnection(wire, host, gate, service, identity, closing)
    connection._open()
    gate.deadlines.add(connection)
    return connection, wire


def _log_in(connection: ControlConnection, service: Track, name: str) -> None:
    connection.known_as.prove(Account(name, Verifier(b"", b"", b"", 1), 0))
    connection.allow_quiet(60)
    service._online[name] = connection.known_as


def fuzz_route(data: bytes) -> None:
    """The lines of strangers at a route; a piece is as for the track, but time stands still."""
    with no_faults_of_ours():
        gate = Gatekeeper(Limits())
        nodes = Nodes(_directory(), Node)
        nodes.living = {host: Node(host, host=host, port=port) for host, port in TRACKS}
        route = Route(gate, nodes)
        ends = [_end(gate, route, f"192.0.2.{number}") for number in range(STRANGERS)]
        for how, line in _pieces(data):
            connection, wire = ends[how % STRANGERS]
            wire.heard.append(line + b"\n")
            connection._on_readable()
            gevent.sleep(0)
        for connection, wire in ends:
            connection._fail("the end")
            gevent.sleep(0)
            for answer in map(json.loads, wire.sent.splitlines()):
                told = [tuple(track) for track in answer.get("tracks", TRACKS)]
                assert sorted(told) == TRACKS


def _last_call(wire: Wire) -> bytes:
    offers = [line for line in wire.sent.splitlines() if b'"op":"offer"' in line]
    return str(json.loads(offers[-1])["call"]).encode() if offers else b"none"


def _pieces(data: bytes) -> list[tuple[int, bytes]]:
    return [(line[0], line[1:]) for line in data.split(b"\n") if line]


def _line(how: int, op: str, **fields: Any) -> bytes:
    return bytes([how]) + encode(op, **fields)


LINES = [
    _line(0x12, "call", call=1, to=ALICE, ms=9, offer="o")
    + _line(0x10, "trickle", call="@call@", text="t")
    + _line(0x10, "answer", call="@call@", answer="a")
    + _line(0x12, "trickle", call=1, text="t")
    + _line(0x12, "over", call=1),
    _line(0x13, "route", v=1, peer="bob")
    + _line(0x10, "nat", nat={"mapping": "none"})
    + _line(0x10, "call", call=7, to="bob", ms=60_000, offer="o")
    + _line(0x11, "decline", call="@call@", reason="busy")
    + _line(0x10, "call", call=7, to="bob", ms=1, offer="o")
    + _line(0x19, "beat")
    + _line(0x14, "cancel", call=7),
    _line(0x13, "login", v=1, peer=ALICE, scram="n,,n=alice,r=x")
    + _line(0x13, "proof", scram="c=biws,r=xy,p=AAAA"),
]
ROUTE_LINES = [
    _line(0x10, "route", v=1, peer=ALICE) + _line(0x11, "beat") + _line(0x10, "route", peer=7)
]


# What nodes tell each other: lines of whoever can write to the directory.


class _SharedDirectory(LocalDirectory):
    """With nobody in it but what a line says, and with no time of its own."""

    is_local = False

    def __init__(self) -> None:
        super().__init__(None, {})
        self.sent: list[bytes] = []

    def came(self, presence: Presence, **_: Any) -> None:
        return None

    def where(self, peer_id: str) -> Presence | None:
        return Presence(peer_id, NODES[1], 1, "", 1) if peer_id != "nobody" else None

    def send(self, node_id: str, line: bytes) -> None:
        self.sent.append(line)


def fuzz_nodes(data: bytes) -> None:
    """A piece: one byte (of which node it is, and what happens besides), and a line."""
    with no_faults_of_ours():
        _fuzz_nodes(data)


def _fuzz_nodes(data: bytes) -> None:
    gate = Gatekeeper(Limits())
    directory = _SharedDirectory()
    nodes, usage = Nodes(directory, Node), Usage(KEY, directory)
    nodes.living = {name: Node(name) for name in (nodes.id, NODES[0], NODES[1])}
    service = Track(gate, directory, nodes, KEY, usage)
    abroad = service._abroad
    assert abroad is not None
    (alice, heard), (caller, _) = (_end(gate, service, f"192.0.2.{n}") for n in (1, 2))
    _log_in(alice, service, ALICE)
    caller.known_as.number = 1
    abroad._carry(caller.known_as, Asked(1, "bob", 60_000, "o", False), (NODES[1], ""))
    now = time.monotonic()
    for how, line in _pieces(data):
        line = line.replace(CALL_ID, _last_call(heard)).replace(SENDER, NODES[how & 1].encode())
        if how & 2:
            heard.heard.append(line + b"\n")
            alice._on_readable()
        else:
            nodes.handle_line_untrusted(line)
        gevent.sleep(0)
        if how & 4:
            abroad.node_gone(NODES[how & 1])
        if how & 8:
            service.sweep(now := now + 30)
    for connection in (alice, caller):
        connection._fail("the end")
    for name in NODES:
        abroad.node_gone(name)
    nodes.living.clear()
    service.sweep(now + 100)
    gevent.sleep(0)
    assert (service.online, service.calls, len(abroad._guests)) == (0, 0, 0)
    assert not gate.open_calls
    assert not gate.kept_calls
    for line in directory.sent:
        assert len(line) <= MAX_NODE_LINE_BYTES
        assert json.loads(line)["from"] == nodes.id


NODES = ["0123456789abcdef", "fedcba9876543210"]
SENDER = b"@node@"  # in a line: who it is from


def _node_line(how: int, op: str, **fields: Any) -> bytes:
    return _line(how, op, v=1, **{"from": SENDER.decode()}, **fields)


def _of_caller(how: int, op: str, **fields: Any) -> bytes:
    return _node_line(how, "pass", connection=9, message={"op": op, "call": 3, **fields})


def _to_caller(op: str, **fields: Any) -> bytes:
    return _node_line(0x11, "tell", connection=1, message={"op": op, "call": 1, **fields})


_CALL_OF_A_NODE = _node_line(
    0x10,
    "call",
    connection=9,
    host="192.0.2.9",
    seen=["192.0.2.9"],
    peer="bob",
    online=True,
    nat={"mapping": "none"},
    rtt={"192.0.2.7:3081": 5},
    quota=10,
    message={"op": "call", "call": 3, "to": ALICE, "ms": 9000, "offer": "o", "shows": True},
)
NODE_LINES = [
    _CALL_OF_A_NODE
    + _of_caller(0x10, "trickle", text="t")
    + _line(0x12, "answer", call="@call@", answer="a")
    + _of_caller(0x10, "over", path="p2p", ms=5)
    + _node_line(0x10, "left", connection=9),
    _CALL_OF_A_NODE + _of_caller(0x10, "here", receipt="A" * 22) + _of_caller(0x18, "cancel"),
    _to_caller("calling", relay=["192.0.2.1", 2, "token"])
    + _to_caller("trickle", text="t")
    + _to_caller("answer", answer="a", seen=["192.0.2.9"])
    + _node_line(0x15, "tell", connection=1, message={"op": "gone", "peer": "bob"}),
    _to_caller("declined", reason="busy"),
    _node_line(0x10, "replaced", peer=ALICE, connection=0, session="s")
    + _node_line(0x10, "gone", peer="bob", to=ALICE, back=True)
    + _node_line(0x10, "met", caller="bob", callee=ALICE, calls=["c"]),
]


# A login at the cloud: what is no proof of the secret is none.


def fuzz_login(data: bytes) -> None:
    first, _, final = data.decode("latin-1").partition("\n")
    login = Login(_directory().account(ALICE), b"binding", ALICE)
    try:
        login.challenge_untrusted(first)
        login.welcome_untrusted(final)
    except BadPacket:
        return
    raise AssertionError("a login without the secret")


SCRAM = [
    b"p=tls-server-end-point,,n=alice,r=nonce\nc=biws,r=nonce,p=AAAA",
    b"n,,n=bob,r=x\nc=,r=,p=",
]


# A peer's link: what a server says.


def fuzz_link(data: bytes) -> None:
    offered: list[Any] = []
    wire = Wire()
    link = link_module.Link(
        ("192.0.2.1", 1), log, lambda link, message: offered.append(message), None, None
    )
    link._sock = wire
    made = [link.calls.make(ALICE, "offer", 1000) for _ in range(2)]
    made[0].hear(lambda text: None)
    reader = LineReader()
    try:
        reader.feed(data)
        for message in reader.messages():
            link._handle_untrusted(message)
    except KKP2PError:
        pass  # the link's reader closes it
    for call in made:
        link.calls.forget(call, cancel=True)
    assert not link.calls._calls
    link.close()
    for message in offered:
        assert message["op"] == "gone" or isinstance(message["call"], str)


MESSAGES = [
    encode("calling", call=1, relay=["192.0.2.1", 2, "token"], nat={"mapping": "none"})
    + encode("trickle", call=1, text="t")
    + encode("answer", call=1, answer="{}"),
    encode("declined", call=2, reason="busy") + encode("bye", reason="shutdown"),
    encode("offer", call="x", ms=5, offer="{}", relay=["192.0.2.1", 2, "token"])
    + encode("trickle", call="x", text="t")
    + encode("cancel", call="x"),
    encode("track", tracks=[["192.0.2.1", 5]]) + encode("error", reason="r", re="call"),
]


# Offers and answers, as they come to a peer.


def fuzz_offers(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (offer.parse_offer_untrusted, offer.parse_direct_answer_untrusted):
        try:
            parse(text)
        except (BadPacket, KKP2PError):
            continue
    with contextlib.suppress(BadPacket, ValueError, RecursionError):
        DirectOffer.parse_untrusted(json.loads(data))


_KEY_TEXT = "A" * 43
_DIRECT = {
    "id": "0123456789abcdef",
    "ufrag": "AAAAAAAA",
    "pwd": "B" * 24,
    "cipher": "aes-128-gcm",
    "candidates": ["host 2130706431 192.0.2.1 4000"],
}
OFFERS = [
    json.dumps(fields).encode()
    for fields in (
        {"type": 0, "mode": 2, "encrypt": 1, "desc": -1, "key": _KEY_TEXT},
        {"type": 0, "mode": 0, "encrypt": 0, "desc": 1, "key": _KEY_TEXT, "direct": _DIRECT},
        {"restart": "0123456789abcdef", "key": _KEY_TEXT, "direct": _DIRECT},
        {"key": _KEY_TEXT, "direct": _DIRECT},
    )
]


# The relay's hello.


def fuzz_relay_hello(data: bytes) -> None:
    try:
        token, _ = relay_wire.parse_hello_untrusted(data)
        relay_wire.verify_token_untrusted(KEY, token, 0.0)
    except BadPacket:
        return
    raise AssertionError("a token that nobody made")


# A peer that answers on the LAN.


def fuzz_lan_responder(data: bytes) -> None:
    responder = lan.Responder("bob", 1, lambda text, source: text[:1000], log)
    wire = responder._sock = Wire()
    sizes = []
    for how, body in _pieces(data):
        search = lan_wire.encode(
            lan_wire.Message(lan_wire.SEARCH, bytes([how]) * lan_wire.ID_BYTES, "bob", "{}")
        )
        datagram = body.ljust(lan_wire.SEARCH_BYTES, b"\0") if how & 1 else body or search
        sizes.append(len(datagram))
        wire.heard.append((datagram, ("127.0.0.1", 4000 + (how & 2))))
        responder._handle_readable()
        gevent.sleep(0)
    gevent.sleep(0)
    assert sum(len(answer) for answer, _ in wire.datagrams) <= sum(sizes)
    assert all(to[0] in ("127.0.0.1", "127.255.255.255") for _, to in wire.datagrams)
    responder._pool.kill()


SEARCHES = [b"\x10\n\x10\n\x12\n\x20", b"\x11KKL"]
