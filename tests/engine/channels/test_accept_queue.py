"""The accept queue under many takers, native and green, and its descriptor."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import termios
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

import gevent
import pytest
from gevent import monkey

from helpers.support import PATIENCE_S, forked_child, in_thread
from kkp2p_compat._errors import DuplicateLogin, EngineClosed
from kkp2p_compat.engine.channels.accept_queue import AcceptQueue

Queue = AcceptQueue[int]
start_thread = monkey.get_original("_thread", "start_new_thread")


def readable(queue: Queue) -> bool:
    return bool(monkey.get_original("select", "select")([queue.fd], [], [], 0)[0])


def put(queue: Queue, entry: int) -> None:
    assert queue.reserve(has_account=True)
    assert queue.put(entry)


def test_the_oldest_comes_first() -> None:
    queue = Queue(10)
    for entry in range(3):
        put(queue, entry)
    assert [queue.take(0) for _ in range(4)] == [0, 1, 2, None]
    queue.close()


def test_the_descriptor_is_readable_exactly_while_something_waits() -> None:
    queue = Queue(10)
    assert not readable(queue)
    for entry in range(3):
        put(queue, entry)
    for entry in range(3):
        assert readable(queue)
        assert queue.take(0) == entry
    assert not readable(queue)
    queue.close()


def test_what_is_removed_leaves_the_others_and_errors() -> None:
    queue = Queue(5)
    for entry in range(5):
        put(queue, entry)
    assert queue.put(DuplicateLogin())
    assert queue.remove(lambda entry: entry % 2 == 0) == [0, 2, 4]
    for entry in (5, 6, 7):  # their places are free again
        put(queue, entry)
    assert not queue.reserve(has_account=True)
    assert queue.remove(lambda _: True) == [1, 3, 5, 6, 7]
    assert readable(queue)
    with pytest.raises(DuplicateLogin):
        queue.take(0)
    assert not readable(queue)
    assert queue.remove(lambda _: True) == []
    queue.close()


def test_entries_that_wait_together_are_told_of_once() -> None:
    """Each byte is two system calls, and wakes the application's thread."""
    queue = Queue(10)
    for entry in range(3):
        put(queue, entry)
    waiting = array.array("i", [0])
    fcntl.ioctl(queue.fd, termios.FIONREAD, waiting)
    assert waiting[0] == 1
    queue.close()


def test_any_loop_may_watch_the_descriptor() -> None:
    queue = Queue(10)
    watching = gevent.spawn(gevent.socket.wait_read, queue.fd)
    poll = monkey.get_original("select", "poll")()
    poll.register(queue.fd, select.POLLIN)
    assert poll.poll(0) == []
    put(queue, 1)
    watching.get()
    assert poll.poll(0) == [(queue.fd, select.POLLIN)]
    assert queue.take(0) == 1
    queue.close()


def test_places_are_bounded_and_come_back() -> None:
    queue = Queue(2)
    assert [queue.reserve(has_account=True) for _ in range(3)] == [True, True, False]
    queue.release()
    assert queue.reserve(has_account=True)
    assert queue.put(7)
    assert not queue.reserve(has_account=True)
    assert queue.take(0) == 7
    assert queue.reserve(has_account=True)
    assert not queue.reserve(has_account=True)
    queue.close()


def test_strangers_leave_places_for_callers_with_an_account() -> None:
    queue = Queue(9)
    assert [queue.reserve(has_account=False) for _ in range(8)] == [True] * 7 + [False]
    assert [queue.reserve(has_account=True) for _ in range(3)] == [True, True, False]
    queue.close()


def test_an_error_needs_no_place_frees_none_and_is_raised_once() -> None:
    queue = Queue(1)
    put(queue, 1)
    assert queue.put(DuplicateLogin())
    assert queue.take(0) == 1
    with pytest.raises(DuplicateLogin):
        queue.take(0)
    assert queue.take(0) is None
    assert [queue.reserve(has_account=True), queue.reserve(has_account=True)] == [True, False]
    queue.close()


def test_errors_that_nobody_takes_are_bounded_too() -> None:
    queue = Queue(1)
    error = DuplicateLogin()
    count = 0
    while queue.put(error):
        count += 1
    assert 1000 < count <= 1 << 20
    queue.close()


@pytest.mark.parametrize("timeout_s", [0, 0.01])
def test_nothing_in_time(timeout_s: float) -> None:
    queue = Queue(1)
    assert queue.take(timeout_s) is None
    assert in_thread(lambda: queue.take(timeout_s)) is None
    queue.close()


def test_the_longest_time_out_that_the_api_takes() -> None:
    queue = Queue(1)
    for wait in (lambda take: gevent.spawn(take).get(), in_thread):
        later = gevent.spawn_later(0.01, put, queue, 5)
        assert wait(lambda: queue.take((2**31 - 1) / 1000)) == 5
        later.get()
    queue.close()


def test_many_takers_take_each_entry_once() -> None:
    entries, native, green = 3000, 8, 50
    queue = Queue(entries)
    taken: list[int] = []
    ends = []

    def take() -> None:
        try:
            while True:
                entry = queue.take(PATIENCE_S)
                assert entry is not None
                taken.append(entry)
        except EngineClosed:
            ends.append(1)

    for _ in range(native):
        start_thread(take, ())
    greenlets = [gevent.spawn(take) for _ in range(green)]

    def produce() -> None:
        for entry in range(entries):
            put(queue, entry)

    in_thread(produce)
    while len(taken) < entries:
        gevent.sleep(0.001)
    assert not readable(queue)
    assert queue.close() == []
    gevent.joinall(greenlets, raise_error=True)
    while len(ends) < native + green:
        gevent.sleep(0.001)
    assert Counter(taken) == Counter(range(entries))


@pytest.mark.parametrize("around", [contextlib.nullcontext, forked_child])
def test_close_wakes_every_taker(around: Callable[[], AbstractContextManager[None]]) -> None:
    """A forked child has copies of the pipe's ends."""
    queue = Queue(10)
    green = [gevent.spawn(queue.take, PATIENCE_S) for _ in range(5)]
    gevent.sleep(0)
    native = gevent.spawn(in_thread, lambda: queue.take(PATIENCE_S))
    while queue._takers < 6:
        gevent.sleep(0.001)
    with around():
        queue.close()
        for taker in [*green, native]:
            with pytest.raises(EngineClosed):
                taker.get()
    with pytest.raises(EngineClosed):
        queue.take(0)


def test_after_close_nothing_goes_in_and_the_rest_comes_back() -> None:
    queue = Queue(3)
    assert queue.reserve(has_account=True)
    put(queue, 1)
    assert queue.put(DuplicateLogin())
    before = os.listdir("/proc/self/fd")
    assert queue.close() == [1]
    assert len(os.listdir("/proc/self/fd")) == len(before) - 2
    assert queue.put(2) is False  # a call that was under way
    assert queue.put(DuplicateLogin()) is False
    queue.release()
    assert queue.reserve(has_account=True) is False
    assert queue.close() == []


def test_an_interrupted_taker_takes_nothing() -> None:
    queue = Queue(3)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        queue.take(PATIENCE_S)
    put(queue, 1)
    assert queue.take(0) == 1
    assert queue._takers == 0
    queue.close()
