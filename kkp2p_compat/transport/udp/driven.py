"""What an endpoint drives: a connection, and the owner who is told of its events.

``Member`` is both, with what the endpoint keeps of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..._address import Address
from .demultiplex import key_of

if TYPE_CHECKING:
    from .doors import Door
    from .events import Event, Transmit

__all__ = ["Driven", "DrivenConnection", "Member"]


class DrivenConnection(Protocol):
    """What is used of a PeerConnection."""

    def handle_datagrams(
        self, data: bytes, segment_bytes: int, address: Address, now: float
    ) -> bool: ...
    def gather_s(self, now: float) -> float: ...
    def handle_timer(self, now: float) -> object: ...
    def poll_event(self) -> Event | None: ...
    def poll_transmit(self, now: float) -> Transmit | None: ...
    def next_timer(self) -> float | None: ...
    def close(self, code: int, reason: str, now: float) -> object: ...


class Driven(Protocol):
    """A connection with its owner.  ``local_id`` is what the peer writes into its packets."""

    @property
    def connection(self) -> DrivenConnection: ...
    @property
    def local_id(self) -> int: ...
    def handle_event(self, event: Event) -> object: ...


class Member:
    """A connection, and what the endpoint keeps of it."""

    __slots__ = ("alive", "connection", "failed", "key", "link", "ready", "waiting")

    def __init__(self, link: Driven) -> None:
        self.link = link
        self.connection = link.connection
        self.key = key_of(link.local_id)
        self.alive = True
        self.failed = False  # closed after a bug
        self.ready = False  # in the endpoint's list of those to drive
        self.waiting: Door | None = None  # which did not take all, and has the rest in its line
