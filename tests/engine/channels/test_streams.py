"""What every stream promises, whatever carries it: direct, relayed, sealed, and through a proxy.

One suite for all kinds.  The near end is the caller's: a channel's descriptor, or a local program's
TCP connection to a proxy.  The far end is always an accepted channel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.support import ENDLESS_BYTES, PATIENCE_S, forked_child, in_thread, read_all, write_all

LONG = PATIENCE_S * 1000
# connect_mode, encrypt_data, whether through a proxy
KINDS = {
    "direct": (1, 0, False),
    "plain": (2, 0, False),
    "encrypted": (2, 1, False),
    "proxied direct": (1, 0, True),
    "proxied plain": (2, 0, True),
    "proxied encrypted": (2, 1, True),
}
SIZES = [1, 1000, 65_536, 3_000_000]


class End:
    """One end of a stream.  ``close`` as the application does it, at most once."""

    def __init__(self, fd: int, close: Callable[[], object]) -> None:
        self.fd = fd
        self.close = close

    def shut_down(self, how: int) -> None:
        with socket.socket(fileno=os.dup(self.fd)) as sock:
            sock.shutdown(how)


class Near(End):
    """``channel``: None for a program's connection to a proxy."""

    def __init__(self, fd: int, close: Callable[[], object], channel: Any) -> None:
        super().__init__(fd, close)
        self.channel = channel


Stream = tuple[Near, End]


@pytest.fixture(params=KINDS)
def open_stream(
    request: pytest.FixtureRequest, on_loopback: None, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> Iterator[Callable[[], Stream]]:
    mode, encrypt, proxied = KINDS[request.param]
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=mode, encrypt_data=encrypt, timeout=LONG)
    proxy_id = ctypes.c_uint32()
    address = None
    if proxied:
        assert kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx, proxy_id) == 0
        address = kkp2p.proxy_address(engine, proxy_id)
    channels: list[kkp2p.channel_t] = []
    programs: list[socket.socket] = []

    def make() -> Stream:
        if address is not None:
            program = gevent.socket.create_connection(address)
            programs.append(program)
            near = Near(program.fileno(), program.close, None)
        else:
            channel = kkp2p.channel_t()
            assert kkp2p.connect(engine, ctx, channel) == 0
            channels.append(channel)
            near = Near(channel.fd, lambda: kkp2p.close_fd(channel.fd), channel)
        accepted = kkp2p.channel_t()
        assert kkp2p.accept(peer, LONG, accepted) == 1
        assert accepted.transmit_mode == mode
        channels.append(accepted)
        return near, End(accepted.fd, lambda: kkp2p.close_fd(accepted.fd))

    yield make
    for channel in channels:
        kkp2p.close_fd(channel.fd)  # one that the test has closed is left alone
    for program in programs:
        program.close()


@pytest.fixture
def stream(open_stream: Callable[[], Stream]) -> Stream:
    return open_stream()


@pytest.fixture(params=["near writes", "far writes"])
def oriented(request: pytest.FixtureRequest, stream: Stream) -> tuple[End, End]:
    """The end that writes, and the one that reads."""
    near, far = stream
    return (near, far) if request.param == "near writes" else (far, near)


def read_exactly(fd: int, count: int) -> bytes:
    data, buff = bytearray(), bytearray(65536)
    while len(data) < count:
        got = kkp2p.read(fd, buff, min(len(buff), count - len(data)), LONG)
        assert got > 0, (got, len(data))
        data += buff[:got]
    return bytes(data)


def write_until_refused(fd: int) -> int:
    """Write single bytes until that fails: what is under way when the peer closes is taken."""
    with gevent.Timeout(PATIENCE_S):
        while (result := kkp2p.write(fd, b"x", 1, 1000)) == 1:
            gevent.sleep(0.01)
    return result


def test_both_ways_at_once(stream: Stream) -> None:
    for size in SIZES:
        sent = [os.urandom(size) for _ in stream]
        writing = [
            gevent.spawn(write_all, end.fd, data) for end, data in zip(stream, sent, strict=True)
        ]
        reading = [gevent.spawn(read_exactly, end.fd, size) for end in reversed(stream)]
        gevent.joinall(writing, timeout=PATIENCE_S, raise_error=True)
        assert [greenlet.get(timeout=PATIENCE_S) for greenlet in reading] == sent


