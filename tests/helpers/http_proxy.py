"""A small HTTP proxy: CONNECT with basic authentication, in threads, for the tests of its users."""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["HttpProxy", "running_proxy"]

LIMIT_S = 60


class HttpProxy(socketserver.ThreadingTCPServer):
    """``names``: hosts that it knows, and their addresses; others are refused.

    ``user``: name:password that it wants.  ``asked``: the targets of good requests; ``refused``:
    the status of each other one.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, names: Mapping[str, str], user: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Visitor)
        self.names = names
        self.user = user
        self.asked: list[str] = []
        self.refused: list[int] = []
        self.open: set[socket.socket] = set()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Visitor(socketserver.BaseRequestHandler):
    server: Any
    request: Any

    def handle(self) -> None:
        self.request.settimeout(LIMIT_S)
        self.server.open.add(self.request)
        try:
            target = self._judge()
            if target is not None:
                with target:
                    self.server.open.add(target)
                    self._carry(target)
        except OSError:
            return  # one of the two is gone
        finally:
            self.server.open.discard(self.request)

    def _judge(self) -> socket.socket | None:
        header = b""
        while not header.endswith(b"\r\n\r\n"):
            header += self.request.recv(1) or b"\r\n\r\n"
        lines = header.decode().split("\r\n")
        method, _, rest = lines[0].partition(" ")
        place = rest.removesuffix(" HTTP/1.1")
        host, _, port = place.rpartition(":")
        fields = dict(line.split(": ", 1) for line in lines[1:] if line)
        wanted = self.server.user
        if wanted is not None and fields.get("Proxy-Authorization") != (
            "Basic " + base64.b64encode(wanted.encode()).decode()
        ):
            return self._refuse(407, "Proxy Authentication Required")
        if method != "CONNECT" or fields.get("Host") != place:
            return self._refuse(400, "Bad Request")
        if host not in self.server.names:
            return self._refuse(403, "Forbidden")
        try:
            target = socket.create_connection((self.server.names[host], int(port)))
        except OSError:
            return self._refuse(502, "Bad Gateway")
        self.server.asked.append(place)
        self.request.sendall(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
        return target

    def _refuse(self, status: int, reason: str) -> None:
        self.server.refused.append(status)
        body = b"<html>no</html>"
        header = f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request.sendall(header.encode() + body)

    def _carry(self, target: socket.socket) -> None:
        back = threading.Thread(target=_pump, args=(target, self.request))
        back.start()
        _pump(self.request, target)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def running_proxy(names: Mapping[str, str], user: str | None = None) -> Iterator[HttpProxy]:
    with HttpProxy(names, user) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
            for sock in list(proxy.open):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
