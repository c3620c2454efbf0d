"""Waiting and moving bytes, whether the caller is a greenlet or a plain thread.

A thread that has a gevent hub waits on it, so its other greenlets go on; a thread that has none
blocks natively.  The mode of a descriptor (blocking or not) never matters and is never changed:
every transfer asks the kernel not to wait (MSG_DONTWAIT), and the waiting is done here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import getcurrent, monkey
from gevent._hub_local import get_hub_if_exists  # the one way to ask without making a hub
from gevent.hub import Waiter

from ._descriptors import closings, is_private, waiting

__all__ = [
    "Buffer",
    "OneShot",
    "Signal",
    "at_end",
    "failed",
    "hung_up",
    "in_greenlet_world",
    "receive",
    "send",
    "shut_down",
    "time_limit",
    "wait_fd",
]

Buffer = Any  # an object with the buffer protocol; typing has no name for it before 3.12

LOOK_AGAIN_MS = 100  # our choice: where a wait cannot be interrupted
# Our choice: how much of a read-only view is copied for one send; a socket takes about as much.
MAX_COPY_BYTES = 256 << 10

READ = 1  # libev's EV_READ
WRITE = 2  # libev's EV_WRITE

_allocate_lock: Callable[[], Any] = monkey.get_original("_thread", "allocate_lock")
_new_local: Callable[[], Any] = monkey.get_original("threading", "local")
_poll: Callable[[], Any] = monkey.get_original("select", "poll")
_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
_RETRY = (errno.EAGAIN, errno.EWOULDBLOCK)
_RDHUP = getattr(select, "POLLRDHUP", 0)  # only Linux has it, as well as sockets of messages

# Not socket.socket(fileno=fd): that looks at socket.setdefaulttimeout() and may then change the
# mode of the application's descriptor.
_libc = ctypes.CDLL(None, use_errno=True)
for _function in (_libc.recv, _libc.send):
    _function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    _function.restype = ctypes.c_ssize_t


def in_greenlet_world() -> bool:
    """Whether the caller may wait on a gevent hub of its thread."""
    hub = get_hub_if_exists()
    return hub is not None and getcurrent() is not hub


class OneShot:
    """A timer of this hub's loop that calls back once after each ``start``.

    One of gevent's without a repeat time does not: once it has fired it has no time left, so that
    a second start fires at once, and one in its callback makes a loop that never rests.
    """

    __slots__ = ("_timer",)

    def __init__(self, seconds: float) -> None:
        self._timer = gevent.get_hub().loop.timer(seconds, seconds)

    @property
    def active(self) -> bool:
        return bool(self._timer.active)

    def start(self, callback: Callable[[], object]) -> None:
        """Also while it runs: then its time begins anew."""
        self._timer.again(self._fire, callback, update=True)

    def _fire(self, callback: Callable[[], object]) -> None:
        self._timer.stop()
        callback()

    def stop(self) -> None:
        self._timer.stop()

    def close(self) -> None:
        """May be called again."""
        self._timer.stop()
        self._timer.close()


class Signal:
    """One greenlet or thread waits; another thread wakes it.

    Make it in the waiter, hand it over, ``wait``, and always ``close``.  ``set`` may be called from
    any thread, any number of times, before, during or after the wait.  (gevent's own Event raises
    LoopExit when the waiting hub has nothing else to do; a started async watcher does not.)
    """

    __slots__ = ("_async", "_lock", "_mutex", "_waiter")

    def __init__(self) -> None:
        self._mutex = _allocate_lock()
        self._async: Any = None
        self._lock: Any = None
        if not in_greenlet_world():
            self._lock = _allocate_lock()
            self._lock.acquire()
        else:
            hub = gevent.get_hub()
            self._waiter = Waiter(hub)
            self._async = hub.loop.async_()
            self._async.start(self._waiter.switch, None)

    def wait(self, timeout_s: float | None = None) -> None:
        if self._lock is not None:
            self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s)
        else:
            with gevent.Timeout(timeout_s, False):
                self._waiter.get()

    def set(self) -> None:
        with self._mutex:
            if self._lock is not None:
                if self._lock.locked():
                    self._lock.release()
            elif self._async is not None:
                self._async.send()

    def close(self) -> None:
        with self._mutex:
            watcher, self._async = self._async, None
        if watcher is not None:
            watcher.stop()
            watcher.close()


@contextlib.contextmanager
def time_limit(seconds: float, error: Exception | Callable[[], Exception]) -> Iterator[None]:
    """Raise ``error`` when the body takes longer; any other time-out passes unchanged.

    ``error`` may be a function, which is asked for the error when the time is over.
    Inside the body it is a gevent.Timeout, so that code there which catches our own errors (to try
    the next server, for example) does not catch this one.
    """
    timeout = gevent.Timeout.start_new(seconds)
    try:
        yield
    except gevent.Timeout as caught:
        if caught is not timeout:
            raise
        raise (error() if callable(error) else error) from None
    finally:
        timeout.close()


def wait_fd(fd: int, events: int, timeout_s: float | None, era: int | None = None) -> bool:
    """Wait until ``fd`` is ready for ``events`` (READ, WRITE, or both ORed); False: time is up.

    ``era``: its number of ``closings``; it counts as ready, too, when that has changed.
    """
    era = closings(fd) if era is None else era
    wait = _wait_in_hub if in_greenlet_world() else _wait_in_thread
    return wait(fd, events, timeout_s, era)


class _Waker:
    """A poll that another thread can end, by a pipe."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        self._woken = False
        self._poll = _poll()
        self._poll.register(self._read_fd, select.POLLIN)

    def __del__(self) -> None:
        if hasattr(self, "_read_fd"):  # else there was no descriptor left
            os.close(self._read_fd)
            os.close(self._write_fd)

    def wake(self) -> None:
        self._woken = True
        os.write(self._write_fd, b"+")

    def poll(self, fd: int, mask: int, milliseconds: float | None) -> bool:
        self._poll.register(fd, mask)
        try:
            return bool(self._poll.poll(milliseconds))
        finally:
            self._poll.unregister(fd)

    def clear(self) -> None:
        """Nobody wakes it any more."""
        if self._woken:
            self._woken = False
            os.read(self._read_fd, 1)


