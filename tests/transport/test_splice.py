"""Two sockets joined: every byte, both half-closes, backpressure, breaks, budget; both carriers."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import socket as gsocket
from gevent.event import AsyncResult

from helpers.cloud_client import tcp_pair
from kkp2p_compat.transport import splice, tcp
from kkp2p_compat.transport.splice import BudgetSpent, Carriers, Outcome, Splice, close_both

Sock = gsocket.socket


@pytest.fixture(params=["kernel", "copy"])
def carriers(request: pytest.FixtureRequest) -> Iterator[Carriers]:
    kernel = request.param == "kernel"
    if kernel and not splice.HAVE_SPLICE:
        pytest.skip("no splice here")
    pool = Carriers(kernel=kernel)
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    with gevent.Timeout(30):
        yield


def join(a: Sock, b: Sock, carriers: Carriers, budget: int = 0) -> Outcome:
    """Until both directions have ended; call in a greenlet."""
    result: AsyncResult[Outcome] = AsyncResult()
    splice = Splice(a, b, carriers, result.set, budget)
    splice.start()
    try:
        return result.get()
    finally:
        splice.stop(ConnectionAbortedError(errno.ECONNABORTED, "stopped"))


class Joined:
    """left <-> (a = b) <-> right, with the middle joined in a greenlet."""

    def __init__(self, carriers: Carriers, budget: int = 0) -> None:
        self.left, self.a = tcp_pair()
        self.right, self.b = tcp_pair()
        self.joining = gevent.spawn(join, self.a, self.b, carriers, budget)

    def close_both(self) -> Outcome:
        outcome: Outcome = self.joining.get()
        close_both(self.a, self.b, outcome)
        return outcome


@pytest.fixture
def joined(carriers: Carriers) -> Iterator[Joined]:
    middle = Joined(carriers)
    yield middle
    middle.joining.kill()
    for sock in (middle.left, middle.a, middle.b, middle.right):
        sock.close()


def _receive_all(sock: Sock) -> bytes:
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)


def _receive_until_reset(sock: Sock) -> bytes:
    """What arrives before the reset; an orderly end of stream fails the test."""
    parts = []
    while True:
        try:
            parts.append(sock.recv(65536))
        except ConnectionResetError:
            return b"".join(parts)
        assert parts[-1] != b""


def _fill(sock: Sock) -> int:
    """Write until nobody takes more for a moment; bytes written."""
    sent = 0
    sock.settimeout(0.2)
    while True:
        try:
            sent += sock.send(b"x" * 65536)
        except TimeoutError:
            sock.settimeout(None)
            return sent


def _send(sock: Sock, data: bytes, chunks: random.Random) -> None:
    view = memoryview(data)
    while view:
        size = chunks.choice((1, 100, 5000, 70_000, 900_000))
        sock.sendall(view[:size])
        view = view[size:]
    sock.shutdown(socket.SHUT_WR)


def test_both_directions_at_once_byte_for_byte(joined: Joined) -> None:
    dice = random.Random(7)
    to_right, to_left = dice.randbytes(20_000_000), dice.randbytes(15_000_000)
    jobs = [
        gevent.spawn(_send, joined.left, to_right, random.Random(1)),
        gevent.spawn(_send, joined.right, to_left, random.Random(2)),
    ]
    readers = [gevent.spawn(_receive_all, sock) for sock in (joined.right, joined.left)]
    got = [hashlib.sha256(reader.get()).digest() for reader in readers]
    assert got == [hashlib.sha256(data).digest() for data in (to_right, to_left)]
    gevent.joinall(jobs, raise_error=True)
    assert joined.close_both() == Outcome(len(to_right), len(to_left), None, None)
    assert joined.a.fileno() == joined.b.fileno() == -1


def test_half_close_leaves_the_other_direction_alive(joined: Joined) -> None:
    joined.left.sendall(b"question")
    joined.left.shutdown(socket.SHUT_WR)
    assert _receive_all(joined.right) == b"question"
    for _ in range(3):
        joined.right.sendall(b"answer")
        assert joined.left.recv(100) == b"answer"
    joined.right.close()
    assert joined.left.recv(100) == b""
    assert joined.close_both() == Outcome(8, 18, None, None)


def test_backpressure_is_passed_on_and_costs_no_more_than_a_carrier(joined: Joined) -> None:
    for sock, option in (
        (joined.left, socket.SO_SNDBUF),
        (joined.a, socket.SO_RCVBUF),
        (joined.b, socket.SO_SNDBUF),
        (joined.right, socket.SO_RCVBUF),
    ):
        sock.setsockopt(socket.SOL_SOCKET, option, 65536)  # Linux doubles it
    sent = _fill(joined.left)
    assert not joined.joining.ready()
    assert sent <= splice.PIPE_BYTES + 4 * 2 * 65536
    joined.right.sendall(b"the other direction is not held up")
    assert joined.left.recv(100) == b"the other direction is not held up"
    joined.left.shutdown(socket.SHUT_WR)
    assert len(_receive_all(joined.right)) == sent


def test_what_was_sent_before_a_reset_arrives_and_then_the_reset(joined: Joined) -> None:
    joined.right.sendall(b"unread by left, so that its close resets")
    gsocket.wait_read(joined.left.fileno())
    sent = _fill(joined.left)
    reading = gevent.spawn(_receive_until_reset, joined.right)
    # The relay's kernel has all of it once our send queue is empty; a reset takes back the rest.
    while tcp.unsent_bytes(joined.left):
        gevent.sleep(0.001)
    joined.left.close()
    outcome = joined.close_both()
    assert len(reading.get()) == sent == outcome.bytes_ab
    assert isinstance(outcome.error_a, ConnectionResetError)
    assert outcome.error_b is None


def test_a_reset_while_the_other_side_is_silent_ends_it(joined: Joined) -> None:
    joined.right.sendall(b"x")
    gsocket.wait_read(joined.left.fileno())
    joined.left.close()
    outcome = joined.close_both()
    assert isinstance(outcome.error_a, ConnectionResetError)
    assert _receive_until_reset(joined.right) == b""


def test_a_sink_that_breaks_under_a_flood_stops_its_source(joined: Joined) -> None:
    def flood() -> None:
        while True:
            joined.left.sendall(b"y" * 65536)

    flooding = gevent.spawn(flood)
    joined.right.sendall(b"last words")
    assert joined.right.recv(1) == b"y"
    joined.right.close()  # unread data: a reset
    outcome = joined.close_both()
    assert isinstance(outcome.error_b, ConnectionResetError)
    assert outcome.bytes_ba == 10
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        flooding.get()
    assert _receive_until_reset_or_nothing(joined.left) in (b"last words", b"")


def _receive_until_reset_or_nothing(sock: Sock) -> bytes:
    """After our own failed write the kernel may have told of the reset already."""
    try:
        return sock.recv(100)
    except ConnectionResetError:
        return b""


def test_a_sink_that_had_closed_orderly_is_no_error(joined: Joined) -> None:
    joined.right.sendall(b"all I have")
    joined.right.close()
    assert _receive_all(joined.left) == b"all I have"
    while not joined.joining.ready():
        joined.left.sendall(b"nobody reads this")
        gevent.sleep(0)
    outcome = joined.joining.get()
    assert outcome.error_a is None
    assert outcome.error_b is None
    assert outcome.bytes_ba == 10


def test_a_side_that_vanishes_after_its_end_of_stream_is_found_by_check(carriers: Carriers) -> None:
    left, a = tcp_pair()
    right, b = tcp_pair()
    outcomes: list[Outcome] = []
    pair = splice.Splice(a, b, carriers, outcomes.append)
    pair.start()
    left.shutdown(socket.SHUT_WR)
    assert right.recv(1) == b""
    pair.check()
    assert not outcomes
    left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    left.close()
    while not tcp.ended(a):
        gevent.sleep(0.001)
    pair.check()
    assert isinstance(outcomes[0].error_a, ConnectionResetError)
    close_both(a, b, outcomes[0])
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        right.sendall(b"x")
    right.close()


def test_a_slow_reader_of_a_finished_stream_is_not_cut_by_check(carriers: Carriers) -> None:
    """Both ends of stream are in, so the kernel calls the connection closed; data is left."""
    left, a = tcp_pair()
    right, b = tcp_pair()
    outcomes: list[Outcome] = []
    pair = splice.Splice(a, b, carriers, outcomes.append)
    pair.start()
    sent = _fill(left)
    right.shutdown(socket.SHUT_WR)
    assert left.recv(1) == b""
    left.close()
    pair.check()
    assert not outcomes
    assert len(_receive_all(right)) == sent
    assert outcomes == [Outcome(sent, 0, None, None)]
    close_both(a, b, outcomes[0])
    right.close()


def test_a_silent_peer_is_ended_by_check(
    carriers: Carriers, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, a = tcp_pair()
    right, b = tcp_pair()
    outcomes: list[Outcome] = []
    pair = splice.Splice(a, b, carriers, outcomes.append)
    pair.start()
    monkeypatch.setattr(tcp, "unresponsive", lambda sock: sock is a)
    left.sendall(b"received before, not yet read")
    gsocket.wait_read(a.fileno())
    pair.check()
    (outcome,) = outcomes
    assert isinstance(outcome.error_a, TimeoutError)
    assert outcome.bytes_ab == 29
    for sock in (left, a, b, right):
        sock.close()


@pytest.mark.parametrize("extra", [0, 1])
def test_budget(carriers: Carriers, extra: int) -> None:
    joined = Joined(carriers, budget=100_000)
    joined.left.sendall(b"x" * 60_000)
    joined.right.sendall(b"y" * (40_000 + extra))
    for sock in (joined.left, joined.right):
        sock.shutdown(socket.SHUT_WR)
    outcome = joined.close_both()
    assert outcome.bytes_ab + outcome.bytes_ba == 100_000
    if extra:
        assert isinstance(outcome.error_a, BudgetSpent)
        assert isinstance(outcome.error_b, BudgetSpent)
    else:
        assert outcome == Outcome(60_000, 40_000, None, None)
    joined.left.close()
    joined.right.close()


def test_an_idle_pair_holds_no_carrier(carriers: Carriers) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pairs = [Joined(carriers) for _ in range(5)]
    for pair in pairs:
        pair.left.sendall(b"x" * 100_000)
        pair.right.sendall(b"y" * 100_000)
    for pair in pairs:
        for sock in (pair.left, pair.right):
            count = 0
            while count < 100_000:
                count += len(sock.recv(65536))
    pool_fds = 2 * len(carriers._idle) if carriers._kernel else 0
    assert len(os.listdir("/proc/self/fd")) == before + 4 * len(pairs) + pool_fds
    assert len(carriers._idle) == 1
    for pair in pairs:
        pair.joining.kill()
        for sock in (pair.left, pair.a, pair.b, pair.right):
            sock.close()


def test_no_descriptor_left_for_a_pipe(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe2", refuse)
    joined.left.sendall(b"through user space")
    assert joined.right.recv(100) == b"through user space"
    joined.left.close()
    joined.right.close()
    assert joined.close_both() == Outcome(18, 0, None, None)


def _count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a watcher calls the splice."""
    calls: list[int] = []
    run = splice.Splice._run

    def counted(self: splice.Splice, direction: splice._Direction | None) -> None:
        calls.append(1)
        run(self, direction)

    monkeypatch.setattr(splice.Splice, "_run", counted)
    return calls


