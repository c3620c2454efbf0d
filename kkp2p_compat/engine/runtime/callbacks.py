"""Runs the application's callbacks on threads of their own, never on the engine's.

A slow callback then delays other callbacks at most, and none runs under a lock or in the middle of
a state change.  (Callbacks of greenlets do not come here: they run in the greenlet's own hub.)
"""

from __future__ import annotations

import signal
import traceback
from _queue import SimpleQueue  # a C one: queue.SimpleQueue is gevent's in a patched program
from collections.abc import Callable
from typing import Any

from gevent import monkey
from gevent._hub_local import get_hub_if_exists

from ..._io import Signal
from ..._say import say
from .thread import native_thread

__all__ = ["Callbacks"]

# Our choice: a callback that never returns must not make us keep everything that comes after it.
MAX_WAITING = 10000

_thread_id: Callable[[], int] = monkey.get_original("_thread", "get_ident")


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
        self._running = 0
        self._ids: set[int] = set()  # of those that run
        self._closed = False
        self._work: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None]
        self._work = SimpleQueue()
        self._joining: set[Signal] = set()

    def submit(self, function: Callable[..., object], *args: Any) -> bool:
        """Queue a call; False if it is dropped: closed, too many wait, or no thread can be had."""
        with self._lock:
            if self._closed or self._work.qsize() >= MAX_WAITING:
                return False
            try:
                while self._missing:
                    native_thread(self._main)
                    self._missing -= 1
                    self._running += 1
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
        """After ``close``: wait until what was queued has run, or so long; not in a callback."""
        ended = Signal()
        try:
            with self._lock:
                wait = self._running and _thread_id() not in self._ids
                if wait:
                    self._joining.add(ended)
            if wait:
                ended.wait(timeout_s)
        finally:
            with self._lock:
                self._joining.discard(ended)
            ended.close()

    def _main(self) -> None:
        self._ids.add(_thread_id())
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
        with self._lock:
            self._ids.remove(_thread_id())
            self._running -= 1
            for ended in () if self._running else self._joining:
                ended.set()
