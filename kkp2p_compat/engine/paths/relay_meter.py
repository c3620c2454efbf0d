"""How far relays are: measured when a cloud names some, so that it can choose for our calls.

Runs in the engine's hub.  A relay answers STUN at its UDP port.  Where none comes the time that a
TCP connection takes counts, which is a round trip, too.  Results are told when all are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from logging import Logger
from typing import Any

import gevent

from ..._address import HostPort, host_port_untrusted, text_of
from ..._errors import BadPacket, KKP2PError
from ...control.nearness import permitted
from ...control.resolver import addresses_of
from ...control.way_out import WayOut
from ...control.wire import MAX_ROUND_TRIP_MS, MAX_TOLD_RELAYS
from .network import Network

__all__ = ["RelayMeter"]

# Our choices.
HOLDS_S = 3600.0  # a result, while the network stays
FAILED_HOLDS_S = 60.0
ASKS = 3  # the quickest counts
TCP_S = 2.0
RESOLVE_S = 5.0

_now = time.monotonic


class RelayMeter:
    """``tell`` gets the round trips by "host:port", in milliseconds; MAX_ROUND_TRIP_MS: there was
    no answer.
    """

    def __init__(
        self,
        network: Network,
        way_out: WayOut,
        tell: Callable[[Mapping[str, int]], object],
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:
        self._network = network
        self._way_out = way_out
        self._tell = tell
        self._log = log
        self._spawn = spawn
        self._named: dict[HostPort, str] = {}  # by the server at this IP address
        self._measured: dict[HostPort, tuple[int, float]] = {}  # milliseconds, until when
        self._running: gevent.Greenlet[..., Any] | None = None

    def handle_relays_untrusted(self, relays: object, by: str) -> None:
        """The server at this IP address wants these measured."""
        if not isinstance(relays, list):
            return
        try:
            places = [_place_untrusted(relay) for relay in relays[:MAX_TOLD_RELAYS]]
        except BadPacket as error:
            self._log.info("cloud %s: relays that cannot be measured: %s", by, error)
            return
        self._named = dict.fromkeys(places, by)
        self._begin()

    def forget(self) -> None:
        """The network has changed."""
        self._measured.clear()
        self._begin()

    def close(self) -> None:
        if self._running is not None:
            self._running.kill(block=False)

    def _begin(self) -> None:
        if self._named and not self._running:
            self._running = self._spawn(self._run)

    def _due(self) -> list[HostPort]:
        now = _now()
        return [relay for relay in self._named if self._measured.get(relay, (0, 0.0))[1] <= now]

    def _run(self) -> None:
        try:
            while due := self._due():
                measured = self._measure({relay: self._named[relay] for relay in due})
                for relay, ms in measured.items():
                    failed = ms == MAX_ROUND_TRIP_MS
                    until = _now() + (FAILED_HOLDS_S if failed else HOLDS_S)
                    self._measured[relay] = ms, until
        except KKP2PError as error:
            self._log.info("relays are not measured: %s", error)
            return
        self._measured = {relay: self._measured[relay] for relay in self._named}
        told = {text_of(relay): ms for relay, (ms, _) in self._measured.items()}
        self._log.info("round trips to relays, in ms: %s", told)
        self._tell(told)

    def _measure(self, relays: Mapping[HostPort, str]) -> dict[HostPort, int]:
        addresses = {}
        for (host, port), by in relays.items():
            try:
                addresses[host, port] = permitted(host, addresses_of(host, RESOLVE_S), by)[0], port
            except KKP2PError as error:
                self._log.info("relay %s port %d: %s", host, port, error)
        own = self._network.underlay().own
        own.ready.wait()
        measured = {} if own.udp_blocked else self._by_udp(addresses)
        for relay in relays:
            if relay not in measured:
                measured[relay] = self._by_tcp(addresses.get(relay))
        return measured

    def _by_udp(self, addresses: Mapping[HostPort, HostPort]) -> dict[HostPort, int]:
        """Of those that answer."""
        asked = [(relay, address) for relay, address in addresses.items() for _ in range(ASKS)]
        asks = self._network.underlay().own.questions.ask_all([address for _, address in asked])
        measured: dict[HostPort, int] = {}
        for (relay, _), ask in zip(asked, asks, strict=True):
            if ask.round_trip_s is not None:
                ms = _ms(ask.round_trip_s)
                measured[relay] = min(ms, measured.get(relay, ms))
        return measured

    def _by_tcp(self, address: HostPort | None) -> int:
        if address is None:
            return MAX_ROUND_TRIP_MS
        began = _now()
        with gevent.Timeout(TCP_S, False):
            try:
                self._way_out.connect(*address).close()
                return _ms(_now() - began)
            except OSError as error:
                self._log.info("relay %s: %s", text_of(address), error)
        return MAX_ROUND_TRIP_MS


def _place_untrusted(relay: object) -> HostPort:
    if not isinstance(relay, list) or len(relay) < 2:
        raise BadPacket("a relay that is not [host, port]")
    return host_port_untrusted(*relay[:2])


def _ms(seconds: float) -> int:
    return min(round(1000 * seconds), MAX_ROUND_TRIP_MS - 1)
