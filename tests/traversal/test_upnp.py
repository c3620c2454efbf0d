"""UPnP: the search, the guard between miniupnpc and a router, and the two together."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from helpers.router import LOOPBACK, OUTSIDE, Igd
from helpers.support import PATIENCE_S
from kkp2p_compat._errors import BadPacket, KKP2PError, TimedOut
from kkp2p_compat.engine.runtime.thread import EngineThread
from kkp2p_compat.traversal import upnp
from kkp2p_compat.traversal.gateway import Mapping, Refused
from kkp2p_compat.traversal.port_mapping import PortMapper
from kkp2p_compat.traversal.upnp import Guard, UpnpSession, parse_answer_untrusted

LOG = logging.getLogger("test.upnp")
INSIDE = 5555
THEIRS = "192.168.1.77"  # another host behind the router
GATEWAY = "192.168.1.1"
KIND = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
HOSTILE_LOCATIONS = [
    "http://192.168.1.2:5000/desc.xml",
    "http://127.0.0.1:5000/desc.xml",
    "http://192.168.1.1@127.0.0.1/desc.xml",
    "http://192.168.1.1.example.org/desc.xml",
    "https://192.168.1.1/desc.xml",
    "http://192.168.1.1:0/desc.xml",
    "http://192.168.1.1:65536/desc.xml",
    "http://192.168.1.1:5000/a b",
    "http://192.168.1.1:5000",
    "http://192.168.1.1:5000/" + "a" * 600,
    "file:///etc/passwd",
    "",
]

with_miniupnpc = pytest.mark.skipif(not upnp.available(), reason="miniupnpc is not installed")


def _answer(location: str, kind: str = KIND, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nST: {kind}\r\nlocation:{location}\r\n\r\n".encode()


@pytest.fixture
def igd() -> Iterator[Igd]:
    made = Igd()
    yield made
    made.close()


@pytest.fixture
def session(igd: Igd) -> Iterator[UpnpSession]:
    made = UpnpSession(LOOPBACK, igd.port)
    yield made
    made.close()


def test_an_answer_names_the_description() -> None:
    data = _answer("http://192.168.1.1:5000/a/desc.xml?x=1")
    assert parse_answer_untrusted(data, GATEWAY) == (5000, "/a/desc.xml?x=1")
    assert parse_answer_untrusted(_answer("http://192.168.1.1/d"), GATEWAY) == (80, "/d")


@pytest.mark.parametrize("location", HOSTILE_LOCATIONS)
def test_a_description_that_is_elsewhere(location: str) -> None:
    with pytest.raises(BadPacket):
        parse_answer_untrusted(_answer(location), GATEWAY)


@given(st.binary(max_size=3000) | st.text().map(lambda text: _answer(text)))
def test_any_answer_is_a_description_at_the_router_or_a_bad_packet(data: bytes) -> None:
    try:
        port, path = parse_answer_untrusted(data, GATEWAY)
    except BadPacket:
        return
    assert 0 < port < 65536
    assert path.startswith("/")


def test_answers_that_are_none() -> None:
    good = "http://192.168.1.1:5000/d"
    for data in (
        _answer(good, kind="urn:schemas-upnp-org:device:MediaServer:1"),
        _answer(good, status="404 Not Found"),
        b"NOTIFY * HTTP/1.1\r\n" + _answer(good),
        _answer(good) + bytes(upnp.MAX_ANSWER_BYTES),
        _answer(good).replace(b"location", "l\u00f6cation".encode()),
    ):
        with pytest.raises(BadPacket):
            parse_answer_untrusted(data, GATEWAY)


def test_a_search_that_only_liars_answer(igd: Igd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upnp, "SEARCH_EVERY_S", 0.02)
    igd.location = "http://203.0.113.1/desc.xml"
    with pytest.raises(TimedOut):
        upnp.search(LOOPBACK, igd.port)


def test_a_search_finds(igd: Igd) -> None:
    assert upnp.search(LOOPBACK, igd.port) == (igd.http_port, "/desc.xml")


# The whole, with miniupnpc.


@with_miniupnpc
def test_maps_renews_and_removes(igd: Igd, session: UpnpSession) -> None:
    session.probe()
    assert igd.mapped == {}
    assert session.map(INSIDE, INSIDE, 3600) == Mapping(OUTSIDE, INSIDE, 3600)
    assert session.map(INSIDE, INSIDE, 1800) == Mapping(OUTSIDE, INSIDE, 1800)
    assert igd.mapped == {INSIDE: (LOOPBACK, INSIDE, 1800)}
    session.unmap()
    assert igd.mapped == {}
    assert all(f"\r\nHost: {LOOPBACK}:{igd.http_port}" in head for head in igd.heads)


@with_miniupnpc
@pytest.mark.parametrize("known", [True, False], ids=["visible", "refused"])
def test_leaves_another_hosts_port_alone(igd: Igd, session: UpnpSession, known: bool) -> None:
    if known:  # some routers would give it to us all the same
        igd.mapped[INSIDE] = THEIRS, INSIDE, 0
    else:
        igd.taken.add(INSIDE)
    session.probe()
    mapping = session.map(INSIDE, INSIDE, 3600)
    assert mapping.port != INSIDE
    assert igd.mapped[mapping.port] == (LOOPBACK, INSIDE, 3600)
    session.unmap()
    assert igd.mapped == ({INSIDE: (THEIRS, INSIDE, 0)} if known else {})


@with_miniupnpc
def test_gives_up_when_every_port_is_taken(igd: Igd, session: UpnpSession) -> None:
    igd.taken = set(range(65536))
    session.probe()
    with pytest.raises(Refused, match="each port"):
        session.map(INSIDE, INSIDE, 3600)
    assert igd.mapped == {}


@with_miniupnpc
def test_a_router_that_knows_no_leases(igd: Igd, session: UpnpSession) -> None:
    igd.only_permanent = True
    session.probe()
    assert session.map(INSIDE, INSIDE, 3600) == Mapping(OUTSIDE, INSIDE, 3600)
    assert igd.mapped == {INSIDE: (LOOPBACK, INSIDE, 0)}
    session.unmap()
    assert igd.mapped == {}


@with_miniupnpc
@pytest.mark.parametrize(
    "outside", ["", "not an address", "127.0.0.1", "999.1.1.1", "::1", "\u00fc"]
)
def test_an_outside_address_that_nobody_can_have(
    igd: Igd, session: UpnpSession, outside: str
) -> None:
    igd.outside = outside
    session.probe()
    with pytest.raises(KKP2PError):
        session.map(INSIDE, INSIDE, 3600)
    session.unmap()
    assert igd.mapped == {}


@with_miniupnpc
def test_the_routers_own_base_and_absolute_addresses(igd: Igd, session: UpnpSession) -> None:
    """Many routers have one or the other; all requests still pass the guard."""
    igd.base = f"<URLBase>http://{LOOPBACK}:{igd.http_port}/</URLBase>"
    igd.control = f"http://{LOOPBACK}:{igd.http_port}/control"
    session.probe()
    session.map(INSIDE, INSIDE, 3600)
    assert INSIDE in igd.mapped


@with_miniupnpc
@pytest.mark.parametrize("where", ["control", "base"])
def test_a_description_that_sends_us_elsewhere(igd: Igd, session: UpnpSession, where: str) -> None:
    """Nothing is sent to a third party: a listener there sees no connection."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as third:
        third.bind((LOOPBACK, 0))
        third.listen()
        elsewhere = f"http://{LOOPBACK}:{third.getsockname()[1]}/"
        if where == "control":
            igd.control = elsewhere + "control"
            with pytest.raises(Refused, match="not its own"):
                session.probe()
        else:  # ignored
            igd.base = f"<URLBase>{elsewhere}</URLBase>"
            session.probe()
            session.map(INSIDE, INSIDE, 3600)
        third.setblocking(False)
        with pytest.raises(BlockingIOError):
            third.accept()


