"""Keeps a UDP port mapped, and echoes what comes in: mapped.py PORT LEASE_S [METHOD ...].

Prints the mapper's log.  A line on standard input closes it, which ends the program.
"""

from __future__ import annotations

import logging
import sys

import gevent
from gevent import socket
from gevent.fileobject import FileObject

from kkp2p_compat.traversal.gateway import Session
from kkp2p_compat.traversal.port_mapping import PortMapper, sessions_of

port, lease_s, *methods = sys.argv[1:]
logging.basicConfig(level=logging.DEBUG, format="%(message)s", stream=sys.stdout)


def sessions(gateway: str, nonce: bytes) -> list[Session]:
    every = sessions_of(gateway, nonce)
    return [session for session in every if not methods or session.method in methods]


def echo() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", int(port)))
        while True:
            data, source = sock.recvfrom(2000)
            sock.sendto(data, source)


echoing = gevent.spawn(echo)
mapper = PortMapper(
    logging.getLogger(), gevent.spawn, lambda: None, sessions=sessions, lease_s=int(lease_s)
)
mapper.start(int(port))
FileObject(sys.stdin, close=False).readline()
mapper.close()
echoing.kill()
print("closed", flush=True)
