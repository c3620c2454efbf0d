"""Carry out what a plan says beyond plain checks: samples, extra sockets, and telling the peer.

``traversal.punch`` decides; here are the sockets, the clock and the waiting, in one greenlet of the
engine's hub.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping
from logging import Logger
from random import SystemRandom
from typing import Any, NamedTuple

import gevent
from gevent.event import Event

from ..._address import Address
from ..._errors import KKP2PError, OutOfDescriptors
from ...transport.udp.endpoint import Endpoint
from ...traversal.plan import Plan
from ...traversal.punch import Action, Close, Open, Punch, Sample, Tell, Turn
from .birthdays import Birthdays
from .own_addresses import OwnAddresses
from .path_finder import PathFinder, Search

__all__ = ["Means", "Puncher"]

FEWEST_SOCKETS = 16  # our choice: a birthday punch with fewer has too small a chance
TURN_S = 12.0  # our choice: the probes of a birthday punch have left by then; others wait for it

_now = time.monotonic


class Means(NamedTuple):
    """What all searches for a path share in an engine."""

    endpoint: Endpoint
    own: OwnAddresses
    finder: PathFinder
    birthdays: Birthdays
    log: Logger
    spawn: Callable[..., gevent.Greenlet[..., Any]]


class Puncher:
    """``run`` in a greenlet, which may be killed; then ``close``."""

    def __init__(
        self,
        means: Means,
        search: Search,
        plan: Plan,
        is_caller: bool,
        send: Callable[[dict[str, Any]], object],
    ) -> None:
        """``send`` tells the peer, whose Puncher gets it by ``handle_fields_untrusted``."""
        self._means = means
        self._search = search
        self._send = send
        self._punch = Punch(search.checks, plan, is_caller, means.own.nat, SystemRandom(), _now())
        self._sockets: set[int] = set()
        self._wake = Event()
        self._has_turn = False
        self._turn_ends_at = math.inf
        self._closed = Event()

    def run(self) -> None:
        """Until it is killed or closed."""
        try:
            while not self._closed.is_set():
                while (action := self._punch.poll_action()) is not None:
                    self._do(action)
                    if self._closed.is_set():  # while it was done
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
        """Let the next call make its birthday punch."""
        self._turn_ends_at = math.inf
        if self._has_turn:
            self._has_turn = False
            self._means.birthdays.turn.release()

    def handle_fields_untrusted(self, fields: Mapping[str, object]) -> None:
        """What the peer told: it is authentic, but need not be true.  Raises BadPacket."""
        if not self._closed.is_set():
            self._punch.handle_fields_untrusted(fields, _now())
            self._wake.set()

    def keep(self, address: Address) -> None:
        """The extra socket that reaches this address, if any, is somebody else's from now on."""
        if len(address) == 3:
            self._sockets.discard(address[2])

    def close(self) -> None:
        """Close the extra sockets.  May be called again."""
        self._closed.set()
        self._wake.set()
        selected = self._search.checks.selected
        if selected is not None:
            self._means.birthdays.forgive(selected[0])
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
                self._means.birthdays.turn.acquire()
                self._has_turn = True
                self._turn_ends_at = _now() + TURN_S
                if not ip or self._means.birthdays.may_sweep(ip):
                    self._punch.handle_turn(_now())
                else:
                    self._means.log.info("punch: %s was probed in vain a moment ago", ip)
            case Tell(fields):
                self._send(fields)

    def _sample(self, count: int) -> list[int]:
        try:
            return self._means.own.sample_ports(count)
        except KKP2PError as error:
            self._means.log.info("punch: no sample of our outside ports: %s", error)
            return []

    def _open(self, count: int) -> list[tuple[int, int]]:
        """Number and local port of each; half as many where descriptors are short."""
        while not self._closed.is_set():
            try:
                numbers = self._means.endpoint.open_sockets(socket.AF_INET, count)
            except OutOfDescriptors as error:
                self._means.log.info("punch: %d sockets are too many: %s", count, error)
                count //= 2
                if count < FEWEST_SOCKETS:
                    break
            except KKP2PError as error:
                self._means.log.info("punch: no sockets: %s", error)
                break
            else:
                self._sockets.update(numbers)
                return [(number, self._means.endpoint.port_of(number)) for number in numbers]
        return []

    def _close(self, numbers: set[int] | tuple[int, ...]) -> None:
        self._means.endpoint.close_sockets(numbers)
        self._sockets.difference_update(tuple(numbers))
