"""Carry out what a plan says beyond plain checks: samples, extra sockets, and telling the peer.

``traversal.punch`` decides; here are the sockets, the clock and the waiting.  One greenlet, in the
engine's hub.  Birthdays are had one at a time in an engine: each takes hundreds of sockets and of
packets a second.  Those that have to wait do so until their call is given up.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from logging import Logger
from random import SystemRandom
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from gevent.event import Event
from gevent.lock import BoundedSemaphore

from .._errors import KKP2PError, OutOfDescriptors
from ..transport.udp.endpoint import Endpoint
from ..traversal.plan import Plan
from ..traversal.punch import Action, Close, Open, Punch, Sample, Tell, Turn

if TYPE_CHECKING:
    from .own_addresses import OwnAddresses
    from .path_finder import Search

__all__ = ["Puncher"]

FEWEST_SOCKETS = 16  # our choice: with less there is no birthday worth having

_now = time.monotonic
_turns: WeakKeyDictionary[Endpoint, BoundedSemaphore] = WeakKeyDictionary()


class Puncher:
    """``run`` in a greenlet, which may be killed; then ``close``."""

    def __init__(
        self, search: Search, plan: Plan, is_caller: bool, own: OwnAddresses, endpoint: Endpoint,
        send: Callable[[dict[str, Any]], object], log: Logger,
    ) -> None:  # fmt: skip
        """``send`` tells the peer, whose Puncher gets it by ``handle_fields_untrusted``."""
        self._search = search
        self._own = own
        self._endpoint = endpoint
        self._send = send
        self._log = log
        self._punch = Punch(search.checks, plan, is_caller, own.nat, SystemRandom(), _now())
        self._sockets: set[int] = set()
        self._wake = Event()
        self._turn = _turns.setdefault(endpoint, BoundedSemaphore(1))
        self._has_turn = False
        self._closed = Event()

    def run(self) -> None:
        """Until it is killed or closed."""
        try:
            while not self._closed.is_set():
                while (action := self._punch.poll_action()) is not None:
                    self._do(action)
                    if self._closed.is_set():  # meanwhile
                        return
                self._search.poll()
                due_at = self._punch.next_timer()
                self._wake.wait(None if due_at is None else max(0.0, due_at - _now()))
                self._wake.clear()
                self._punch.handle_timer(_now())
        finally:
            if self._has_turn:
                self._has_turn = False
                self._turn.release()

    def handle_fields_untrusted(self, fields: Mapping[str, object]) -> None:
        """What the peer told, which is authentic but need not be true.  Raises BadPacket."""
        if not self._closed.is_set():
            self._punch.handle_fields_untrusted(fields, _now())
            self._wake.set()

    def close(self) -> None:
        """Close the extra sockets but that of the address selected: that is the connection's.

        May be called again.
        """
        self._closed.set()
        self._wake.set()
        selected = self._search.checks.selected
        if selected is not None and len(selected) == 3:
            self._sockets.discard(selected[2])
        self._close(self._sockets)

    def _do(self, action: Action) -> None:
        match action:
            case Sample(sockets, number):
                self._punch.handle_sampled(number, self._sample(sockets), _now())
            case Open(sockets, number):
                self._punch.handle_opened(number, self._open(sockets), _now())
            case Close(numbers):
                self._close(numbers)
            case Turn():
                self._turn.acquire()
                self._has_turn = True
                self._punch.handle_turn(_now())
            case Tell(fields):
                self._send(fields)

    def _sample(self, count: int) -> list[int]:
        try:
            return self._own.sample_ports(count)
        except KKP2PError as error:
            self._log.info("punch: no sample of our outside ports: %s", error)
            return []

    def _open(self, count: int) -> list[tuple[int, int]]:
        """Number and local port of each; half as many where descriptors are short."""
        while not self._closed.is_set():
            try:
                numbers = self._endpoint.open_sockets(socket.AF_INET, count)
            except OutOfDescriptors as error:
                self._log.info("punch: %d sockets are too many: %s", count, error)
                count //= 2
                if count < FEWEST_SOCKETS:
                    break
            except KKP2PError as error:
                self._log.info("punch: no sockets: %s", error)
                break
            else:
                self._sockets.update(numbers)
                return [(number, self._endpoint.port_of(number)) for number in numbers]
        return []

    def _close(self, numbers: set[int] | tuple[int, ...]) -> None:
        self._endpoint.close_sockets(numbers)
        self._sockets.difference_update(tuple(numbers))
