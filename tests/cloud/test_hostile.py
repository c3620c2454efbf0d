"""What strangers may try on the cloud's port, while a good peer goes on working."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent import ssl as gssl
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.cloud_client import Client, running_cloud, time_passes, until
from kkp2p_compat.cloud import control_connection as connection_module
from kkp2p_compat.cloud import handshakes, server
from kkp2p_compat.cloud.control_connection import ControlConnection, Service
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.transport import tcp

ACCOUNTS = {"good": "g", "other": "o"}
OPS = (
    "route",
    "login",
    "proof",
    "beat",
    "call",
    "answer",
    "decline",
    "cancel",
    "over",
    "trickle",
    "nat",
    "error",
    "?",
)
FIELDS = (
    "v",
    "peer",
    "scram",
    "session",
    "again",
    "call",
    "to",
    "ms",
    "offer",
    "answer",
    "reason",
    "text",
    "nat",
)


class Good:
    """A peer that must not notice anything."""

    def __init__(self, cloud: Cloud) -> None:
        self.client = Client(cloud.address, source="127.0.0.2")
        assert self.client.login("good", "g")["op"] == "welcome"

    def works(self, cloud: Cloud) -> None:
        assert self.client.ask("beat") == {"op": "beat"}
        with Client(cloud.address, source="127.0.0.2") as caller:
            assert caller.call("good")["op"] == "calling"
            call = self.client.receive()["call"]
            self.client.send("answer", call=call, answer="a")
            assert caller.receive()["op"] == "answer"


@contextmanager
def _attacked(**limits: Any) -> Iterator[Cloud]:
    """A cloud under attack; at the end only the good peer is left on it, and works."""
    with running_cloud(ACCOUNTS, limits) as cloud:
        good = Good(cloud)
        try:
            yield cloud
            good.works(cloud)
            until(lambda: cloud.gate.connections == 1)
        finally:
            good.client.close()


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with _attacked() as cloud:
        yield cloud


def _connect(cloud: Cloud) -> gsocket.socket:
    return gsocket.create_connection(cloud.address, source_address=("127.0.0.1", 0))


def _waiting(cloud: Cloud) -> int:
    """For a TLS handshake."""
    assert cloud.handshakes is not None
    return len(cloud.handshakes.waiting)


def _rest(sock: gsocket.socket) -> bytes:
    """What the cloud still sends before it closes, by end of stream or reset."""
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionError:
        return data
    finally:
        sock.close()
    return data


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b'{"op":"route"}\n'])
def test_what_is_neither_tls_nor_relay(cloud: Cloud, data: bytes) -> None:
    sock = _connect(cloud)
    sock.sendall(data)
    assert _rest(sock) == b""


def test_garbage_that_starts_like_tls(cloud: Cloud) -> None:
    for data in (b"\x16" + b"\xff" * 500, b"\x16\x03\x01\x00\x05hello" + b"x" * 100):
        sock = _connect(cloud)
        sock.sendall(data)
        assert _rest(sock)[:1] in (b"", b"\x15")  # an alert, RFC 8446 section 6


def test_a_connection_closed_at_every_stage(cloud: Cloud) -> None:
    for data in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00", b"K", b"KKRL\x01"):
        for reset in (False, True):
            sock = _connect(cloud)
            sock.sendall(data)
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


def test_tls_1_2(cloud: Cloud) -> None:
    with pytest.raises(OSError, match=r"(?i)version|alert|eof|reset"):
        Client(cloud.address, maximum_version=gssl.TLSVersion.TLSv1_2)


def test_silence_and_slow_starts(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    socks = [_connect(cloud) for _ in range(4)]
    for sock, data in zip(socks, (b"", b"\x16", b"K", b"KKRL"), strict=True):
        sock.sendall(data)
    until(lambda: cloud.gate.connections == 5)
    time_passes(cloud, 11)
    answers = [_rest(sock) for sock in socks]
    # One that was not even sorted when the time passed gets no answer.
    assert answers[:2] == [b"", b""]
    assert set(answers[2:]) <= {b"\x01", b""}
    assert "127.0.0.1 refused: " in caplog.text


def test_tls_and_then_silence(cloud: Cloud) -> None:
    with Client(cloud.address) as client:
        time_passes(cloud, 11)
        assert client.ended()


def test_beats_do_not_buy_a_stranger_time(cloud: Cloud) -> None:
    with Client(cloud.address) as client:
        assert client.ask("beat") == {"op": "beat"}
        time_passes(cloud, 11)
        assert client.ended()


def test_a_login_that_stops_half_way(cloud: Cloud) -> None:
    with Client(cloud.address) as client:
        assert client.ask("route", v=1, peer="good")["op"] == "track"
        scram = "p=tls-server-end-point,,n=good,r=abcdef"
        assert client.ask("login", v=1, peer="good", scram=scram)["op"] == "challenge"
        assert client.ask("route", v=1, peer="good")["op"] == "track"
        time_passes(cloud, 11)
        assert client.ended()


def test_a_quiet_caller_is_sent_away() -> None:
    with running_cloud() as cloud, Client(cloud.address) as client:
        assert client.ask("route", v=1, peer="good")["op"] == "track"
        time_passes(cloud, 290)
        assert client.ask("beat")["op"] == "beat"
        time_passes(cloud, 301)
        assert client.receive() == {"op": "bye", "reason": "idle"}
        assert client.ended()


def test_a_peer_without_heartbeat_is_gone() -> None:
    with running_cloud(ACCOUNTS) as cloud, Client(cloud.address) as client:
        assert client.login("good", "g")["beat"] == 25
        time_passes(cloud, 60)
        assert client.ask("beat")["op"] == "beat"
        time_passes(cloud, 63)
        assert client.ended()
        track = cloud.track
        assert track is not None
        until(lambda: track.online == 0)


def test_a_line_that_never_ends(cloud: Cloud) -> None:
    with Client(cloud.address) as client:
        client.send_raw(b'{"op":"' + b"x" * 65_528)
        client.send_raw(b"x")
        assert client.receive()["op"] == "error"
        assert client.receive() == {"op": "bye", "reason": "bad-message"}
        assert client.ended()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"hello\n",
        b"[1,2]\n",
        b"{}\n",
        b'{"op":7}\n',
        b'{"op":"beat"\n',
        b"\xff\xfe\n",
        b"[" * 60_000 + b"\n",
        b'{"op":"call","call":' + b"9" * 5000 + b"}\n",
    ],
)
def test_lines_that_are_no_message(cloud: Cloud, line: bytes) -> None:
    with Client(cloud.address) as client:
        client.send_raw(line)
        assert client.receive()["op"] == "error"
        assert client.receive() == {"op": "bye", "reason": "bad-message"}
        assert client.ended()


def test_lines_byte_by_byte_and_many_at_once(cloud: Cloud) -> None:
    with Client(cloud.address) as client:
        for byte in b'{"op":"beat"}\n':
            client.send_raw(bytes([byte]))
        assert client.receive() == {"op": "beat"}
        client.send_raw(b'{"op":"beat"}\n' * 1500)
        for _ in range(1500):
            assert client.receive() == {"op": "beat"}


def test_messages_per_second_are_limited() -> None:
    with _attacked(messages_per_s=50.0) as cloud, Client(cloud.address) as client:
        client.send_raw(b'{"op":"beat"}\n' * 1000)
        answers = [client.receive()]
        while answers[-1]["op"] == "beat":
            answers.append(client.receive())
        assert answers[-1] == {"op": "bye", "reason": "limit"}
        assert 50 <= len(answers) < 1000


def test_who_sends_more_than_its_share_waits_and_nobody_else() -> None:
    """It is not even read; so the kernel makes it wait.  It loses nothing."""
    with _attacked(bytes_per_s=20_000.0, burst_s=0.02) as cloud:
        with Client(cloud.address) as client, Client(cloud.address, source="127.0.0.3") as other:
            assert client.ask("beat") == {"op": "beat"}
            (greedy,) = connections(cloud, "127.0.0.1")
            sent = 0
            while greedy._next_turn is None:
                client.send("beat")
                sent += 1
                gevent.sleep(0)
            assert other.ask("beat") == {"op": "beat"}
            for _ in range(sent):
                assert client.receive() == {"op": "beat"}
            while greedy._next_turn is None:
                client.send("beat")
                gevent.sleep(0)
        until(lambda: cloud.gate.connections == 1)  # it has left while it waited


def test_the_connections_of_an_address_have_one_share() -> None:
    limits = {"bytes_per_s": 1e9, "work": 1e9, "bytes_per_s_per_address": 2000.0}
    with (
        _attacked(**limits) as cloud,
        Client(cloud.address) as greedy,
        Client(cloud.address, source="127.0.0.3") as other,
    ):
        while not cloud.gate.shares.wait_s("127.0.0.1", time.monotonic()):
            greedy.send("beat")
            gevent.sleep(0)
        assert other.ask("beat") == {"op": "beat"}


def connections(cloud: Cloud, host: str) -> list[ControlConnection]:
    items = cloud.gate.deadlines.items()
    return [item for item in items if isinstance(item, ControlConnection) and item.host == host]


def test_a_turn_has_an_end(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    handled: list[str] = []
    handle = Service.handle

    def record(self: Service, connection: ControlConnection, message: Any) -> None:
        handled.append(connection.host)
        handle(self, connection, message)

    monkeypatch.setattr(connection_module, "TURN_S", 0.0)
    monkeypatch.setattr(Service, "handle", record)
    with Client(cloud.address) as greedy, Client(cloud.address, source="127.0.0.3") as other:
        greedy.send_raw(b'{"op":"beat"}\n' * 1000)
        assert other.ask("beat") == {"op": "beat"}
        assert handled.index("127.0.0.3") < 900
        for _ in range(1000):
            assert greedy.receive() == {"op": "beat"}


def test_long_lines_are_for_calls_and_for_who_has_logged_in(cloud: Cloud) -> None:
    long = "x" * 5000
    with Client(cloud.address) as client:
        assert client.call("nobody", offer=long)["reason"] == "offline"
        client.send("beat", pad=long)
        assert client.receive() == {"op": "error", "reason": "a line of over 4096 bytes"}
        assert client.receive() == {"op": "bye", "reason": "bad-message"}
    with Client(cloud.address) as peer:
        assert peer.login("other", "o")["op"] == "welcome"
        assert peer.ask("beat", pad=long) == {"op": "beat"}


def test_an_infinite_number_goes_to_nobody(cloud: Cloud) -> None:
    """The receiver would take the cloud for broken, and leave it."""
    with Client(cloud.address) as client:
        client.send_raw(b'{"op":"nat","nat":{"step":1e999}}\n')
        assert "infinite" in client.receive()["reason"]
        client.send_raw(b'{"op":"call","call":1e999,"to":"good","ms":5,"offer":""}\n')
        assert "whole number" in client.receive()["reason"]


def test_a_slow_reader_is_dropped_and_costs_no_more_than_its_buffer() -> None:
    limits = {"output_bytes": 50_000, "messages_per_s": 1e9}
    with _attacked(**limits) as cloud, Client(cloud.address, receive_bytes=8192) as client:
        question = b'{"op":"' + b"x" * 30 + b'"}\n'
        end = None
        while end is None:
            try:
                client.send_raw(question * 400)
            except OSError as error:
                end = error
        assert not isinstance(end, TimeoutError)


def test_too_many_connections_of_an_address(caplog: pytest.LogCaptureFixture) -> None:
    with _attacked(connections_per_address=5) as cloud:
        kept = [_connect(cloud) for _ in range(5)]
        until(lambda: cloud.gate.connections == 6)
        for _ in range(50):
            assert _rest(_connect(cloud)) == b""
        for sock in kept:
            sock.close()
        until(lambda: cloud.gate.connections == 1)
        with Client(cloud.address) as client:
            assert client.ask("beat")["op"] == "beat"
    refusals = [
        r.getMessage()
        for r in caplog.records
        if "over 5 of 127.0.0.1: connections" in r.getMessage()
    ]
    assert len(refusals) == 1  # the other 49 are only counted


def test_too_many_connections_in_all() -> None:
    with running_cloud(limits={"connections": 3}) as cloud:
        kept = [_connect(cloud) for _ in range(3)]
        until(lambda: cloud.gate.connections == 3)
        assert _rest(_connect(cloud)) == b""
        kept.pop().close()
        until(lambda: cloud.gate.connections == 2)
        with Client(cloud.address) as client:
            assert client.ask("beat")["op"] == "beat"
        for sock in kept:
            sock.close()


def test_new_connections_per_second_are_limited() -> None:
    with _attacked(connects_per_s=2.0, burst_s=5.0) as cloud:
        assert 0 < _handshakes_until_refused(cloud) < 30


def _handshakes_until_refused(cloud: Cloud) -> int:
    for count in range(30):
        try:
            Client(cloud.address).close()
        except OSError:
            return count
    return 30


def test_handshakes_per_second_are_limited() -> None:
    with _attacked(handshakes_per_s=1.0, burst_s=2.0) as cloud:
        assert 0 < _handshakes_until_refused(cloud) < 30


def test_a_flood_of_strangers_while_a_peer_works(cloud: Cloud) -> None:
    with Client(cloud.address) as other:
        assert other.ask("route", v=1, peer="good")["op"] == "track"
        flood = [_connect(cloud) for _ in range(300)]
        for index, sock in enumerate(flood):
            sock.sendall((b"\x16\x03\x01", b"K", b"", b"x")[index % 4])
        assert other.ask("beat") == {"op": "beat"}
        for sock in flood:
            sock.close()


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_accepting_survives_without_descriptors(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failures = gsocket.socket.accept, []

    def accept(self: gsocket.socket) -> Any:
        if len(failures) < 3:
            failures.append(1)
            raise OSError((errno.EMFILE, errno.ENFILE, errno.ENOBUFS)[len(failures) - 1], "none")
        return real(self)

    monkeypatch.setattr(gsocket.socket, "accept", accept)
    with Client(cloud.address) as client:
        assert client.ask("beat") == {"op": "beat"}
    assert len(failures) == 3
    assert caplog.text.count("no new connections for now") == 1


def test_a_bug_in_a_handler_costs_one_connection(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    with Client(cloud.address) as client:
        assert client.ask("beat")["op"] == "beat"
        with monkeypatch.context() as patch:
            patch.setattr("kkp2p_compat.cloud.messages.number_untrusted", fail)
            client.send("call")
            assert client.ended()
    assert "a fault of ours" in caplog.text


def test_no_descriptor_is_left_after_a_thousand_connections() -> None:
    with running_cloud(ACCOUNTS, {"limit_loopback": False}) as cloud:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(40):
            clients = [Client(cloud.address) for _ in range(5)]
            socks = [_connect(cloud) for _ in range(20)]
            for client in clients:
                client.send("call", call=1, to="nobody", ms=5, offer="")
            for thing in (*clients, *socks):
                thing.close()
        until(lambda: cloud.gate.connections == 0)
        assert len(os.listdir("/proc/self/fd")) == before
        assert not cloud.gate.deadlines.items()


@settings(max_examples=60)
@given(
    op=st.sampled_from(OPS),
    fields=st.dictionaries(
        st.sampled_from(FIELDS),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40)),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=4,
        ),
    ),
)
def test_any_message_is_answered_or_refused(
    cloud: Cloud, caplog: pytest.LogCaptureFixture, op: str, fields: dict[str, Any]
) -> None:
    caplog.set_level(logging.WARNING)
    with Client(cloud.address) as client:
        client.send(op, **fields)
        try:
            client.send("beat")
            while client.receive()["op"] not in ("beat", "bye", "refused"):
                pass
        except (EOFError, ConnectionError) as error:
            raise AssertionError("closed without a word") from error
    assert "a fault of ours" not in caplog.text


def test_those_that_gave_up_waiting_cost_no_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """When more come than can be served: in the order in which they came."""
    begun: list[str] = []

    class Recorded(ControlConnection):
        def start(self) -> None:
            begun.append(self.host)
            super().start()

    with running_cloud(ACCOUNTS) as cloud:
        monkeypatch.setattr(handshakes, "PER_TURN", 0)
        monkeypatch.setattr(server, "ControlConnection", Recorded)
        socks = []
        for number in range(1, 6):
            source = (f"127.0.0.{number}", 0)
            socks.append(gsocket.create_connection(cloud.address, source_address=source))
            socks[-1].sendall(b"\x16")
            until(lambda: _waiting(cloud) == len(socks))
        socks[1].close()
        socks[3].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socks[3].close()
        gone = [False, True, False, True, False]
        assert cloud.handshakes is not None
        waiting = cloud.handshakes.waiting
        until(lambda: [tcp.left(stranger.sock) for stranger in waiting] == gone)
        assert begun == []
        monkeypatch.setattr(handshakes, "PER_TURN", 1)
        until(lambda: _waiting(cloud) == 0)
        assert cloud.gate.connections == 3
        assert begun == ["127.0.0.1", "127.0.0.3", "127.0.0.5"]
        for sock in socks:
            sock.close()


def test_waiting_for_a_handshake_has_an_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running_cloud(ACCOUNTS) as cloud:
        monkeypatch.setattr(handshakes, "PER_TURN", 0)
        sock = _connect(cloud)
        sock.sendall(b"\x16")
        until(lambda: _waiting(cloud) == 1)
        time_passes(cloud, 11)
        assert _rest(sock) == b""
        assert "waited too long" in caplog.text
        monkeypatch.undo()
        until(lambda: _waiting(cloud) == 0)
        with Client(cloud.address) as client:
            assert client.ask("beat") == {"op": "beat"}
