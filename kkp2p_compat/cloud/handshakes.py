"""Whose TLS handshake is begun next, and how many are under way.

After a failure thousands come at once.  Were all begun together, all would be slow, and most would
be given up half-way and begun anew.  So an address has AT_ONCE of them under way; the others wait,
those that came first before those behind them, and cost nothing yet.  Addresses take turns: no one
can make another wait long.  Who waits too long is sent away, unserved, while it still has time to
try another node.

A place is given up with the login, with the end of the connection, or after SLOW_S: who answers
late, or never, does not keep its neighbours out.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, Protocol

from gevent import get_hub

from .control_connection import ControlConnection
from .counting import address_key

__all__ = ["WAITING_SHARE", "Handshakes", "Waiting"]

# Our choices.
PER_TURN = 8  # about 8 ms; then those that are under way have their turn
TURN_S = 0.001  # between two turns, at least
AT_ONCE = 64  # of an address
SLOW_S = 2.0  # from the first byte to the login, over a slow line and with a busy peer
LOOK_S = 0.01  # until it is looked again which are done
WAITING_SHARE = 0.5  # of Limits.handshake_s; the rest is for the handshake itself


class Waiting(Protocol):
    """A connection that has said nothing but that it wants TLS.  Its socket is closed when its time
    is over."""

    @property
    def sock(self) -> Any: ...

    @property
    def host(self) -> str: ...


class Handshakes:
    """``add`` who waits.  ``begin`` is called when it is its turn, and returns its connection, or
    None if it has gone.  ``close`` at the end.
    """

    def __init__(self, begin: Callable[[Any], ControlConnection | None]) -> None:
        self._begin = begin
        self._queues: OrderedDict[str, deque[Waiting]] = OrderedDict()  # by address
        self._under_way: dict[ControlConnection, float] = {}  # until when it has its place
        self._taken: Counter[str] = Counter()  # places, by address
        self._looked_at = 0.0
        self._timer = get_hub().loop.timer(0.0, TURN_S)

    def add(self, waiting: Waiting) -> None:
        if not self._queues:
            self._timer.start(self._take_turn)
        self._queues.setdefault(address_key(waiting.host), deque()).append(waiting)

    def close(self) -> None:
        self._timer.close()
        self._queues.clear()
        self._under_way.clear()

    @property
    def waiting(self) -> list[Waiting]:
        return [each for queue in self._queues.values() for each in queue]

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        self._looked_at = now
        for connection, until in list(self._under_way.items()):
            if until <= now or not connection.is_arriving:
                del self._under_way[connection]
                self._taken[address_key(connection.host)] -= 1
        self._taken = +self._taken

    def _take_turn(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self.sweep(now)
        begun = 0
        while begun < PER_TURN and (address := self._next_address()) is not None:
            begun += self._begin_with(address, now)
        if not self._queues:
            self._timer.stop()

    def _next_address(self) -> str | None:
        return next((each for each in self._queues if self._taken[each] < AT_ONCE), None)

    def _begin_with(self, address: str, now: float) -> bool:
        """Whether the first one of that address was still there."""
        queue = self._queues.pop(address)
        waiting = queue.popleft()
        if queue:
            self._queues[address] = queue  # behind the others
        if waiting.sock.fileno() < 0:
            return False
        connection = self._begin(waiting)
        if connection is not None:
            self._under_way[connection] = now + SLOW_S
            self._taken[address] += 1
        return True
