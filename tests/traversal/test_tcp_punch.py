"""TCP hole punching on one host: the peer is known by its proof, and nobody else is taken."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from helpers.cloud_client import running_cloud
from helpers.support import PATIENCE_S
from kkp2p_compat._errors import BadPacket, NoPath
from kkp2p_compat.traversal import tcp_punch
from kkp2p_compat.traversal.candidates import Candidate, parse_untrusted
from kkp2p_compat.traversal.tcp_proof import GREETING_BYTES, PROOF_BYTES, TcpProof
from kkp2p_compat.traversal.tcp_punch import TcpPunch

log = logging.getLogger("test")
KEY = b"k" * 32
Make = Callable[..., TcpPunch]


@pytest.fixture(autouse=True)
def _one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is all that there is."""
    found = tcp_punch.host_candidates
    monkeypatch.setattr(
        tcp_punch, "host_candidates", lambda ports: found(ports, ["127.0.0.1", "::1"])
    )


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[TcpPunch] = []

    def one(is_caller: bool, key: bytes = KEY) -> TcpPunch:
        made.append(TcpPunch(key, is_caller, log))
        return made[-1]

    before = len(os.listdir("/proc/self/fd"))
    yield one
    for each in made:
        each.close()
        each.close()
    with gevent.Timeout(PATIENCE_S):
        while len(os.listdir("/proc/self/fd")) > before:
            gevent.sleep(0.001)


def check_carries(one: Any, other: Any) -> None:
    one.sendall(b"there")
    assert other.recv(100) == b"there"
    other.sendall(b"back")
    assert one.recv(100) == b"back"


@pytest.mark.parametrize("family", ["IPv4", "IPv6", "both"])
def test_two_meet(make: Make, family: str) -> None:
    caller, callee = make(True), make(False)
    told = [
        [text for text in end.find([]) if family == "both" or (":" in text) == (family == "IPv6")]
        for end in (caller, callee)
    ]
    assert all(told)
    runs = [gevent.spawn(end.run, PATIENCE_S) for end in (caller, callee)]
    caller.handle_peer_untrusted(told[1])
    callee.handle_peer_untrusted(told[0])
    one, other = (run.get() for run in runs)
    caller.close()
    callee.close()
    with one, other:
        assert one.getpeername() == other.getsockname()
        check_carries(one, other)


def test_one_is_told_nothing(make: Make) -> None:
    """It listens: that is how a host whose NAT lets everybody in meets a symmetric one."""
    caller, callee = make(True), make(False)
    caller.find([])
    caller.handle_peer_untrusted(callee.find([]))
    runs = [gevent.spawn(end.run, PATIENCE_S) for end in (caller, callee)]
    one, other = (run.get() for run in runs)
    with one, other:
        check_carries(one, other)


def test_where_the_cloud_sees_us(make: Make) -> None:
    with running_cloud() as cloud:
        punch = make(True)
        texts = punch.find([("127.0.0.1", 9), cloud.address][1:])
        seen = [each for each in parse_untrusted(texts) if each.kind == "host"]
        assert {each.port for each in seen if each.address == "127.0.0.1"} == {
            punch._ports()[socket.AF_INET]
        }
        assert [sock.getpeername() for sock in punch._asking] == [cloud.address]
        punch.close()


