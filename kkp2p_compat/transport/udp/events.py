"""What a PeerConnection tells the program that drives it.

Each is delivered once, in the order in which things happened; ``Readable`` and ``Writable`` only
say "look again", so several of them for one stream may be one.  Nobody changes one; they are not
frozen, as that makes each take longer to make, and the import twice as long.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from ..._address import Address
from ..._errors import KKP2PError
from .frames import Proof

__all__ = [
    "ChannelOffered",
    "ChannelOpened",
    "ChannelRefused",
    "Closed",
    "Ended",
    "Event",
    "EventQueue",
    "MessageReceived",
    "PathChanged",
    "PathProved",
    "PathRecovered",
    "PathSilent",
    "PathSuspected",
    "PathUnproved",
    "ProofReceived",
    "Readable",
    "ResetReceived",
    "Stopped",
    "Transmit",
    "Writable",
]


@dataclass(slots=True)
class ChannelOffered:
    """The peer opened a channel: accept or refuse it."""

    stream_id: int
    channel_type: int
    encrypt_data: int
    desc: int


@dataclass(slots=True)
class ChannelOpened:
    """The peer has accepted a channel that we opened."""

    stream_id: int


@dataclass(slots=True)
class ChannelRefused:
    """The peer has refused a channel that we opened."""

    stream_id: int
    reason: int


@dataclass(slots=True)
class Readable:
    """There is data in order, or the end of it: see ``peek`` and ``at_end``."""

    stream_id: int


@dataclass(slots=True)
class Writable:
    """``writable_bytes`` was too small, and has grown."""

    stream_id: int


@dataclass(slots=True)
class Stopped:
    """The peer will not read what we write from here on."""

    stream_id: int


@dataclass(slots=True)
class ResetReceived:
    """The peer has given up what it was sending; what has not been read yet is lost."""

    stream_id: int
    reason: int


@dataclass(slots=True)
class Ended:
    """A channel is over and forgotten: the peer has all that was sent, and we have all of its."""

    stream_id: int


@dataclass(slots=True)
class MessageReceived:
    """A whole message of a UDP channel."""

    stream_id: int
    data: bytes


@dataclass(slots=True)
class PathChanged:
    """The peer is now reached at another address, which has proved that it is the peer."""

    address: Address


@dataclass(slots=True)
class PathProved:
    """An address that was asked has answered: the peer is there."""

    address: Address
    rtt_s: float


@dataclass(slots=True)
class PathUnproved:
    """An address that was asked has not answered."""

    address: Address


@dataclass(slots=True)
class PathSilent:
    """Nothing is acknowledged on the path in use: is there a better one?  Told once, and again
    when something was acknowledged meanwhile."""


@dataclass(slots=True)
class PathSuspected:
    """The peer has not been heard for several probe time-outs: look for another path."""


@dataclass(slots=True)
class PathRecovered:
    """After PathSuspected, the peer was heard again."""


@dataclass(slots=True)
class ProofReceived:
    """The peer shows who it is."""

    proof: Proof


@dataclass(slots=True)
class Closed:
    """The end: nothing more will be sent.  What has come can still be read."""

    error: KKP2PError


Event = (
    ChannelOffered
    | ChannelOpened
    | ChannelRefused
    | Readable
    | Writable
    | Stopped
    | ResetReceived
    | Ended
    | MessageReceived
    | PathChanged
    | PathProved
    | PathUnproved
    | PathSilent
    | PathSuspected
    | PathRecovered
    | ProofReceived
    | Closed
)


class Transmit(NamedTuple):
    """Datagrams to one address: ``data`` cut into pieces of ``segment_bytes``, the last shorter."""

    data: bytes
    segment_bytes: int
    address: Address
    more: bool = True  # False: ``poll_transmit`` would give None now


class EventQueue:
    """In the order in which things happened; the Readables of a stream that wait are one."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self.waits = self._events.__len__  # how many
        self._readable: set[int] = set()  # ids of the streams with a Readable that waits

    def put(self, event: Event) -> None:
        self._events.append(event)

    def put_readable(self, stream_id: int) -> None:
        if stream_id not in self._readable:
            self._readable.add(stream_id)
            self._events.append(Readable(stream_id))

    def poll(self) -> Event | None:
        if not self._events:
            return None
        event = self._events.popleft()
        if type(event) is Readable:
            self._readable.discard(event.stream_id)
        return event
