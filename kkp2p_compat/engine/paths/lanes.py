"""Our places on the lanes of relays, one for each connection and relay.

Runs in the engine's hub.  A lane carries the packets of a connection as they are, from the
endpoint's own sockets, so all that is done here is to show the token, and to show it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..._address import Address
from ..._errors import BadPacket
from ...transport.lane_wire import parse_answer_untrusted
from ...transport.udp.demultiplex import key_of
from ...transport.udp.endpoint import Endpoint
from ...transport.udp.lane import LaneClient, LaneState
from .driver import Driver

__all__ = ["Lane", "Lanes"]

MAX_COOKIES = 64  # our choice: relays remembered
_NOWHERE = (LaneState.SILENT, LaneState.REFUSED)


class Lane(Driver):
    """One place.  ``progress(lane)``: its state may have changed."""

    def __init__(
        self, core: LaneClient, endpoint: Endpoint, progress: Callable[[Lane], object]
    ) -> None:
        super().__init__(core, endpoint, lambda: progress(self))
        self.core = core

    @property
    def address(self) -> Address:
        return self.core.spot

    @property
    def is_path(self) -> bool:
        return self.core.state is LaneState.PAIRED

    @property
    def may_be_path(self) -> bool:
        """Whether it is one, or may still become one."""
        return self.core.state not in _NOWHERE

    def handle_untrusted(self, data: bytes, source: Address) -> bool:
        if not self.core.handle_datagram_untrusted(data, source, time.monotonic()):
            return False
        self.poll()
        return True

    def show_again(self) -> None:
        self.core.show_again(time.monotonic())
        self.poll()

    def close(self) -> None:
        """May be called again."""
        self.core.leave()
        if (goodbye := self.core.poll_transmit()) is not None:
            self._sender.send_check(*goodbye)
        super().close()


class Lanes:
    """``open`` and ``close`` places; the endpoint's lane messages come here."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lanes: dict[bytes, list[Lane]] = {}  # by the connection ids of both sides
        self._cookies: dict[Address, bytes] = {}
        endpoint.on_lane = self._handle_untrusted

    def open(
        self, spot: Address, token: bytes, ids: tuple[int, int], progress: Callable[[Lane], object]
    ) -> Lane:
        """``spot``: of the relay, numeric.  ``ids``: of the connection, ours and the peer's."""
        core = LaneClient(spot, token, ids[0], time.monotonic(), self._cookies.get(spot))
        core.remote_id = ids[1]

        def look(lane: Lane) -> None:
            self._remember(lane.core)
            progress(lane)

        lane = Lane(core, self._endpoint, look)
        for number in ids:
            self._lanes.setdefault(key_of(number), []).append(lane)
        lane.poll()
        return lane

    def close(self, lane: Lane, ids: tuple[int, int]) -> None:
        """May be called again."""
        for number in ids:
            lanes = self._lanes.get(key_of(number), [])
            if lane in lanes:
                lanes.remove(lane)
            if not lanes:
                self._lanes.pop(key_of(number), None)
        lane.close()

    def show_again(self) -> None:
        """Our outside addresses may be other ones."""
        for lane in {lane for lanes in self._lanes.values() for lane in lanes}:
            lane.show_again()

    def _remember(self, core: LaneClient) -> None:
        if core.cookie is not None:
            if len(self._cookies) >= MAX_COOKIES:
                self._cookies.clear()
            self._cookies[core.spot] = core.cookie

    def _handle_untrusted(self, data: bytes, source: Address) -> None:
        try:
            named = parse_answer_untrusted(data).connection_id
        except BadPacket:
            return
        for lane in tuple(self._lanes.get(named, ())):
            lane.handle_untrusted(data, source)
