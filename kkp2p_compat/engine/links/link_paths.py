"""The ways to the peer of one link: which there are, and what keeps them open.

Which of them the connection takes is decided in path_choice.py; here that is driven, and told.
Runs in the engine's hub.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from logging import Logger
from random import SystemRandom
from typing import Any

from gevent import get_hub

from ..._address import Address
from ..._io import OneShot
from ...transport.udp import events as e
from ...transport.udp.endpoint import Endpoint
from ...transport.udp.peer_connection import PeerConnection
from ...traversal.candidates import Candidate
from ..paths.path_finder import Path
from ..paths.path_kind import PathKind
from ..paths.relay_paths import RelayPaths
from ..paths.udp_use import THROTTLED_S, UdpUse
from .path_choice import PathChoice
from .path_move import Move
from .path_option import ChoiceSettings

__all__ = ["LEAVE_S", "LinkPaths"]

# Our choice: for what is on its way over a path that was left, and for the peer, which comes back
# to it if that was for a trial.
LEAVE_S = 10.0
_random = SystemRandom()


class LinkPaths:
    """``offer`` what was found, ``take_relays`` what leads over relays; ``close`` at the end."""

    settings = ChoiceSettings()  # of all links; tests replace it

    def __init__(
        self,
        connection: PeerConnection,
        first: Path,
        reason: str,
        endpoint: Endpoint,
        wake: Callable[[], object],
        name: str,
        log: Logger,
        note: Callable[..., object],
        udp: UdpUse,
        *,
        is_caller: bool,
    ) -> None:
        """``reason``: for the first path.  ``note`` is told of moves, as the log is."""
        self.reason = reason  # for the path in use; "" where only the peer knows
        self._choice = PathChoice(
            connection,
            first.kind,
            is_caller=is_caller,
            now=time.monotonic(),
            random=_random,
            settings=self.settings,
        )
        self._endpoint = endpoint
        self._wake = wake
        self._name = name
        self._log = log
        self._note = note
        self._udp = udp
        self._relays: list[RelayPaths] = []  # the newest last
        self._sockets: set[int] = set()  # extra ones of the endpoint, for direct paths, and ours
        self._tried = first.address  # the direct one that checks have found last
        self._told: Move | None = None  # the last that the log has told of
        self._timer: Any = None
        self._leaving = OneShot(LEAVE_S)
        self._closed = False
        self._keep_socket(first)
        self._poll()

    @property
    def kind(self) -> PathKind:
        """Of the path in use."""
        return self._choice.current.kind

    @property
    def moves(self) -> list[Move]:
        """From one path to another; the last ones."""
        return self._choice.moves

    @property
    def has_relay(self) -> bool:
        """Whether a way over a relay is ready."""
        return any(relays.paths for relays in self._relays)

    @property
    def has_second(self) -> bool:
        """Whether a way over a relay is ready that is not the path in use."""
        current = self._choice.current.address
        return any(relays.paths.keys() - {current} for relays in self._relays)

    @property
    def has_tcp(self) -> bool:
        """Whether one over TCP is."""
        return self.kind.is_tcp or any(
            path.kind.is_tcp for relays in self._relays for path in relays.paths.values()
        )

    # What there is.

    def offer(self, path: Path) -> None:
        """It carries packets, or connectivity checks."""
        if not path.kind.is_relay:
            self._tried = path.address
            self._keep_socket(path)
        if self._closed:
            self._endpoint.close_sockets(self._sockets)
            return
        hold_s = THROTTLED_S if self._udp.is_throttled and not path.kind.is_tcp else 0.0
        self._choice.offer(path.address, path.kind, time.monotonic(), hold_s=hold_s)
        self._poll()

    def expect(self, candidates: Iterable[Candidate]) -> None:
        """Of the peer, which no check has reached: what is in the way may go away.

        They are asked now and then while the path in use is a worse one.
        """
        for candidate in candidates:
            if not self._closed:
                address = candidate.address, candidate.port
                self._choice.offer(address, PathKind.DIRECT, time.monotonic())
        self._poll()

    def take_relays(self, relays: RelayPaths) -> None:
        """Use them from now on, and close them at the end.

        Earlier ones that have no path are closed now: they go on to show their tokens, but the two
        sides have others by the new call, and those of a call expire soon after it.
        """
        if self._closed:
            relays.close()
            return
        for old in [each for each in self._relays if not each.paths]:
            self._relays.remove(old)
            old.close()
        self._relays.append(relays)
        relays.on_path = lambda path: self._offer_relay(relays, path)
        relays.on_lost = self._withdraw
        for path in tuple(relays.paths.values()):
            self._offer_relay(relays, path)

    def _offer_relay(self, relays: RelayPaths, path: Path) -> None:
        self.offer(path)
        for old in self._relays[: self._relays.index(relays)]:
            if self._choice.current.address in old.paths.keys() - relays.paths.keys():
                continue
            self._relays.remove(old)
            gone = old.paths.keys() - relays.paths.keys()
            old.close()
            for address in gone:
                self._withdraw(address)

    def _withdraw(self, address: Address) -> None:
        if not self._closed:
            self._choice.withdraw(address, time.monotonic())
            self._poll()

    def _keep_socket(self, path: Path) -> None:
        """Close it when it is not used any more, and notice if it breaks."""
        address = path.address
        if path.kind.is_relay or len(address) == 2:
            return
        self._sockets.add(address[2])
        if not self._endpoint.watch(address[2], lambda _: self._withdraw(address)):
            self._withdraw(address)

    # What happens.

    def handle_event(self, event: e.Event) -> None:
        """One of the connection, about a path."""
        if isinstance(event, e.PathChanged) and self._sockets:
            self._leaving.start(self._close_unused)
        self._choice.handle_event(event, time.monotonic())
        self._poll()

    def handle_network_changed(self) -> None:
        self._choice.handle_network_changed(time.monotonic())
        self._poll()

    def _close_unused(self) -> None:
        """Nothing comes by a path that was left any more."""
        choice = self._choice
        needed = choice.current.address, choice.home, self._tried
        unused = self._sockets - {each[2] for each in needed if each and len(each) == 3}
        self._endpoint.close_sockets(unused)
        self._sockets -= unused
        for address in choice.addresses:
            if len(address) == 3 and address[2] in unused:
                self._withdraw(address)

    def _handle_timer(self) -> None:
        self._choice.handle_timer(time.monotonic())
        self._poll()

    def _poll(self) -> None:
        """Tell of moves, send what is to be sent, and set the timer."""
        moves = self._choice.moves
        if moves and moves[-1] is not self._told:
            self._told = moves[-1]
            self.reason = self._told.why
            self._log.warning("%s: moved from %s", self._name, self._told)
            self._note("moved from {move}", self._told.text)
        if self._choice.is_udp_throttled:
            self._choice.is_udp_throttled = False
            self._udp.note_throttled()
        self._wake()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        due_at = self._choice.next_timer()
        if due_at < math.inf and not self._closed:
            self._timer = get_hub().loop.timer(max(0.0, due_at - time.monotonic()))
            self._timer.start(self._handle_timer, update=True)

    def close(self) -> None:
        """May be called again."""
        self._closed = True
        self._leaving.close()
        self._arm()
        self._endpoint.close_sockets(self._sockets)
        for relays in self._relays:
            relays.close()
