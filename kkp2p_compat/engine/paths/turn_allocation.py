"""An allocation at a TURN server, as one more socket of an endpoint.

Runs in the engine's hub.  Whoever makes one waits for it in ``wait``, tells the peer its
``relayed`` address, and reaches the peer's addresses by its ``number``: (ip, port, number).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from logging import Logger

from gevent import get_hub
from gevent.event import Event

from ..._address import HostPort, text_of
from ..._errors import LinkLost
from ...transport.udp.endpoint import Endpoint
from ...traversal.turn import TurnClient, TurnState
from ...traversal.turn_server import TurnServer
from ...traversal.turn_socket import TurnSocket
from .driver import Driver

__all__ = ["TurnAllocation", "allocate"]


class TurnAllocation:
    """``on_over(number)`` is called once in the hub when one that was made has ended, unless by
    ``close``; its socket is closed by then.  Raises as ``Endpoint.adopt``.
    """

    def __init__(
        self, endpoint: Endpoint, server: TurnServer, log: Logger, on_over: Callable[[int], object]
    ) -> None:
        """``server``: with a numeric host."""
        self.server = server.host, server.port
        self._endpoint = endpoint
        self._log = log
        self._on_over = on_over
        self._settled = Event()
        self._closed = False
        now = time.monotonic()
        self._client = TurnClient(self.server, server.username, server.password, now, _random)
        self.number = endpoint.adopt(self._make_socket, on_over)
        self._driver = Driver(self._client, self._socket, self._progress)
        self._driver.poll()

    def _make_socket(self, number: int) -> TurnSocket:
        self._socket = TurnSocket(self.server, self._client, number, self._log, self._poll)
        return self._socket

    def _poll(self) -> None:
        self._driver.poll()

    @property
    def relayed(self) -> HostPort | None:
        """Our address at the server; None before it is allocated, and after its end."""
        return None if self._client.state is TurnState.OVER else self._client.relayed

    def wait(self) -> HostPort:
        """``relayed``, once it is known; raises LinkLost if it will not be.  In a greenlet."""
        self._settled.wait()
        if self.relayed is None:
            raise LinkLost(f"{self._name}: {self._client.reason}")
        return self.relayed

    @property
    def _name(self) -> str:
        return f"TURN server {text_of(self.server)}"

    def _progress(self) -> None:
        client = self._client
        if client.state is TurnState.ALLOCATING or self._closed:
            return
        if client.state is TurnState.OVER:
            dropped = "".join(f"; {why}: {count}" for why, count in client.dropped.items())
            self._log.info("%s: over: %s%s", self._name, client.reason, dropped)
            self._closed = True
            self._driver.close()
            # Not at once: the endpoint may be reading from it.
            get_hub().loop.run_callback(self._lose)
        elif client.relayed is not None and not self._settled.is_set():
            self._log.info("%s: our address is %s", self._name, text_of(client.relayed))
        self._settled.set()

    def _lose(self) -> None:
        self._endpoint.close_sockets([self.number])
        if self._client.relayed is not None:
            self._on_over(self.number)

    def close(self) -> None:
        """Give it back, and close the socket.  May be called at any time, and again."""
        if self._closed:
            return
        self._closed = True
        self._client.close()
        self._driver.poll()
        self._driver.close()
        self._endpoint.close_sockets([self.number])
        self._settled.set()


def allocate(
    endpoint: Endpoint, servers: Sequence[TurnServer], log: Logger, on_over: Callable[[int], object]
) -> TurnAllocation:
    """One at the first of the servers that grants it.  Runs in a greenlet, for up to 3 s a server.

    Raises LinkLost, OutOfDescriptors or EngineClosed.
    """
    problem = LinkLost("no TURN server")
    for server in servers:
        made = TurnAllocation(endpoint, server, log, on_over)
        try:
            made.wait()
        except LinkLost as error:
            problem = error
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise problem


_random = random.SystemRandom()
