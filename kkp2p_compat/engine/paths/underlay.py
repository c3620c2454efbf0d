"""The network below all direct connections: our UDP sockets, and our addresses.

Runs in the engine's hub.  It is made when something direct is wanted for the first time; from then
on our addresses are kept fresh, and a port is mapped where there is a router that does so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import Logger
from socket import AF_INET
from typing import TYPE_CHECKING, Any

import gevent

from ..._address import Address
from ...transport.udp.endpoint import Endpoint
from ...traversal.address_watch import AddressWatch
from ...traversal.nat import ADDRESS_AND_PORT_DEPENDENT, ADDRESS_DEPENDENT, ENDPOINT_INDEPENDENT
from .ipv6_only import Ipv6Only
from .own_addresses import LOOPBACK, OwnAddresses
from .udp_use import UdpUse

if TYPE_CHECKING:
    from ...traversal.port_mapping import PortMapper
    from .searches import Searches

__all__ = ["Underlay"]

_NATS = (ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT)
CLOSE_S = 2.0  # our choice: how long a router may take to remove our mapping


class Underlay:
    """Owns ``endpoint``, ``own``, ``mapper`` and ``searches``, and ends them in ``close``.

    ``mapper``: None where no router has been asked for a port.
    ``on_network_change`` is called when this host's addresses or routes have changed,
    ``on_addresses`` when ``own`` knows something new.  Raises LinkLost where there is no UDP at
    all, OutOfDescriptors when those have run out.
    """

    def __init__(
        self,
        stun_servers: Sequence[tuple[str, int]],
        map_ports: bool,
        udp: UdpUse,
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
        on_network_change: Callable[[], object],
        on_addresses: Callable[[], object],
    ) -> None:
        self.endpoint = Endpoint(log, self._handle_stun)
        self.udp = udp
        self.mapper: PortMapper | None = None
        self.own = OwnAddresses(
            self.endpoint,
            stun_servers,
            log,
            spawn,
            self._handle_addresses,
            watched=True,
            udp=not udp.is_off,
        )
        self._ipv6_only = Ipv6Only(self.endpoint, self._has_ipv4, self.own.refresh, log, spawn)
        self._watch = AddressWatch(self._handle_network_change, log)
        self._may_map = map_ports and not udp.is_off
        self._searches: Searches | None = None
        self._log = log
        self._spawn = spawn
        self._on_network_change = on_network_change
        self._on_addresses = on_addresses
        self._ipv6_only.start(self.own.start)
        self._watch.start()

    def _has_ipv4(self) -> bool:
        addresses = [each.address for each in self.own.host_candidates()]
        return any(":" not in ip and ip not in LOOPBACK for ip in addresses)

    def _handle_stun(self, data: bytes, source: Address) -> None:
        if not self.own.questions.handle_stun(data, source) and self._searches is not None:
            self._searches.finder.handle_stun(data, source)

    def _handle_network_change(self) -> None:
        self._log.info("the network has changed")
        self.own.refresh("the network has changed")
        self._ipv6_only.look()
        self.udp.forget()
        if self._searches is not None:
            self._searches.lanes.show_again()
        if self.mapper is not None:
            self.mapper.refresh()
        self._on_network_change()

    def _handle_addresses(self) -> None:
        port = self.endpoint.ports().get(int(AF_INET))
        if self._may_map and self.mapper is None and self.own.nat.mapping in _NATS and port:
            self._map(port)
        if self._searches is not None:
            self._searches.handle_addresses()
        self._on_addresses()

    def _map(self, port: int) -> None:
        from ...traversal.port_mapping import PortMapper  # only where a NAT is in front of us

        def handle_mapping() -> None:
            self.own.mapped = mapper.mapped
            self.own.see_changes()

        self.mapper = mapper = PortMapper(self._log, self._spawn, handle_mapping)
        mapper.start(port)

    @property
    def searches(self) -> Searches:
        """For paths to peers; made for the first."""
        if self._searches is None:
            from .searches import Searches  # who calls, or may be called, has loaded it already

            self._searches = Searches(self.endpoint, self.own, self.udp, self._log, self._spawn)
        return self._searches

    def look_again(self) -> None:
        """We were cut off for a while: the NAT or the router may have forgotten us meanwhile."""
        self.own.doubt()
        if self.mapper is not None:
            self.mapper.refresh()

    def close(self) -> None:
        self._watch.close()
        self._ipv6_only.close()
        self.own.close()
        if self.mapper is not None:
            self.mapper.close(CLOSE_S)
        if self._searches is not None:
            self._searches.finder.close()
        self.endpoint.close()
