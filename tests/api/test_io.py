"""Waiting and moving bytes: any mode of the descriptor, any kind of caller, any buffer."""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.event import Event

import kkp2p_compat as kkp2p
from helpers.support import ENVIRONMENT, PATIENCE_S, in_thread
from kkp2p_compat import _descriptors, _io
from kkp2p_compat._io import READ, WRITE, OneShot, Signal, receive, send, wait_fd

start_thread = monkey.get_original("_thread", "start_new_thread")
LONGEST_MS = 2**31 - 1

Run = Callable[[Callable[[], Any]], Any]


@pytest.fixture(params=["greenlet", "native"])
def run(request: pytest.FixtureRequest) -> Run:
    """Call a function the way a greenlet does, or a thread that has no hub."""
    if request.param == "native":
        return in_thread
    return lambda function: gevent.spawn(function).get()


@pytest.fixture(params=[True, False], ids=["blocking", "nonblocking"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(request.param)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    fds = [end.detach() for end in ends]
    flags = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in fds]
    yield fds[0], fds[1]
    for fd, flag in zip(fds, flags, strict=True):
        try:
            assert fcntl.fcntl(fd, fcntl.F_GETFL) == flag, "the mode was changed"
        except OSError:
            continue  # closed by the test
        os.close(fd)


def fill(fd: int) -> int:
    sent = 0
    while (count := send(fd, bytes(65536), 65536, 0)) is not None:
        sent += count
    return sent


def test_bytes_pass(run: Run, pair: tuple[int, int]) -> None:
    buff = bytearray(10)
    assert run(lambda: send(pair[0], b"hello!", 5, 1)) == 5
    assert run(lambda: receive(pair[1], buff, 10, 1)) == 5
    assert buff == b"hello" + bytes(5)


@pytest.mark.parametrize("timeout_s", [0, 0.01])
def test_nothing_in_time(run: Run, pair: tuple[int, int], timeout_s: float) -> None:
    assert run(lambda: receive(pair[0], bytearray(1), 1, timeout_s)) is None
    fill(pair[0])
    assert run(lambda: send(pair[0], b"x", 1, timeout_s)) is None


@pytest.mark.parametrize("timeout_s", [PATIENCE_S, LONGEST_MS / 1000, None])
def test_waiting_is_ended_by_bytes(
    run: Run, pair: tuple[int, int], timeout_s: float | None
) -> None:
    later = gevent.spawn_later(0.01, os.write, pair[1], b"x")
    assert run(lambda: receive(pair[0], bytearray(9), 9, timeout_s)) == 1
    later.get()


@pytest.mark.parametrize("timeout_s", [PATIENCE_S, LONGEST_MS / 1000, None])
def test_waiting_is_ended_by_room(run: Run, pair: tuple[int, int], timeout_s: float | None) -> None:
    sent = fill(pair[0])
    later = gevent.spawn_later(0.01, receive, pair[1], bytearray(sent), sent, 0)
    assert run(lambda: send(pair[0], b"x" * 100, 100, timeout_s)) == 100
    later.get()


def test_end_of_stream_and_a_closed_peer(run: Run, pair: tuple[int, int]) -> None:
    send(pair[0], b"last", 4, 0)
    os.close(pair[0])
    buff = bytearray(9)
    assert run(lambda: receive(pair[1], buff, 9, 1)) == 4
    assert run(lambda: receive(pair[1], buff, 9, 1)) == 0
    with pytest.raises(BrokenPipeError):  # and no SIGPIPE
        run(lambda: send(pair[1], b"x", 1, 1))


def test_no_socket(run: Run) -> None:
    for fd in (9999, 0):
        with pytest.raises(OSError, match=r"Bad file|not a socket|non-socket"):
            run(lambda fd=fd: receive(fd, bytearray(1), 1, 0))


def test_a_caller_that_was_busy_still_gets_its_whole_time(pair: tuple[int, int]) -> None:
    """The loop's clock is stale by then; a timer started on it would end at once."""
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
    began = time.monotonic()
    assert receive(pair[0], bytearray(1), 1, 0.15) is None
    assert time.monotonic() - began > 0.14


def test_other_greenlets_run_meanwhile(pair: tuple[int, int]) -> None:
    waiting = gevent.spawn(receive, pair[0], bytearray(1), 1, None)
    gevent.sleep(0)
    os.write(pair[1], b"x")
    assert waiting.get() == 1


def test_the_caller_s_own_time_out_passes(pair: tuple[int, int]) -> None:
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.01) as mine:
        receive(pair[0], bytearray(1), 1, PATIENCE_S)
    assert caught.value is mine


