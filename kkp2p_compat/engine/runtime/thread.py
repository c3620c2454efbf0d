"""The engine's own thread: one native thread, one gevent hub, one queue of commands into it.

Everything of an engine runs as greenlets of this thread, so a blocking or CPU-bound application
never stalls it.  Any thread may ``call`` a function in it and wait for the result, or ``post`` one
and go on; the engine's own greenlets call each other directly.

Works with and without ``monkey.patch_all()``: the thread is started with the original
``start_new_thread``, and under the patch the starting thread gets its hub first, because a hub made
in the new thread would otherwise recurse in the patched import lock.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from logging import Logger
from typing import Any, TypeVar

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.exceptions import HubDestroyed
from gevent.pool import Group

from ..._codes import KKP2P_ERROR_START_THREAD_POOL
from ..._errors import EngineClosed, KKP2PError, OurFault, from_os_error
from ..._io import Signal

__all__ = ["EngineThread", "native_thread"]

T = TypeVar("T")

# Our choice: far above what the calls of one process can reach; bounds memory if it does.
MAX_COMMANDS = 65536

HUB_DESCRIPTORS = 8  # our choice: twice what a hub's loop opens (epoll, eventfd, signal pipe)


def _need_descriptors(count: int) -> None:
    """Raises OSError unless so many can be had: libev aborts the process when it gets none."""
    taken: list[int] = []
    try:
        while len(taken) < count:
            taken.extend(os.pipe())
    finally:
        for fd in taken:
            os.close(fd)


def native_thread(function: Callable[[], object]) -> None:
    """Run ``function`` in a real thread, also in a monkey-patched program.

    SIGPIPE is blocked in it: a program may have it at SIG_DFL, where a connection that breaks under
    our hands would end the program without a word.  (``splice`` has no flag against the signal.)
    Threads that this one starts inherit that, such as those of its hub's pool.
    """

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        function()

    if monkey.is_module_patched("threading"):
        gevent.get_hub()
    monkey.get_original("_thread", "start_new_thread")(run, ())


class EngineThread:
    """Call order: ``start``, then ``call``/``post``/``spawn``, then ``stop`` once.

    ``at_end`` runs in the thread when it is to stop, where nobody can interrupt it; the event that
    it gets is set when it is to hurry.
    """

    def __init__(self, log: Logger, at_end: Callable[[Event], object] = lambda hurry: None) -> None:
        self._log = log
        self._at_end = at_end
        self._pid = os.getpid()
        self._commands: deque[Callable[[], object]] = deque()
        self._mutex = monkey.get_original("_thread", "allocate_lock")()
        self._async: Any = None
        self._hub: Any = None
        self._group = Group()
        self._calls = Group()  # of these, what the application waits for
        self._ends_calls = False
        self._stop = Event()
        self._hurry = Event()
        self._running = False
        self._abandoned = False  # nobody will stop a thread that was not running by then
        self._waiting_for_end: list[Signal] = []
        self._start_error: OSError | None = None

    def start(self) -> None:
        """Raises OutOfDescriptors, or an error with the code -120."""
        started = Signal()
        try:
            native_thread(lambda: self._main(started))
            started.wait()
        except RuntimeError as error:
            raise KKP2PError(f"no thread: {error}", KKP2P_ERROR_START_THREAD_POOL) from error
        except BaseException:  # killed, or timed out: the thread may still be starting
            self._abandoned = True
            raise
        finally:
            started.close()
        if self._start_error is not None:
            raise from_os_error(self._start_error, "engine thread") from self._start_error

    @property
    def usable(self) -> bool:
        """Whether calls can be made: started, not stopped, and not inherited by a fork."""
        return self._async is not None and os.getpid() == self._pid

    # From any thread.

    def post(self, function: Callable[[], object]) -> bool:
        """Run ``function``, which must not wait, in the engine's hub; False: it will not be run."""
        if not self.usable:
            return False  # without the lock: a fork may have copied it locked
        with self._mutex:
            if not self.usable or len(self._commands) >= MAX_COMMANDS:
                return False
            self._commands.append(function)
            self._async.send()
            return True

    def call(
        self, function: Callable[..., T], *args: Any, discard: Callable[[T], object] | None = None
    ) -> T:
        """Run ``function(*args)`` in a greenlet of the engine and wait for its result.

        When the wait is interrupted (the caller's own gevent.Timeout, a kill, KeyboardInterrupt)
        the greenlet is killed; if it finishes all the same, ``discard`` gets the result.
        """
        command = _Command(function, args, self._log)
        try:
            if not self.post(lambda: command.start(self.spawn_call)):
                raise EngineClosed
            command.finished.wait()
        except BaseException:
            self.post(lambda: command.abandon(discard))
            raise
        finally:
            command.finished.close()
        if command.error is not None:
            raise command.error
        return command.result

    # From the engine's thread only.

    def spawn(self, function: Callable[..., object], *args: Any) -> gevent.Greenlet[..., Any]:
        """A greenlet that ends with the engine; what it raises is logged."""
        return self._group.spawn(function, *args)

    def spawn_call(self, function: Callable[..., object]) -> gevent.Greenlet[..., Any]:
        """The same for what the application waits for, which ``end_calls`` ends, too."""
        greenlet = self.spawn(function)
        self._calls.add(greenlet)
        if self._ends_calls:
            greenlet.kill(block=False)
        return greenlet

    def end_calls(self) -> None:
        """Calls under way fail now, later ones at once."""
        self._ends_calls = True
        self._calls.kill(block=False)

    # From any thread but the engine's.

    def stop(self) -> None:
        """End the greenlets and the thread; returns when both are gone.  Several may call it.

        When one is interrupted (see ``call``), the end is hurried, and that much still waited for.
        """
        try:
            self._stop_and_wait()
        except BaseException:
            with self._mutex:
                self._post_always(self._hurry.set)
            self._stop_and_wait()
            raise

    def _stop_and_wait(self) -> None:
        ended = Signal()
        try:
            with self._mutex:
                wait = self._running and os.getpid() == self._pid
                if wait:
                    self._waiting_for_end.append(ended)
                    self._post_always(self._stop.set)
            if wait:
                ended.wait()
        finally:
            ended.close()

    def _post_always(self, command: Callable[[], object]) -> None:
        """However many wait already.  To be called with the mutex."""
        if self._async is not None:  # else it is ending
            self._commands.append(command)
            self._async.send()

    # The thread.

    def _main(self, started: Signal) -> None:
        try:
            _need_descriptors(HUB_DESCRIPTORS)
            hub = gevent.get_hub()
        except OSError as error:
            self._start_error = error
            started.set()
            return
        hub.handle_error = self._handle_error
        hub.name = "kkp2p engine"
        self._hub = hub
        self._async = hub.loop.async_()
        self._async.start(self._drain)
        self._running = True
        if self._abandoned:
            self._stop.set()
        started.set()
        self._stop.wait()
        try:
            self._at_end(self._hurry)
        except Exception:  # noqa: BLE001 - a bug of ours must not keep the thread alive
            self._log.exception("bug in %r", self._at_end)
        with self._mutex:
            watcher, self._async = self._async, None
        self._drain()  # the last commands get an answer, too: their greenlets are killed
        self._group.kill()
        gevent.sleep(0)  # the links of the killed greenlets run: callers wait for them
        watcher.stop()
        watcher.close()
        hub.destroy(destroy_loop=True)
        with self._mutex:
            self._running = False
            for ended in self._waiting_for_end:
                ended.set()

    def _drain(self) -> None:
        while self._commands:
            command = self._commands.popleft()
            try:
                command()
            except Exception:  # noqa: BLE001 - a bug of ours must not stop the commands behind it
                self._log.exception("bug in %r", command)

    def _handle_error(self, context: object, kind: Any, value: Any, trace: Any) -> None:
        if kind is HubDestroyed:
            self._hub.loop.break_()  # as the hub's own does, or a watcher would keep the loop going
        elif kind is not None and not issubclass(kind, gevent.GreenletExit):
            self._log.error("bug in %r", context, exc_info=(kind, value, trace))


