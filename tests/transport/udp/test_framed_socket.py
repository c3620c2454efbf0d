"""Packets over a TCP connection: all of them, in order, and never more than a little waiting."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import gevent
import pytest

from helpers.endpoint_support import added, make, ours, packet
from helpers.framed_pair import FramedPair, tcp_pair
from helpers.support import PATIENCE_S
from kkp2p_compat._address import Address
from kkp2p_compat._errors import EngineClosed, LinkLost, OutOfDescriptors
from kkp2p_compat.transport import tcp
from kkp2p_compat.transport.udp import doors, framed_socket
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.transport.udp.events import Transmit
from kkp2p_compat.transport.udp.framed_socket import FramedSocket

__all__ = ["make", "ours"]

log = logging.getLogger("test")
PLACE = "192.0.2.1", 443
NUMBER = 7
ADDRESS = (*PLACE, NUMBER)
Both = tuple[FramedSocket, socket.socket]


@pytest.fixture
def both() -> Iterator[Both]:
    """A FramedSocket, and the plain socket at the other end."""
    one, other = tcp_pair()
    framed = FramedSocket(one, PLACE, NUMBER, log)
    other.settimeout(PATIENCE_S)
    yield framed, other
    framed.close()
    other.close()


def frame(datagram: bytes) -> bytes:
    return struct.pack(">H", len(datagram)) + datagram


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def received(framed: FramedSocket, count: int) -> list[bytes]:
    """The next so many datagrams."""
    came: list[bytes] = []
    with gevent.Timeout(PATIENCE_S):
        while len(came) < count:
            got = framed.receive()
            if got is None:
                assert not framed.holds_more
                assert not framed.broken
                gevent.socket.wait_read(framed.fileno())
                continue
            data, size, address = got
            assert address == ADDRESS
            came += cut(data, size)
    assert len(came) == count
    return came


# One socket.


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100, 100_000])
def test_what_was_framed_comes_out_however_it_arrives(both: Both, step: int) -> None:
    framed, other = both
    random = Random(step)
    sizes = [1, 1200, 1200, 1200, 300, 1200, 1, 1, 2, 65_535, 65_535, 9] + [700] * 20
    datagrams = [random.randbytes(size) for size in sizes]
    stream = b"".join(map(frame, datagrams))
    if step < 100:
        datagrams = datagrams[:9]
        stream = b"".join(map(frame, datagrams))
    came: list[bytes] = []
    for piece in cut(stream, step):
        other.sendall(piece)
        while (got := framed.receive()) is not None:
            came += cut(*got[:2])
    came += received(framed, len(datagrams) - len(came))
    assert came == datagrams
    assert not framed.failures


def test_runs(both: Both) -> None:
    """As many as have one length, and a shorter one behind them."""
    framed, other = both
    sizes = [900] * 5 + [80] + [900] * 2 + [1000] * 3
    other.sendall(b"".join(frame(bytes([size % 251]) * size) for size in sizes))
    while tcp.unread_bytes(framed) != sum(sizes) + 2 * len(sizes):
        gevent.sleep(0.001)
    runs = []
    while (got := framed.receive()) is not None:
        runs.append((len(got[0]), got[1]))
        assert framed.holds_more == (sum(length for length, _ in runs) < sum(sizes))
    assert runs == [(4580, 900), (1800, 900), (3000, 1000)]


def test_tiny_datagrams_come_in_short_runs(both: Both) -> None:
    """Each may cost a call: so many at once would keep the loop from all else."""
    framed, other = both
    datagrams = [bytes([index % 251]) for index in range(10 * framed_socket.MAX_RUN_DATAGRAMS + 1)]
    other.sendall(b"".join(map(frame, datagrams)))
    while tcp.unread_bytes(framed) != 3 * len(datagrams):
        gevent.sleep(0.001)
    came: list[bytes] = []
    while (got := framed.receive()) is not None:
        assert len(got[0]) <= framed_socket.MAX_RUN_DATAGRAMS
        came += cut(*got[:2])
        assert framed.holds_more == (len(came) < len(datagrams))  # or nobody would ask for them
    assert came == datagrams


def test_what_is_sent_is_framed(both: Both) -> None:
    framed, other = both
    data = Random(1).randbytes(5 * 1000 + 77)
    assert framed.send(data, 1000, ADDRESS) == len(data)
    assert framed.send(b"alone", 5, ADDRESS) == 5
    assert framed.send(b"far", 1400, ADDRESS) == 3
    assert framed.send_with_ttl(b"near", ADDRESS, 3) == 4
    wanted = b"".join(map(frame, [*cut(data, 1000), b"alone", b"far", b"near"]))
    assert other.recv(len(wanted), socket.MSG_WAITALL) == wanted


def test_a_full_socket_takes_no_more_and_cuts_nothing(both: Both) -> None:
    """What it has not taken is given again, and arrives once, in whole frames and in order."""
    framed, other = both
    random = Random(3)
    datagrams = [random.randbytes(1400) for _ in range(10_000)]
    arrived = bytearray()

    def read() -> None:
        while data := other.recv(1 << 20):
            arrived.extend(data)

    was_full = cuts = 0
    for start in range(0, len(datagrams), 40):
        batch = b"".join(datagrams[start : start + 40])
        while batch:
            done = framed.send(batch, 1400, ADDRESS)
            assert done % 1400 == 0
            cuts += bool(framed._rest)
            batch = batch[done:]
            if batch:
                was_full += 1
                if was_full == 1:
                    reader = gevent.get_hub().threadpool.spawn(read)
                gevent.socket.wait_write(framed.fileno())
    framed.close()
    reader.get()
    assert was_full
    assert cuts, "it never happened"
    assert bytes(arrived) == b"".join(map(frame, datagrams))


def fill(framed: FramedSocket) -> int:
    """Send until there is no room; how many bytes that took."""
    data, sent = bytes(64_000), 0
    while (done := framed.send(data, 1000, ADDRESS)) == len(data):
        sent += done
    return sent + done


class Narrow(socket.socket):
    """Takes no more bytes than there is ``room`` for."""

    room = 0

    def send(self, data: Any, flags: int = 0) -> int:
        if Narrow.room <= 0:
            raise BlockingIOError
        taken = super().send(data[: Narrow.room], flags)
        Narrow.room -= taken
        return taken


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    """Of a FramedSocket whose kernel takes what ``Narrow.room`` says."""
    with monkeypatch.context() as patch:
        patch.setattr(framed_socket, "_new_socket", Narrow)
        one, other = tcp_pair()
        framed = FramedSocket(one, PLACE, NUMBER, log)
    yield framed, other
    framed.close()
    other.close()


@pytest.mark.parametrize("room", [1, 2, 3, 500, 1001, 1002, 1003, 3005, 3006, 3007, 3039])
def test_where_the_kernel_cuts(narrow: Both, room: int) -> None:
    framed, other = narrow
    data = Random(room).randbytes(3 * 1000 + 33)
    Narrow.room = room
    done = framed.send(data, 1000, ADDRESS)
    assert done == min(room // 1002, 3) * 1000
    Narrow.room = 1 << 20
    assert framed.send(data[done:], 1000, ADDRESS) == len(data) - done
    framed.close()
    assert read_to_end(other) == b"".join(map(frame, cut(data, 1000)))


def test_another_sender_first_ends_what_was_cut(narrow: Both) -> None:
    """Which then comes once, whoever gives it again, or nobody."""
    framed, other = narrow
    Narrow.room = 700
    assert framed.send(b"1" * 1000, 1000, ADDRESS) == 0
    Narrow.room = 100
    assert framed.send(b"2" * 1000, 1000, ADDRESS) == 0, "there was no room behind the rest"
    Narrow.room = 202 + 700
    assert framed.send(b"2" * 1000, 1000, ADDRESS) == 0
    Narrow.room = 1 << 20
    assert framed.send(b"3" * 10, 10, ADDRESS) == 10
    assert framed.send(b"2" * 1000 + b"4", 1000, ADDRESS) == 1001
    framed.close()
    datagrams = [b"1" * 1000, b"2" * 1000, b"3" * 10, b"4"]
    assert read_to_end(other) == b"".join(map(frame, datagrams))


def read_to_end(sock: socket.socket) -> bytes:
    rest = b""
    while data := sock.recv(1 << 20):
        rest += data
    return rest


def test_a_stuck_path_loses_as_a_dead_one(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its connection notices; and it carries on when the other side reads again."""
    framed, other = both
    monkeypatch.setattr(framed_socket, "STUCK_S", 60.0)
    fill(framed)
    # So much waits at most; the kernel's buffers of both sides are what Linux makes of them.
    assert framed.send(b"x" * 1000, 1000, ADDRESS) == 0
    monkeypatch.setattr(framed_socket, "STUCK_S", 0.0)
    framed._unacked = -1
    assert framed.send(b"x" * 1000, 1000, ADDRESS) == 1000
    assert framed.failures == {"stuck": 1}
    reader = gevent.get_hub().threadpool.spawn(read_to_end, other)
    monkeypatch.setattr(framed_socket, "STUCK_S", 60.0)
    framed._unacked = -1
    while framed.send(b"y" * 1000, 1000, ADDRESS) == 0:
        gevent.socket.wait_write(framed.fileno())
    framed.close()
    rest = reader.get()
    assert rest.endswith(frame(b"y" * 1000))
    assert b"x" not in rest


