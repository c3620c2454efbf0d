"""What the tests of the cloud and the relay share."""

from __future__ import annotations

from gevent import socket as gsocket

__all__ = ["tcp_pair"]


def tcp_pair() -> tuple[gsocket.socket, gsocket.socket]:
    """Two ends of one TCP connection on loopback, as gevent sockets."""
    with gsocket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        ours = gsocket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs
