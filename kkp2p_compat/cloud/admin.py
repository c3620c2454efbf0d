"""The HTTP port for those who run a cloud: metrics, health, and a status page.

It only shows.  There is no login: it is for loopback, or for a network that only operators reach.
A page in an operator's browser must not read it all the same (DNS rebinding): the status page is
shown to whoever asks by an address or a name of this cloud, and no answer may be framed or read by
pages of other origins.

/metrics      for Prometheus
/healthz      200 as long as the process answers
/readyz       200, or 503 and why it should get no new peers
/             the status page, which asks /api/status and /api/peer?id=ID
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from gevent import Timeout
from gevent import socket as gsocket
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from .._address import HostPort, text_of
from .._peer_id import is_peer_id
from .directory import DirectoryAway
from .metrics import CONTENT_TYPE, Metrics
from .server import Cloud
from .status import peer, status, why_not_ready

__all__ = ["Admin"]

log = logging.getLogger(__name__)

# Our choices.
MAX_CONNECTIONS = 64
CONNECTION_S = 120.0  # then a browser or a Prometheus connects anew
MAX_QUERY_CHARS = 200

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
]
_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"

_Answer = tuple[str, str, bytes]  # status, content type, body


class _Handler(WSGIHandler):  # type: ignore[misc]
    def handle(self) -> None:
        """No connection is held for ever, however slowly it asks."""
        with Timeout(CONNECTION_S, False):
            super().handle()


class Admin:
    """Bound when it is made; ``start`` when the cloud has started, ``stop`` at the end."""

    def __init__(self, cloud: Cloud, where: HostPort) -> None:
        """Raises OSError, with a sentence for the user."""
        self._cloud = cloud
        self._names = {"localhost", where[0].lower(), *cloud.settings.names}
        self._metrics: Metrics | None = None
        self._server: Any = None
        family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        listener = self._listener = gsocket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(MAX_CONNECTIONS)
        except OSError as error:
            listener.close()
            why = f"no admin port at {text_of(where)}: {error.strerror}"
            raise OSError(error.errno, why) from error
        self.address: HostPort = listener.getsockname()[:2]

    def start(self) -> None:
        self._server = WSGIServer(
            self._listener,
            self._answer_untrusted,
            spawn=Pool(MAX_CONNECTIONS),
            log=None,
            error_log=log,
            handler_class=_Handler,
        )
        self._server.start()
        self._metrics = Metrics(self._cloud)

    def stop(self) -> None:
        """May be called again."""
        if self._metrics is not None:
            self._metrics.stop()
            self._metrics = None
            self._server.stop(timeout=0)
        self._listener.close()

    # Requests.

    def _answer_untrusted(
        self, request: dict[str, Any], begin: Callable[[str, list[tuple[str, str]]], object]
    ) -> Iterable[bytes]:
        try:
            code, kind, body = self._look_up(request)
        except DirectoryAway as error:
            code, kind, body = _failed("503 Service Unavailable", f"the directory is away: {error}")
        begin(code, [*_HEADERS, ("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [] if request["REQUEST_METHOD"] == "HEAD" else [body]

    def _look_up(self, request: dict[str, Any]) -> _Answer:
        path = request["PATH_INFO"]
        if request["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _failed("405 Method Not Allowed", "there is nothing here that can be changed")
        reason = why_not_ready(self._cloud) if path == "/readyz" else ""
        if reason:
            return _failed("503 Service Unavailable", reason)
        if path in ("/healthz", "/readyz"):
            return "200 OK", _TEXT, b"ok\n"
        if path == "/metrics" and self._metrics is not None:
            return "200 OK", CONTENT_TYPE, self._metrics.text()
        if not self._is_own_name(request.get("HTTP_HOST", "")):
            return _failed("421 Misdirected Request", "ask by the address of this host (--name)")
        if path in _PAGE:
            name, kind = _PAGE[path]
            page = resources.files(__package__) / "page" / name
            return "200 OK", kind, page.read_bytes()
        if path == "/api/status":
            return _json(status(self._cloud))
        if path == "/api/peer":
            (peer_id,) = parse_qs(request["QUERY_STRING"][:MAX_QUERY_CHARS]).get("id", [""])[:1]
            if not is_peer_id(peer_id):
                return _failed("400 Bad Request", "that is no peer id")
            return _json(peer(self._cloud, peer_id))
        return _failed("404 Not Found", "there is no such page")

    def _is_own_name(self, host: str) -> bool:
        """Whether a request is for us, and not for a name that somebody has led here."""
        if host.startswith("["):
            name = host[1:].partition("]")[0]
        else:
            name = host.partition(":")[0].lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def _json(value: object) -> _Answer:
    return "200 OK", _JSON, json.dumps(value, allow_nan=False).encode()


def _failed(code: str, reason: str) -> _Answer:
    return code, _TEXT, f"{reason}\n".encode()
