"""Join two connected stream sockets, so that what one sends the other receives.

Rules:
- The two directions are independent: end of stream on one socket becomes SHUT_WR on the other, and
  the opposite direction goes on.  Backpressure passes through: a direction holds one pipe-full.
- When one socket breaks, what it had sent is still delivered, and what is meant for it stops.
- A Splice does not close the two sockets.  ``close_both`` does, so that each side sees how the
  other's stream ended; and if this process is killed, the kernel does, with a reset.

Everything runs in watcher callbacks on the hub; no greenlet belongs to a direction.  On Linux the
bytes move through a pipe in the kernel (``os.splice``), elsewhere through a buffer.  Pipes and
buffers are borrowed from a pool only while bytes are under way, so that an idle pair is two
sockets, two watchers and a few small objects.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
from gevent import get_hub

from .._io import READ, WRITE
from . import tcp

__all__ = ["BudgetSpent", "Carriers", "Outcome", "Splice", "close_both"]

# Our choice.  The kernel's default of 64 KB halves the throughput; 1 MB is the most that a user
# without privileges may ask for (/proc/sys/fs/pipe-max-size).
PIPE_BYTES = 1 << 20
# Our choice: how many pipes of each size, the largest first.  While a reader stops, a pipe is lent
# to its direction, and all pipes of a user without privileges together may hold 64 MB by default
# (/proc/sys/fs/pipe-user-pages-soft).  These hold 60.5 MB; beyond 64 MB a pipe would have 8 KB.
PIPES = ((PIPE_BYTES, 32), (256 << 10, 64), (64 << 10, 200))
MOST_PIPES = sum(count for _, count in PIPES)
BUFFER_BYTES = 256 << 10  # our choice: the copy loop's buffer
SMALL_BUFFER_BYTES = 64 << 10  # our choice: the same when no pipe can be had
PIECE_BYTES = 16 << 10  # our choice: what is copied at once where the kernel does not splice
MAX_FRUITLESS = 64  # our choice: calls by one watcher without progress; then it waits for ``check``
IDLE_CARRIERS = 8  # our choice: how many pipes or buffers a pool keeps for the next burst

_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032  # linux/fcntl.h
_NONBLOCK, _MOVE = 2, 1  # SPLICE_F_NONBLOCK, SPLICE_F_MOVE
_RETRY = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)

log = logging.getLogger(__name__)

HAVE_SPLICE = sys.platform == "linux" and hasattr(os, "splice")


class BudgetSpent(Exception):
    """the session has carried all the bytes it may"""


class _Pipe:
    """Bytes under way in the kernel.  Raises OSError when there is no pipe of that size."""

    __slots__ = ("_read", "_write", "pending", "size")

    def __init__(self, size: int) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.pending = 0
        self.size = size
        try:
            if fcntl.fcntl(self._write, _F_GETPIPE_SZ) != size:
                fcntl.fcntl(self._write, _F_SETPIPE_SZ, size)
        except OSError:  # over the user's limit
            self.close()
            raise

    def fill(self, sock: socket.socket, limit: int) -> int:
        """Take up to ``limit`` bytes in; call only when nothing is pending.

        0 does not prove an end: Linux's splice goes no further than TCP's urgent mark, where it
        returns 0 (if the end of stream has arrived) or EAGAIN for ever.  A receive tells.
        """
        try:
            self.pending = os.splice(
                sock.fileno(), self._write, min(limit, self.size), flags=_NONBLOCK | _MOVE
            )
        except BlockingIOError:
            return 0
        return self.pending

    def drain(self, sock: socket.socket) -> None:
        while self.pending:
            self.pending -= os.splice(
                self._read, sock.fileno(), self.pending, flags=_NONBLOCK | _MOVE
            )

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class _Buffer:
    """Bytes under way in user space."""

    __slots__ = ("_memory", "_start", "pending")

    def __init__(self, size: int = BUFFER_BYTES) -> None:
        self._memory = memoryview(bytearray(size))
        self._start = self.pending = 0

    def fill(self, sock: socket.socket, limit: int) -> int:
        self._start = 0
        self.pending = sock.recv_into(self._memory, min(limit, len(self._memory)))
        return self.pending

    def drain(self, sock: socket.socket) -> None:
        while self.pending:
            count = sock.send(self._memory[self._start : self._start + self.pending])
            self._start += count
            self.pending -= count

    def close(self) -> None:
        self._memory.release()


class Carriers:
    """Pipes (or buffers) for the directions that have bytes under way.

    One per thread: the relay or the engine owns it, and closes it at its own end.
    ``kernel=False`` chooses the copy loop.
    """

    def __init__(self, *, kernel: bool = HAVE_SPLICE, most_pipes: int = MOST_PIPES) -> None:
        self._kernel = kernel
        self._most_pipes = most_pipes
        self._pipes: Counter[int] = Counter()  # that exist, by size
        self._idle: list[_Pipe | _Buffer] = []
        self._closed = False

    def take(self) -> _Pipe | _Buffer:
        if self._idle:
            return self._idle.pop()
        if not self._kernel:
            return _Buffer()
        return self._make_pipe() or _Buffer(SMALL_BUFFER_BYTES)

    def _make_pipe(self) -> _Pipe | None:
        """The largest pipe that can be had; None: this burst goes through user space."""
        if self._pipes.total() >= self._most_pipes:
            return None
        for size, most in PIPES:
            if self._pipes[size] < most:
                with contextlib.suppress(OSError):  # out of descriptors, or over a limit
                    pipe = _Pipe(size)
                    self._pipes[size] += 1
                    return pipe
        return None

    def give_back(self, carrier: _Pipe | _Buffer) -> None:
        wanted = not self._closed and len(self._idle) < IDLE_CARRIERS
        if wanted and not carrier.pending and isinstance(carrier, _Pipe) == self._kernel:
            self._idle.append(carrier)
        else:
            self._close(carrier)

    def _close(self, carrier: _Pipe | _Buffer) -> None:
        if isinstance(carrier, _Pipe):
            self._pipes[carrier.size] -= 1
        carrier.close()

    def close(self) -> None:
        """Carriers that are lent out are closed when they come back."""
        self._closed = True
        while self._idle:
            self._close(self._idle.pop())


class Outcome(NamedTuple):
    """How a splice ended.  An error of ``None`` means: by an orderly end of stream."""

    bytes_ab: int  # delivered from a to b
    bytes_ba: int
    error_a: Exception | None  # why the stream that a sent is cut short
    error_b: Exception | None


class _Side:
    """One socket with its watchers.  The write watcher is made when it is first needed."""

    __slots__ = ("error", "readable", "sock", "writable")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.error: Exception | None = None  # the connection is dead, both ways
        self.readable: Any = None
        self.writable: Any = None


class _Direction:
    """From ``source`` to ``sink``.  Reads only when nothing is under way; else waits to write."""

    __slots__ = ("carrier", "count", "done", "fruitless", "sink", "source")

    def __init__(self, source: _Side, sink: _Side) -> None:
        self.source = source
        self.sink = sink
        self.carrier: _Pipe | _Buffer | None = None  # what is under way
        self.count = 0  # bytes delivered
        self.fruitless = 0  # calls in a row that moved nothing
        self.done = False


class Splice:
    """Two sockets that are being joined.  ``start`` it; the hub calls ``on_done(outcome)`` once.

    ``budget``: how many bytes both directions together may carry; 0: no limit.  When a byte more
    arrives, both streams are cut short with BudgetSpent.  Every method belongs to the thread that
    called ``start``.  The sockets are set non-blocking, and must stay open until ``on_done``.
    """

    __slots__ = ("_a", "_ab", "_b", "_ba", "_budget", "_carriers", "_on_done", "_spent")

    def __init__(
        self,
        a: socket.socket,
        b: socket.socket,
        carriers: Carriers,
        on_done: Callable[[Outcome], object],
        budget: int = 0,
    ) -> None:
        self._a, self._b = _Side(a), _Side(b)
        self._ab, self._ba = _Direction(self._a, self._b), _Direction(self._b, self._a)
        self._carriers = carriers
        self._budget = budget
        self._on_done: Callable[[Outcome], object] | None = on_done
        self._spent: BudgetSpent | None = None

    @property
    def count(self) -> int:
        """Bytes delivered by now, of both directions."""
        return self._ab.count + self._ba.count

    def start(self) -> None:
        loop = get_hub().loop
        for direction in (self._ab, self._ba):
            source = direction.source
            source.sock.settimeout(0)
            tcp.reset_if_killed(source.sock)
            source.readable = loop.io(source.sock.fileno(), READ)
            source.readable.start(self._run, direction)

    def stop(self, error: Exception) -> None:
        """End both directions now, if they have not ended; what is under way is lost."""
        for direction in (self._ab, self._ba):
            if not direction.done:
                direction.source.error = direction.source.error or error
                self._finish(direction)
        self._report()

    def check(self) -> None:
        """Find a side that has vanished silently; to be called every few seconds."""
        for direction in (self._ab, self._ba):
            side = direction.source
            into = self._ba if direction is self._ab else self._ab
            if side.error is not None:
                continue
            # Nothing watches a side that has ended its stream and gets nothing at the moment.
            if direction.done and not into.done and tcp.ended(side.sock):
                side.error = ConnectionResetError(errno.ECONNRESET, "the peer is gone")
            elif tcp.unresponsive(side.sock):
                side.error = TimeoutError(errno.ETIMEDOUT, "the peer does not answer")
            if not direction.done:  # the watcher may rest, see _count_fruitless
                self._watch(direction)
        self._run(None)

    def _run(self, direction: _Direction | None) -> None:
        """The source has bytes and none are under way, or the sink has room for those that are."""
        try:
            if direction is not None:
                self._move(direction)
            if self._a.error is not None or self._b.error is not None:
                self._settle()
            self._report()
        except Exception as error:
            log.exception("a splice ends by a fault of ours")
            self.stop(error)

    def _move(self, direction: _Direction) -> None:
        if direction.carrier is None:
            self._fill(direction)
        if direction.carrier is not None:
            self._drain(direction)

    def _settle(self) -> None:
        """A socket is dead: what it had sent is delivered, what is meant for it stops."""
        for direction in (self._ab, self._ba, self._ab):  # the second may have broken the first
            # A dead socket may never be readable again: take what it has now.
            while direction.source.error is not None and not direction.done:
                self._move(direction)
                if direction.carrier is not None:
                    break  # the sink is slow, or dead
            if direction.sink.error is not None:
                self._finish(direction)

    def _fill(self, direction: _Direction) -> None:
        source = direction.source
        limit = sys.maxsize
        if self._budget:
            under_way = sum(d.carrier.pending for d in (self._ab, self._ba) if d.carrier)
            limit = self._budget - self._ab.count - self._ba.count - under_way
        carrier = self._carriers.take()
        try:
            if limit > 0:
                count = carrier.fill(source.sock, limit)
                if not count and isinstance(carrier, _Pipe):
                    self._carriers.give_back(carrier)
                    carrier = _Buffer(PIECE_BYTES)
                    count = carrier.fill(source.sock, limit)
            else:
                count = len(source.sock.recv(1, socket.MSG_PEEK))
        except OSError as error:
            self._carriers.give_back(carrier)
            if error.errno not in _RETRY:
                source.error = source.error or error
            if source.error is not None or self._spent:
                self._finish(direction)
            else:
                self._count_fruitless(direction, source.readable)
            return
        if count and limit > 0:
            direction.carrier = carrier
            return
        self._carriers.give_back(carrier)
        if count:
            self._spend()
        else:
            # A reset is reported once, to the call that comes first; what the other call sees
            # then looks like an end of stream, but is not one.
            if source.error is None:
                self._end_sink(direction.sink)
            self._finish(direction)

    def _drain(self, direction: _Direction) -> None:
        carrier = direction.carrier
        assert carrier is not None
        before = carrier.pending
        try:
            carrier.drain(direction.sink.sock)
        except OSError as error:
            direction.count += before - carrier.pending
            if error.errno in _RETRY:
                self._watch(direction)
                if carrier.pending == before:
                    self._count_fruitless(direction, direction.sink.writable)
                else:
                    direction.fruitless = 0
            elif error.errno == errno.EPIPE:
                self._finish(direction)  # the sink had ended its stream; what it sent is complete
            else:
                direction.sink.error = direction.sink.error or error
            return
        direction.count += before
        direction.carrier = None
        self._carriers.give_back(carrier)
        if self._spent:
            self._finish(direction)
        else:
            direction.fruitless = 0
            self._watch(direction)

    def _watch(self, direction: _Direction) -> None:
        """Wait for bytes of the source, or for room for those that are under way."""
        source, sink = direction.source, direction.sink
        if direction.carrier is None:
            wanted, other = source.readable, sink.writable
        else:
            if sink.writable is None:
                sink.writable = get_hub().loop.io(sink.sock.fileno(), WRITE)
            wanted, other = sink.writable, source.readable
        if other is not None:
            other.stop()
        if not wanted.active:
            wanted.start(self._run, direction)

    def _count_fruitless(self, direction: _Direction, watcher: Any) -> None:
        """A socket that is ready and does nothing must not keep the loop turning."""
        direction.fruitless += 1
        if direction.fruitless >= MAX_FRUITLESS and watcher is not None:
            direction.fruitless = 0
            watcher.stop()

    def _end_sink(self, sink: _Side) -> None:
        try:
            sink.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the sink is dead, which its own stream reports
                raise

    def _spend(self) -> None:
        self._spent = BudgetSpent(f"over {self._budget} bytes")
        for direction in (self._ab, self._ba):
            if direction.carrier is None:
                self._finish(direction)

    def _finish(self, direction: _Direction) -> None:
        if direction.done:
            return
        direction.done = True
        for watcher in (direction.source.readable, direction.sink.writable):
            if watcher is not None:
                watcher.close()
        direction.source.readable = direction.sink.writable = None
        if direction.carrier is not None:
            self._carriers.give_back(direction.carrier)
            direction.carrier = None

    def _report(self) -> None:
        on_done = self._on_done
        if on_done is not None and self._ab.done and self._ba.done:
            self._on_done = None
            a, b = self._a.error or self._spent, self._b.error or self._spent
            on_done(Outcome(self._ab.count, self._ba.count, a, b))


def close_both(
    a: socket.socket, b: socket.socket, outcome: Outcome, within_s: float | None = None
) -> None:
    """Close the two sockets of a splice, each after all that was written to it has arrived.

    A side whose stream from the other was cut short is told so by a reset, not by an end of
    stream that looks complete.  Call in a greenlet; returns when both are closed,
    ``within_s`` at the latest if that is given.
    """
    closing = gevent.spawn(tcp.linger, b, within_s, reset=outcome.error_a is not None)
    try:
        tcp.linger(a, within_s, reset=outcome.error_b is not None)
        closing.join()
    finally:
        closing.kill()
        b.close()  # killed before it had begun
