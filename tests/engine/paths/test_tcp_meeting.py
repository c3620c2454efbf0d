"""A TCP path becomes one of the endpoint's, for as long as somebody wants it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult, Event

from helpers.endpoint_support import make
from helpers.support import PATIENCE_S
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.engine.paths import tcp_meeting
from kkp2p_compat.engine.paths.path_finder import Path
from kkp2p_compat.engine.paths.path_kind import PathKind
from kkp2p_compat.engine.paths.tcp_meeting import TcpMeeting
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.traversal import tcp_punch

__all__ = ["make"]

STUN = b"\x00\x01".ljust(28, b"s")
log = logging.getLogger("test")


class Side:
    """One side of a call, whose texts go to the ``other``."""

    def __init__(self, endpoint: Endpoint, key: bytes, is_caller: bool) -> None:
        self.endpoint = endpoint
        self.found: AsyncResult[Path] = AsyncResult()
        self.told: list[dict[str, Any]] = []
        self.other: Side | None = None
        means: Any = SimpleNamespace(
            own=SimpleNamespace(servers=[]), endpoint=endpoint, log=log, spawn=gevent.spawn
        )
        keys: Any = SimpleNamespace(trickle=key)
        self.meeting = TcpMeeting(means, keys, is_caller, False, self._tell)

    def _tell(self, fields: dict[str, Any]) -> None:
        self.told.append(fields)
        if self.other is not None:
            self.other.meeting.hear_untrusted(fields["tcp"])


@pytest.fixture
def sides(make: Callable[[], Endpoint], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Side]]:
    found, key = tcp_punch.host_candidates, secrets.token_bytes(32)
    monkeypatch.setattr(tcp_punch, "host_candidates", lambda ports: found(ports, ["127.0.0.1"]))
    sides = [Side(make(), key, is_caller) for is_caller in (True, False)]
    sides[0].other, sides[1].other = sides[1], sides[0]
    yield sides
    for side in sides:
        side.meeting.close()
        side.meeting.close()
    gevent.sleep(0)


def test_a_path_that_is_taken(sides: list[Side]) -> None:
    """It outlives the meeting, and carries datagrams both ways."""
    for side in sides:
        side.meeting.begin(side.found)
    paths = []
    for side in sides:
        paths.append(path := side.found.get())
        assert path.kind is PathKind.TCP
        side.meeting.keep(path.address)
        side.meeting.close()
    for sender, receiver, path, seen in ((*sides, *paths), (*reversed(sides), *reversed(paths))):
        came: list[Any] = []
        arrived = Event()
        receiver.endpoint.on_stun = lambda *what, came=came, arrived=arrived: (
            came.append(what),
            arrived.set(),
        )
        sender.endpoint.send_check(STUN, path.address)
        with gevent.Timeout(PATIENCE_S):
            arrived.wait()
        assert came == [(STUN, seen.address)]


def test_a_path_that_is_not_taken_ends_with_the_meeting(sides: list[Side]) -> None:
    for side in sides:
        side.meeting.begin(side.found)
    path = sides[0].found.get()
    sides[1].found.get()
    sides[0].meeting.close()
    with pytest.raises(KeyError):
        sides[0].endpoint.port_of(path.address[2:][0])


def test_too_late(sides: list[Side]) -> None:
    """There is a path already, and the connection is dropped."""
    there = Path(("192.0.2.1", 9), 0.01)
    sides[0].found.set(there)
    for side in sides:
        side.meeting.begin(side.found)
    for side in sides:
        side.meeting.finish()
    assert sides[0].found.get() is there
    assert not sides[0].endpoint._doors.extra


def test_no_path(sides: list[Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_meeting, "PUNCH_S", 0.05)
    sides[0].meeting.begin(sides[0].found)
    sides[0].meeting.finish()
    assert not sides[0].found.ready()
    assert [list(fields) for fields in sides[0].told] == [["tcp"]]


def test_what_is_heard(sides: list[Side]) -> None:
    """Of a peer that tells nonsense; and nothing where no path by TCP is looked for."""
    sides[0].meeting.hear_untrusted("nonsense")
    sides[0].meeting.finish()
    sides[0].meeting.begin(sides[0].found)
    with pytest.raises(BadPacket):
        sides[0].meeting.hear_untrusted("nonsense")
