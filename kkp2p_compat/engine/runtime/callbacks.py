"""Runs the application's callbacks on threads of their own, never on the engine's.

A slow callback then delays other callbacks at most, and none runs under a lock or in the middle of
a state change.  (Callbacks of greenlets do not come here: they run in the greenlet's own hub.)
"""

from __future__ import annotations

import signal
import time
import traceback
from _queue import Empty, SimpleQueue  # C ones: queue.SimpleQueue is gevent's in a patched program
from collections.abc import Callable
from typing import Any

from gevent import monkey
from gevent._hub_local import get_hub_if_exists

from ..._say import say
from .thread import native_thread

__all__ = ["Callbacks"]

# Our choice: a callback that never returns must not make us keep everything that comes after it.
MAX_WAITING = 10000


class Callbacks:
    """``threads`` native threads, started with the first call, ended by ``close``.

    Signals are blocked in them as in the thread that makes this: programs that a callback starts
    inherit that.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._lock = monkey.get_original("_thread", "allocate_lock")()
        self._missing = threads  # not started yet
        self._closed = False
        self._work: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None]
        self._work = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()  # one for each thread that has

    def submit(self, function: Callable[..., object], *args: Any) -> bool:
        """Queue a call; False if it is dropped: closed, too many wait, or no thread can be had."""
        with self._lock:
            if self._closed or self._work.qsize() >= MAX_WAITING:
                return False
            try:
                while self._missing:
                    native_thread(self._main)
                    self._missing -= 1
            except RuntimeError:  # the host's limit; the next call tries again
                if self._missing == self._threads:
                    return False
            self._work.put((function, args))
            return True

    def close(self) -> None:
        """What is queued still runs; then the threads end."""
        with self._lock:
            self._closed = True
        for _ in range(self._threads):
            self._work.put(None)

    def join(self, timeout_s: float) -> None:
        """After ``close``: wait, without a hub, until what was queued has run, or so long."""
        deadline = time.monotonic() + timeout_s
        for _ in range(self._threads - self._missing):
            try:
                self._ended.get(timeout=max(0, deadline - time.monotonic()))
            except Empty:
                return

    def _main(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        while (item := self._work.get()) is not None:
            function, args = item
            try:
                function(*args)
            except BaseException:  # noqa: BLE001 - the application's; shown as threads show it
                say(traceback.format_exc().rstrip())
            del item, function, args  # not kept until the next one comes
        hub = get_hub_if_exists()
        if hub is not None:  # the application's callbacks have made one
            hub.destroy(destroy_loop=True)
        self._ended.put(None)
