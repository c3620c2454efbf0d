"""Plain threads: one for each caller, in blocking style and without gevent."""

from __future__ import annotations

import socket
import threading

import kkp2p_compat as kkp2p
from peers import as_socket, take


def serve(engine: kkp2p.engine_t, stop: threading.Event) -> None:
    while not stop.is_set():
        if (channel := take(engine, 500)) is not None:
            threading.Thread(target=answer, args=(as_socket(channel),)).start()


def answer(sock: socket.socket) -> None:
    with sock, sock.makefile("rwb") as stream:
        for line in stream:
            stream.write(line.upper())
            stream.flush()