class _Command:
    """One function that another thread has the engine run."""

    __slots__ = ("_args", "_function", "_greenlet", "_log", "error", "finished", "result")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], log: Logger) -> None:
        self._function = function
        self._args = args
        self._log = log
        self._greenlet: gevent.Greenlet[..., Any] | None = None
        self.finished = Signal()
        self.result: Any = None
        self.error: KKP2PError | None = EngineClosed()

    def start(self, spawn: Callable[[Callable[[], object]], gevent.Greenlet[..., Any]]) -> None:
        self._greenlet = spawn(self._run)
        # Also when the engine ends before the greenlet has run at all.
        self._greenlet.rawlink(lambda _: self.finished.set())

    def _run(self) -> None:
        try:
            self.result = self._function(*self._args)
            self.error = None
        except KKP2PError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - becomes a code for the caller and a log entry
            self._log.exception("bug in %r", self._function)
            self.error = OurFault(f"a fault of ours: {error!r}")

    def abandon(self, discard: Callable[[Any], object] | None) -> None:
        """Nobody waits any more.  The greenlet may still finish before the kill reaches it."""

        def finished(_: object) -> None:
            if self.error is None and discard is not None:
                discard(self.result)

        if self._greenlet is not None:
            self._greenlet.kill(block=False)
            self._greenlet.rawlink(finished)
