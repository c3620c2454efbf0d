"""Two sealed streams back to back: every byte, each half-close, closes at the wrong moment."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import socket as gsocket
from gevent.pool import Group

from helpers.cloud_client import tcp_pair
from helpers.support import ENVIRONMENT, PATIENCE_S
from kkp2p_compat._errors import BadPacket, LinkLost
from kkp2p_compat._io import send as send_now
from kkp2p_compat.transport import carry, pair, tcp
from kkp2p_compat.transport.carry import SealedStream
from kkp2p_compat.transport.sealed import DirectionKeys

Sock = gsocket.socket
KEYS = DirectionKeys(b"a" * 16, b"a" * 12), DirectionKeys(b"b" * 16, b"b" * 12)


class Side:
    """What an engine has for one channel: the application's end, and a stream that is running."""

    def __init__(
        self, wire: Sock, ours: DirectionKeys, theirs: DirectionKeys,
        make_pair: Callable[[], tuple[Sock, Sock]],
    ) -> None:  # fmt: skip
        self.app, self.plain = make_pair()
        self.wire = wire
        mark = self._mark if self.plain.family == socket.AF_UNIX else None
        self.stream = SealedStream(self.plain, wire, (ours, theirs), mark)
        self.lingering = Group()
        self.running = gevent.spawn(self.stream.run)
        self.running.rawlink(lambda _: self._ended())

    def _mark(self) -> None:
        with contextlib.suppress(OSError):
            send_now(self.app.fileno(), b"\0", 1, 0)

    def _ended(self) -> None:
        """What an engine does: the local end is closed, the wire ended or broken off."""
        if self.running.value is None:
            self.lingering.spawn(tcp.linger, self.wire, PATIENCE_S)
        else:
            self.wire.close()
        if self.plain.family == socket.AF_UNIX:
            is_cut = self.running.value is not None and not self.stream.received_all
            pair.settle(self.plain, self._mark if is_cut else None)
            self.plain.close()  # what is in the pair stays there
        else:
            self.lingering.spawn(tcp.linger, self.plain, PATIENCE_S)

    def close(self) -> None:
        self.running.kill()
        self.lingering.kill()
        for sock in (self.app, self.plain, self.wire):
            sock.close()


def small_pair() -> tuple[Sock, Sock]:
    pair = gsocket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return pair


@pytest.fixture(params=[gsocket.socketpair, small_pair, tcp_pair], ids=["unix", "small", "tcp"])
def sides(request: pytest.FixtureRequest) -> Iterator[tuple[Side, Side]]:
    wires = small_pair() if request.param is small_pair else tcp_pair()
    left = Side(wires[0], *KEYS, request.param)
    right = Side(wires[1], *KEYS[::-1], request.param)
    yield left, right
    left.close()
    right.close()


def read_all(sock: Sock) -> bytes:
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)


def send(sock: Sock, data: bytes, dice: random.Random) -> None:
    view = memoryview(data)
    while view:
        size = dice.choice((1, 100, 5000, 70_000, 900_000))
        sock.sendall(view[:size])
        view = view[size:]
    sock.shutdown(socket.SHUT_WR)


def fill(sock: Sock) -> int:
    """Write until nobody takes more for a moment; bytes written."""
    sent = 0
    sock.settimeout(0.3)
    while True:
        try:
            sent += sock.send(b"x" * 65536)
        except TimeoutError:
            sock.settimeout(None)
            return sent


