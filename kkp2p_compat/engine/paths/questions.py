"""Questions to STUN servers over the endpoint's sockets, the main ones and extra ones.

Runs in the engine's hub.  What is asked, and what the answers mean, is the business of others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from random import SystemRandom

from gevent.event import Event

from ..._address import Address
from ...transport.udp.endpoint import Endpoint
from ...traversal.nat_discovery import Discovery
from ...traversal.stun_client import Ask, Asks, over
from .driver import Driver

__all__ = ["Questions"]

_random = SystemRandom()


class _Questioner(Driver):
    """Drives a Discovery, or some Asks."""

    def __init__(
        self, core: Discovery | Asks, endpoint: Endpoint, progress: Callable[[], object]
    ) -> None:
        super().__init__(core, endpoint, progress)
        self._asked = core

    def handle(self, data: bytes, source: Address) -> bool:
        """Whether the datagram answers one of them."""
        if not self._asked.handle_datagram_untrusted(data, source, time.monotonic()):
            return False
        self.poll()
        return True


class Questions:
    """``handle_stun`` takes the endpoint's STUN messages."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._asking: list[_Questioner] = []

    def handle_stun(self, data: bytes, source: Address) -> bool:
        """Whether the datagram answers a question."""
        return any(asked.handle(data, source) for asked in list(self._asking))

    @contextlib.contextmanager
    def asking(self, core: Discovery | Asks, progress: Callable[[], object]) -> Iterator[None]:
        """Ask inside the body; ``progress`` is called whenever something may have come of it."""
        questioner = _Questioner(core, self._endpoint, progress)
        self._asking.append(questioner)
        try:
            questioner.poll()
            yield
        finally:
            questioner.close()
            self._asking.remove(questioner)

    @contextlib.contextmanager
    def sockets(self, family: int, count: int) -> Iterator[dict[int, int]]:
        """Extra sockets inside the body: their ports by number.

        Raises OutOfDescriptors, LinkLost.
        """
        numbers = self._endpoint.open_sockets(family, count)
        try:
            yield {number: self._endpoint.port_of(number) for number in numbers}
        finally:
            self._endpoint.close_sockets(numbers)

    def ask_all(self, servers: Sequence[Address]) -> list[Ask]:
        """Ask them, in this order and at once; all questions are over when this returns."""
        return self.ask(lambda asks, now: [asks.ask(server, now) for server in servers])

    def ask(self, start: Callable[[Asks, float], list[Ask]]) -> list[Ask]:
        """Wait until all questions that ``start`` asks are over."""
        asks, done = Asks(_random), Event()
        started = start(asks, time.monotonic())
        with self.asking(asks, lambda: done.set() if over(*started) else None):
            done.wait()
        return started
