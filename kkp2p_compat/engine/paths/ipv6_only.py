"""On a host that has IPv6 only: find the network's NAT64, and reach IPv4 addresses through it.

Runs in the engine's hub.  A host is one of those if it has no route to IPv4 addresses and no IPv4
address of its own; it is looked at again whenever the network changes.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger
from typing import Any

import gevent

from ..._errors import LinkLost, OutOfDescriptors
from ...control.resolver import nat64s
from ...transport.udp.endpoint import Endpoint
from ...traversal.interfaces import source_addresses

__all__ = ["Ipv6Only"]

LOOK_AGAIN_S = 60.0  # our choice: the resolver may come up later than the network


class Ipv6Only:
    """``start``, then ``look`` whenever the network has changed; ``close`` once."""

    def __init__(
        self,
        endpoint: Endpoint,
        has_ipv4: Callable[[], bool],
        on_change: Callable[[str], object],
        log: Logger,
        spawn: Callable[..., Any],
    ) -> None:
        """``has_ipv4``: an address of this host.  ``on_change`` gets the reason, in words."""
        self._endpoint = endpoint
        self._has_ipv4 = has_ipv4
        self._on_change = on_change
        self._log = log
        self._spawn = spawn
        self._greenlet: Any = None
        self._then: Callable[[], object] | None = None

    def start(self, then: Callable[[], object]) -> None:
        """``then`` is called as soon as it is known how IPv4 addresses are reached."""
        self._then = then
        self.look()

    def look(self) -> None:
        self.close()
        if self._endpoint.nat64 is not None or self._is_alone():
            self._greenlet = self._spawn(self._look)
        else:
            self._go_on()

    def _go_on(self) -> None:
        then, self._then = self._then, None
        if then is not None:
            then()

    def close(self) -> None:
        """May be called again."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)

    def _is_alone(self) -> bool:
        if self._has_ipv4():
            return False
        try:
            sources = source_addresses()
        except OSError as error:
            self._log.info("IPv4 addresses: cannot look for a NAT64: %s", error)
            return False
        return bool(sources) and all(":" in ip for ip in sources)

    def _look(self) -> None:
        while not self._is_settled():
            gevent.sleep(LOOK_AGAIN_S)

    def _is_settled(self) -> bool:
        is_alone = self._is_alone()
        nat64 = next(iter(nat64s()), None) if is_alone else None
        try:
            if nat64 != self._endpoint.nat64:
                self._endpoint.translate_ipv4(nat64)
                way = f"through the NAT64 of {nat64.outward('0.0.0.0')}" if nat64 else "by IPv4"
                self._log.info("IPv4 addresses are reached %s", way)
                if self._then is None:
                    self._on_change("IPv4 addresses are reached in another way")
        except (LinkLost, OutOfDescriptors) as error:
            self._log.info("IPv4 addresses are not reached through the NAT64: %s", error)
        self._go_on()
        return nat64 is not None or not is_alone