def test_what_waits_in_the_kernel_is_little(both: Both) -> None:
    """Of what is not on its way: the rest is as much as the other side has room for."""
    framed, other = both
    sent = fill(framed)
    room = tcp.unread_bytes(other)
    assert room is not None
    assert sent + sent // 500 - room < 3 * framed_socket.UNSENT_BYTES


HOSTILE = {
    "empty": b"\0\0",
    "empty behind another": frame(b"x") + b"\0\0",
    "text": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "noise": Random(9).randbytes(300_000),
    "much that is empty": bytes(300_000),
    "long ones": (b"\xff\xff" + b"z" * 65_535) * 4,
}


@pytest.mark.parametrize("sent", list(HOSTILE.values()), ids=list(HOSTILE))
def test_hostile_bytes(both: Both, sent: bytes) -> None:
    """It breaks, or gives datagrams for others to judge; either way it holds no more than so."""
    framed, other = both
    other.setblocking(False)
    unsent = memoryview(sent)
    for _ in range(2_000):
        if unsent:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                unsent = unsent[other.send(unsent) :]
        got = framed.receive()
        if got is not None:
            assert 0 < got[1] <= 65_535
            assert len(got[0]) <= framed_socket._RECEIVE_BYTES
        assert len(framed._received) <= framed_socket._RECEIVE_BYTES
    assert framed.receive() is None
    assert framed.broken == sent.endswith(b"\0\0") or sent == HOSTILE["noise"]


