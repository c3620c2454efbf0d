"""The ways to a peer over relays: made ready while a direct path is looked for, and kept for later.

Both sides of a call do the same.  They take their places on the lane of each relay that the call
may use; where no lane joins them in time, they meet at a relay by TCP as well, and their packets go
over that connection.  The caller decides which way is used, by its first packet there.

Runs in the engine's hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import Logger
from typing import Any, Protocol

import gevent
from gevent.event import AsyncResult, Event

from ..._address import Address, HostPort
from ..._errors import EngineClosed, KKP2PError
from ...transport.relay import Visit
from ...transport.udp.endpoint import Endpoint
from ...traversal.turn_server import TurnServer
from .framed import adopt_connection
from .lanes import Lane, Lanes
from .path_finder import Path
from .path_kind import PathKind
from .turn_meeting import TurnMeeting

__all__ = ["RelayAccess", "RelayPaths"]

# Our choices.
PREPARE_AFTER_S = 0.25  # most direct paths are found earlier, and then no relay is asked
TCP_AFTER_S = 0.4  # how long lanes have before TCP is tried, too
NEXT_LANE_S = 0.25  # a caller's, from one relay to the next, as in RFC 8305


class RelayAccess(Protocol):
    """What a call has of relays.  Both may wait, and raise KKP2PError."""

    def places(self) -> tuple[Sequence[HostPort], bytes]:
        """Numeric addresses of relays, in the order of both sides, and the token."""

    def visit(self) -> Visit:
        """At one of them by TCP, the token shown."""

    @property
    def has_turn(self) -> bool:
        """Whether the cloud names a TURN server, too."""

    def turn_servers(self) -> Sequence[TurnServer]:
        """That one, with numeric hosts."""


class RelayPaths:
    """``ready`` gets the first way that carries packets, ``on_path`` each one, ``on_lost`` the
    address of one that does not any more.  ``close`` in any case.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        lanes: Lanes,
        access: RelayAccess,
        ids: tuple[int, int],
        is_caller: bool,
        udp: bool,
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:
        """``ids``: of the connection, ours and the peer's.  ``udp``: whether UDP is any use."""
        self._uses_udp = udp
        self._needs_tcp = False
        self.ready: AsyncResult[Path] = AsyncResult()
        self.paths: dict[Address, Path] = {}  # that carry packets now
        self.on_path: Callable[[Path], object] = _nobody
        self.on_lost: Callable[[Address], object] = _nobody
        self._endpoint = endpoint
        self._lanes = lanes
        self._access = access
        self._ids = ids
        self._is_caller = is_caller
        self._log = log
        self._open: list[Lane] = []
        self._wanted = Event()
        self._changed = Event()  # a lane's state, or the paths
        self._closed = False
        self._stands_by = False
        self._visit: Visit | None = None
        self._turn: TurnMeeting | None = None
        self._spawn = spawn
        self._turning: gevent.Greenlet[..., Any] | None = None
        self._greenlet = spawn(self._run)

    def use_turn(self, turn: TurnMeeting) -> None:
        """Where no lane joins the two, meet there as well, if the cloud names a server."""
        if self._access.has_turn:
            self._turn = turn

    def finish(self) -> None:
        """Wait until nothing more is tried: the peer may have to be told something meanwhile."""
        self._greenlet.join()
        if self._turning is not None:
            self._turning.join()

    def hurry(self) -> None:
        """A direct path is not likely any more: go now."""
        self._wanted.set()

    def insist_on_tcp(self) -> None:
        """A lane is not enough: what TCP carries is to be compared."""
        self._needs_tcp = True

    def stand_by(self) -> None:
        """There is a direct path: places on lanes are enough, which cost next to nothing."""
        self._stands_by = True

    def close(self) -> None:
        """May be called again."""
        self._closed = True
        for greenlet in (self._greenlet, self._turning):
            if greenlet is not None:
                greenlet.kill(block=False)
        if self._turn is not None:
            self._turn.close()
        for lane in self._open:
            self._lanes.close(lane, self._ids)
        if self._visit is not None:
            self._visit.close()
        self._endpoint.close_sockets([address[2] for address in self.paths if len(address) == 3])
        self.paths.clear()

    def _run(self) -> None:
        error: KKP2PError = EngineClosed()  # when killed
        try:
            self._wanted.wait(PREPARE_AFTER_S)
            if self._uses_udp:
                self._take_lanes()
            if self._needs_tcp or (not self.paths and not self._stands_by):
                self._begin_turn()
                self._meet_by_tcp()
        except KKP2PError as caught:
            error = caught
            self._wait_for_path(None)
        finally:
            if not self.ready.ready():
                self.ready.set_exception(error)

    # Lanes.

    def _take_lanes(self) -> None:
        """Until one of them is a path, or it is time for TCP."""
        try:
            spots, token = self._access.places()
        except KKP2PError:  # the cloud gives none for this call
            self._begin_turn()
            raise
        with gevent.Timeout(TCP_AFTER_S, False):
            for spot in spots:
                if self._open and self._is_caller:
                    self._wait_for_path(NEXT_LANE_S)
                if self.paths:
                    return
                lane = self._lanes.open(spot, token, self._ids, self._look)
                self._open.append(lane)
            self._wait_for_path(None)

    def _wait_for_path(self, seconds: float | None) -> None:
        with gevent.Timeout(seconds, False):
            while not self.paths and self._may_be_found:
                self._changed.clear()
                self._changed.wait()

    @property
    def _may_be_found(self) -> bool:
        is_turning = self._turning is not None and not self._turning.dead
        return is_turning or any(lane.may_be_path for lane in self._open)

    def _look(self, lane: Lane) -> None:
        is_known = lane.address in self.paths
        if lane.is_path and not is_known:
            self._add(Path(lane.address, None, PathKind.LANE))
        elif is_known and not lane.may_be_path:
            self._lose(lane.address, lane.core.reason)
        self._changed.set()

    # TCP.

    def _meet_by_tcp(self) -> None:
        visit = self._visit = self._access.visit()
        visit.pair()

        def broken(address: Address) -> None:
            self._lose(address, "the connection to the relay is broken")

        address = adopt_connection(self._endpoint, visit.take(), self._log, broken)
        self._add(Path(address, None, PathKind.FRAMED))

    # TURN.

    def _begin_turn(self) -> None:
        if self._turn is not None and self._uses_udp and not self.paths:
            self._turning = self._spawn(self._meet_by_turn, self._turn)

    def _meet_by_turn(self, turn: TurnMeeting) -> None:
        try:
            self._add(turn.meet(self._access.turn_servers, self._lose_turn))
        except KKP2PError as error:
            self._log.info("no relay by TURN: %s", error)
        finally:
            self._turning = None
            self._changed.set()

    def _lose_turn(self, number: int) -> None:
        for address in [each for each in self.paths if each[2:] == (number,)]:
            self._lose(address, "the TURN server's allocation has ended")

    # What they lead to.

    def _add(self, path: Path) -> None:
        if self._closed:
            return
        self.paths[path.address] = path
        self._changed.set()
        self.on_path(path)
        if not self.ready.ready():
            self.ready.set(path)

    def _lose(self, address: Address, why: str) -> None:
        if self.paths.pop(address, None) is None:
            return
        self._log.info("relay %s port %d: lost: %s", *address[:2], why)
        if len(address) == 3:
            self._endpoint.close_sockets([address[2]])
        self.on_lost(address)


def _nobody(_: object) -> None:
    """Nobody wants to know."""