def write_until_refused(sock: Sock) -> None:
    while True:
        try:
            sock.sendall(b"z" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            return


def test_both_directions_at_once_byte_for_byte(sides: tuple[Side, Side]) -> None:
    dice = random.Random(3)
    data = [dice.randbytes(3_000_000), dice.randbytes(2_000_000)]
    writers = [
        gevent.spawn(send, side.app, part, random.Random(i))
        for i, (side, part) in enumerate(zip(sides, data, strict=True))
    ]
    readers = [gevent.spawn(read_all, side.app) for side in sides]
    got = [hashlib.sha256(reader.get()).digest() for reader in readers]
    assert got == [hashlib.sha256(part).digest() for part in reversed(data)]
    gevent.joinall(writers, raise_error=True)
    assert [side.running.get() for side in sides] == [None, None]


@pytest.mark.parametrize("first", [0, 1])
def test_half_close_leaves_the_other_direction_alive(sides: tuple[Side, Side], first: int) -> None:
    one, other = sides[first], sides[1 - first]
    one.app.sendall(b"question")
    one.app.shutdown(socket.SHUT_WR)
    assert read_all(other.app) == b"question"
    for _ in range(3):
        one.stream.check()
        other.stream.check()
        other.app.sendall(b"answer")
        assert one.app.recv(100) == b"answer"
    other.app.shutdown(socket.SHUT_WR)
    assert one.app.recv(100) == b""
    assert [side.running.get() for side in sides] == [None, None]


def test_what_was_written_just_before_a_close_arrives(sides: tuple[Side, Side]) -> None:
    left, right = sides
    reading = gevent.spawn(read_all, right.app)
    left.app.sendall(b"y" * 1_000_000)
    left.app.close()
    assert len(reading.get()) == 1_000_000
    left.stream.application_closed()
    right.app.close()
    assert [side.running.get() for side in sides] == [None, None]


def test_after_a_close_the_peer_s_writes_fail(sides: tuple[Side, Side]) -> None:
    left, right = sides
    left.app.close()
    left.stream.application_closed()
    assert right.app.recv(1) == b""
    write_until_refused(right.app)
    assert [side.running.get() for side in sides] == [None, None]


def test_a_close_under_a_flood_loses_nothing_that_was_written(sides: tuple[Side, Side]) -> None:
    """The peer floods us and is slow to read; we write, and close with its data unread."""
    left, right = sides
    flooding = gevent.spawn(write_until_refused, right.app)
    assert left.app.recv(1) == b"z"

    def write_and_close() -> None:
        left.app.sendall(b"y" * 1_000_000)
        if left.app.family == socket.AF_UNIX:
            left.app.close()
        else:  # a plain close of TCP throws away what it sent, if data is unread
            tcp.linger(left.app, PATIENCE_S)
        left.stream.application_closed()

    writing = gevent.spawn(write_and_close)
    got = 0
    with contextlib.suppress(ConnectionResetError):  # the end of who wrote to a closed peer
        while data := right.app.recv(16384):
            got += len(data)
            gevent.sleep(tcp.GRACE_S / 20)  # in all longer than a lingering socket waits for us
    assert got == 1_000_000
    gevent.joinall([writing, flooding], raise_error=True)
    assert [side.running.get() for side in sides] == [None, None]


def test_a_reset_of_the_wire_does_not_overtake_what_came_before() -> None:
    """The peer floods us, so our close resets the wire; it has not yet read what we wrote."""
    wires = tcp_pair()
    wires[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
    left = Side(wires[0], *KEYS, gsocket.socketpair)
    right = Side(wires[1], *KEYS[::-1], small_pair)
    flooding = gevent.spawn(write_until_refused, right.app)
    assert left.app.recv(1) == b"z"
    left.app.sendall(b"y" * 100_000)
    left.app.close()
    left.stream.application_closed()
    flooding.get()  # only the reset ends it: what tells to stop is behind our data
    with contextlib.suppress(ConnectionResetError):  # the end of who wrote to a closed peer
        got = b""
        while data := right.app.recv(65536):
            got += data
    assert got == b"y" * 100_000
    assert right.running.get() is None
    left.close()
    right.close()


def test_a_peer_that_never_reads_costs_bounded_memory(sides: tuple[Side, Side]) -> None:
    left, right = sides
    sent = fill(left.app)
    assert not left.running.ready()
    held = len(left.stream._opener._buffer) + len(right.stream._opener._buffer)
    assert held <= carry.CHUNK_BYTES + 65536 + 20
    right.app.sendall(b"the other direction is not held up")
    assert left.app.recv(100) == b"the other direction is not held up"
    left.app.shutdown(socket.SHUT_WR)
    assert len(read_all(right.app)) == sent


def test_the_wire_breaks(sides: tuple[Side, Side]) -> None:
    left, right = sides
    left.app.sendall(b"before")
    assert right.app.recv(100) == b"before"
    if left.wire.family != socket.AF_UNIX:
        left.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    left.running.kill()
    assert isinstance(right.running.get(), BadPacket | LinkLost)
    if right.app.family == socket.AF_UNIX:  # of a TCP connection the proxy sees to it
        with pytest.raises(ConnectionResetError):
            right.app.recv(1)


def test_cut_off_is_an_error(sides: tuple[Side, Side]) -> None:
    left, right = sides
    left.app.sendall(b"before")
    assert right.app.recv(100) == b"before"
    left.wire.shutdown(socket.SHUT_WR)
    error = right.running.get()
    assert isinstance(error, BadPacket)
    assert "cut off" in str(error)


def test_a_meddling_relay_is_an_error(sides: tuple[Side, Side]) -> None:
    left, right = sides
    left.wire.sendall(b"\0\0\0\x10" + bytes(16))
    error = right.running.get()
    assert isinstance(error, BadPacket)
    assert "does not open" in str(error)


def test_a_peer_that_vanishes_after_its_end_is_an_error_for_us(sides: tuple[Side, Side]) -> None:
    left, right = sides
    left.app.shutdown(socket.SHUT_WR)
    assert right.app.recv(1) == b""
    left.running.kill()
    write_until_refused(right.app)
    assert isinstance(right.running.get(), LinkLost)


def test_killed_is_not_orderly(sides: tuple[Side, Side]) -> None:
    left, _ = sides
    gevent.sleep(0)
    left.running.kill()
    assert isinstance(left.running.value, gevent.GreenletExit)


def test_nobody_hears_of_a_full_close_after_a_half_close_but_check(
    sides: tuple[Side, Side],
) -> None:
    left, right = sides
    left.app.shutdown(socket.SHUT_WR)
    assert right.app.recv(1) == b""
    if left.app.family == socket.AF_INET:
        left.app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    left.app.close()
    while not left.running.ready():
        left.stream.check()
        gevent.sleep(0.001)
    assert left.running.get() is None
    write_until_refused(right.app)
    assert right.running.get() is None


def test_nothing_is_left_running(sides: tuple[Side, Side]) -> None:
    fill(sides[0].app)
    closing = [gevent.spawn(side.stream.application_closed) for side in sides]
    gevent.sleep(0)
    for side in sides:
        side.close()
    gevent.joinall(closing)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is gevent.Greenlet and thing]


PATCHED = """
from gevent import monkey; monkey.patch_all()
import sys; sys.path[:0] = ["tests", "tests/transport"]
import gevent, test_carry, socket
from gevent import socket as gsocket
from gevent.pool import Group
wires = test_carry.tcp_pair()
left = test_carry.Side(wires[0], *test_carry.KEYS, gsocket.socketpair)
right = test_carry.Side(wires[1], *test_carry.KEYS[::-1], gsocket.socketpair)
with gevent.Timeout(20):
    left.app.shutdown(socket.SHUT_WR)
    assert right.app.recv(1) == b""
    left.app.close()
    while not left.running.ready():
        left.stream.check()
        gevent.sleep(0)
    test_carry.write_until_refused(right.app)
    assert left.running.get() is None and right.running.get() is None
left.close(); right.close()
"""


def test_monkey_patched() -> None:
    subprocess.run([sys.executable, "-c", PATCHED], check=True, env=ENVIRONMENT)


def test_a_peer_that_never_takes_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its application is gone, the peer lives and does not read: a stranger must not hold us."""
    monkeypatch.setattr(carry, "CLOSE_TIMEOUT_S", 0.01)
    app, plain = gsocket.socketpair()
    wire, peer = tcp_pair()
    stream = SealedStream(plain, wire, KEYS, lambda: None)
    running = gevent.spawn(stream.run)
    app.settimeout(0.3)
    with pytest.raises(TimeoutError):
        app.sendall(bytes(100_000_000))
    app.close()
    closing = gevent.spawn(stream.application_closed)
    error = running.get(timeout=PATIENCE_S)
    assert isinstance(error, LinkLost)
    assert "does not take the rest" in str(error)
    wire.close()
    closing.join()
    for sock in (plain, peer):
        sock.close()
