"""http.server: the same handlers, behind a peer id instead of an address."""

from __future__ import annotations

import socket
from http.server import ThreadingHTTPServer
from typing import Any

import kkp2p_compat as kkp2p
from peers import as_socket, take


class PeerHTTPServer(ThreadingHTTPServer):
    def __init__(self, engine: kkp2p.engine_t, handler: Any) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.engine = engine
        self.server_name, self.server_port = "peer", 80  # what CGI and WSGI programs are told

    def fileno(self) -> int:  # what serve_forever waits for
        return kkp2p.listen_fd(self.engine)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            channel = take(self.engine, 0)
        except ConnectionError as error:
            # serve_forever ignores an OSError, and would wait for callers who cannot come.
            raise RuntimeError(str(error)) from error
        if channel is None:
            raise OSError("nobody is there any more")
        return as_socket(channel), (channel.caller_id or "stranger", 0)
