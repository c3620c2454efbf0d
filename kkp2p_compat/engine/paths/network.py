"""The network below direct connections, made when one is wanted for the first time.

Runs in the engine's hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import Logger
from typing import Any

import gevent

from ..._errors import EngineClosed, LinkLost, NotSupported
from ...traversal.nat import UNKNOWN, NatBehaviour
from .udp_use import UdpUse
from .underlay import Underlay

__all__ = ["Network"]


class Network:
    """``underlay`` makes it.  ``on_change``, ``on_addresses``: see Underlay."""

    def __init__(
        self,
        stun_servers: Sequence[tuple[str, int]],
        map_ports: bool,
        udp: UdpUse,
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
        on_change: Callable[[], object],
        on_addresses: Callable[[Underlay], object],
    ) -> None:
        self._stun_servers = stun_servers
        self._map_ports = map_ports
        self.udp = udp
        self._log = log
        self._spawn = spawn
        self._on_change = on_change
        self._on_addresses = on_addresses
        self._underlay: Underlay | None = None
        self._closed = False

    def underlay(self) -> Underlay:
        """Raises EngineClosed, OutOfDescriptors, or NotSupported where there is no UDP."""
        if self._closed:
            raise EngineClosed
        if self._underlay is None:
            try:
                self._underlay = Underlay(
                    self._stun_servers,
                    self._map_ports,
                    self.udp,
                    self._log,
                    self._spawn,
                    self._on_change,
                    self._handle_addresses,
                )
            except LinkLost as error:
                raise NotSupported(f"this host has no UDP: {error}") from error
        return self._underlay

    def _handle_addresses(self) -> None:
        if self._underlay is not None:
            self._on_addresses(self._underlay)

    @property
    def nat(self) -> NatBehaviour:
        """Ours, as far as it is known by now."""
        return UNKNOWN if self._underlay is None else self._underlay.own.nat

    def doubt(self) -> None:
        """What a STUN server sees of us may have changed."""
        if self._underlay is not None:
            self._underlay.own.doubt()

    def look_again(self) -> None:
        """We were away: the NAT or the router may have forgotten us, and nothing told us."""
        if self._underlay is not None:
            self._underlay.look_again()

    def close(self) -> None:
        self._closed = True
        if self._underlay is not None:
            self._underlay.close()
