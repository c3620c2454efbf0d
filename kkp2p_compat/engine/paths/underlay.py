"""The network below all direct connections: our UDP sockets, our addresses, the search for paths.

Runs in the engine's hub.  It is made when something direct is wanted for the first time; from then
on our addresses are kept fresh, and a port is mapped where there is a router that does so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import Logger
from socket import AF_INET
from typing import Any

import gevent

from ..._address import Address
from ...transport.udp.endpoint import Endpoint
from ...traversal.address_watch import AddressWatch
from ...traversal.nat import (
    ADDRESS_AND_PORT_DEPENDENT,
    ADDRESS_DEPENDENT,
    BLOCKED,
    ENDPOINT_INDEPENDENT,
    NatBehaviour,
)
from ...traversal.port_mapping import PortMapper
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer
from ..signalling.keys import CallKeys
from ..signalling.own_side import OwnSide
from .birthdays import Birthdays
from .ipv6_only import Ipv6Only
from .lanes import Lanes
from .meeting import Meeting
from .own_addresses import LOOPBACK, OwnAddresses
from .path_finder import PathFinder
from .puncher import Means
from .relay_paths import RelayAccess, RelayPaths
from .turn_meeting import HiddenMeeting
from .udp_use import UdpUse

__all__ = ["Underlay"]

_NATS = (ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT)
CLOSE_S = 2.0  # our choice: how long a router may take to remove our mapping


class Underlay:
    """Owns ``endpoint``, ``own``, ``mapper``, ``lanes`` and ``finder``, and ends them in ``close``.

    ``on_network_change`` is called when this host's addresses or routes have changed,
    ``on_addresses`` when ``own`` knows something new.  Raises LinkLost where there is no UDP at
    all, OutOfDescriptors when those have run out.
    """

    def __init__(
        self, stun_servers: Sequence[tuple[str, int]], map_ports: bool, udp: UdpUse, log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
        on_network_change: Callable[[], object], on_addresses: Callable[[], object],
    ) -> None:  # fmt: skip
        self.endpoint = Endpoint(log, self._handle_stun)
        self.lanes = Lanes(self.endpoint)
        self.finder = PathFinder(self.endpoint)
        self.udp = udp
        may_map = map_ports and not udp.is_off
        self.mapper = PortMapper(log, spawn, self._handle_mapping) if may_map else None
        self.own = OwnAddresses(
            self.endpoint, stun_servers, log, spawn, self._handle_addresses, self.mapper,
            watched=True, udp=not udp.is_off,
        )  # fmt: skip
        self._means = Means(self.endpoint, self.own, self.finder, Birthdays(), log, spawn)
        self._ipv6_only = Ipv6Only(self.endpoint, self._has_ipv4, self.own.refresh, log, spawn)
        self._watch = AddressWatch(self._handle_network_change, log)
        self._mapping = False
        self._log = log
        self._on_network_change = on_network_change
        self._on_addresses = on_addresses
        self._meetings: set[Meeting] = set()
        self._ipv6_only.start(self.own.start)
        self._watch.start()

    def _has_ipv4(self) -> bool:
        addresses = [each.address for each in self.own.host_candidates()]
        return any(":" not in ip and ip not in LOOPBACK for ip in addresses)

    def _handle_stun(self, data: bytes, source: Address) -> None:
        if not self.own.questions.handle_stun(data, source):
            self.finder.handle_stun(data, source)

    def _handle_network_change(self) -> None:
        self._log.info("the network has changed")
        self.own.refresh("the network has changed")
        self._ipv6_only.look()
        self.udp.forget()
        self.lanes.show_again()
        if self.mapper is not None and self._mapping:
            self.mapper.refresh()
        self._on_network_change()

    def _handle_mapping(self) -> None:
        self.own.see_changes()

    def _handle_addresses(self) -> None:
        port = self.endpoint.ports().get(int(AF_INET))
        if self.mapper is not None and not self._mapping and self.own.nat.mapping in _NATS and port:
            self._mapping = True  # only where there is a NAT in front of us
            self.mapper.start(port)
        for meeting in list(self._meetings):
            meeting.tell(self.own.candidates(meeting.to_stranger))
        self._on_addresses()

    @contextmanager
    def meeting(
        self, own_side: OwnSide, theirs: DirectOffer, keys: CallKeys, timeline: Timeline,
        trickle: Callable[[str], object] | None,
    ) -> Iterator[Meeting]:  # fmt: skip
        """Look for a path inside the body.  ``trickle``: how a text gets to the peer, if it can."""
        meeting = Meeting(self._means, own_side, theirs, keys, timeline, trickle or _nowhere)
        with meeting.searching():
            self._meetings.add(meeting)
            try:
                if trickle is not None:
                    meeting.tell(self.own.candidates(meeting.to_stranger))
                yield meeting
            finally:
                self._meetings.discard(meeting)

    def hidden_meeting(
        self, own_side: OwnSide, theirs: DirectOffer, keys: CallKeys, timeline: Timeline,
        trickle: Callable[[str], object],
    ) -> HiddenMeeting:  # fmt: skip
        """For a call in mode 2."""
        return HiddenMeeting(self._means, own_side, theirs, keys, timeline.add, trickle)

    def relays(
        self, access: RelayAccess, ids: tuple[int, int], is_caller: bool, peers_nat: NatBehaviour
    ) -> RelayPaths:
        """The ways over relays.  ``ids``: of the connection, ours and the peer's."""
        blocked = BLOCKED.mapping in (self.own.nat.mapping, peers_nat.mapping)
        return RelayPaths(
            self.endpoint, self.lanes, access, ids, is_caller, self.udp.is_good and not blocked,
            self._log,
            self._means.spawn,
        )  # fmt: skip

    def look_again(self) -> None:
        """We were cut off for a while: the NAT or the router may have forgotten us meanwhile."""
        self.own.doubt()
        if self.mapper is not None and self._mapping:
            self.mapper.refresh()

    @property
    def maps(self) -> bool:
        """Whether the router has been asked for a port."""
        return self._mapping

    def close(self) -> None:
        self._watch.close()
        self._ipv6_only.close()
        self.own.close()
        if self.mapper is not None and self._mapping:
            self.mapper.close(CLOSE_S)
        self.finder.close()
        self.endpoint.close()


def _nowhere(text: str) -> None:
    """A LAN search carries nothing after the answer."""