def test_a_mapped_address_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TcpPunch, "_ask", lambda self, server: ("198.51.100.7", 5000))
    punch = make(True)
    found = parse_untrusted(punch.find([("192.0.2.1", 443)]))
    assert ("srflx", "198.51.100.7", 5000) in [
        (each.kind, each.address, each.port) for each in found
    ]
    shy = parse_untrusted(make(False).find([("192.0.2.1", 443)], with_private=False))
    assert [each.kind for each in shy] == ["srflx"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad\r\n\r\n12345", b"\0" * 30])
def test_a_server_that_knows_no_stun(make: Make, answer: bytes) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(100)
                sock.sendall(answer)

        serving = gevent.spawn(serve)
        found = parse_untrusted(make(True).find([listener.getsockname()]))
        assert {each.kind for each in found} == {"host"}
        serving.join()


def test_a_silent_server_costs_little(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_punch, "ASK_S", 0.01)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert make(True).find([listener.getsockname()])


def test_strangers_are_not_taken(make: Make) -> None:
    """Nor one with another call's key, nor our own words sent back; then the peer comes."""
    caller, callee = make(True), make(False)
    caller.find([])
    running = gevent.spawn(caller.run, PATIENCE_S)
    gevent.sleep(0)
    place = "127.0.0.1", caller._ports()[socket.AF_INET]
    for answer in b"SSH-2.0-x\r\n" * 10, b"\0" * 200, b"":
        with socket.create_connection(place) as sock:
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
            assert len(sock.recv(GREETING_BYTES)) == GREETING_BYTES
            with pytest.raises(ConnectionResetError):
                sock.recv(100)
    with socket.create_connection(place) as mirror:
        mirror.sendall(mirror.recv(GREETING_BYTES))
        with pytest.raises(ConnectionResetError):
            mirror.recv(100)
    with socket.create_connection(place) as false:
        proof = TcpProof(b"another key", False, secrets.token_bytes(16))
        false.sendall(proof.greeting)
        proof.handle_greeting_untrusted(false.recv(GREETING_BYTES))
        false.sendall(proof.own_proof())
        with pytest.raises(ConnectionResetError):
            false.recv(100)
    assert not running.ready()
    other_run = gevent.spawn(callee.run, PATIENCE_S)
    told = [f"host 1 {place[0]} {place[1]}"]
    callee.find([])
    callee.handle_peer_untrusted(told)
    with running.get() as one, other_run.get() as other:
        check_carries(one, other)


def test_strangers_are_few(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    punch = make(True)
    punch.find([])
    running = gevent.spawn(punch.run, PATIENCE_S)
    gevent.sleep(0)
    place = "127.0.0.1", punch._ports()[socket.AF_INET]
    silent = [socket.create_connection(place) for _ in range(tcp_punch.MAX_STRANGERS + 1)]
    with gevent.Timeout(PATIENCE_S):
        while punch._strangers.free_count():
            gevent.sleep(0.001)
    running.kill()
    for sock in silent:
        sock.close()


def test_of_several_connections_both_keep_the_same(make: Make) -> None:
    """Though they are made at once; the callee's other ones end."""
    for _ in range(10):
        caller, callee = make(True), make(False)
        mine, theirs = caller.find([]), callee.find([])
        caller.handle_peer_untrusted(theirs)
        callee.handle_peer_untrusted(mine)
        runs = [gevent.spawn(end.run, PATIENCE_S) for end in (caller, callee)]
        with runs[0].get() as one, runs[1].get() as other:
            check_carries(one, other)
            assert one.getpeername() == other.getsockname()
        caller.close()
        callee.close()


def test_nobody_comes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_punch, "AGAIN_S", 0.001)
    punch = make(True)
    punch.find([])
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        punch.handle_peer_untrusted([f"host 1 127.0.0.1 {bound.getsockname()[1]}"])
        with pytest.raises(NoPath):
            punch.run(0.2)


def test_what_a_peer_may_name(make: Make) -> None:
    punch = make(True)
    punch.find([])
    punch.handle_peer_untrusted(
        ["host 1 127.0.0.1 22", "host 1 224.0.0.1 5000", "srflx 1 0.0.0.0 5000"]
    )
    assert punch._targets == set()
    for start in range(0, 60, 20):
        punch.handle_peer_untrusted([f"host 1 127.0.0.1 {5000 + start + n}" for n in range(20)])
    assert len(punch._targets) == tcp_punch.MAX_TARGETS
    punch._own = [Candidate("host", 1, "203.0.113.1", 1)]
    punch._targets.clear()
    punch.handle_peer_untrusted(["host 1 127.0.0.1 5000", "host 1 10.0.0.1 5000"])
    assert punch._targets == set(), "a public host was sent into its own network"
    for bad in None, "x", ["x"], [5], ["host 1 127.0.0.1 5000"] * 40:
        with pytest.raises(BadPacket):
            punch.handle_peer_untrusted(bad)


def test_closed_with_the_connection_not_taken(make: Make) -> None:
    caller, callee = make(True), make(False)
    caller.handle_peer_untrusted([])
    mine = caller.find([])
    callee.find([])
    callee.handle_peer_untrusted(mine)
    running = gevent.spawn(caller.run, PATIENCE_S)
    gevent.sleep(0)
    running.kill()
    with callee.run(PATIENCE_S) as other:
        assert caller._is_over
        caller.close()
        with pytest.raises(ConnectionResetError):
            other.recv(1)


def test_the_proof() -> None:
    one, other = TcpProof(KEY, True, b"1" * 16), TcpProof(KEY, False, b"2" * 16)
    one.handle_greeting_untrusted(other.greeting)
    other.handle_greeting_untrusted(one.greeting)
    assert len(one.own_proof()) == PROOF_BYTES
    other.check_untrusted(one.own_proof())
    one.check_untrusted(other.own_proof())
    for bad in one.own_proof(), b"", bytes(PROOF_BYTES):
        with pytest.raises(BadPacket):
            one.check_untrusted(bad)
    for greeting in b"", other.greeting + b"x", b"x" * GREETING_BYTES, one.greeting:
        with pytest.raises(BadPacket):
            one.handle_greeting_untrusted(greeting)
    third = TcpProof(KEY, False, b"3" * 16)
    third.handle_greeting_untrusted(one.greeting)
    with pytest.raises(BadPacket):
        one.check_untrusted(third.own_proof())


def test_what_is_told_before_our_own_addresses_are_known(make: Make) -> None:
    """Counts when they are; and it is bounded until then."""
    caller, callee = make(True), make(False)
    mine = caller.find([])
    for _ in range(50):
        callee.handle_peer_untrusted(mine)
    assert len(callee._named) < 2 * 32
    callee.find([])
    runs = [gevent.spawn(end.run, PATIENCE_S) for end in (caller, callee)]
    with runs[0].get() as one, runs[1].get() as other:
        check_carries(one, other)