def _forget_wakers() -> None:
    """A forked child must not wake its parent, nor be woken by it."""
    global _wakers
    _wakers = _new_local()


_wakers = _new_local()  # its ``idle``: this thread's, while it does not wait
os.register_at_fork(after_in_child=_forget_wakers)


def _wait_in_thread(fd: int, events: int, timeout_s: float | None, era: int) -> bool:
    mask = (select.POLLIN if events & READ else 0) | (select.POLLOUT if events & WRITE else 0)
    milliseconds = None if timeout_s is None else min(max(0, timeout_s * 1000), 2**31 - 1)
    own = _wakers
    # Taken out, in case that a signal's handler waits, too, while this thread does.
    waker = own.__dict__.pop("idle", None)
    try:
        waker = waker or _Waker()
    except OSError:  # out of descriptors: the caller looks at the number again
        poll = _poll()
        poll.register(fd, mask)
        return bool(poll.poll(min(milliseconds or LOOK_AGAIN_MS, LOOK_AGAIN_MS)))
    try:
        with waiting(fd, era, waker.wake) as is_same:
            return not is_same or waker.poll(fd, mask, milliseconds)
    finally:
        waker.clear()
        own.idle = waker


def _wait_in_hub(fd: int, events: int, timeout_s: float | None, era: int) -> bool:
    hub = gevent.get_hub()
    waiter = Waiter(hub)
    watcher = hub.loop.io(fd, events)
    ready = False
    try:
        with (
            waiting(fd, era, lambda: hub.loop.run_callback_threadsafe(waiter.switch, None)),
            gevent.Timeout(timeout_s, False),
        ):
            watcher.start(waiter.switch, None)
            waiter.get()
            ready = True
    finally:
        watcher.stop()
        watcher.close()
    return ready


def hung_up(fd: int) -> bool:
    """Whether a socket's other end is closed altogether, not only for sending."""
    poll = _poll()
    poll.register(fd, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def failed(fd: int) -> bool:
    """Whether a socket has an error that no call has reported yet; the error stays there."""
    poll = _poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def at_end(fd: int) -> bool:
    """Whether a ``recv`` of nothing from a socket was its end, and not an empty message.

    (An empty one before another looks like the end, if the end is there already.)
    """
    byte = ctypes.create_string_buffer(1)
    if _libc.recv(fd, byte, 1, _FLAGS | socket.MSG_PEEK) != 0:
        return False  # nothing waits, or another message does
    poll = _poll()
    poll.register(fd, _RDHUP)
    return not _RDHUP or bool(poll.poll(0))


def shut_down(fd: int) -> None:
    """The kernel's shutdown(SHUT_RDWR): what has arrived can still be read, then comes the end.

    That of gevent makes a waiting reader fail at once, even if bytes have just arrived.
    """
    _libc.shutdown(fd, socket.SHUT_RDWR)


def receive(
    fd: int, buff: Buffer, length: int, timeout_s: float | None, era: int | None = None
) -> int | None:
    """Receive up to ``length`` bytes into ``buff``: how many, 0 at the end, None: time is up.

    An empty message is passed over: here it would look like the end.
    ``era``: the ``closings`` of ``fd`` when the caller got it; None: now.  EBADF if the number is
    another descriptor's by now, or an engine's own.
    """
    target = ctypes.byref(ctypes.c_char.from_buffer(buff))
    return _transfer(_libc.recv, fd, target, length, READ, timeout_s, era)


def send(
    fd: int, buff: Buffer, length: int, timeout_s: float | None, era: int | None = None
) -> int | None:
    """Send up to ``length`` bytes of ``buff``: how many went, None: time is up.

    ``era``: as for ``receive``.
    """
    source: Any = buff
    if not isinstance(buff, bytes):
        view = memoryview(buff)
        if view.readonly:  # ctypes cannot take its address
            view = view.cast("B")[: min(length, MAX_COPY_BYTES)]
            source, length = bytes(view), len(view)
        else:
            source = ctypes.byref(ctypes.c_char.from_buffer(view))
    return _transfer(_libc.send, fd, source, length, WRITE, timeout_s, era)


def _transfer(
    function: Any,
    fd: int,
    place: Any,
    length: int,
    events: int,
    timeout_s: float | None,
    era: int | None,
) -> int | None:
    deadline = None
    era = closings(fd) if era is None else era
    while True:
        if closings(fd) != era or is_private(fd):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        count: int = function(fd, place, length, _FLAGS)
        if count > 0 or (count == 0 and (events == WRITE or at_end(fd))):
            return count
        code = ctypes.get_errno() if count else errno.EAGAIN
        if code == errno.EINTR:
            continue
        if code not in _RETRY:
            raise OSError(code, os.strerror(code))
        if timeout_s is not None:
            now = time.monotonic()
            deadline = now + timeout_s if deadline is None else deadline
            timeout_s = deadline - now
            if timeout_s <= 0:
                return None
        wait_fd(fd, events, timeout_s, era)  # a timer may be early: the clock above decides