def test_single_bytes_in_turn(stream: Stream) -> None:
    for number in range(50):
        for one, other in (stream, stream[::-1]):
            assert kkp2p.write(one.fd, bytes([number]), 1, LONG) == 1
            assert read_exactly(other.fd, 1) == bytes([number])


def test_urgent_bytes_stay_in_their_place(oriented: tuple[End, End]) -> None:
    """The peer has no other way to learn of them; one that comes alone is not held back."""
    writer, reader = oriented
    with socket.socket(fileno=os.dup(writer.fd)) as sock:
        for piece, flags in ((b"hello", 0), (b"!", socket.MSG_OOB), (b"after", 0)):
            assert sock.send(piece, flags) == len(piece)
        assert read_exactly(reader.fd, 11) == b"hello!after"
        assert sock.send(b"?", socket.MSG_OOB) == 1
        assert read_exactly(reader.fd, 1) == b"?"
        assert sock.send(b"!", socket.MSG_OOB) == 1
        assert sock.send(b"the end") == 7
        sock.shutdown(socket.SHUT_WR)
    assert read_all(reader.fd) == b"!the end"


@pytest.mark.parametrize("size", SIZES)
def test_read_after_the_peer_closed(oriented: tuple[End, End], size: int) -> None:
    """First everything that was sent, then -1, again and again."""
    writer, reader = oriented
    data = os.urandom(size)
    reading = gevent.spawn(read_all, reader.fd)
    write_all(writer.fd, data)
    writer.close()
    assert reading.get(timeout=PATIENCE_S) == data
    assert kkp2p.read(reader.fd, bytearray(1), 1, LONG) == -1


def test_closed_without_a_word(oriented: tuple[End, End]) -> None:
    oriented[0].close()
    assert read_all(oriented[1].fd) == b""


@pytest.mark.parametrize("unread", [1, 100_000])
def test_written_just_before_the_close_arrives(oriented: tuple[End, End], unread: int) -> None:
    """Also when the closing side has data that it never read, which makes plain TCP reset."""
    writer, reader = oriented
    write_all(reader.fd, bytes(unread))
    gevent.socket.wait_read(writer.fd, timeout=PATIENCE_S)
    data = os.urandom(1_000_000)
    reading = gevent.spawn(read_exactly, reader.fd, len(data))
    write_all(writer.fd, data)
    if isinstance(writer, Near) and writer.channel is None:
        reading.join(timeout=PATIENCE_S)  # that program's kernel resets: its own affair
    writer.close()
    assert reading.get(timeout=PATIENCE_S) == data


def test_write_after_the_peer_closed(oriented: tuple[End, End]) -> None:
    closer, writer = oriented
    closer.close()
    assert read_all(writer.fd) == b""
    assert write_until_refused(writer.fd) == -1


def test_half_close(oriented: tuple[End, End]) -> None:
    """shutdown(SHUT_WR) is end of stream at the peer; the other direction lives on."""
    asker, other = oriented
    write_all(asker.fd, b"question")
    asker.shut_down(socket.SHUT_WR)
    assert read_all(other.fd) == b"question"
    answer = os.urandom(300_000)
    reading = gevent.spawn(read_all, asker.fd)
    write_all(other.fd, answer[:100_000])
    write_all(other.fd, answer[100_000:])
    other.close()
    assert reading.get(timeout=PATIENCE_S) == answer


def test_half_close_of_both_sides(oriented: tuple[End, End]) -> None:
    """Ended by both, closed by nobody; a close later on does no harm."""
    first, second = oriented
    write_all(first.fd, b"one")
    first.shut_down(socket.SHUT_WR)
    assert read_all(second.fd) == b"one"
    write_all(second.fd, b"two")
    second.shut_down(socket.SHUT_WR)
    assert read_all(first.fd) == b"two"
    for end in oriented:
        assert kkp2p.write(end.fd, b"x", 1, LONG) == -1
        assert kkp2p.read(end.fd, bytearray(1), 1, LONG) == -1
        end.close()


