"""The sockets of an endpoint, with their watchers, and which of them leads to a remote address.

There is a main socket for each address family, and for a while there may be extra ones: a NAT that
uses another port for each destination can only be crossed by chance, and each socket is one more
chance.  Extra sockets are numbered from 1, and the number is the third item of a remote address: so
a peer that is seen by two of our sockets has two addresses, and no layer above needs to know why.
An extra socket may also be one that was *adopted*: it carries datagrams in another way.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from logging import Logger
from typing import Any, Protocol

from ..._address import Address
from ..._errors import EngineClosed, LinkLost, OutOfDescriptors, from_os_error
from ..._io import READ, WRITE
from ..._nat64 import Nat64
from .batch_socket import BatchSocket
from .demultiplex import Datagrams
from .first_hop import first_hop_datagram_bytes
from .nat64_socket import Nat64Socket

__all__ = ["MAX_EXTRA_SOCKETS", "Door", "DoorSocket", "Doors"]

# Our choice: a birthday punch of 256, some for another to begin, and the samples of a prediction.
# A process that is allowed fewer descriptors gets OutOfDescriptors earlier.
MAX_EXTRA_SOCKETS = 640


class DoorSocket(Protocol):
    """What a socket must have; the methods are those of BatchSocket, which says what they do.

    ``broken``: nothing will come any more, nor go.  ``holds_more``: ``receive`` has more to give,
    which the watchers, as they see the descriptor only, do not know.  ``datagram_bytes``: how large
    a datagram is worth trying; 0: the first hop says.
    """

    number: int
    datagram_bytes: int
    port: int
    failures: Counter[str]
    broken: bool
    holds_more: bool

    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def grow(self) -> None: ...
    def send(self, data: bytes, segment_bytes: int, address: Address) -> int: ...
    def send_with_ttl(self, data: bytes, address: Address, ttl: int) -> int: ...
    def receive(self) -> tuple[bytes, int, Address] | None: ...


class Door:
    """A socket with its watchers, and the line of those who wait for room in it.

    ``waiting``: members of the endpoint, in their order, with what the socket has not taken.
    ``on_broken``: of an adopted one.
    ``short_in``: the iteration of the loop that last read a short datagram first.
    """

    __slots__ = ("closed", "on_broken", "readable", "short_in", "socket", "waiting", "writable")

    def __init__(
        self, door_socket: DoorSocket, loop: Any, on_broken: Callable[[int], object] | None = None
    ) -> None:
        self.socket = door_socket
        self.on_broken = on_broken
        self.closed = False
        self.short_in = -1
        self.waiting: dict[Any, Datagrams] = {}
        self.readable = loop.io(door_socket.fileno(), READ)
        self.writable = loop.io(door_socket.fileno(), WRITE)

    def close(self) -> None:
        self.closed = True
        self.readable.close()
        self.writable.close()
        self.socket.close()


class Doors:
    """``main`` by family, ``extra`` by number: what of the endpoint has to do with sockets only.

    ``translated``: what leads to IPv4 addresses instead, where there is a ``nat64``; to all but
    those of this host.
    """

    def __init__(
        self, log: Logger, loop: Any, read: Callable[[Door], object], left: Callable[[Door], object]
    ) -> None:
        """``read`` is called when there is something to read, ``left`` when a door was closed.

        Raises as the Endpoint does.
        """
        self.main: dict[int, Door] = {}
        self.extra: dict[int, Door] = {}
        self.translated: Door | None = None
        self.nat64: Nat64 | None = None
        self._log = log
        self._loop = loop
        self._read = read
        self._left = left
        self._closed = False
        self._last_number = 0
        self._past_failures: Counter[str] = Counter()
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                self.main[family] = self._open(BatchSocket(family, log))
            except OSError as cause:
                error = from_os_error(cause, "UDP socket")
                last = family == socket.AF_INET6 and not self.main
                if last or isinstance(error, OutOfDescriptors):
                    self.close()
                    raise error from cause
                log.info("no UDP over %s: %s", family.name, cause)

    def __iter__(self) -> Iterator[Door]:
        yield from self.main.values()
        yield from self.extra.values()
        if self.translated is not None:
            yield self.translated

    def _open(
        self, door_socket: DoorSocket, on_broken: Callable[[int], object] | None = None
    ) -> Door:
        door = Door(door_socket, self._loop, on_broken)
        door.readable.start(self._read, door)
        return door

    def _close(self, door: Door) -> None:
        self._past_failures += door.socket.failures
        door.close()
        self._left(door)

    def ports(self) -> dict[int, int]:
        """The families that there are, socket.AF_INET and AF_INET6, and where each is bound."""
        ports = {family: door.socket.port for family, door in self.main.items()}
        if self.translated is not None:
            ports[socket.AF_INET] = self.translated.socket.port
        return ports

    def find(self, address: Address) -> Door | None:
        if len(address) == 2:
            if ":" in address[0]:
                return self.main.get(socket.AF_INET6)
            if self.translated is not None and not address[0].startswith("127."):
                return self.translated
            return self.main.get(socket.AF_INET)
        return self.extra.get(address[2])

    def datagram_limit(self, address: Address) -> int:
        """How large a datagram to this address is worth trying."""
        door = self.find(address)
        own = 0 if door is None else door.socket.datagram_bytes
        return own or first_hop_datagram_bytes(address)

    def translate_ipv4(self, nat64: Nat64 | None) -> None:
        """Reach IPv4 addresses through this NAT64 from now on; None: by IPv4.

        Raises EngineClosed, OutOfDescriptors or LinkLost, and then nothing has changed.
        """
        self._require_open()
        try:
            new = None if nat64 is None else self._open(Nat64Socket(nat64, self._log))
        except OSError as cause:
            raise from_os_error(cause, "UDP socket") from cause
        old, self.translated, self.nat64 = self.translated, new, nat64
        if old is not None:
            self._close(old)

    def open_sockets(self, family: int, count: int) -> list[int]:
        """Open ``count`` more, on free ports; returns their numbers, which are never used again.

        A remote address with such a number as its third item is reached by that socket.
        At most MAX_EXTRA_SOCKETS are open at once.  Raises EngineClosed, OutOfDescriptors or
        LinkLost, and then none was opened.
        """
        self._require_open()
        if family not in self.ports():
            raise LinkLost("this host has no UDP over that address family")
        self._require_room(count)
        opened: list[BatchSocket] = []
        try:
            for number in range(self._last_number + 1, self._last_number + 1 + count):
                opened.append(self._make(family, number))
        except OSError as cause:
            for made in opened:
                made.close()
            raise from_os_error(cause, "UDP socket") from cause
        self._last_number += count
        self.extra.update({made.number: self._open(made) for made in opened})
        return [made.number for made in opened]

    def _make(self, family: int, number: int) -> BatchSocket:
        if family == socket.AF_INET and self.nat64 is not None:
            return Nat64Socket(self.nat64, self._log, number=number)
        return BatchSocket(socket.AddressFamily(family), self._log, number=number)

    def adopt(self, make: Callable[[int], DoorSocket], on_broken: Callable[[int], object]) -> int:
        """Take in a socket that carries datagrams in another way; returns its number.

        From then on it is as one of ``open_sockets``.  ``make`` gets the number and gives the
        socket.  If that breaks, it is closed, and ``on_broken(number)`` is called, once, in the
        hub.  Raises EngineClosed or OutOfDescriptors, and then ``make`` was not called, or LinkLost
        for an OSError of it.
        """
        self._require_open()
        self._require_room(1)
        self._last_number += 1
        number = self._last_number
        try:
            self.extra[number] = self._open(make(number), on_broken)
        except OSError as cause:
            raise from_os_error(cause, "a socket to be adopted") from cause
        return number

    def _require_open(self) -> None:
        if self._closed:
            raise EngineClosed

    def _require_room(self, count: int) -> None:
        if len(self.extra) + count > MAX_EXTRA_SOCKETS:
            raise OutOfDescriptors(f"no more than {MAX_EXTRA_SOCKETS} extra sockets at once")

    def watch(self, number: int, on_broken: Callable[[int], object]) -> bool:
        """Tell this one, and nobody else, when that extra socket breaks; False: it is not open."""
        door = self.extra.get(number)
        if door is not None:
            door.on_broken = on_broken
        return door is not None

    def port_of(self, number: int) -> int:
        """Where an extra socket is bound.  KeyError: it is not open."""
        return self.extra[number].socket.port

    def close_sockets(self, numbers: Iterable[int]) -> None:
        """Close these extra ones; what connections had waiting for room in them is lost."""
        for number in numbers:
            door = self.extra.pop(number, None)
            if door is not None:
                self._close(door)

    def failures(self) -> Counter[str]:
        """System calls that failed, by errno name."""
        return sum((door.socket.failures for door in self), Counter(self._past_failures))

    def close(self) -> None:
        """``main`` and the counters can still be read."""
        self._closed = True
        self.close_sockets(list(self.extra))
        for door in self:
            door.close()
