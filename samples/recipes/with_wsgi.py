"""WSGI: an application (Flask's and Django's are some) behind a peer id."""

from __future__ import annotations

from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import kkp2p_compat as kkp2p
from with_http_server import PeerHTTPServer


class PeerWSGIServer(PeerHTTPServer, WSGIServer):
    def __init__(self, engine: kkp2p.engine_t, application: Any) -> None:
        super().__init__(engine, WSGIRequestHandler)
        self.setup_environ()
        self.set_app(application)
