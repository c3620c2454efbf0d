"""Channels on direct connections: many at once, killed peers, bounded memory, other processes."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import LONG, accept, close, connect, links, settled, until
from helpers.support import (
    ENDLESS_BYTES,
    PATIENCE_S,
    SECRET,
    CloudProcess,
    Program,
    read_all,
    write_all,
)
from helpers.udp_streams import held_bytes
from kkp2p_compat.engine.links import link_channels, link_table
from kkp2p_compat.transport.udp.flow_control import MAX_UNTAKEN_BYTES

pytestmark = pytest.mark.usefixtures("on_loopback")

MANY = 300
STALLED = 20


def test_many_channels_at_once(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    sent = [os.urandom(5000) for _ in range(MANY)]

    def call(number: int) -> bytes:
        channel = connect(engine, desc=number)
        write_all(channel.fd, sent[number])
        buff = bytearray(1)
        assert kkp2p.read(channel.fd, buff, 1, LONG) == 1
        close(channel)
        return bytes(buff)

    def answer(channel: kkp2p.channel_t) -> None:
        expected = sent[channel.connect_desc]
        data, buff = bytearray(), bytearray(5000)
        while len(data) < len(expected):
            count = kkp2p.read(channel.fd, buff, len(buff), LONG)
            assert count > 0
            data += buff[:count]
        assert data == expected
        write_all(channel.fd, expected[:1])
        assert read_all(channel.fd) == b""
        close(channel)

    calling = [gevent.spawn(call, number) for number in range(MANY)]
    answering = [gevent.spawn(answer, accept(peer)) for _ in range(MANY)]
    gevent.joinall(answering, raise_error=True)
    assert [greenlet.get() for greenlet in calling] == [data[:1] for data in sent]
    assert len(links(engine)) == len(links(peer)) == 1
    until(lambda: settled(engine) and settled(peer))


def test_channels_that_nobody_reads_leave_room(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """Their memory is bounded, and the others go on."""
    stuck = [(connect(engine), accept(peer)) for _ in range(STALLED)]
    chunk, taken = bytes(1 << 18), 0
    for mine, _ in stuck:
        while (count := kkp2p.write(mine.fd, chunk, len(chunk), 50)) > 0:
            taken += count
            assert taken < ENDLESS_BYTES
    mine, theirs = connect(engine), accept(peer)
    data = os.urandom(4 << 20)
    writing = gevent.spawn(write_all, mine.fd, data)
    reading = gevent.spawn(read_all, theirs.fd)
    writing.get(timeout=PATIENCE_S)
    close(mine)
    assert reading.get(timeout=PATIENCE_S) == data
    (link,) = links(peer)
    held = peer.thread.call(
        lambda: sum(held_bytes(one.receive) for one in link.connection.streams.by_id.values())
    )
    assert held <= MAX_UNTAKEN_BYTES  # mostly far less: how the windows grow is a matter of timing
    close(theirs, *(channel for pair in stuck for channel in pair))


def test_a_peer_that_never_takes_the_rest(
    monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """Its application sleeps for good after our close: what was written is given up some time."""
    mine, theirs = connect(engine), accept(peer)
    chunk = bytes(1 << 18)
    while kkp2p.write(mine.fd, chunk, len(chunk), 100) > 0:
        pass
    close(mine)
    engine.thread.call(engine.sweep)
    assert engine.channels  # it still hopes
    monkeypatch.setattr(link_channels, "STANDSTILL_S", 0)

    def given_up() -> bool:  # once nothing arrives any more
        engine.thread.call(engine.sweep)
        return not engine.channels

    until(given_up)
    read_all(theirs.fd)  # ends
    close(theirs)
    until(lambda: settled(engine) and settled(peer))


@pytest.mark.parametrize("doing", ["reading", "writing", "nothing"])
def test_a_peer_that_is_killed(
    monkeypatch: pytest.MonkeyPatch,
    cloud: CloudProcess,
    engine: kkp2p.engine_t,
    start_program: Callable[..., Program],
    doing: str,
) -> None:
    """SIGKILL in the middle of a transfer: every call ends with an error, and no byte is wrong."""
    monkeypatch.setattr(
        link_table,
        "TransportSettings",
        functools.partial(link_table.TransportSettings, idle_timeout_s=0.5, keepalive_s=0.1),
    )
    server = start_program("server", str(cloud.port), "peer", SECRET)
    assert server.first_line == "joined"
    channel = connect(engine)
    block = os.urandom(1 << 16)

    def write() -> int:
        while (count := kkp2p.write(channel.fd, block, len(block), LONG)) == len(block):
            pass
        return count

    writing = None
    if doing != "nothing":
        writing = gevent.spawn(write)
        data, buff = bytearray(), bytearray(len(block))
        while len(data) < 10 * len(block):
            count = kkp2p.read(channel.fd, buff, len(buff), LONG)
            assert count > 0
            data += buff[:count]
    server.kill()
    if doing == "reading":
        data += read_all(channel.fd)
        assert data == (block * (len(data) // len(block) + 1))[: len(data)]
    elif doing == "nothing":
        assert read_all(channel.fd) == b""
    if writing is not None:
        with gevent.Timeout(PATIENCE_S):
            assert writing.get() < len(block)
            while kkp2p.write(channel.fd, b"x", 1, LONG) == 1:
                gevent.sleep(0.01)
    assert kkp2p.write(channel.fd, b"x", 1, LONG) == -1
    close(channel)
    until(lambda: settled(engine) and not links(engine))


def test_a_stopped_process_is_not_a_dead_one(
    cloud: CloudProcess, engine: kkp2p.engine_t, start_program: Callable[..., Program]
) -> None:
    """SIGSTOP, then SIGCONT: the transfer goes on where it was."""
    server = start_program("server", str(cloud.port), "peer", SECRET)
    channel = connect(engine)
    data = os.urandom(8 << 20)
    writing = gevent.spawn(write_all, channel.fd, data)
    received, buff = bytearray(), bytearray(1 << 16)

    def read_until(size: int) -> None:
        while len(received) < size and (
            count := kkp2p.read(channel.fd, buff, len(buff), 300 if stopped else LONG)
        ):
            assert count > 0
            received.extend(buff[:count])

    stopped = False
    read_until(len(data) // 4)
    server.process.send_signal(signal.SIGSTOP)
    stopped = True
    read_until(len(data))  # until nothing comes any more
    assert len(received) < len(data)
    server.process.send_signal(signal.SIGCONT)
    stopped = False
    read_until(len(data))
    writing.get(timeout=PATIENCE_S)
    assert received == data
    close(channel)
    until(lambda: settled(engine))