def _turns(count: int) -> None:
    """Let the loop look at all its sockets so many times."""
    for _ in range(count):
        gevent.sleep(0)


@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended"])
def test_an_urgent_byte_stops_nothing(
    carriers: Carriers, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """It is delivered in its place, and the loop rests when there is nothing to do."""
    calls = _count_calls(monkeypatch)
    left, a = tcp_pair()
    right, b = tcp_pair()
    for sock in (a, b):
        tcp.tune(sock)
    for piece, flags in ((b"hello", 0), (b"!", socket.MSG_OOB), (b"after", 0)):
        left.send(piece, flags)
    if ended:
        left.shutdown(socket.SHUT_WR)
    joining = gevent.spawn(join, a, b, carriers)
    received = b""
    while len(received) < 11:
        received += right.recv(100)
    assert received == b"hello!after"
    del calls[:]
    _turns(50)
    assert len(calls) <= 2  # the end of the stream
    left.send(b"?", socket.MSG_OOB) if not ended else None
    left.close()
    assert _receive_all(right) == (b"" if ended else b"?")
    right.close()
    close_both(a, b, joining.get())


def test_an_urgent_byte_within_the_budget(carriers: Carriers) -> None:
    joined = Joined(carriers, budget=3)
    tcp.tune(joined.a)
    joined.left.send(b"!", socket.MSG_OOB)
    joined.left.sendall(b"ab")
    assert joined.right.recv(1) == b"!"
    joined.left.send(b"?", socket.MSG_OOB)
    outcome = joined.close_both()
    assert isinstance(outcome.error_a, BudgetSpent)
    assert outcome.bytes_ab == 3
    joined.left.close()
    joined.right.close()


@pytest.mark.parametrize("step", ["fill", "drain"])
def test_a_socket_that_is_ready_and_does_nothing_is_left_to_check(
    carriers: Carriers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever the reason may be: the loop does not turn for it all the time."""
    calls = _count_calls(monkeypatch)
    left, a = tcp_pair()
    right, b = tcp_pair()
    outcomes: list[Outcome] = []
    pair = splice.Splice(a, b, carriers, outcomes.append)
    pair.start()

    def later(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "later")

    with monkeypatch.context() as patched:
        for kind in (splice._Pipe, splice._Buffer):
            patched.setattr(kind, step, later)
        left.sendall(b"late")
        while len(calls) < splice.MAX_FRUITLESS:
            gevent.sleep(0)
        del calls[:]
        _turns(50)
        assert len(calls) <= 1
    pair.check()
    assert right.recv(100) == b"late"
    for sock in (left, right):
        sock.close()
    while not outcomes:
        gevent.sleep(0.001)
    close_both(a, b, outcomes[0])


def test_many_pipes_are_small_ones_and_together_within_a_user_s_limit() -> None:
    """Readers that stop keep their pipes; the next session must still get one that is of use."""
    carriers = Carriers(kernel=True)
    lent = [carriers.take() for _ in range(splice.MOST_PIPES)]
    sizes = [carrier.size for carrier in lent if isinstance(carrier, splice._Pipe)]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= 64 << 20  # the kernel's default
    assert min(sizes) >= splice.SMALL_BUFFER_BYTES
    before = len(os.listdir("/proc/self/fd"))
    more = [carriers.take() for _ in range(10)]
    assert all(isinstance(carrier, splice._Buffer) for carrier in more)
    assert len(os.listdir("/proc/self/fd")) == before
    for carrier in lent + more:
        carriers.give_back(carrier)
    assert len(carriers._idle) == splice.IDLE_CARRIERS
    carriers.close()
    assert carriers._pipes.total() == 0


@pytest.mark.parametrize("left", [0, 64 << 10])
def test_a_pipe_that_does_not_get_its_size_is_not_used(
    joined: Joined, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Over the user's limit the kernel gives 8 KB, and refuses more."""

    def limited(fd: int, command: int, size: int = 0) -> int:
        if command == splice._F_GETPIPE_SZ:
            return left or 8192
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(splice.fcntl, "fcntl", limited)
    before = len(os.listdir("/proc/self/fd"))
    carriers = Carriers(kernel=True)
    carrier = carriers.take()
    if left:
        assert isinstance(carrier, splice._Pipe)
        assert carrier.size == left
    else:
        assert isinstance(carrier, splice._Buffer)
    carriers.give_back(carrier)
    carriers.close()
    assert len(os.listdir("/proc/self/fd")) == before
    joined.left.sendall(b"by whatever there is")
    assert joined.right.recv(100) == b"by whatever there is"


def test_a_splice_that_is_stopped_stops_everything(joined: Joined) -> None:
    _fill(joined.left)
    joined.joining.kill()
    joined.left.close()
    joined.right.close()
    close_both(joined.a, joined.b, Outcome(0, 0, OSError(), OSError()))


def test_a_bug_ends_the_pair_and_is_logged(
    joined: Joined, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(splice.Splice, "_drain", fail)
    joined.left.sendall(b"x")
    outcome = joined.joining.get()
    assert isinstance(outcome.error_a, RuntimeError)
    assert "a fault of ours" in caplog.text


def test_unix_sockets(carriers: Carriers) -> None:
    left, a = gsocket.socketpair()
    right, b = gsocket.socketpair()
    joining = gevent.spawn(join, a, b, carriers)
    receive: Callable[[], bytes] = lambda: _receive_all(right)  # noqa: E731
    reading = gevent.spawn(receive)
    left.sendall(b"z" * 3_000_000)
    left.close()
    assert len(reading.get()) == 3_000_000
    right.close()
    assert joining.get() == Outcome(3_000_000, 0, None, None)
    close_both(a, b, joining.get())
