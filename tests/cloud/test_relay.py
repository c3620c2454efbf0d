"""The relay in a cloud: tokens refused, pairing, what it passes on, what it counts."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from helpers.cloud_client import time_passes, until
from helpers.shared_directory import KEY, running_node
from helpers.usage_support import new_session
from kkp2p_compat.cloud import relay as relay_module
from kkp2p_compat.cloud.relay import Relay
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.transport import relay_wire as wire
from kkp2p_compat.transport import tcp

OK = bytes([wire.PAIRED])


class Scene:
    """A relay of its own, and guests on it."""

    def __init__(self, cloud: Cloud) -> None:
        assert cloud.relay is not None
        self.cloud = cloud
        self.relay: Relay = cloud.relay
        self.socks: list[gsocket.socket] = []

    def connect(self, hello: bytes, source: str = "127.0.0.1") -> gsocket.socket:
        sock = gsocket.create_connection(self.cloud.address, source_address=(source, 0))
        self.socks.append(sock)
        sock.sendall(hello)
        return sock

    def pair(self) -> tuple[gsocket.socket, gsocket.socket]:
        caller, callee = (self.connect(hello) for hello in hellos())
        assert (caller.recv(1), callee.recv(1)) == (OK, OK)
        return caller, callee


@contextmanager
def _scene(**limits: Any) -> Iterator[Scene]:
    with running_node("relay", limits=limits) as cloud:
        made = Scene(cloud)
        try:
            yield made
        finally:
            for sock in made.socks:
                sock.close()
        until(lambda: cloud.gate.connections == 0)
        assert not cloud.gate.relay_sessions
        assert not cloud.gate.relay_callees
        assert made.relay.waiting == made.relay.sessions == 0


@pytest.fixture
def scene() -> Iterator[Scene]:
    with _scene() as made:
        yield made


def hellos(key: bytes = KEY, lives_s: int = 30) -> tuple[bytes, bytes]:
    """The caller's and the callee's of one session."""
    session, expiry = new_session(key), int(time.time()) + lives_s
    first, second = (
        wire.hello(wire.make_token(key, session, side, expiry))
        for side in (wire.CALLER, wire.CALLEE)
    )
    return first, second


def _refusal(sock: gsocket.socket) -> int:
    """The status that the relay closes with."""
    data = sock.recv(10)
    assert len(data) == 1
    assert sock.recv(10) == b""
    return data[0]


@pytest.mark.parametrize("first", [0, 1])
def test_pairing_in_either_order(scene: Scene, first: int) -> None:
    both = hellos()
    early = scene.connect(both[first])
    until(lambda: scene.relay.waiting == 1)
    late = scene.connect(both[1 - first])
    assert (early.recv(1), late.recv(1)) == (OK, OK)
    early.sendall(b"from early")
    assert late.recv(100) == b"from early"
    late.sendall(b"from late")
    assert early.recv(100) == b"from late"


def test_a_hello_byte_by_byte(scene: Scene) -> None:
    first, second = hellos()
    slow = scene.connect(first[:1])
    slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in first[1:]:
        slow.sendall(bytes([byte]))
        gevent.sleep(0)
    other = scene.connect(second)
    assert (slow.recv(1), other.recv(1)) == (OK, OK)


@pytest.mark.parametrize("pause", [False, True])
def test_a_peer_of_the_version_before_meets_one_of_this(scene: Scene, pause: bool) -> None:
    first, second = hellos()
    old = b"KKRL\x01" + base64.urlsafe_b64decode(first[5:])
    peer = scene.connect(old[:20] if pause else old)
    if pause:
        gevent.sleep(0)
        peer.sendall(old[20:])
    other = scene.connect(second)
    assert (peer.recv(1), other.recv(1)) == (OK, OK)


def test_many_sessions_do_not_mix(scene: Scene) -> None:
    pairs = [hellos() for _ in range(30)]
    callers = [scene.connect(caller) for caller, _ in pairs]
    callees = [scene.connect(callee) for _, callee in reversed(pairs)][::-1]
    for number, (caller, callee) in enumerate(zip(callers, callees, strict=True)):
        assert (caller.recv(1), callee.recv(1)) == (OK, OK)
        caller.sendall(b"%d" % number)
        assert callee.recv(10) == b"%d" % number


@pytest.mark.parametrize(
    ("hello", "status"),
    [
        (b"KKRX" + b"x" * 55, wire.BAD),
        (b"KKRL\x04" + b"x" * 54, wire.BAD),
        (b"KKRL\x02" + b"x" * 72, wire.BAD),
        (hellos(key=b"x" * 32)[0], wire.BAD),
        (hellos(lives_s=-5)[0], wire.EXPIRED),
    ],
    ids=[
        "magic",
        "version",
        "token",
        "key",
        "expired",
    ],  # tokens are random; the names are the same always
)
def test_bad_hellos(scene: Scene, hello: bytes, status: int) -> None:
    assert _refusal(scene.connect(hello)) == status


def test_a_hello_that_is_never_whole(scene: Scene) -> None:
    sock = scene.connect(hellos()[0][:-1])
    with_deadline = scene.cloud.gate.deadlines.items
    until(lambda: any(isinstance(one, relay_module._Guest) for one in with_deadline()))
    time_passes(scene.cloud, scene.cloud.gate.limits.handshake_s + 1)
    assert _refusal(sock) == wire.BAD


def test_the_refusal_arrives_although_more_was_sent(scene: Scene) -> None:
    assert _refusal(scene.connect(b"K" + b"x" * 100_000)) == wire.BAD


def test_a_token_is_taken_once(scene: Scene) -> None:
    both = hellos()
    socks = [scene.connect(hello) for hello in both]
    assert [sock.recv(1) for sock in socks] == [OK, OK]
    for hello in both:
        assert _refusal(scene.connect(hello)) == wire.USED
    socks[0].sendall(b"undisturbed")
    assert socks[1].recv(100) == b"undisturbed"


def test_the_same_side_twice(scene: Scene) -> None:
    first, second = hellos()
    waiting = scene.connect(first)
    until(lambda: scene.relay.waiting == 1)
    assert _refusal(scene.connect(first)) == wire.USED
    partner = scene.connect(second)
    assert (waiting.recv(1), partner.recv(1)) == (OK, OK)


def test_a_token_is_not_free_again_when_its_owner_left(scene: Scene) -> None:
    first, _ = hellos()
    scene.connect(first).close()
    until(lambda: scene.cloud.gate.connections == 0)
    assert _refusal(scene.connect(first)) == wire.USED


def test_expired_tokens_are_forgotten(scene: Scene) -> None:
    for hello in hellos(lives_s=1):
        scene.connect(hello)
    until(lambda: scene.relay.sessions == 1)
    assert scene.relay.seen == 2
    until(lambda: scene.relay.seen == 0)


def test_data_before_the_pairing(scene: Scene) -> None:
    first, second = hellos()
    hasty = scene.connect(first)
    until(lambda: scene.relay.waiting == 1)
    hasty.sendall(b"hasty")
    assert _refusal(hasty) == wire.BAD
    assert scene.relay.waiting == 0
    scene.connect(second)


def test_a_partner_that_never_comes(scene: Scene) -> None:
    lonely = scene.connect(hellos()[0])
    until(lambda: scene.relay.waiting == 1)
    time_passes(scene.cloud, 14)
    assert scene.relay.waiting == 1
    time_passes(scene.cloud, 16)
    assert _refusal(lonely) == wire.NO_PARTNER


def test_a_partner_that_leaves_before_the_pairing(scene: Scene) -> None:
    first, second = hellos()
    scene.connect(first).close()
    until(lambda: scene.cloud.gate.connections == 0)
    late = scene.connect(second)
    until(lambda: scene.relay.waiting == 1)
    late.close()
    until(lambda: scene.relay.waiting == 0)


def test_half_close(scene: Scene) -> None:
    caller, callee = scene.pair()
    caller.sendall(b"question")
    caller.shutdown(socket.SHUT_WR)
    assert callee.recv(100) == b"question"
    assert callee.recv(100) == b""
    callee.sendall(b"answer")
    assert caller.recv(100) == b"answer"
    callee.close()
    assert caller.recv(100) == b""


def kernel_holds_bytes() -> int:
    """The most that the buffers of two TCP connections one behind the other can hold."""
    limits = (Path(f"/proc/sys/net/ipv4/tcp_{which}mem").read_text().split()[-1] for which in "rw")
    return 2 * sum(map(int, limits))


def test_a_reader_that_starts_late(scene: Scene) -> None:
    """What it does not read holds up the sender: the relay does not swallow it."""
    caller, callee = scene.pair()
    piece = os.urandom(1 << 20)
    pieces = (kernel_holds_bytes() + (8 << 20)) // len(piece)
    sent = [0]

    def send() -> None:
        for _ in range(pieces):
            caller.sendall(piece)
            sent[0] += 1

    sending = gevent.spawn(send)
    before = -1
    while sent[0] > before:  # until it gets on no more
        before = sent[0]
        sending.join(0.2)
    assert sent[0] < pieces
    digest, left = hashlib.sha256(), pieces * len(piece)
    while left:
        data = callee.recv(1 << 20)
        digest.update(data)
        left -= len(data)
    sending.get()
    expected = hashlib.sha256()
    for _ in range(pieces):
        expected.update(piece)
    assert digest.digest() == expected.digest()


def test_a_reset_is_passed_on_after_the_data(scene: Scene) -> None:
    caller, callee = scene.pair()
    callee.sendall(b"unread")
    gsocket.wait_read(caller.fileno())
    caller.sendall(b"x" * 100_000)
    while tcp.unsent_bytes(caller):
        gevent.sleep(0.001)
    caller.close()
    count = 0
    while count < 100_000:
        count += len(callee.recv(1000))
    with pytest.raises(ConnectionResetError):
        callee.recv(1000)


@pytest.mark.parametrize("extra", [0, 1])
def test_byte_budget(extra: int, caplog: pytest.LogCaptureFixture) -> None:
    with _scene(relay_session_bytes=1000) as scene:
        caller, callee = scene.pair()
        caller.sendall(b"x" * 600)
        assert len(callee.recv(600, socket.MSG_WAITALL)) == 600
        callee.sendall(b"y" * (400 + extra))
        count = 0
        while count < 400:
            count += len(caller.recv(1000))
        assert count == 400
        if extra:
            with pytest.raises(ConnectionResetError):
                caller.recv(1)
            until(lambda: "over 1000 bytes" in caplog.text)
        else:
            caller.close()
            assert callee.recv(1) == b""


def test_sessions_in_all_are_limited() -> None:
    with _scene(relay_sessions=2) as scene:
        pairs = [scene.pair() for _ in range(2)]
        assert _refusal(scene.connect(hellos()[0])) == wire.LIMIT
        pairs[0][0].sendall(b"works")
        assert pairs[0][1].recv(10) == b"works"
        for sock in pairs[1]:
            sock.close()
        until(lambda: scene.relay.sessions == 1)
        scene.pair()


def test_sessions_of_an_address_are_limited() -> None:
    with _scene(relay_sessions_per_address=2) as scene:
        for _ in range(2):
            scene.pair()  # counts for the caller, though both sides are from one address
        assert _refusal(scene.connect(hellos()[0])) == wire.LIMIT
        first, second = hellos()
        socks = [scene.connect(hello, source="127.0.0.2") for hello in (first, second)]
        assert [sock.recv(1) for sock in socks] == [OK, OK]


def test_callees_that_wait_are_limited_too() -> None:
    with _scene(relay_sessions_per_address=2) as scene:
        waiting = [hellos() for _ in range(2)]
        for number, (_, callee) in enumerate(waiting):
            scene.connect(callee)
            until(lambda number=number: scene.relay.waiting == number + 1)
        assert _refusal(scene.connect(hellos()[1])) == wire.LIMIT
        assert scene.connect(waiting[0][0]).recv(1) == OK  # one that is paired waits no longer
        scene.pair()


def test_a_dead_peer_is_found(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "CHECK_TURNS", 1)
    caller, callee = scene.pair()
    peer = caller.getsockname()
    monkeypatch.setattr(tcp, "unresponsive", lambda sock: sock.getpeername() == peer)
    with pytest.raises(ConnectionResetError):
        callee.recv(1)


def test_stop_drains_and_then_breaks_what_is_left() -> None:
    with _scene() as scene:
        first, second = scene.pair(), scene.pair()
        waiting = scene.connect(hellos()[0])
        until(lambda: scene.relay.waiting == 1)
        stopping = gevent.spawn(scene.cloud.stop, 2.0)
        assert _refusal(waiting) == wire.NO_PARTNER
        first[0].sendall(b"still carried")
        assert first[1].recv(100) == b"still carried"
        for sock in first:
            sock.close()
        with pytest.raises(ConnectionResetError):
            second[0].recv(1)
        stopping.get()


def test_stop_does_not_wait_when_all_sessions_end() -> None:
    with _scene() as scene:
        pair = scene.pair()
        stopping = gevent.spawn(scene.cloud.stop, 1000.0)
        for sock in pair:
            sock.close()
        stopping.get()
