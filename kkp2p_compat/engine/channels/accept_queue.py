"""Calls that wait for ``accept``: a bounded queue with a descriptor that polls readable.

The engine's thread puts, any thread or greenlet takes.  A pipe holds a byte while something waits,
and only then, so that ``listen_fd`` is readable for ``select`` and every event loop alike.
"""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from gevent import monkey

from ..._errors import EngineClosed, from_os_error
from ..._io import READ, wait_fd
from ..runtime.shares import KEPT_PART

__all__ = ["AcceptQueue"]

MAX_ENTRIES = 65_536  # our choice: with the errors that nobody takes

T = TypeVar("T")


class AcceptQueue(Generic[T]):
    """``reserve`` a place before a call is taken on, then ``put`` or ``release``.

    A part of the places is kept for callers with an account: strangers cannot fill them all.
    """

    def __init__(self, most: int) -> None:
        """``most``: places; fewer where the process has few descriptors.  Raises KKP2PError."""
        places = _places(most)
        try:
            self.fd, self._signal_fd = os.pipe()
        except OSError as error:
            raise from_os_error(error, "accept queue") from error
        os.set_blocking(self.fd, False)
        os.set_blocking(self._signal_fd, False)
        self._lock = monkey.get_original("_thread", "allocate_lock")()
        self._places = places
        self._kept = places // KEPT_PART
        self._entries: deque[T | Exception] = deque()
        self._takers = 0
        self._closed = False

    # In the engine's thread.

    def reserve(self, has_account: bool) -> bool:
        """Take a place; False when all are taken, or all that a stranger may have."""
        with self._lock:
            if self._places <= (0 if has_account else self._kept) or self._closed:
                return False
            self._places -= 1
            return True

    def release(self) -> None:
        with self._lock:
            self._places += 1

    def put(self, entry: T | Exception) -> bool:
        """Fill a reserved place.  An error needs none (the engine puts few): ``take`` raises it.

        False: the queue is closed, or full of errors that nobody takes; the entry is not in it.
        """
        with self._lock:
            if self._closed or len(self._entries) >= MAX_ENTRIES:
                return False
            self._entries.append(entry)
            if len(self._entries) == 1:
                os.write(self._signal_fd, b"+")
            return True

    def remove(self, is_chosen: Callable[[T], bool]) -> list[T]:
        """Take out what nobody shall accept any more, in one go; errors stay."""
        with self._lock:
            entries, self._entries, removed = self._entries, deque(), []
            for entry in entries:
                if isinstance(entry, Exception) or not is_chosen(entry):
                    self._entries.append(entry)
                else:
                    removed.append(entry)
            self._places += len(removed)
            if removed and not self._entries:
                os.read(self.fd, 1)
        return removed

    def close(self) -> list[T]:
        """Every ``take`` raises EngineClosed from now on; returns what nobody took."""
        with self._lock:
            if self._closed:
                return []
            self._closed = True
            left = [entry for entry in self._entries if not isinstance(entry, Exception)]
            self._entries.clear()
            # Readable for good, so that every taker wakes.  The close would do, but for a forked
            # child's copy.
            os.write(self._signal_fd, b"+")
            os.close(self._signal_fd)
            if not self._takers:
                os.close(self.fd)
        return left

    # In any thread.

    def take(self, timeout_s: float) -> T | None:
        """The oldest entry, None when none came in time; raises an error that was put."""
        entry = self._pop()
        if entry is None and timeout_s > 0:
            entry = self._wait(time.monotonic() + timeout_s)
        if isinstance(entry, Exception):
            raise entry
        return entry

    def _pop(self) -> T | Exception | None:
        with self._lock:
            if self._closed:
                raise EngineClosed
            if not self._entries:
                return None
            entry = self._entries.popleft()
            if not self._entries:
                os.read(self.fd, 1)
            if not isinstance(entry, Exception):
                self._places += 1
            return entry

    def _wait(self, deadline: float) -> T | Exception | None:
        with self._lock:
            if self._closed:
                raise EngineClosed
            self._takers += 1
        try:
            while True:
                entry, left_s = self._pop(), deadline - time.monotonic()
                if entry is not None or left_s <= 0:
                    return entry
                wait_fd(self.fd, READ, left_s)
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._takers -= 1
            if self._closed and not self._takers:
                os.close(self.fd)


def _places(most: int) -> int:
    """Strangers fill the queue, so it takes a quarter of the process's descriptors at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft < 0 else min(most, max(1, soft // 4))
