"""A place on the relay that is kept ready: who gets it, and that nobody else does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from helpers.support import PATIENCE_S
from kkp2p_compat._errors import CallRefused, KKP2PError, LinkLost
from kkp2p_compat.engine.links import prepared_relay
from kkp2p_compat.engine.links.prepared_relay import TAKEN, PreparedRelay
from kkp2p_compat.transport.relay import Visit
from kkp2p_compat.transport.relay_wire import PAIRED


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_relay, "PREPARE_AFTER_S", 0)


@pytest.fixture
def wires() -> Iterator[tuple[Any, Any]]:
    """Our side of the connection to the relay, and the relay's."""
    ours, relays = gsocket.socketpair()
    relays.settimeout(PATIENCE_S)
    yield ours, relays
    ours.close()
    relays.close()


def prepare(sock: Any, is_caller: bool) -> PreparedRelay:
    return PreparedRelay(gevent.spawn, lambda: there(sock), is_caller)


def there(sock: Any) -> Visit:
    """A visit that has shown its token."""
    visit = Visit([("127.0.0.1", 1)], b"", True)
    visit.sock = sock
    visit._left.clear()
    return visit


def wait(relay: PreparedRelay) -> Any:
    return relay.ready.get(timeout=PATIENCE_S)


def is_closed(sock: Any) -> bool:
    return bool(sock.fileno() == -1)


def test_the_caller_takes_it(wires: tuple[Any, Any]) -> None:
    ours, relays = wires
    relay = prepare(ours, True)
    relays.sendall(bytes([PAIRED]))
    assert wait(relay) is ours
    assert relay.take() is ours
    relay.close()
    ours.sendall(b"hello")
    assert relays.recv(1, socket.MSG_WAITALL) == TAKEN
    assert relays.recv(5, socket.MSG_WAITALL) == b"hello"


def test_the_callee_gets_it_when_it_is_taken(wires: tuple[Any, Any]) -> None:
    ours, relays = wires
    relay = prepare(ours, False)
    relays.sendall(bytes([PAIRED]))
    gevent.sleep(0)
    assert not relay.ready.ready()
    relays.sendall(TAKEN + b"hello")
    assert relay.take() is wait(relay)
    relay.close()
    assert ours.recv(5) == b"hello"


@pytest.mark.parametrize("said", [b"", b"\x02"])
def test_the_callee_whose_caller_found_a_path(wires: tuple[Any, Any], said: bytes) -> None:
    ours, relays = wires
    relay = prepare(ours, False)
    relays.sendall(bytes([PAIRED]) + said)
    relays.shutdown(socket.SHUT_WR)
    with pytest.raises(LinkLost, match="did not need"):
        wait(relay)
    relay.close()
    assert is_closed(ours)


@pytest.mark.parametrize("is_caller", [True, False])
def test_a_relay_that_refuses(wires: tuple[Any, Any], is_caller: bool) -> None:
    ours, relays = wires
    relay = prepare(ours, is_caller)
    relays.sendall(bytes([PAIRED + 1]))
    with pytest.raises(CallRefused):
        wait(relay)
    with pytest.raises(CallRefused):
        relay.take()
    relay.close()
    assert is_closed(ours)


def test_a_relay_that_cannot_be_reached() -> None:
    def nowhere() -> Any:
        raise LinkLost("relay: refused")

    relay = PreparedRelay(gevent.spawn, nowhere, True)
    with pytest.raises(LinkLost, match="refused"):
        wait(relay)
    assert not relay.begun
    relay.close()


def test_closed_while_it_waits(wires: tuple[Any, Any]) -> None:
    ours, relays = wires
    relay = prepare(ours, True)
    with gevent.Timeout(PATIENCE_S):
        while not relay.begun:
            gevent.sleep(0)
    relay.close()
    with pytest.raises(KKP2PError):
        wait(relay)
    assert relays.recv(1) == b""


def test_it_is_not_gone_to_before_it_is_time(
    monkeypatch: pytest.MonkeyPatch, wires: tuple[Any, Any]
) -> None:
    monkeypatch.setattr(prepared_relay, "PREPARE_AFTER_S", 3600)
    went: list[int] = []

    def go() -> Any:
        went.append(1)
        return there(wires[0])

    relay = PreparedRelay(gevent.spawn, go, True)
    gevent.sleep(0)
    assert not went
    relay.hurry()
    wires[1].sendall(bytes([PAIRED]))
    wait(relay)
    assert relay.begun
    relay.close()
    assert is_closed(wires[0])


def test_closed_as_it_gets_there(wires: tuple[Any, Any]) -> None:
    """The kill finds it no more on its way, but waiting for the other side."""
    ours, relays = wires
    made: list[PreparedRelay] = []

    def go() -> Any:
        made[0].close()
        return there(ours)

    made.append(PreparedRelay(gevent.spawn, go, True))
    with pytest.raises(KKP2PError):
        wait(made[0])
    assert is_closed(ours)
    assert relays.recv(1) == b""
