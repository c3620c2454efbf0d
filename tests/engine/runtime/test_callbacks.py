"""Callbacks on threads of their own: order, errors, the end, and what they leave behind."""

from __future__ import annotations

import signal
import threading
import time

import gevent
import pytest
from gevent import monkey

from helpers.support import PATIENCE_S, in_thread
from kkp2p_compat.engine.runtime import callbacks as callbacks_module
from kkp2p_compat.engine.runtime.callbacks import Callbacks

start_thread = monkey.get_original("_thread", "start_new_thread")


def wait_for(condition: object) -> None:
    assert callable(condition)
    while not condition():
        gevent.sleep(0.001)  # bounded by the test's own time limit


def test_one_at_a_time_in_order_and_not_here() -> None:
    callbacks, seen = Callbacks(1), []
    for number in range(100):
        assert callbacks.submit(lambda n: seen.append((n, threading.get_ident())), number)
    callbacks.close()
    wait_for(lambda: len(seen) == 100)
    assert [number for number, _ in seen] == list(range(100))
    assert {thread for _, thread in seen}.isdisjoint({threading.get_ident()})
    assert len({thread for _, thread in seen}) == 1


def test_what_is_queued_at_the_close_still_runs() -> None:
    callbacks, seen, go = Callbacks(1), [], threading.Event()
    callbacks.submit(go.wait, PATIENCE_S)
    callbacks.submit(seen.append, 1)
    callbacks.close()
    assert callbacks.submit(seen.append, 2) is False
    go.set()
    wait_for(lambda: seen)
    assert seen == [1]


def test_signals_are_blocked_as_in_the_program() -> None:
    """Programs that a callback starts inherit that: one with SIGPIPE blocked may never end."""
    found: list[set[int]] = []
    for blocked in (set(), {signal.SIGPIPE, signal.SIGUSR2}):
        before = signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            callbacks = Callbacks(1)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        callbacks.submit(lambda: found.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        callbacks.close()
        callbacks.join(PATIENCE_S)
        assert found.pop() == blocked


def test_several_threads_do_not_wait_for_each_other() -> None:
    callbacks, barrier = Callbacks(4), threading.Barrier(4)
    ends = []
    for _ in range(4):
        callbacks.submit(lambda: ends.append(barrier.wait(PATIENCE_S)))
    wait_for(lambda: len(ends) == 4)
    callbacks.close()


def test_first_calls_from_many_threads_start_the_threads_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = []
    native_thread = callbacks_module.native_thread

    def start(main: object) -> None:
        time.sleep(0.01)  # lets the others in, if anything does
        started.append(main)
        native_thread(main)  # type: ignore[arg-type]

    monkeypatch.setattr(callbacks_module, "native_thread", start)
    callbacks, seen, go = Callbacks(1), [], threading.Event()

    def submit() -> None:
        go.wait(PATIENCE_S)
        callbacks.submit(seen.append, 1)

    for _ in range(8):
        start_thread(submit, ())
    go.set()
    wait_for(lambda: len(seen) == 8)
    callbacks.close()
    assert len(started) == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, gevent.GreenletExit])
def test_a_failing_callback_is_shown_and_the_next_ones_run(
    error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error("the application's bug")

    callbacks, seen = Callbacks(1), []
    callbacks.submit(fail)
    callbacks.submit(seen.append, 1)
    callbacks.close()
    wait_for(lambda: seen)
    assert "the application's bug" in capsys.readouterr().err


def test_too_many_waiting_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks_module, "MAX_WAITING", 5)
    callbacks, go, running = Callbacks(1), threading.Event(), threading.Event()
    callbacks.submit(lambda: (running.set(), go.wait(PATIENCE_S)))
    assert in_thread(lambda: running.wait(PATIENCE_S))
    assert [callbacks.submit(int) for _ in range(6)] == [True] * 5 + [False]
    go.set()
    callbacks.close()


def test_a_callback_that_uses_gevent_leaves_nothing_behind() -> None:
    """The leak check of every test looks at descriptors: a hub has three."""
    callbacks, seen = Callbacks(2), []
    for _ in range(2):
        callbacks.submit(lambda: (gevent.sleep(0.01), seen.append(1)))
    wait_for(lambda: len(seen) == 2)
    callbacks.close()


def test_unused_callbacks_start_no_thread() -> None:
    callbacks = Callbacks(4)
    callbacks.close()
    assert callbacks.submit(int) is False


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is raised into whoever logs; what was started is used, and ended by close."""
    allowed, seen = 0, []

    def limited(function: object) -> None:
        nonlocal allowed
        if not allowed:
            raise RuntimeError("can't start new thread")
        allowed -= 1
        start_thread(function, ())

    monkeypatch.setattr(callbacks_module, "native_thread", limited)
    callbacks = Callbacks(2)
    assert not callbacks.submit(seen.append, 1)
    allowed = 1
    assert callbacks.submit(seen.append, 2)
    allowed = 5
    assert callbacks.submit(seen.append, 3)
    assert allowed == 4
    callbacks.close()
    wait_for(lambda: sorted(seen) == [2, 3])


def test_waiting_for_what_was_queued() -> None:
    callbacks, seen, go = Callbacks(1), [], threading.Event()
    callbacks.submit(go.wait, PATIENCE_S)
    callbacks.submit(seen.append, 1)
    callbacks.close()
    callbacks.join(0)  # as long as it is given, and no longer
    assert seen == []
    go.set()
    callbacks.join(PATIENCE_S)
    assert seen == [1]
    Callbacks(1).join(PATIENCE_S)  # one that nothing was submitted to has no thread to wait for
