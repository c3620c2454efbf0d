"""How channels end: the table of docs/porting.rst, row by row, over every carrier.

What is seen is the same for ``read`` with ``error_no``, for a raw ``recv`` on the descriptor, and
for a program behind a proxy.  The row "the network is cut" is tests/lab/test_cuts.py's.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import socket as _socket
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent import socket

import kkp2p_compat as kkp2p
from helpers.support import (
    PATIENCE_S,
    ROOT,
    SECRET,
    CloudProcess,
    Program,
    forked_child,
    read_all,
    write_all,
)
from kkp2p_compat.engine.links import link_table

LONG = PATIENCE_S * 1000
ACCOUNT = ("--account", f"peer:{SECRET}")
RESET_ON_CLOSE = b"\1\0\0\0\0\0\0\0"  # struct linger: on, for 0 s

# The table's columns: connect_mode, encrypt_data.
CARRIERS = {"p2p": (1, 0), "relay": (2, 0), "relay, encrypted": (2, 1)}


def documented() -> dict[tuple[str, str], str]:
    """The table's cells: (what happens, carrier) to what is seen."""
    text = (ROOT / "docs" / "porting.rst").read_text()
    table = re.search(r"^=+.*\n(What happens .*\n)=+.*\n((?:\S.*\n)+?)=+", text, re.MULTILINE)
    assert table is not None
    heads, *rows = (re.split(r"  +", line.strip()) for line in (table[1] + table[2]).splitlines())
    assert heads[1:] == list(CARRIERS)
    return {
        (row[0], carrier): cell
        for row in rows
        for carrier, cell in zip(heads[1:], row[1:], strict=True)
    }


TABLE = documented()
WORDS = {kkp2p.KKP2P_ERROR_OTHER_DISCONNECT: "end", kkp2p.KKP2P_ERROR_CONN_DISCONNECT: "cut"}


# Who sees it.


class Reader:
    """``read`` and ``error_no``."""

    def __init__(self, engine: kkp2p.engine_t, mode: int, encrypt: int) -> None:
        self._channel = kkp2p.channel_t()
        ctx = kkp2p.connect_ctx_t("peer", 0, mode, encrypt, LONG)
        assert kkp2p.connect(engine, ctx, self._channel) == 0
        self.fd = self._channel.fd

    def send(self, data: bytes) -> None:
        write_all(self.fd, data)

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            buff = bytearray(count - len(data))
            got = kkp2p.read(self.fd, buff, len(buff), LONG)
            assert got > 0, (got, kkp2p.error_no())
            data += buff[:got]
        return data

    def see(self) -> str:
        seen = []
        for _ in range(3):  # the kernel tells of a cut once; we say the same each time
            assert kkp2p.read(self.fd, bytearray(1), 1, LONG) == -1
            seen.append(WORDS[kkp2p.error_no()])
        assert len(set(seen)) == 1
        return seen[0]

    def close(self) -> None:
        kkp2p.close_fd(self.fd)


class Receiver(Reader):
    """A raw ``recv`` on the descriptor, by another library's socket."""

    def __init__(self, engine: kkp2p.engine_t, mode: int, encrypt: int) -> None:
        super().__init__(engine, mode, encrypt)
        self.sock = socket.socket(fileno=os.dup(self.fd))

    def see(self) -> str:
        return see_end(self.sock)

    def close(self) -> None:
        self.sock.close()
        super().close()


class Proxied:
    """A program behind a proxy."""

    def __init__(self, engine: kkp2p.engine_t, mode: int, encrypt: int) -> None:
        proxy_id = ctypes.c_uint32()
        ctx = kkp2p.connect_ctx_t("peer", 0, mode, encrypt, LONG)
        assert kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx, proxy_id) == 0
        address = kkp2p.proxy_address(engine, proxy_id)
        assert address is not None
        self.sock = socket.create_connection(address)
        self.send = self.sock.sendall
        self.close = self.sock.close

    def receive(self, count: int) -> bytes:
        return self.sock.recv(count, _socket.MSG_WAITALL)

    def see(self) -> str:
        return see_end(self.sock)


