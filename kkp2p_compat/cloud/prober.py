"""Which servers of a list are alive: each is connected to every few seconds.

A name is looked up anew each time, and is alive where one of its addresses is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import gevent

from .._address import HostPort
from .._errors import KKP2PError
from ..control.resolver import addresses_of
from ..transport import dial

__all__ = ["Prober"]

log = logging.getLogger(__name__)

# Our choices, in seconds.
PROBE_EVERY_S = 3.0
PROBE_TIMEOUT_S = 2.0


class Prober:
    """``kind``: what the servers are, for the log.  Until ``start`` has found out more, all of them
    count as alive.
    """

    def __init__(self, kind: str, servers: Sequence[HostPort]) -> None:
        self._kind = kind
        self._servers = list(servers)
        self._dead: set[HostPort] = set()
        self._probes: list[gevent.Greenlet[..., None]] = []

    def start(self) -> None:
        self._probes = [gevent.spawn(self._probe, server) for server in self._servers]

    def stop(self) -> None:
        gevent.killall(self._probes)

    @property
    def alive(self) -> list[HostPort]:
        """In the order of the list; all if none is: others may see what we do not."""
        alive = [server for server in self._servers if server not in self._dead]
        return alive or list(self._servers)

    def _probe(self, server: HostPort) -> None:
        while True:
            try:
                with gevent.Timeout(PROBE_TIMEOUT_S, TimeoutError("no answer")):
                    host, port = server
                    dial.connect(addresses_of(host, PROBE_TIMEOUT_S), port)[0].close()
            except (OSError, KKP2PError) as error:
                if server not in self._dead:
                    log.warning("%s %s:%d is dead: %s", self._kind, *server, error)
                self._dead.add(server)
            else:
                if server in self._dead:
                    log.warning("%s %s:%d is alive again", self._kind, *server)
                self._dead.discard(server)
            gevent.sleep(PROBE_EVERY_S)
