"""A direct path by TCP, looked for where one side's network blocks UDP.

Runs in the engine's hub.  The punch itself is traversal/tcp_punch.py; here are the call's key, what
is trickled, and the endpoint that takes the connection in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult

from ..._address import Address
from ..._errors import KKP2PError
from ...traversal.tcp_punch import TcpPunch
from ..signalling.keys import CallKeys
from .framed import adopt_connection
from .path_finder import Path
from .path_kind import PathKind
from .puncher import Means

__all__ = ["TcpMeeting"]

PUNCH_S = 8.0  # our choice


class TcpMeeting:
    """``begin`` if it is wanted, ``finish`` to wait for its end; ``close`` in any case."""

    def __init__(
        self,
        means: Means,
        keys: CallKeys,
        is_caller: bool,
        to_stranger: bool,
        tell: Callable[[dict[str, Any]], object],
    ) -> None:
        """``to_stranger``: who gets none of our private addresses.  ``tell``: to the peer."""
        self._means = means
        self._tells_private = not to_stranger
        self._tell = tell
        # The proofs are told from trickled texts by what they begin with.
        self._punch = TcpPunch(keys.trickle, is_caller, means.log)
        self._number: int | None = None  # of the connection in the endpoint, until it is taken
        self._running: gevent.Greenlet[..., Any] | None = None

    def hear_untrusted(self, texts: object) -> None:
        """Where the peer says that it is reached by TCP; raises BadPacket."""
        if self._running is not None:
            self._punch.handle_peer_untrusted(texts)

    def begin(self, found: AsyncResult[Path]) -> None:
        """``found`` gets the path."""
        self._running = self._means.spawn(self._run, found)

    def finish(self) -> None:
        if self._running is not None:
            self._running.join()

    def keep(self, address: Address) -> None:
        """That path is the taker's."""
        if address[2:] == (self._number,):
            self._number = None

    def close(self) -> None:
        if self._running is not None:
            self._running.kill(block=False)
        self._punch.close()
        if self._number is not None:
            self._means.endpoint.close_sockets([self._number])

    def _run(self, found: AsyncResult[Path]) -> None:
        try:
            own = self._punch.find(self._means.own.servers, self._tells_private)
            self._tell({"tcp": own})
            sock = self._punch.run(PUNCH_S)
            if found.ready():
                sock.close()
                return
            means = self._means
            address = adopt_connection(means.endpoint, sock, means.log, lambda _: None)
            self._number = address[2]
            found.set(Path(address, None, PathKind.TCP))
        except (OSError, KKP2PError) as error:
            self._means.log.info("no path by TCP: %s", error)