def _endless(sock: Any) -> None:
    sock.recv(4096)
    sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    try:
        while True:
            sock.sendall(b"<a>" * 10000)
    except OSError:
        return


def _dripping(sock: Any) -> None:
    sock.recv(4096)
    try:
        while True:
            sock.sendall(b"H")
            gevent.sleep(0.01)
    except OSError:
        return


def _silent(sock: Any) -> None:
    while sock.recv(4096):
        pass


def _hanging_up(sock: Any) -> None:
    sock.close()


def _nonsense(sock: Any) -> None:
    sock.recv(4096)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2147483647\r\n\r\n" + os.urandom(5000))


@with_miniupnpc
@pytest.mark.parametrize("raw", [_endless, _dripping, _silent, _hanging_up, _nonsense])
def test_a_hostile_router_is_done_with_soon(
    igd: Igd, session: UpnpSession, raw: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leak check of all tests then sees that the thread has ended."""
    monkeypatch.setattr(upnp, "EXCHANGE_S", 0.2)
    igd.raw = raw
    with pytest.raises(Refused):
        session.probe()


@with_miniupnpc
@pytest.mark.parametrize("raw", [_dripping, _silent])
def test_close_ends_a_call_in_progress(
    igd: Igd, session: UpnpSession, raw: Callable[[Any], None]
) -> None:
    """With EXCHANGE_S as it is.  The thread's end is waited for by ``close`` itself."""
    talking = Event()

    def talk(sock: Any) -> None:
        talking.set()
        raw(sock)

    igd.raw = talk
    probing = gevent.spawn(session.probe)
    assert talking.wait(PATIENCE_S)
    probing.kill()
    session.close()
    session.close()


def test_the_guard_bounds_an_answer(igd: Igd) -> None:
    igd.raw = _endless
    guard = Guard(LOOPBACK, igd.http_port)
    try:
        with socket.create_connection((LOOPBACK, int(guard.base.rpartition(":")[2]))) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while data := sock.recv(65536):
                received += data
    finally:
        guard.close()
    assert 0 < len(received) <= upnp.MAX_BYTES


def test_the_guard_outlives_a_router_that_refuses(igd: Igd) -> None:
    igd._listener.close()
    guard = Guard(LOOPBACK, igd.http_port)
    try:
        for _ in range(2):
            with socket.create_connection((LOOPBACK, int(guard.base.rpartition(":")[2]))) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert sock.recv(100) == b""
    finally:
        guard.close()


@with_miniupnpc
def test_an_engine_that_ends_meanwhile(igd: Igd) -> None:
    """The leak check of all tests then sees no thread and no descriptor left."""
    talking = Event()

    def talk(sock: Any) -> None:
        talking.set()
        _silent(sock)

    def start() -> PortMapper:
        mapper = PortMapper(
            LOG,
            thread.spawn,
            lambda: None,
            gateways=lambda: [LOOPBACK],
            sessions=lambda ip, nonce: [UpnpSession(ip, igd.port)],
        )
        mapper.start(INSIDE)
        return mapper

    igd.raw = talk
    thread = EngineThread(LOG)
    thread.start()
    mapper = thread.call(start)
    assert talking.wait(PATIENCE_S)
    thread.call(mapper.close)
    thread.stop()
