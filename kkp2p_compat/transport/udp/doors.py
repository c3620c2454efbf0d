"""The sockets of an endpoint, with their watchers, and which of them leads to a remote address.

There is a main socket for each address family, and for a while there may be extra ones: a NAT that
uses another port for each destination can only be crossed by chance, and each socket is one more
chance.  Extra sockets are numbered from 1, and the number is the third item of a remote address: so
a peer that is seen by two of our sockets has two addresses, and no layer above needs to know why.
An extra socket may also be one that was *adopted*: it carries datagrams in another way.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from logging import Logger
from typing import Any, Protocol

from ..._address import Address
from ..._errors import LinkLost, OutOfDescriptors, from_os_error
from ..._io import READ, WRITE
from .batch_socket import BatchSocket
from .first_hop import first_hop_datagram_bytes

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
    """A socket with its watchers, and the members of the endpoint that wait for room in it.

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
        self.waiting: deque[Any] = deque()
        self.readable = loop.io(door_socket.fileno(), READ)
        self.writable = loop.io(door_socket.fileno(), WRITE)

    def close(self) -> None:
        self.closed = True
        self.readable.close()
        self.writable.close()
        self.socket.close()


class Doors:
    """``main`` by family, ``extra`` by number.  The endpoint starts the watchers."""

    def __init__(self, log: Logger, loop: Any) -> None:
        """Raises as the Endpoint does."""
        self.main: dict[int, Door] = {}
        self.extra: dict[int, Door] = {}
        self._log = log
        self._loop = loop
        self._last_number = 0
        self._past_failures: Counter[str] = Counter()
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                self.main[family] = Door(BatchSocket(family, log), loop)
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

    def find(self, address: Address) -> Door | None:
        if len(address) == 2:
            return self.main.get(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        return self.extra.get(address[2])

    def datagram_limit(self, address: Address) -> int:
        """How large a datagram to this address is worth trying."""
        door = self.find(address)
        own = 0 if door is None else door.socket.datagram_bytes
        return own or first_hop_datagram_bytes(address)

    def open_extra(self, family: int, count: int) -> list[Door]:
        """All of them or none.  Raises OutOfDescriptors, LinkLost."""
        if family not in self.main:
            raise LinkLost("this host has no UDP over that address family")
        self._require_room(count)
        opened: list[Door] = []
        try:
            for number in range(self._last_number + 1, self._last_number + 1 + count):
                made = BatchSocket(socket.AddressFamily(family), self._log, number=number)
                opened.append(Door(made, self._loop))
        except OSError as cause:
            for door in opened:
                door.close()
            raise from_os_error(cause, "UDP socket") from cause
        for door in opened:
            self.extra[door.socket.number] = door
        self._last_number += count
        return opened

    def adopt(self, make: Callable[[int], DoorSocket], on_broken: Callable[[int], object]) -> Door:
        """As the Endpoint's."""
        self._require_room(1)
        self._last_number += 1
        number = self._last_number
        try:
            self.extra[number] = Door(make(number), self._loop, on_broken)
        except OSError as cause:
            raise from_os_error(cause, "a socket to be adopted") from cause
        return self.extra[number]

    def _require_room(self, count: int) -> None:
        if len(self.extra) + count > MAX_EXTRA_SOCKETS:
            raise OutOfDescriptors(f"no more than {MAX_EXTRA_SOCKETS} extra sockets at once")

    def watch(self, number: int, on_broken: Callable[[int], object]) -> bool:
        """Tell this one, and nobody else, when that extra socket breaks; False: it is not open."""
        door = self.extra.get(number)
        if door is not None:
            door.on_broken = on_broken
        return door is not None

    def close_extra(self, number: int) -> Door | None:
        door = self.extra.pop(number, None)
        if door is not None:
            self._past_failures += door.socket.failures
            door.close()
        return door

    def failures(self) -> Counter[str]:
        return sum((door.socket.failures for door in self), Counter(self._past_failures))

    def close(self) -> None:
        """``main`` and the counters can still be read."""
        for number in list(self.extra):
            self.close_extra(number)
        for door in self.main.values():
            door.close()