def test_an_end_and_a_reset(both: Both) -> None:
    framed, other = both
    other.sendall(frame(b"last"))
    other.close()
    assert received(framed, 1) == [b"last"]
    assert framed.receive() is None
    assert framed.broken
    assert framed.receive() is None
    one, other = tcp_pair()
    framed = FramedSocket(one, PLACE, NUMBER, log)
    tcp.abort(other)
    other.close()
    while not framed.broken:  # on loopback the reset is there by now
        assert framed.send(b"x", 1, ADDRESS) == 1
    assert set(framed.failures) <= {"ECONNRESET", "EPIPE"}
    assert framed.receive() is None
    framed.close()


def test_takes_gevents_sockets() -> None:
    one, other = tcp_pair()
    made = gevent.socket.socket(fileno=one.detach())
    framed = FramedSocket(made, PLACE, NUMBER, log)
    assert made.fileno() == -1
    del made
    gc.collect()
    other.sendall(frame(b"x"))
    assert received(framed, 1) == [b"x"]
    assert framed.port == other.getpeername()[1]
    framed.close()
    other.close()


# In an endpoint.


BODY = Random(1).randbytes(8 << 20)


def test_transfers_both_ways(make: Callable[[], Endpoint]) -> None:
    pair = FramedPair(make)
    pair.one.open()
    pair.one.write(BODY)
    pair.other.wait_for(lambda: len(pair.other.read) > 1000)
    pair.other.write(BODY[::-1])
    pair.other.wait_for(lambda: len(pair.other.read) == len(BODY))
    pair.one.wait_for(lambda: len(pair.one.read) == len(BODY))
    assert pair.other.read == BODY
    assert pair.one.read == BODY[::-1]
    for endpoint, end in zip(pair.endpoints, pair.ends, strict=True):
        assert not endpoint.dropped + endpoint.failures()
        assert not end.connection.dropped
    assert not pair.broken