@pytest.mark.parametrize("events", [READ, WRITE, READ | WRITE])
def test_wait_fd(run: Run, pair: tuple[int, int], events: int) -> None:
    fill(pair[0])
    assert run(lambda: wait_fd(pair[0], events, 0)) is False
    sent = fill(pair[1]) if events & READ else 0
    if not sent:
        receive(pair[1], bytearray(1 << 20), 1 << 20, 0)
    assert run(lambda: wait_fd(pair[0], events, PATIENCE_S)) is True


def test_hung_up(pair: tuple[int, int]) -> None:
    assert not _io.hung_up(pair[0])
    with socket.socket(fileno=os.dup(pair[1])) as other:
        other.shutdown(socket.SHUT_WR)
        assert not _io.hung_up(pair[0])
    os.close(pair[1])
    assert _io.hung_up(pair[0])


def _mapped() -> mmap.mmap:
    return mmap.mmap(-1, 8)


WRITABLE = [
    lambda: bytearray(8),
    lambda: memoryview(bytearray(12))[2:10],
    lambda: memoryview(bytearray(8)).cast("B", (2, 4)),
    lambda: ctypes.create_string_buffer(8),
    lambda: (ctypes.c_uint32 * 2)(),
    lambda: array.array("I", [0, 0]),
    _mapped,
]
READABLE = [*WRITABLE, lambda: b"abcdefgh", lambda: memoryview(b"abcdefgh")]


@pytest.mark.parametrize("make", WRITABLE)
def test_any_writable_buffer(pair: tuple[int, int], make: Callable[[], Any]) -> None:
    buff = make()
    os.write(pair[1], b"12345678")
    assert kkp2p.read(pair[0], buff, 8, 0) == 8
    assert bytes(buff) == b"12345678"


@pytest.mark.parametrize("make", READABLE)
def test_any_readable_buffer(pair: tuple[int, int], make: Callable[[], Any]) -> None:
    buff = make()
    assert kkp2p.write(pair[0], buff, 8, 0) == 8
    assert os.read(pair[1], 99) == bytes(buff)


def test_a_large_read_only_view_is_not_copied_whole(run: Run, pair: tuple[int, int]) -> None:
    """The loop of docs/porting.rst over a file of a terabyte, of which each write takes little."""
    size = 1 << 40
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
            view = memoryview(data)[100:]
            sent = run(lambda: kkp2p.write(pair[0], view, len(view), 0))
            assert 0 < sent <= _io.MAX_COPY_BYTES
            assert receive(pair[1], bytearray(sent), sent, 0) == sent
            view.release()


def test_a_read_only_view_of_numbers(pair: tuple[int, int]) -> None:
    """Lengths are bytes, whatever the view's items are."""
    view = memoryview(bytes(range(8))).cast("I")
    assert kkp2p.write(pair[0], view, 7, 0) == 7
    assert os.read(pair[1], 99) == bytes(range(7))
    assert send(pair[0], view, 7, 0) == 7
    assert os.read(pair[1], 99) == bytes(range(7))


@pytest.mark.parametrize("make", [*WRITABLE, lambda: b"abcdefgh"])
def test_nothing_is_touched_past_the_length(pair: tuple[int, int], make: Callable[[], Any]) -> None:
    buff = make()
    assert kkp2p.write(pair[0], buff, 3, 0) == 3
    assert os.read(pair[1], 99) == bytes(buff)[:3]
    if not isinstance(buff, bytes):
        os.write(pair[1], b"12345678")
        assert kkp2p.read(pair[0], buff, 3, 0) == 3
        assert bytes(buff) == b"123" + bytes(5)


def test_the_buffer_is_free_again_after_the_call(pair: tuple[int, int]) -> None:
    buff = bytearray(8)
    kkp2p.read(pair[0], buff, 8, 0)
    kkp2p.write(pair[0], buff, 8, 0)
    buff.extend(b"grown")


# Signals.


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_signal_set(run: Run, when: str) -> None:
    def use() -> None:
        signal = Signal()
        if when == "during":
            start_thread(lambda: (time.sleep(0.01), signal.set()), ())
        else:
            start_thread(lambda: [signal.set() for _ in range(3)], ())
        signal.wait()
        signal.close()
        if when == "after":
            signal.set()
            signal.close()

    run(use)


def test_a_signal_of_an_interrupted_waiter() -> None:
    signal = Signal()
    with gevent.Timeout(0.01, False):
        signal.wait()
    signal.close()
    signal.set()


def test_many_signals_at_once() -> None:
    def use() -> None:
        for _ in range(200):
            signal = Signal()
            start_thread(signal.set, ())
            signal.wait()
            signal.close()

    gevent.joinall([gevent.spawn(use) for _ in range(10)], raise_error=True)


