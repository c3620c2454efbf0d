"""When the watch tells of a change.  The kernel's part: tests/lab/test_lab_address_watch.py."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from helpers.support import PATIENCE_S
from kkp2p_compat.traversal import address_watch
from kkp2p_compat.traversal.address_watch import AddressWatch

LOG = logging.getLogger("test.address_watch")


class World:
    """What the watch looks at, and the socket that the kernel would write to."""

    def __init__(self, *, netlink: bool = True) -> None:
        self.state: object = "home"
        self.problem: Exception | None = None
        self.looks = 0
        self.looked = Event()
        self.changes: list[object] = []
        self.changed = Event()
        self._kernel: Any = None
        self._netlink = netlink

    def open(self) -> Any:
        if not self._netlink:
            raise OSError(errno.EPROTONOSUPPORT, "no netlink here")
        self._kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        return ours

    def look(self) -> object:
        self.looks += 1
        self.looked.set()
        if self.problem is not None:
            raise self.problem
        return self.state

    def note(self) -> None:
        self.changes.append(self.state)
        self.changed.set()

    def message(self, count: int = 1) -> None:
        for _ in range(count):
            self._kernel.send(b"a netlink message")

    def wait_for_look(self) -> None:
        self.looked.clear()
        assert self.looked.wait(PATIENCE_S)

    def close(self) -> None:
        if self._kernel is not None:
            self._kernel.close()


StartWatch = Callable[..., AddressWatch]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_watch, "DEBOUNCE_S", 0.01)
    monkeypatch.setattr(address_watch, "POLL_S", 0.01)


@pytest.fixture
def start() -> Iterator[StartWatch]:
    made: list[tuple[AddressWatch, World]] = []

    def start(world: World) -> AddressWatch:
        watch = AddressWatch(world.note, LOG, look=world.look, netlink=world.open)
        made.append((watch, world))
        watch.start()
        assert world.looked.wait(PATIENCE_S)
        return watch

    yield start
    for watch, world in made:
        watch.close()
        world.close()


@pytest.mark.parametrize("netlink", [True, False], ids=["netlink", "polling"])
def test_tells_of_a_change_and_of_nothing_else(start: StartWatch, netlink: bool) -> None:
    world = World(netlink=netlink)
    start(world)
    for state, expected in [
        ("home", []),
        ("away", ["away"]),
        ("away", ["away"]),
        ("home", ["away", "home"]),
    ]:
        world.state = state
        for _ in range(2):  # the second look sees the same: it tells nothing
            if netlink:
                world.message()
            world.wait_for_look()
        gevent.idle()
        assert world.changes == expected


def test_it_looks_when_whoever_starts_it_waits_and_tells_of_a_change_before_that() -> None:
    """What was looked at in between may be from before the change, or from after it."""
    world = World()
    watch = AddressWatch(world.note, LOG, look=world.look, netlink=world.open)
    watch.start()
    assert world.looks == 0
    world.state = "away"
    world.message()
    assert world.changed.wait(PATIENCE_S)
    assert world.changes == ["away"]
    assert world.looks == 2
    watch.close()
    world.close()


def test_it_is_closed_before_it_has_looked() -> None:
    world = World()
    watch = AddressWatch(world.note, LOG, look=world.look, netlink=world.open)
    watch.start()
    watch.close()
    gevent.idle()
    assert world.looks == 0
    world.close()


def test_a_storm_is_one_look(start: StartWatch) -> None:
    world = World()
    start(world)
    assert world.looks == 1
    world.state = "away"
    world.message(200)
    assert world.changed.wait(PATIENCE_S)
    assert world.looks == 2
    assert world.changes == ["away"]


def test_no_message_no_look(start: StartWatch) -> None:
    world = World()
    start(world)
    world.state = "away"
    gevent.sleep(0.05)  # several times what it would take
    assert world.looks == 1


@pytest.mark.parametrize("netlink", [True, False], ids=["netlink", "polling"])
def test_a_look_that_fails_is_repeated(start: StartWatch, netlink: bool) -> None:
    world = World(netlink=netlink)
    start(world)
    world.state, world.problem = "away", OSError(errno.EMFILE, "full")
    if netlink:
        world.message()
    world.wait_for_look()
    world.problem = None
    assert world.changed.wait(PATIENCE_S)
    assert world.changes == ["away"]


def test_a_look_that_fails_at_the_start(start: StartWatch) -> None:
    """Nothing is known then, and the first look that succeeds tells of a change."""
    world = World()
    world.problem = OSError(errno.EMFILE, "full")
    start(world)
    world.problem = None
    assert world.changed.wait(PATIENCE_S)


def test_messages_that_were_lost_count_as_a_change(start: StartWatch) -> None:
    world = World()
    ours = world.open()

    class Overflowing:
        """ENOBUFS first, as when the kernel could not keep all messages."""

        failed = False

        def fileno(self) -> int:
            number: int = ours.fileno()
            return number

        def close(self) -> None:
            ours.close()

        def recv(self, size: int) -> bytes:
            if not self.failed:
                self.failed = True
                raise OSError(errno.ENOBUFS, "No buffer space available")
            data: bytes = ours.recv(size)
            return data

    world.open = Overflowing  # type: ignore[method-assign,assignment]
    start(world)
    world.state = "away"
    world.message()
    assert world.changed.wait(PATIENCE_S)


def test_close_from_on_change(start: StartWatch) -> None:
    world = World()
    done = Event()

    def end() -> None:
        watch.close()
        done.set()

    watch = AddressWatch(end, LOG, look=world.look, netlink=world.open)
    watch.start()
    world.state = "away"
    world.message()
    assert done.wait(PATIENCE_S)
    world.close()


def test_this_hosts_own() -> None:
    """The real netlink socket opens and closes, and two looks agree."""
    watch = AddressWatch(lambda: None, LOG)
    watch.start()
    assert address_watch.look() == address_watch.look()
    watch.close()
    watch.close()
