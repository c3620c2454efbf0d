"""What a control connection sends, and when: at sockets that only keep it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import gevent
import pytest
from gevent import ssl
from gevent.event import Event

from kkp2p_compat.cloud import control_connection
from kkp2p_compat.cloud.certificate import TLSIdentity
from kkp2p_compat.cloud.control_connection import READ_BYTES, ControlConnection, Service
from kkp2p_compat.cloud.limits import Gatekeeper
from kkp2p_compat.cloud.settings import Limits
from kkp2p_compat.control.wire import encode

BEAT = encode("beat")


class Wire:
    """A TLS socket: what was heard on it, and each piece that was sent."""

    def __init__(self, *heard: bytes) -> None:
        self.heard = list(heard)
        self.sent: list[bytes] = []

    def fileno(self) -> int:
        return -1

    def recv(self, size: int) -> bytes:
        if not self.heard:
            raise ssl.SSLWantReadError
        return self.heard.pop(0)

    def send(self, data: memoryview) -> int:
        self.sent.append(bytes(data))
        return len(data)

    def close(self) -> None:
        pass


class Echo(Service):
    """Answers a beat, and tells ``other`` of it."""

    def __init__(self) -> None:
        super().__init__({"beat": self._on_beat, "fail": self._on_fail})
        self.other: ControlConnection | None = None

    def _on_beat(self, connection: ControlConnection, _: Any) -> None:
        connection.send(BEAT)
        if self.other is not None:
            self.other.send(BEAT)

    def _on_fail(self, *_: object) -> None:
        raise RuntimeError("a bug")


def connection_at(wire: Wire, service: Service) -> ControlConnection:
    closing: Any = SimpleNamespace(spawn=lambda _: None)
    identity = TLSIdentity(None, b"", "", 0.0)
    made = ControlConnection(
        wire, "192.0.2.1", Gatekeeper(Limits(messages_per_s=1e6)), service, identity, closing
    )
    made._open()
    return made


def test_the_lines_of_a_turn_go_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_connection, "TURN_S", 60.0)
    wire, other, service = Wire(BEAT * 2, BEAT), Wire(), Echo()
    service.other = connection_at(other, service)
    connection_at(wire, service)._on_readable()
    assert wire.sent == other.sent == [BEAT * 3]
    service.other.send(BEAT)  # outside of a turn: at once
    assert other.sent == [BEAT * 3, BEAT]


def test_a_turn_keeps_no_more_than_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_connection, "TURN_S", 60.0)
    count = 2 * READ_BYTES // len(BEAT) + 1
    wire = Wire(BEAT * 500, BEAT * 500, BEAT * (count - 1000))
    connection_at(wire, Echo())._on_readable()
    assert b"".join(wire.sent) == BEAT * count
    assert len(wire.sent) <= 5
    assert max(map(len, wire.sent)) <= READ_BYTES


class Waits(Echo):
    """Answers "wait" when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = Event()
        self.got: list[object] = []
        self._handlers["wait"] = self._on_wait
        self.breaks = False

    def _on_wait(self, connection: ControlConnection, _: Any) -> None:
        connection.wait_for(self._work, self.got.append)

    def _work(self) -> str:
        self.go_on.wait()
        if self.breaks:
            raise RuntimeError("a bug")
        return "done"


def waiting(*heard: bytes) -> tuple[Waits, Wire, ControlConnection]:
    service, wire = Waits(), Wire(*heard)
    connection = connection_at(wire, service)
    connection._readable = Mock()
    connection._on_readable()
    gevent.sleep(0)
    return service, wire, connection


def test_what_waits_is_answered_in_its_turn() -> None:
    service, wire, _ = waiting(encode("wait") + BEAT)
    assert wire.sent == []
    assert service.got == []
    service.go_on.set()
    gevent.sleep(0.01)
    assert service.got == ["done"]
    assert wire.sent == [BEAT]


@pytest.mark.parametrize("breaks", [False, True])
def test_what_waited_for_a_connection_that_has_ended(breaks: bool) -> None:
    service, _, connection = waiting(encode("wait"))
    service.breaks = breaks
    connection.finish(encode("bye", reason="test"))
    service.go_on.set()
    gevent.sleep(0.01)
    assert service.got == []
    assert not connection.is_open


def test_a_fault_while_something_waits_ends_the_connection() -> None:
    service, _, connection = waiting(encode("wait"))
    service.breaks = True
    service.go_on.set()
    gevent.sleep(0.01)
    assert service.got == []
    assert not connection.is_open


@pytest.mark.parametrize("end", [b"", encode("fail")])
def test_what_was_answered_before_the_end_is_sent(end: bytes) -> None:
    wire = Wire(BEAT, end)
    connection_at(wire, Echo())._on_readable()
    assert wire.sent == [BEAT]
