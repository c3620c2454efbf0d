"""The ways to the peer of one link: which there are, and which one its connection takes.

Runs in the engine's hub.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import Logger

from ..._address import Address
from ...transport.udp.endpoint import Endpoint
from ...transport.udp.peer_connection import PeerConnection
from ..paths.path_finder import Path
from ..paths.path_kind import PathKind
from ..paths.relay_paths import RelayPaths

__all__ = ["LinkPaths"]


class LinkPaths:
    """``offer`` what was found, ``take_relays`` what leads over relays; ``close`` at the end."""

    def __init__(
        self, connection: PeerConnection, first: Path, reason: str, endpoint: Endpoint,
        wake: Callable[[], object], name: str, log: Logger,
    ) -> None:  # fmt: skip
        """``reason``: for the first path."""
        self.reason = reason  # for the path in use; "" where only the peer knows
        self._connection = connection
        self._endpoint = endpoint
        self._wake = wake
        self._name = name
        self._log = log
        self._kinds: dict[Address, PathKind] = {first.address: first.kind}
        self._relays: list[RelayPaths] = []  # the newest last
        self._sockets: set[int] = set()  # extra ones of the endpoint, which are ours
        self._tried = first.address  # the direct one that checks have found last
        self._closed = False
        self._keep_socket(first)

    @property
    def kind(self) -> PathKind:
        """Of the path in use."""
        return self.kind_of(self._connection.address)

    def kind_of(self, address: Address) -> PathKind:
        return self._kinds.get(address, PathKind.DIRECT)

    def offer(self, path: Path) -> None:
        """It carries packets, or connectivity checks."""
        self._kinds[path.address] = path.kind
        if not path.kind.is_relay:
            self._tried = path.address
            self._keep_socket(path)
            if self._closed:
                self._endpoint.close_sockets(self._sockets)
        if not path.kind.is_relay or self.kind.is_relay:
            self._connection.try_path(path.address, time.monotonic())
            self._wake()

    def take_relays(self, relays: RelayPaths) -> None:
        """Use them from now on, and close them at the end."""
        if self._closed:
            relays.close()
            return
        for path in relays.paths.values():
            self._kinds[path.address] = path.kind
        self._relays.append(relays)
        relays.on_path = self.offer
        relays.on_lost = self._lose

    def _lose(self, address: Address) -> None:
        self._kinds.pop(address, None)

    def _keep_socket(self, path: Path) -> None:
        if not path.kind.is_relay and len(path.address) == 3:
            self._sockets.add(path.address[2])

    def handle_changed(self, address: Address) -> None:
        """The connection uses this address now."""
        in_use = {each[2] for each in (address, self._tried) if len(each) == 3}
        self._endpoint.close_sockets(self._sockets - in_use)
        self._sockets &= in_use
        self._log.warning(
            "%s: the peer is now reached by %s at %s port %d",
            self._name, self.kind.value, *address[:2],
        )  # fmt: skip

    def close(self) -> None:
        """May be called again."""
        self._closed = True
        self._endpoint.close_sockets(self._sockets)
        for relays in self._relays:
            relays.close()
