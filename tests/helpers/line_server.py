"""A server of TLS lines that does what a test's script says, good or bad; links to it."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent import ssl as gssl
from gevent.pool import Group
from scramp import ScramMechanism

from helpers.support import SECRET
from kkp2p_compat.cloud.certificate import TLSIdentity, load_identity
from kkp2p_compat.control import client as client_module
from kkp2p_compat.control import link as link_module
from kkp2p_compat.control.link import Link
from kkp2p_compat.control.wire import LineReader, Message, encode

Script = Callable[["Visitor"], object]


class Gone(Exception):
    """the client has closed the connection"""


class Visitor:
    """One connection, from the server's side."""

    def __init__(self, server: LineServer, sock: Any) -> None:
        self.server = server
        self.sock = sock
        self._reader = LineReader()
        self._messages: list[Message] = []

    def send(self, op: str, **fields: Any) -> None:
        self.send_raw(encode(op, **fields))

    def send_raw(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Gone from error

    def receive(self, op: str | None = None) -> Message:
        """The next line; it must be ``op`` if that is given.  An engine asks for
        the way at its start, too, which may be seen at any time: that is answered then."""
        message = self._receive()
        while op not in (None, "route") and message["op"] == "route":
            self.send("track", tracks=[])
            message = self._receive()
        assert op is None or message["op"] == op, message
        return message

    def _receive(self) -> Message:
        while not self._messages:
            try:
                data = self.sock.recv(65536)
            except OSError as error:
                raise Gone from error
            if not data:
                raise Gone
            self._reader.feed(data)
            self._messages += self._reader.messages()
        return self._messages.pop(0)

    def wait_until_gone(self) -> None:
        while True:
            self.receive()

    def scram(self, iterations: int = 4096) -> Any:
        mechanism = ScramMechanism("SCRAM-SHA-256-PLUS")
        kept = mechanism.make_auth_info(SECRET, iterations)
        binding = "tls-server-end-point", self.server.identity.binding
        return mechanism.make_server(lambda _: kept, channel_binding=binding)

    def log_in(self, iterations: int = 4096, **welcome: Any) -> None:
        """Be a good cloud until the welcome; its fields may be replaced."""
        scram = self.scram(iterations)
        scram.set_client_first(self.receive("login")["scram"])
        self.send("challenge", scram=scram.get_server_first())
        scram.set_client_final(self.receive("proof")["scram"])
        self.send("welcome", **{"scram": scram.get_server_final(), "beat": 60} | welcome)


class LineServer:
    """Runs ``script(visitor)`` for each connection, and closes it when that returns.

    What a script raises, other than Gone, is raised by ``close``.  ``script`` may be replaced at
    any time.
    """

    def __init__(self, identity: TLSIdentity, script: Script) -> None:
        self.script = script
        self.identity = identity
        self.visits = 0
        self._problems: list[BaseException] = []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(100)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._greenlets = Group()
        self._greenlets.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            self._greenlets.spawn(self._serve, self._listener.accept()[0])

    def _serve(self, raw: Any) -> None:
        self.visits += 1
        try:
            sock = self.identity.context.wrap_socket(
                raw, server_side=True, do_handshake_on_connect=False
            )
        except OSError:
            raw.close()  # the client was gone before
            return
        try:
            sock.do_handshake()
            self.script(Visitor(self, sock))
        except (Gone, OSError):
            return
        except Exception as error:  # noqa: BLE001 - raised again by close
            self._problems.append(error)
        finally:
            sock.close()

    def close(self) -> None:
        self._greenlets.kill()
        self._listener.close()
        if self._problems:
            raise self._problems[0]


class RawServer:
    """The same without TLS: ``script(socket)``; a socket is closed with the server."""

    def __init__(self, script: Callable[[Any], object]) -> None:
        self._script = script
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(100)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._socks: list[Any] = []
        self._greenlets = Group()
        self._greenlets.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            self._socks.append(sock)
            self._greenlets.spawn(self._serve, sock)

    def _serve(self, sock: Any) -> None:
        try:
            self._script(sock)
        except OSError:
            return

    def close(self) -> None:
        self._greenlets.kill()
        for sock in (*self._socks, self._listener):
            sock.close()


def all_here(script: Script) -> Script:
    """A cloud that serves every peer on the first connection."""

    def run(visitor: Visitor) -> None:
        visitor.receive("route")
        visitor.send("track", tracks=[])
        script(visitor)

    return run


def wait_for(condition: Callable[[], object]) -> None:
    """Bounded by the time limit of every test."""
    while not condition():
        gevent.sleep(0.001)


# Fixtures: conftest.py imports them.

Serve = Callable[[Script], LineServer]
MakeLink = Callable[[tuple[str, int]], Link]
OpenLink = Callable[[Script], Link]


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture
def serve(identity: Any) -> Iterator[Serve]:
    servers: list[LineServer] = []

    def start(script: Script) -> LineServer:
        servers.append(LineServer(identity, script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def client_context() -> gssl.SSLContext:
    context = gssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Offers(list[Message]):
    def take(self, _: Link, message: Message) -> None:
        self.append(message)


@pytest.fixture
def offers() -> Offers:
    return Offers()


@pytest.fixture
def make_link(offers: Offers) -> Iterator[MakeLink]:
    links: list[Link] = []

    def make(address: tuple[str, int]) -> Link:
        log = logging.getLogger("test")
        links.append(Link(address, log, offers.take, client_context(), None))
        return links[-1]

    yield make
    for link in links:
        link.close()


@pytest.fixture
def open_link(make_link: MakeLink, serve: Serve) -> OpenLink:
    """A link to a server that runs the script."""

    def open_(script: Script) -> Link:
        link = make_link(serve(script).address)
        link.open()
        return link

    return open_


@pytest.fixture
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_FIRST_S", 0.001)
    monkeypatch.setattr(client_module, "BACKOFF_MOST_S", 0.01)
    monkeypatch.setattr(client_module, "BACKOFF_SPREAD_S", 0.003)


@pytest.fixture
def quick_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "OPEN_TIMEOUT_S", 0.1)
    monkeypatch.setattr(link_module, "ANSWER_TIMEOUT_S", 0.1)
