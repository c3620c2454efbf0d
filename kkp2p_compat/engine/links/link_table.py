"""All links of an engine, to peers that we have called and to those that have called us.

Runs in the engine's hub.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from logging import Logger
from random import SystemRandom

from ...transport.udp.events import ChannelOffered
from ...transport.udp.peer_connection import PeerConnection
from ...transport.udp.stream_table import REFUSED_UNSUPPORTED
from ...transport.udp.transport_settings import TransportSettings
from ..paths.network import Network
from ..runtime.shares import Shares
from .peer_link import LinkInfo, PeerLink, Roams
from .pins import Pins
from .traffic import Traffic, TrafficTable

__all__ = ["LinkTable"]

_random = SystemRandom()


class LinkTable:
    """``on_offered`` takes a channel that a peer opens which has called us, or refuses it."""

    def __init__(
        self,
        network: Network,
        roaming: Roams,
        pins: Pins,
        on_offered: Callable[[PeerLink, ChannelOffered], object],
        log: Logger,
    ) -> None:
        self._network = network
        self._roaming = roaming
        self._pins = pins
        self._on_offered = on_offered
        self._log = log
        self.shares = Shares()  # of links that peers made
        self._links: set[PeerLink] = set()
        self._traffic = TrafficTable()

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[PeerLink]:
        return iter(list(self._links))

    def add(self, info: LinkInfo) -> PeerLink:
        met = info.met
        address, rtt_s, _ = met.path
        callee = met.theirs if info.is_caller else met.ours
        underlay = self._network.underlay()
        endpoint = underlay.endpoint
        connection = PeerConnection(
            send_secret=met.keys.send,
            receive_secret=met.keys.receive,
            cipher=callee.cipher,
            is_caller=info.is_caller,
            local_id=met.ours.connection_id,
            remote_id=met.theirs.connection_id,
            address=address,
            now=time.monotonic(),
            random=_random,
            settings=TransportSettings(datagram_limit=endpoint.datagram_limit),
            rtt_s=rtt_s,
        )
        for data, segment_bytes, source in endpoint.early.take(met.ours.connection_id):
            connection.handle_datagrams(data, segment_bytes, source, time.monotonic())
        link = PeerLink(
            endpoint,
            connection,
            info,
            self._log,
            _refuse if info.is_caller else self._on_offered,
            self._forget,
            self._roaming,
            underlay.udp,
            self._pins,
        )
        self._links.add(link)
        if not info.is_caller:
            self.shares.enter(info.share)
        self._log.info("%s: %s, %s", info.name, link.describe(), callee.cipher)
        return link

    def _forget(self, link: PeerLink) -> None:
        self._links.discard(link)
        if not link.info.is_caller:
            self.shares.leave(link.info.share)
        self._look_at_traffic(link)
        self._traffic.forget(link.connection)

    def find(self, connection_id: int) -> PeerLink | None:
        for link in self._links:
            if link.local_id == connection_id:
                return link
        return None

    def retire(self, own_id: str) -> None:
        """Who calls this peer does not mean us any more, not even on a live link."""
        for link in self._links:
            link.retire(own_id)

    def handle_gone(self, peer_id: str, calls: list[str], back: bool) -> None:
        """The cloud has lost a peer, or has it ``back``: is it there all the same?

        ``peer_id``: whom we had called.  ``calls``: those of a peer that had called us.
        """
        for link in self:
            if not link.is_of(peer_id, calls):
                continue
            if back:
                link.handle_back()
            else:
                link.handle_gone()

    def ask(self) -> None:
        """The network has changed: find out which peers are still there, and by which paths."""
        for link in self:
            link.handle_network_changed()

    def look_at_traffic(self) -> Mapping[str, Traffic]:
        """By path: what the links have carried by now, and those that have ended."""
        for link in self:
            self._look_at_traffic(link)
        return self._traffic.by_path

    def _look_at_traffic(self, link: PeerLink) -> None:
        self._traffic.look_at(link.connection, link.paths.kind.word)

    @property
    def has_called(self) -> bool:
        """Whether there are channels with peers that we have called."""
        return any(link.info.is_caller and link.connection.streams.by_id for link in self._links)

    # The end.

    @property
    def busy(self) -> bool:
        """Whether something is on its way."""
        return any(not link.channels.drained.is_set() for link in self._links)

    def drain(self) -> None:
        """Wait until no channel has anything on its way."""
        for link in self:
            link.channels.drained.wait()

    def sweep(self) -> None:
        self.look_at_traffic()
        for link in self:
            link.sweep()

    def close(self) -> None:
        for link in self:
            link.destroy()


def _refuse(link: PeerLink, offered: ChannelOffered) -> None:
    """Only the side that was called is one that accepts."""
    link.channels.refuse(offered.stream_id, REFUSED_UNSUPPORTED)