def see_end(sock: socket.socket) -> str:
    try:
        assert sock.recv(1) == b""
    except ConnectionResetError:
        return "cut"
    return "end"


Observer = Reader | Receiver | Proxied
OBSERVERS: dict[str, type[Observer]] = {"read": Reader, "recv": Receiver, "program": Proxied}


# What happens.


def closes(seen: Observer, fd: int) -> None:
    write_all(fd, b"last words")
    kkp2p.close_fd(fd)
    assert seen.receive(10) == b"last words"


def ends_its_direction(seen: Observer, fd: int) -> None:
    write_all(fd, b"last words")
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.shutdown(_socket.SHUT_WR)
    assert seen.receive(10) == b"last words"


def aborts(seen: Observer, fd: int) -> None:
    kkp2p.abort_fd(fd)


IN_PROCESS: dict[str, Callable[[Observer, int], None]] = {
    "the peer closes the channel": closes,
    "the peer ends its direction": ends_its_direction,
    "the peer aborts the channel": aborts,
}
KILLED = ("the peer's program is killed", "the relay is killed")


def test_every_row_is_tested() -> None:
    assert {row for row, _ in TABLE} == {*IN_PROCESS, *KILLED, "the network is cut"}


cells = pytest.mark.parametrize("carrier", CARRIERS)
observers = pytest.mark.parametrize("observer", OBSERVERS)


@pytest.mark.parametrize("row", IN_PROCESS)
@observers
@cells
def test_what_the_peer_does(
    on_loopback: None,
    engine: kkp2p.engine_t,
    peer: kkp2p.engine_t,
    carrier: str,
    observer: str,
    row: str,
) -> None:
    seen = OBSERVERS[observer](engine, *CARRIERS[carrier])
    theirs = kkp2p.channel_t()
    assert kkp2p.accept(peer, LONG, theirs) == 1
    seen.send(b"hello")
    assert kkp2p.read(theirs.fd, bytearray(5), 5, LONG) == 5
    IN_PROCESS[row](seen, theirs.fd)
    assert seen.see() == TABLE[row, carrier]
    if row == "the peer ends its direction":
        seen.send(b"the other direction lives on")
        seen.close()
        assert read_all(theirs.fd) == b"the other direction lives on"
        assert WORDS[kkp2p.error_no()] == "end"
    seen.close()
    kkp2p.close_fd(theirs.fd)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """p2p connections that notice soon that the peer is gone."""
    monkeypatch.setattr(
        link_table,
        "TransportSettings",
        functools.partial(link_table.TransportSettings, idle_timeout_s=1.0, keepalive_s=0.2),
    )


@pytest.mark.parametrize("row", KILLED)
@observers
@cells
def test_what_is_killed(
    on_loopback: None,
    impatient: None,
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    start_program: Callable[..., Program],
    carrier: str,
    observer: str,
    row: str,
) -> None:
    """All are real processes: an echoing peer, and the cloud with its relay."""
    cloud = start_cloud(*ACCOUNT)
    server = start_program("server", str(cloud.port), "peer", SECRET)
    seen = OBSERVERS[observer](make_engine(login_port=cloud.port), *CARRIERS[carrier])
    seen.send(b"hello")
    assert seen.receive(5) == b"hello"
    if row == "the relay is killed":
        cloud.end(signal.SIGKILL)
    else:
        server.kill()
    if TABLE[row, carrier] == "goes on":
        seen.send(b"again")
        assert seen.receive(5) == b"again"
    else:
        assert seen.see() == TABLE[row, carrier]
    seen.close()


# From a program behind a proxy to the peer.


