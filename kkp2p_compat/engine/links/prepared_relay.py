"""A place on the relay that is made ready while a direct path is looked for.

Both sides of a call go there, are paired, and wait.  The caller decides: one byte says that the
relay is taken, and after it come the bytes of the channel.  If a path is found first, the
connections are closed, and nobody was told of any channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult, Event

from ..._errors import EngineClosed, KKP2PError, LinkLost
from ...transport.relay import Visit

__all__ = ["PreparedRelay"]

PREPARE_AFTER_S = 0.25  # our choice: most paths are found earlier, and then no relay is asked
TAKEN = b"\x01"  # docs/protocol.rst


class PreparedRelay:
    """``ready`` gets the socket: the caller's when both are paired, the callee's when it is taken.

    ``go_there`` makes a visit that has shown its token.  ``close`` in any case.
    """

    def __init__(
        self, spawn: Callable[..., gevent.Greenlet[..., Any]], go_there: Callable[[], Visit],
        is_caller: bool,
    ) -> None:  # fmt: skip
        self.ready: AsyncResult[Any] = AsyncResult()
        self._go_there = go_there
        self._is_caller = is_caller
        self._now = Event()
        self._visit: Visit | None = None
        self._closed = False
        self._greenlet = spawn(self._run)

    @property
    def begun(self) -> bool:
        """Whether we have been at the relay: the other side may have been, too."""
        return self._visit is not None

    def hurry(self) -> None:
        """A path is not likely any more: go now."""
        self._now.set()

    def _run(self) -> None:
        error: KKP2PError = EngineClosed()  # when killed
        try:
            self._now.wait(PREPARE_AFTER_S)
            visit = self._visit = self._go_there()
            visit.pair()
            if not self._is_caller:
                _wait_until_taken(visit.sock)
            self.ready.set(visit.sock)
        except KKP2PError as caught:
            error = caught
        finally:
            if not self.ready.ready():
                self.ready.set_exception(error)
            if self._closed:  # while the connection was being made
                self._drop()

    def take(self) -> Any:
        """The socket, which is the taker's from now on; raises why there is none."""
        sock = self.ready.get()
        if self._is_caller:
            try:
                sock.sendall(TAKEN)
            except OSError as error:
                raise LinkLost(f"relay: {error}") from error
        if self._visit is not None:
            self._visit.take()
        return sock

    def close(self) -> None:
        self._closed = True
        self._greenlet.kill(block=False)
        self._drop()

    def _drop(self) -> None:
        if self._visit is not None:
            self._visit.close()
            self._visit = None


def _wait_until_taken(sock: Any) -> None:
    try:
        said = sock.recv(1)
    except OSError as error:
        raise LinkLost(f"relay: {error}") from error
    if said != TAKEN:
        raise LinkLost("the caller did not need the relay")
