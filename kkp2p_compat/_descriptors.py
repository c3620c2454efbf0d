"""Numbers of descriptors: who waits on one that is closed, and which ones belong to engines.

A number means nothing after its descriptor is closed, and the kernel gives it to the next one.  A
poll or epoll under way does not notice the close.  So ``close`` wakes what waits in ``read``,
``write`` or ``tls``, and a call that began before compares ``closings``: it must not go on with a
number that is another descriptor's by now.  A loop that comes back later with such a number must
not read from the engine's own sockets: those are marked by ``keep_private``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gevent import monkey

__all__ = ["close", "closings", "fork_safe_lock", "is_private", "keep_private", "waiting"]

T = TypeVar("T")


def fork_safe_lock() -> Any:
    """A native lock for a module: a forked child never finds it locked by a thread that is gone."""
    lock = monkey.get_original("_thread", "allocate_lock")()
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
    )
    return lock


_lock = fork_safe_lock()
_closings: dict[int, int] = {}
_waiters: defaultdict[int, set[Callable[[], object]]] = defaultdict(set)
_private: dict[int, weakref.ref[Any]] = {}


def closings(fd: int) -> int:
    """How often this number was closed; if that has changed, it is another descriptor's by now."""
    return _closings.get(fd, 0)


def close(fd: int) -> None:
    """Close a descriptor of the application, and wake everything that waits on it."""
    with _lock:
        _closings[fd] = closings(fd) + 1
        os.close(fd)
        for wake in _waiters.pop(fd, ()):
            wake()


@contextlib.contextmanager
def waiting(fd: int, era: int, wake: Callable[[], object]) -> Iterator[bool]:
    """Have ``wake`` called, in any thread and under a lock, if ``fd`` is closed meanwhile.

    ``era``: its ``closings`` when the call began.  If that has changed, ``wake`` is called at once,
    and the body gets False: the number may be anybody's by now, even of what ``wake`` uses.
    """
    with _lock:
        is_same = closings(fd) == era
        if is_same:
            _waiters[fd].add(wake)
        else:
            wake()
    try:
        yield is_same
    finally:
        with _lock:
            left = _waiters.get(fd)
            if left is not None:
                left.discard(wake)
                if not left:
                    del _waiters[fd]


def keep_private(sock: T) -> T:
    """Mark an engine's own socket: ``read`` and ``write`` of the application refuse its number.

    That holds until the socket is closed, detached or forgotten.  A forked child has no copy of it:
    that would keep the port of a UDP socket, which nothing but the last ``close`` gives back.
    """
    _private[sock.fileno()] = weakref.ref(sock)  # type: ignore[attr-defined]
    return sock


def is_private(fd: int) -> bool:
    reference = _private.get(fd)
    sock = None if reference is None else reference()
    return sock is not None and sock.fileno() == fd


def _let_go() -> None:
    """In a forked child.  The numbers stay taken, for the objects that would close them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nothing:
        for number in filter(is_private, list(_private)):
            os.dup2(nothing.fileno(), number, inheritable=False)


os.register_at_fork(after_in_child=_let_go)