NEVER_IMPORTS_GEVENT = """
import sys
before = set(sys.modules)
import socket, threading, kkp2p_compat as kkp2p
a, b = socket.socketpair()
{hub}
threading.Timer(0.05, b.send, (b"x",)).start()
assert kkp2p.read(a.fileno(), bytearray(1), 1, 20000) == 1
assert kkp2p.read(a.fileno(), bytearray(1), 1, 10) == 0
import gevent._hub_local
assert (gevent._hub_local.get_hub_if_exists() is None) == {native}
a.close(); b.close()
"""


@pytest.mark.parametrize("hub", [False, True])
def test_a_program_without_a_hub_gets_none(hub: bool) -> None:
    """And one that has a hub with nothing else to do is not told so by LoopExit."""
    program = NEVER_IMPORTS_GEVENT.format(
        hub="import gevent; gevent.get_hub()" if hub else "", native=not hub
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=ENVIRONMENT)


def test_a_thread_that_waits_again_opens_nothing(
    pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipes: list[int] = []
    monkeypatch.setattr(os, "pipe", lambda pipe=os.pipe: pipes.append(1) or pipe())

    def wait() -> list[bool]:
        return [wait_fd(pair[0], READ, 0.001) for _ in range(3)]

    assert in_thread(wait) == [False, False, False]
    assert len(pipes) == 1


def test_a_number_that_the_wait_itself_has_taken() -> None:
    """Closed before a thread's first wait, whose own pipe then gets the numbers."""
    copies = [os.dup(0) for _ in range(3)]
    eras = [_descriptors.closings(fd) for fd in copies]
    for fd in copies:
        _descriptors.close(fd)

    def wait() -> list[bool]:
        return [wait_fd(fd, READ, PATIENCE_S, era) for fd, era in zip(copies, eras, strict=True)]

    assert in_thread(wait) == [True, True, True]


def test_a_wait_that_a_close_has_ended_leaves_nothing_for_the_next(pair: tuple[int, int]) -> None:
    """The threads' first wait makes what the second uses again."""
    copies = [os.dup(pair[0]) for _ in range(3)]

    def wait() -> list[bool]:
        ended = [wait_fd(fd, READ, PATIENCE_S, era) for fd, era in zip(copies, eras, strict=True)]
        return [*ended, wait_fd(pair[0], READ, 0.01)]

    eras = [_descriptors.closings(fd) for fd in copies]
    closing = gevent.spawn_later(0.01, lambda: [_descriptors.close(fd) for fd in copies])
    assert in_thread(wait) == [True, True, True, False]
    closing.get()


WAITS_WHILE_IT_WAITS = """
import signal, socket
from kkp2p_compat._io import receive
(a, b), (c, d) = socket.socketpair(), socket.socketpair()
def handle(*_):
    assert receive(c.fileno(), bytearray(1), 1, 0.01) is None
    b.send(b"x")
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.1)
assert receive(a.fileno(), bytearray(1), 1, 60) == 1
"""


def test_a_signal_handler_may_wait_while_its_thread_does() -> None:
    subprocess.run([sys.executable, "-c", WAITS_WHILE_IT_WAITS], check=True, env=ENVIRONMENT)


WAITS_BESIDE_ITS_CHILD = """
import os, socket
from kkp2p_compat._descriptors import close, closings
from kkp2p_compat._io import READ, wait_fd
a, b = socket.socketpair()
assert not wait_fd(a.fileno(), READ, 0)
child = os.fork()
if not child:
    for _ in range(100):
        copy = os.dup(a.fileno())
        era = closings(copy)
        close(copy)
        assert wait_fd(copy, READ, 60, era)
    b.send(b"x")
    os._exit(0)
assert wait_fd(a.fileno(), READ, 60)
assert a.recv(2, socket.MSG_DONTWAIT) == b"x", "the child woke its parent"
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_wakes_its_own_waits_only() -> None:
    subprocess.run([sys.executable, "-c", WAITS_BESIDE_ITS_CHILD], check=True, env=ENVIRONMENT)


def test_a_timer_that_is_started_again_takes_its_time_again() -> None:
    timer, fired, gaps = OneShot(0.02), Event(), []
    with gevent.Timeout(PATIENCE_S):
        for _ in range(3):
            fired.clear()
            began = time.monotonic()
            timer.start(fired.set)
            timer.start(fired.set)
            assert timer.active
            fired.wait()
            assert not timer.active
            gaps.append(time.monotonic() - began)
    timer.close()
    assert min(gaps) > 0.015
