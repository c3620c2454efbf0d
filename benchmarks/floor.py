"""The floor of a round trip: what a program of our shape costs in which nothing is done.

A socket pair between the application and an engine's thread, gevent watchers in that thread,
AES-GCM with a header of the size of ours, and one UDP socket between the two hosts.  There is no
loss recovery, no flow control and only one peer, so no engine on gevent can be faster than this.
p2p_ends.py has the application's side, which is the same for a channel of ours.
"""

from __future__ import annotations

import socket
import threading

import gevent.event
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from gevent import get_hub

READ = 1  # libev's event
READ_BYTES = 65536
HEADER, NONCE, KEY = bytes(21), bytes(12), bytes(16)


class FloorEnd:
    """Either end; ``connect`` gives the application's end of the socket pair."""

    def __init__(self, mine: str, theirs: str, port: str) -> None:
        self._cipher = AESGCM(KEY)
        self._peer = theirs, int(port)
        self._network = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._network.bind((mine, int(port)))
        self._application, self._inner = socket.socketpair()
        for sock in (self._network, self._inner):
            sock.setblocking(False)
        threading.Thread(target=self._run, daemon=True).start()

    def connect(self) -> socket.socket:
        return self._application

    def _run(self) -> None:
        loop = get_hub().loop
        self._outgoing = loop.io(self._inner.fileno(), READ)
        self._outgoing.start(self._from_application)
        incoming = loop.io(self._network.fileno(), READ)
        incoming.start(self._from_network)
        gevent.event.Event().wait()

    def _from_application(self) -> None:
        data = self._inner.recv(READ_BYTES)
        if not data:
            self._outgoing.stop()  # the end, which the other side is told of by an empty packet
        self._network.sendto(HEADER + self._cipher.encrypt(NONCE, data, HEADER), self._peer)

    def _from_network(self) -> None:
        packet = self._network.recv(READ_BYTES)
        size = len(HEADER)
        if data := self._cipher.decrypt(NONCE, packet[size:], packet[:size]):
            self._inner.send(data)
        else:
            self._inner.shutdown(socket.SHUT_WR)