@pytest.mark.parametrize("half_closed", [False, True], ids=["", "after it read to the end"])
@cells
def test_a_program_that_resets_cuts_the_channel(
    on_loopback: None, engine: kkp2p.engine_t, peer: kkp2p.engine_t, carrier: str, half_closed: bool
) -> None:
    program, theirs = Proxied(engine, *CARRIERS[carrier]), kkp2p.channel_t()
    assert kkp2p.accept(peer, LONG, theirs) == 1
    program.send(b"hello")
    assert kkp2p.read(theirs.fd, bytearray(5), 5, LONG) == 5
    if half_closed:  # what the peer reads is no answer to what it wrote
        with socket.socket(fileno=os.dup(theirs.fd)) as sock:
            sock.shutdown(_socket.SHUT_WR)
        assert program.see() == "end"
    program.sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, RESET_ON_CLOSE)
    program.close()
    assert kkp2p.read(theirs.fd, bytearray(1), 1, LONG) == -1
    assert WORDS[kkp2p.error_no()] == "cut"
    kkp2p.close_fd(theirs.fd)


@cells
def test_a_proxy_that_is_killed_cuts_its_connections(
    impatient: None,
    on_loopback: None,
    peer: kkp2p.engine_t,
    cloud: CloudProcess,
    start_program: Callable[..., Program],
    carrier: str,
) -> None:
    """For the program, and for the peer."""
    proxy = start_program("proxy", str(cloud.port), "peer", *map(str, CARRIERS[carrier]))
    theirs = kkp2p.channel_t()
    with socket.create_connection(("127.0.0.1", int(proxy.first_line))) as program:
        program.sendall(b"hello")
        assert kkp2p.accept(peer, LONG, theirs) == 1
        assert kkp2p.read(theirs.fd, bytearray(5), 5, LONG) == 5
        proxy.kill()
        assert see_end(program) == "cut"
        assert kkp2p.read(theirs.fd, bytearray(1), 1, LONG) == -1
        assert WORDS[kkp2p.error_no()] == "cut"
    kkp2p.close_fd(theirs.fd)


# What the log says, and writing.


@cells
def test_one_line_for_a_cut_and_none_for_an_end(
    on_loopback: None, engine: kkp2p.engine_t, peer: kkp2p.engine_t, carrier: str, tmp_path: Path
) -> None:
    """At the default level: peer, channel and reason."""
    kkp2p.switch_log_level(engine, 2)
    numbers = []
    for end in (kkp2p.close_fd, kkp2p.abort_fd):
        ctx = kkp2p.connect_ctx_t("peer", 0, *CARRIERS[carrier], LONG)
        mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
        assert kkp2p.connect(engine, ctx, mine) == 0
        assert kkp2p.accept(peer, LONG, theirs) == 1
        end(theirs.fd)
        assert kkp2p.read(mine.fd, bytearray(1), 1, LONG) == -1
        kkp2p.close_fd(mine.fd)
        numbers.append(mine.channel_id)
        with gevent.Timeout(PATIENCE_S):
            while mine.channel_id in engine.channels:
                gevent.sleep(0.005)
    log = (tmp_path / "engine0" / "kkp2p_engine.log").read_text()
    assert f"channel {numbers[0]}" not in log
    assert len(re.findall(rf"normal peer: channel {numbers[1]}: cut: \w+", log)) == 1


@pytest.mark.parametrize(("end", "word"), [("close_fd", "end"), ("abort_fd", "cut")])
@cells
def test_writing_when_the_peer_is_gone(
    on_loopback: None,
    engine: kkp2p.engine_t,
    peer: kkp2p.engine_t,
    carrier: str,
    end: str,
    word: str,
) -> None:
    seen, theirs = Reader(engine, *CARRIERS[carrier]), kkp2p.channel_t()
    assert kkp2p.accept(peer, LONG, theirs) == 1
    getattr(kkp2p, end)(theirs.fd)
    assert seen.see() == word
    with gevent.Timeout(PATIENCE_S):
        while (result := kkp2p.write(seen.fd, b"x", 1, 1000)) == 1:
            gevent.sleep(0.01)
    assert (result, WORDS[kkp2p.error_no()]) == (-1, word)
    assert seen.see() == word
    seen.close()