def test_a_peer_that_stops_reading(make: Callable[[], Endpoint]) -> None:
    """Nothing piles up; it goes on when the peer reads again."""
    pair = FramedPair(make)
    pair.one.open()
    pair.one.write(b"first")
    pair.other.wait_for(lambda: pair.other.read == b"first")
    door = pair.endpoints[1]._doors.extra[pair.numbers[1]]
    door.readable.stop()  # the other process does not run
    pair.one.write(BODY)
    framed = pair.framed(0)
    with gevent.Timeout(PATIENCE_S):
        while not framed.failures["stuck"] and pair.one.connection.recovery.pto_count < 2:
            gevent.sleep(0.001)
    assert len(framed._rest) <= 1474
    door.readable.start(pair.endpoints[1]._turn, pair.endpoints[1]._read, door)
    pair.other.wait_for(lambda: len(pair.other.read) == 5 + len(BODY))
    assert pair.other.read[5:] == BODY


@pytest.mark.parametrize("how", ["end", "reset", "empty datagram"])
def test_a_connection_that_is_over_is_told_once(how: str, make: Callable[[], Endpoint]) -> None:
    pair = FramedPair(make)
    pair.one.open()
    pair.one.write(BODY)
    pair.other.wait_for(lambda: len(pair.other.read) > 1_000_000)
    theirs = pair.framed(1)
    if how == "end":
        theirs._sock.shutdown(socket.SHUT_RDWR)
    elif how == "reset":
        tcp.abort(theirs)
    else:
        theirs._sock.setblocking(True)
        theirs._sock.sendall(theirs._rest + b"\0\0")
    with gevent.Timeout(PATIENCE_S):
        while (0, pair.numbers[0]) not in pair.broken:
            pair.told.clear()
            pair.told.wait()
    one, other = tcp_pair()
    number = pair.adopt(0, one)  # the connection goes on by another
    assert number == pair.numbers[0] + 1
    back = pair.adopt(1, other)
    now = pair.one.connection._clock.now
    pair.one.connection.try_path((*PLACE, number), now)
    pair.other.connection.try_path((*PLACE, back), now)
    for endpoint, end in zip(pair.endpoints, pair.ends, strict=True):
        endpoint.wake(end)
    pair.other.wait_for(lambda: len(pair.other.read) == len(BODY))
    assert pair.other.read == BODY
    assert sorted(pair.broken) in ([(0, 1), (1, 1)], [(0, 1)])


def test_frames_of_mixed_lengths_are_all_delivered(ours: Endpoint) -> None:
    """Though the watcher sees nothing of what was received and not yet given out."""
    one, other = tcp_pair()
    link = added(ours, 1)
    number = ours.adopt(lambda number: FramedSocket(one, PLACE, number, log), lambda number: None)
    sent = [packet(1, b"%d" % index, 40 + index % 9) for index in range(1000)]
    stun = frame(b"\0\1stun")
    came: list[tuple[bytes, Address]] = []
    ours.on_stun = lambda data, address: came.append((data, address))
    other.sendall(stun + b"".join(map(frame, sent)))
    link.connection.wait_for(lambda: len(link.connection.received) == len(sent))
    assert link.connection.received == sent
    assert came == [(b"\0\1stun", (*PLACE, number))]
    other.close()


