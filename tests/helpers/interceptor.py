"""Somebody on the path between a peer and its cloud, with a certificate of his own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent import socket
from gevent.pool import Group

from helpers.line_server import Gone, Visitor
from kkp2p_compat.cloud.certificate import TLSIdentity
from kkp2p_compat.control.wire import Message
from kkp2p_compat.engine.signalling.offer import encode_text
from kkp2p_compat.transport.relay_wire import CALLER, make_token, token_to_text

TOKEN = token_to_text(make_token(b"his own key", bytes(16), CALLER, 2**32 - 1))


class Interceptor:
    """Passes connections on to the cloud; once ``cut``, answers everything himself.

    ``heard`` has what was said to him then.  ``answer_login(visitor, message)`` may be replaced.
    """

    def __init__(self, cloud: tuple[str, int], identity: TLSIdentity) -> None:
        self.heard: list[Message] = []
        self.is_cutting = False
        self.answer_login: Callable[[Visitor, Message], object] = lambda visitor, message: None
        self.identity = identity  # what a Visitor looks for
        self._cloud = cloud
        self._passing: list[Any] = []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(100)
        self.port: int = self._listener.getsockname()[1]
        self._relay = socket.socket()
        self._relay.bind(("127.0.0.1", 0))
        self._relay.listen(100)
        self._greenlets = Group()
        self._greenlets.spawn(self._accept)

    @property
    def ops(self) -> set[str]:
        return {message["op"] for message in self.heard}

    def cut(self) -> None:
        self.is_cutting = True
        for sock in self._passing:
            sock.close()
        self._passing.clear()

    def close(self) -> None:
        self.cut()
        self._greenlets.kill()
        self._listener.close()
        self._relay.close()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            self._greenlets.spawn(self._deceive if self.is_cutting else self._pass_on, sock)

    def _pass_on(self, sock: Any) -> None:
        cloud = socket.create_connection(self._cloud)
        self._passing += [sock, cloud]
        self._greenlets.spawn(self._copy, cloud, sock)
        self._copy(sock, cloud)

    def _copy(self, source: Any, sink: Any) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass  # cut, or an end has gone
        finally:
            source.close()
            sink.close()

    def _deceive(self, raw: Any) -> None:
        try:
            sock = self.identity.context.wrap_socket(raw, server_side=True)
        except OSError:
            raw.close()
            return
        visitor = Visitor(self, sock)  # type: ignore[arg-type]
        try:
            while True:
                self._answer(visitor, visitor.receive())
        except Gone:
            return
        finally:
            sock.close()

    def _answer(self, visitor: Visitor, message: Message) -> None:
        self.heard.append(message)
        if message["op"] == "route":
            visitor.send("track", tracks=[])
        elif message["op"] in ("login", "proof"):
            self.answer_login(visitor, message)
        elif message["op"] == "call":
            place = [*self._relay.getsockname(), TOKEN]
            visitor.send("calling", call=message["call"], relay=place)
            visitor.send("answer", call=message["call"], answer=encode_text(key=bytes(range(32))))
            self._greenlets.spawn(self._be_the_peer)

    def _be_the_peer(self) -> None:
        sock, _ = self._relay.accept()
        self.heard.append({"op": "relay"})
        sock.close()