@cells
def test_an_end_with_data_that_the_peer_did_not_take_is_an_end(
    on_loopback: None, engine: kkp2p.engine_t, peer: kkp2p.engine_t, carrier: str
) -> None:
    """We write more than it reads; it closes in order: we have all that it sent."""
    seen, theirs = Receiver(engine, *CARRIERS[carrier]), kkp2p.channel_t()
    assert kkp2p.accept(peer, LONG, theirs) == 1
    chunk = bytes(65536)
    while kkp2p.write(seen.fd, chunk, len(chunk), 200) > 0:
        pass
    write_all(theirs.fd, b"last words")
    kkp2p.close_fd(theirs.fd)
    assert seen.sock.recv(10) == b"last words"
    assert seen.see() == "end"
    seen.close()


@cells
def test_the_end_of_ones_own_engine_is_an_end(
    on_loopback: None, engine: kkp2p.engine_t, peer: kkp2p.engine_t, carrier: str
) -> None:
    seen, theirs = Reader(engine, *CARRIERS[carrier]), kkp2p.channel_t()
    assert kkp2p.accept(peer, LONG, theirs) == 1
    kkp2p.engine_destroy(engine)
    assert seen.see() == "end"
    assert kkp2p.read(theirs.fd, bytearray(1), 1, LONG) == -1
    assert WORDS[kkp2p.error_no()] == "end"
    seen.close()
    kkp2p.close_fd(theirs.fd)


@pytest.mark.parametrize(("end", "word"), [("close_fd", "end"), ("abort_fd", "cut")])
def test_udp_channels(
    on_loopback: None, engine: kkp2p.engine_t, peer: kkp2p.engine_t, end: str, word: str
) -> None:
    """Messages that wait to be read come first; only ``read`` tells an end from a cut."""
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("peer", kkp2p.KKP2P_UDP_CHANNEL, 1, 0, LONG)
    assert kkp2p.connect(engine, ctx, mine) == 0
    assert kkp2p.accept(peer, LONG, theirs) == 1
    write_all(mine.fd, b"a message that nobody takes")
    write_all(theirs.fd, b"hello")
    socket.wait_read(mine.fd)
    getattr(kkp2p, end)(theirs.fd)
    with gevent.Timeout(PATIENCE_S):
        while mine.channel_id in engine.channels:
            gevent.sleep(0.005)
    assert kkp2p.read(mine.fd, bytearray(10), 10, LONG) == 5
    assert kkp2p.read(mine.fd, bytearray(10), 10, LONG) == -1
    assert WORDS[kkp2p.error_no()] == word
    kkp2p.close_fd(mine.fd)


@pytest.mark.parametrize("carrier", ["p2p", "relay, encrypted"])
def test_a_copy_in_a_forked_child_does_not_keep_a_cut_from_being_told(
    on_loopback: None, engine: kkp2p.engine_t, peer: kkp2p.engine_t, carrier: str
) -> None:
    """Of our end of the pair: then a raw ``recv`` sees an end, but waits for nothing."""
    seen, theirs = Receiver(engine, *CARRIERS[carrier]), kkp2p.channel_t()
    assert kkp2p.accept(peer, LONG, theirs) == 1
    with forked_child():
        kkp2p.abort_fd(theirs.fd)
        assert seen.see() in ("end", "cut")
        assert Reader.see(seen) == "cut"
    seen.close()


def test_numbers_that_are_no_channels() -> None:
    ours, other = _socket.socketpair()
    kkp2p.abort_fd(ours.fileno())
    assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_PARAMETER
    ours.send(b"x")  # it was left alone
    for fd in (-1, 10**6):
        assert kkp2p.read(fd, bytearray(1), 1, 0) == -1
        assert kkp2p.error_no() == kkp2p.KKP2P_ERROR
    ours.close()
    other.close()