def test_all_of_a_flood_is_delivered_though_nothing_follows_it(ours: Endpoint) -> None:
    one, other = tcp_pair()
    ours.adopt(lambda number: FramedSocket(one, PLACE, number, log), lambda number: None)
    count, all_came = 20_000, gevent.event.Event()
    came = bytearray()

    def take(data: bytes, address: Address) -> None:
        came.extend(data)
        if len(came) == count:
            all_came.set()

    ours.on_stun = take
    other.sendall(frame(b"\2") * count)
    assert all_came.wait(PATIENCE_S)
    other.close()


def test_a_full_one_waits_and_others_go_on(ours: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framed_socket, "STUCK_S", 60.0)
    one, other = tcp_pair()
    number = ours.adopt(lambda number: FramedSocket(one, PLACE, number, log), lambda number: None)
    waiting, going = added(ours, 1), added(ours, 2)
    framed = ours._doors.extra[number].socket
    assert isinstance(framed, FramedSocket)
    fill(framed)
    waiting.connection.transmits.append(Transmit(b"w" * 900, 900, (*PLACE, number)))
    ours.wake(waiting)
    waiting.connection.wait_for(lambda: ours._doors.extra[number].waiting)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        going.connection.transmits.append(Transmit(b"g", 1, receiver.getsockname()))
        ours.wake(going)
        going.connection.wait_for(lambda: not going.connection.transmits)
        receiver.settimeout(PATIENCE_S)
        assert receiver.recv(10) == b"g"
    reader = gevent.get_hub().threadpool.spawn(read_to_end, other)
    waiting.connection.transmits.append(Transmit(b"v" * 900, 900, (*PLACE, number)))
    waiting.connection.wait_for(lambda: not waiting.connection.transmits)
    ours.close_sockets([number])
    assert reader.get().endswith(frame(b"w" * 900) + frame(b"v" * 900))
    other.close()


def test_a_stuck_one_does_not_keep_a_connection_from_another_path(
    ours: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framed_socket, "STUCK_S", 0.0)
    one, other = tcp_pair()
    number = ours.adopt(lambda number: FramedSocket(one, PLACE, number, log), lambda number: None)
    link = added(ours, 1)
    framed = ours._doors.extra[number].socket
    assert isinstance(framed, FramedSocket)
    fill(framed)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(PATIENCE_S)
        link.connection.transmits.append(Transmit(b"w" * 900, 900, (*PLACE, number)))
        link.connection.transmits.append(Transmit(b"g", 1, receiver.getsockname()))
        ours.wake(link)
        link.connection.wait_for(lambda: not link.connection.transmits)
        assert receiver.recv(10) == b"g"
    other.close()


def test_adopting_where_there_is_no_room(
    ours: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[int] = []

    def make_none(number: int) -> Any:
        made.append(number)
        raise ConnectionResetError("reset meanwhile")

    with pytest.raises(LinkLost, match="reset meanwhile"):
        ours.adopt(make_none, made.append)
    assert len(made) == 1
    monkeypatch.setattr(doors, "MAX_EXTRA_SOCKETS", 0)
    with pytest.raises(OutOfDescriptors):
        ours.adopt(make_none, made.append)
    ours.close()
    with pytest.raises(EngineClosed):
        ours.adopt(make_none, made.append)
    assert len(made) == 1


def test_a_bug_in_who_is_told(ours: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    before = len(os.listdir("/proc/self/fd"))
    one, other = tcp_pair()
    told = gevent.event.Event()

    def fail(number: int) -> None:
        told.set()
        raise ZeroDivisionError

    number = ours.adopt(lambda number: FramedSocket(one, PLACE, number, log), fail)
    other.close()
    with gevent.Timeout(PATIENCE_S):
        told.wait()
    assert "bug in" in caplog.text
    with pytest.raises(KeyError):
        ours.port_of(number)
    assert len(os.listdir("/proc/self/fd")) == before
