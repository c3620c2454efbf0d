"""Ports for servers that stop, and come back where they were."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port"]

# Below those that Linux gives to whoever asks for any port (ip_local_port_range): one of these
# stays free until somebody asks for it, also while its server is away.
FIRST, LAST = 20000, 32000


def free_port() -> int:
    """A port of TCP and UDP on which nothing listens, and the next one neither (STUN's second)."""
    while True:
        port = random.randrange(FIRST, LAST)
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for number in (port, port + 1):
                    with socket.socket(socket.AF_INET, kind) as sock:
                        sock.bind(("", number))
        except OSError:
            continue  # taken
        return port
