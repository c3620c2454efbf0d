"""Thousands of peers of ``fleet.py``: ``python -m benchmarks.fleet_ends``.

They stay online by CloudClient, as those of engines do, and answer every call at once.  One line of
JSON for each question, one for each answer.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool

from kkp2p_compat._errors import KKP2PError
from kkp2p_compat.control import client as control_client
from kkp2p_compat.control.client import CloudClient
from kkp2p_compat.control.link import Link
from kkp2p_compat.control.links import Links
from kkp2p_compat.control.wire import Message, encode

from .agents import serve_in_hub

LOGINS_AT_ONCE = 64
CONNECT_AT_ONCE = 32
CALL_MS = 20_000
CHECK_S = 0.05

# What each peer does on a machine of its own would take most of this process's time: the key
# derivation of SCRAM.
vars(hashlib)["pbkdf2_hmac"] = functools.cache(hashlib.pbkdf2_hmac)


class Patient(Links):
    """On a machine of its own a peer has a processor for its half of the TLS handshake.  Here
    thousands share one: few have theirs at once, and the clocks of the others do not run yet."""

    turns = BoundedSemaphore(CONNECT_AT_ONCE)

    def _race_addresses(self) -> Link:
        with self.turns:
            return super()._race_addresses()


vars(control_client)["Links"] = Patient


class Peer:
    def __init__(
        self, port: int, hosts: list[str], peer_id: str, came: Callable[[], object]
    ) -> None:
        self.peer_id = peer_id
        self.client = CloudClient(
            "|".join(hosts),
            port,
            hosts,
            logging.getLogger("peers"),
            ca_file=None,
            on_offer=_answer,
            on_login_lost=lambda error: None,
            on_login=came,
        )

    @property
    def link(self) -> Link | None:
        return self.client._home_link

    def call(self, to: str) -> float:
        """How long offer and answer took; raises KKP2PError."""
        link = self.link
        if link is None or link.closed.is_set():
            raise KKP2PError("not online")
        began = time.monotonic()
        call = link.calls.make(to, "{}", CALL_MS)
        try:
            call.answer.get()
            return time.monotonic() - began
        finally:
            link.calls.forget(call, cancel=False)


def _answer(link: Link, message: Message) -> None:
    if message["op"] == "offer":
        link.send(encode("answer", call=message["call"], answer="{}"))


class Crowd:
    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}
        self.logins: list[float] = []  # when

    def log_in(
        self, port: int, hosts: list[str], secret: str, first: int, count: int
    ) -> dict[str, Any]:
        """``count`` more peers; how long it took."""
        names = [f"{secret}{number}" for number in range(first, first + count)]
        new = [Peer(port, hosts, name, self._note_login) for name in names]
        began = time.monotonic()
        Pool(LOGINS_AT_ONCE).map(lambda peer: peer.client.login(peer.peer_id, secret).get(), new)
        self.peers |= {peer.peer_id: peer for peer in new}
        return {"seconds": time.monotonic() - began}

    def _note_login(self) -> None:
        self.logins.append(time.monotonic())

    def mark(self) -> dict[str, Any]:
        """From now on logins are those of peers that come back."""
        self.logins.clear()
        return {}

    def online(self) -> dict[str, Any]:
        return {"online": sum(peer.client.online for peer in self.peers.values())}

    def came(self) -> dict[str, Any]:
        return {"at": self.logins}

    def calls(self, pairs: list[list[str]], at_once: int, seconds: float) -> dict[str, Any]:
        """Calls of these pairs in turn, so many at once: how long each took."""
        took: list[float] = []
        failed = 0
        until, turns = time.monotonic() + seconds, iter(pairs * 100_000)

        def work(_: int) -> None:
            nonlocal failed
            while time.monotonic() < until:
                caller, callee = next(turns)
                try:
                    took.append(self.peers[caller].call(callee))
                except KKP2PError:
                    failed += 1
                    gevent.sleep(CHECK_S)

        Pool(at_once).map(work, range(at_once))
        return {"took_s": took, "failed": failed}


if __name__ == "__main__":
    logging.getLogger("peers").setLevel(logging.CRITICAL)
    serve_in_hub(Crowd())
