"""What drives checks and questions: one timer, and on a busy host what has arrived goes first."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import get_hub

from kkp2p_compat.engine.paths import driver as driver_module
from kkp2p_compat.engine.paths.driver import Driver

READ = 1  # libev's EV_READ


class Core:
    """Wants its timer at ``due_at``; notes what happens."""

    def __init__(self) -> None:
        self.due_at: float | None = None
        self.happened: list[str] = []

    def handle_timer(self, now: float) -> None:
        self.happened.append("timer")
        self.due_at = None

    def poll_transmit(self) -> None:
        return None

    def next_timer(self) -> float | None:
        return self.due_at


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
def driver(core: Core) -> Iterator[Driver]:
    endpoint: Any = None  # nothing is sent
    made = Driver(core, endpoint, lambda: None)
    yield made
    made.close()


@pytest.fixture
def datagram(core: Core) -> Iterator[socket.socket]:
    """Sends one that the loop reads."""
    ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
    ours.setblocking(False)
    watcher = get_hub().loop.io(ours.fileno(), READ)

    def read() -> None:
        ours.recv(10)
        core.happened.append("datagram")

    watcher.start(read)
    yield theirs
    watcher.close()
    ours.close()
    theirs.close()


def wait_until_it_has_fired(core: Core) -> None:
    while "timer" not in core.happened:
        gevent.sleep(0.001)


def test_on_a_busy_host_what_has_arrived_is_read_before_anything_is_sent_again(
    core: Core, driver: Driver, datagram: socket.socket
) -> None:
    gevent.sleep(0)
    core.due_at = time.monotonic() + 0.001
    driver.poll()
    datagram.send(b"an answer")
    time.sleep(0.001 + 2 * driver_module.LATE_S)  # the processor is taken
    wait_until_it_has_fired(core)
    assert core.happened == ["datagram", "timer"]


def test_an_earlier_deadline_moves_the_timer_and_a_later_one_does_not(
    core: Core, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    start = driver._start_timer
    monkeypatch.setattr(
        driver, "_start_timer", lambda at, handle: (made.append(at), start(at, handle))
    )
    now = time.monotonic()
    for due_at in (now + 60, now + 70, now + 60, now + 0.001):
        core.due_at = due_at
        driver.poll()
    assert made == [now + 60, now + 0.001]
    wait_until_it_has_fired(core)
    assert core.happened == ["timer"]


def test_nothing_happens_after_the_end(core: Core, driver: Driver) -> None:
    core.due_at = time.monotonic()
    driver.poll()
    driver.close()
    driver.poll()
    gevent.sleep(0.01)
    assert core.happened == []