def test_half_close_then_close(open_stream: Callable[[], Stream]) -> None:
    """The end of the stream first, then word that nobody reads: two events, and no trouble."""
    for _ in range(3):
        near, far = open_stream()
        far.shut_down(socket.SHUT_WR)
        assert read_all(near.fd) == b""
        write_all(near.fd, b"late")
        assert read_exactly(far.fd, 4) == b"late"
        far.close()
        if near.channel is not None:
            assert write_until_refused(near.fd) == -1
        near.close()
    near, far = open_stream()  # what carries them has not suffered
    write_all(near.fd, b"well")
    assert read_exactly(far.fd, 4) == b"well"


def test_a_peer_that_never_reads(oriented: tuple[End, End]) -> None:
    """Write takes what the buffers on the way hold, then nothing; and all of it arrives."""
    writer, reader = oriented
    chunk, taken, refused = os.urandom(65536), 0, 0
    while refused < 4:  # in a row: TCP's buffers grow while they fill
        count = kkp2p.write(writer.fd, chunk, len(chunk), 200)
        assert count >= 0
        taken += count
        refused = 0 if count else refused + 1
        assert taken < ENDLESS_BYTES
    assert taken > 100_000
    reading = gevent.spawn(read_all, reader.fd)
    writer.close()
    assert len(reading.get(timeout=2 * PATIENCE_S)) == taken


def test_descriptor_closed_by_the_application_itself(stream: Stream) -> None:
    near, far = stream
    write_all(far.fd, b"bye")
    os.close(far.fd)
    assert read_all(near.fd) == b"bye"
    assert write_until_refused(near.fd) == -1


def test_a_forked_child_does_not_hold_up_the_end(stream: Stream) -> None:
    """It has copies of every descriptor, and does nothing with them."""
    near, far = stream
    with forked_child():
        write_all(far.fd, b"last words")
        far.close()
        assert read_all(near.fd) == b"last words"


def test_blocking_descriptor_in_a_native_thread(stream: Stream) -> None:
    """A thread that sets the descriptor blocking and uses nothing of ours."""
    near, far = stream

    def answer() -> bytes:
        with socket.socket(fileno=os.dup(far.fd)) as sock:
            sock.setblocking(True)
            got = sock.recv(5, socket.MSG_WAITALL)
            sock.sendall(got[::-1] * 100_000)
            return got

    waiting = gevent.spawn(in_thread, answer)
    write_all(near.fd, b"12345")
    assert read_exactly(near.fd, 500_000) == b"54321" * 100_000
    assert waiting.get() == b"12345"


@pytest.mark.parametrize("open_stream", ["direct", "plain", "encrypted"], indirect=True)
def test_close_channel_alone(stream: Stream, engine: kkp2p.engine_t) -> None:
    """What was written arrives; the descriptor stays open, and is at its end."""
    near, far = stream
    write_all(near.fd, b"last")
    kkp2p.close_channel(engine, near.channel.channel_id)
    assert read_all(far.fd) == b"last"
    assert kkp2p.read(near.fd, bytearray(1), 1, LONG) == -1
    assert write_until_refused(near.fd) == -1
    kkp2p.close_channel(engine, near.channel.channel_id)  # unknown by now: nothing, as in C


def test_engine_destroyed(stream: Stream, peer: kkp2p.engine_t) -> None:
    """What was written arrives at the other side; our descriptor is at its end."""
    near, far = stream
    data = os.urandom(300_000)
    reading = gevent.spawn(read_all, near.fd)
    write_all(far.fd, data)
    kkp2p.engine_destroy(peer)
    assert reading.get(timeout=PATIENCE_S) == data
    assert kkp2p.read(far.fd, bytearray(1), 1, LONG) == -1
    far.close()
    with pytest.raises(OSError, match="Bad file") as caught:
        os.fstat(far.fd)
    assert caught.value.errno == errno.EBADF


def test_many_streams_at_once(open_stream: Callable[[], Stream]) -> None:
    pairs = [open_stream() for _ in range(30)]
    sent = [os.urandom(50_000) for _ in pairs]

    def carry(number: int) -> bytes:
        near, far = pairs[number]
        writing = gevent.spawn(write_all, near.fd, sent[number])
        there = read_exactly(far.fd, len(sent[number]))
        writing.get()
        back = gevent.spawn(write_all, far.fd, there)
        result = read_exactly(near.fd, len(there))
        back.get()
        return result

    carrying = [gevent.spawn(carry, number) for number in range(len(pairs))]
    assert [greenlet.get(timeout=2 * PATIENCE_S) for greenlet in carrying] == sent
