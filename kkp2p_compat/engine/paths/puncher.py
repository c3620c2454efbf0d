"""Carry out what a plan says beyond plain checks: samples, extra sockets, and telling the peer.

``traversal.punch`` decides; here are the sockets, the clock and the waiting.  One greenlet, in the
engine's hub.  Birthdays are had one at a time in an engine: each takes hundreds of sockets and of
packets a second.  Those that have to wait do so until their call is given up.  An address whose
ports were probed in vain is not probed again for a while: else a peer that names a third party's
could have it scanned without end, call by call.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping
from logging import Logger
from random import SystemRandom
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from gevent.event import Event
from gevent.lock import BoundedSemaphore

from ..._errors import KKP2PError, OutOfDescriptors
from ...transport.udp.endpoint import Endpoint
from ...transport.udp.events import Address
from ...traversal.plan import Plan
from ...traversal.punch import Action, Close, Open, Punch, Sample, Tell, Turn

if TYPE_CHECKING:
    from .own_addresses import OwnAddresses
    from .path_finder import Search

__all__ = ["Puncher"]

FEWEST_SOCKETS = 16  # our choice: with less there is no birthday worth having

SWEEP_PAUSE_S = 60.0  # our choice: it would have worked at once in 99.9 % of all cases
TURN_S = 12.0  # our choice: the probes of a birthday have gone by then; others want theirs
MAX_REMEMBERED = 1024  # our choice: addresses that were probed in vain

_now = time.monotonic


class _Birthdays:
    """Of one engine."""

    def __init__(self) -> None:
        self.turn = BoundedSemaphore(1)
        self._swept: dict[str, float] = {}  # ip: when

    def may_sweep(self, ip: str) -> bool:
        if _now() - self._swept.get(ip, -SWEEP_PAUSE_S) < SWEEP_PAUSE_S:
            return False
        self._swept.pop(ip, None)
        self._swept[ip] = _now()
        if len(self._swept) > MAX_REMEMBERED:
            del self._swept[next(iter(self._swept))]
        return True

    def forgive(self, ip: str) -> None:
        """The peer was there."""
        self._swept.pop(ip, None)


_birthdays: WeakKeyDictionary[Endpoint, _Birthdays] = WeakKeyDictionary()


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
        self._birthdays = _birthdays.setdefault(endpoint, _Birthdays())
        self._has_turn = False
        self._turn_ends_at = math.inf
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
                due_at = min(math.inf if due_at is None else due_at, self._turn_ends_at)
                self._wake.wait(None if due_at == math.inf else max(0.0, due_at - _now()))
                self._wake.clear()
                if self._turn_ends_at <= _now():
                    self._close(self._sockets)
                    self._end_turn()
                self._punch.handle_timer(_now())
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        """Let others have their birthday."""
        self._turn_ends_at = math.inf
        if self._has_turn:
            self._has_turn = False
            self._birthdays.turn.release()

    def handle_fields_untrusted(self, fields: Mapping[str, object]) -> None:
        """What the peer told, which is authentic but need not be true.  Raises BadPacket."""
        if not self._closed.is_set():
            self._punch.handle_fields_untrusted(fields, _now())
            self._wake.set()

    def keep(self, address: Address) -> None:
        """The extra socket of this address, if it goes by one, is somebody else's from now on."""
        if len(address) == 3:
            self._sockets.discard(address[2])

    def close(self) -> None:
        """Close the extra sockets.  May be called again."""
        self._closed.set()
        self._wake.set()
        selected = self._search.checks.selected
        if selected is not None:
            self._birthdays.forgive(selected[0])
        self._close(self._sockets)

    def _do(self, action: Action) -> None:
        match action:
            case Sample(sockets, number):
                self._punch.handle_sampled(number, self._sample(sockets), _now())
            case Open(sockets, number):
                self._punch.handle_opened(number, self._open(sockets), _now())
            case Close(numbers):
                self._close(numbers)
            case Turn(ip):
                self._birthdays.turn.acquire()
                self._has_turn = True
                self._turn_ends_at = _now() + TURN_S
                if not ip or self._birthdays.may_sweep(ip):
                    self._punch.handle_turn(_now())
                else:
                    self._log.info("punch: %s was probed in vain a moment ago", ip)
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
