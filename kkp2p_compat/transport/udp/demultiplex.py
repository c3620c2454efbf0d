"""Join what arrives one by one, and cut apart what is for more than one receiver.

A buffer holds datagrams that come from one address and port, whether the kernel has joined them or
we have.  So it may hold packets of two connections between the same two engines, or a connectivity
check behind a batch of packets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..._address import Address
from .header import HEADER_BYTES, OVERHEAD_BYTES

__all__ = ["Datagrams", "connection_id", "joined", "key_of", "runs"]

Datagrams = tuple[bytes, int, Address]  # data, the bytes of each but the last, whose or for whom

_ID_PLACE = 8  # in the header, behind the number


def connection_id(packet: bytes) -> bytes:
    return packet[_ID_PLACE:HEADER_BYTES]


def key_of(local_id: int) -> bytes:
    """A connection id as ``connection_id`` finds it in a packet."""
    return local_id.to_bytes(HEADER_BYTES - _ID_PLACE, "big")


def joined(
    receive: Callable[[], Datagrams | None], first: Datagrams | None, calls: int, most_bytes: int
) -> Iterator[Datagrams]:
    """What ``receive`` gives behind the ``first``, with what can be joined in one piece.

    Where the kernel joins nothing, each datagram of a bulk transfer would be handled alone, at
    three times the cost.  Datagrams of one sender are joined if they are of one length; a shorter
    one may be the last.  An empty one is never joined, so that it counts.
    ``receive`` is called until it gives None, or for so many ``calls`` or bytes.
    """
    following = first
    while following is not None:
        data, segment_bytes, address = following
        following = None
        parts = [data]
        most_bytes -= len(data)
        while calls > 0 and most_bytes > 0:
            calls -= 1
            following = receive()
            if following is None:
                break
            then, then_segment_bytes, then_address = following
            if (
                then_address != address
                or not 0 < then_segment_bytes <= segment_bytes
                or (then_segment_bytes < segment_bytes and len(then) > then_segment_bytes)
                or len(data) % segment_bytes
            ):
                break
            following = None
            data = then
            parts.append(then)
            most_bytes -= len(then)
        yield parts[0] if len(parts) == 1 else b"".join(parts), segment_bytes, address


def runs(data: bytes, segment_bytes: int) -> Iterable[bytes]:
    """Cut ``data`` where the first byte or the connection id changes, or a datagram is too short.

    A datagram that is too short to be a packet is never joined with one that is long enough.
    """
    if len(data) <= segment_bytes or _all_alike(data, segment_bytes):
        return (data,)
    return _cut(data, segment_bytes)


def _all_alike(data: bytes, segment_bytes: int) -> bool:
    """The usual case, found in a microsecond where a loop takes ten.

    Looks at the first byte and the last two of the id.  Ids are random; a packet for another
    connection with the same two bytes fails authentication, as if lost, and is sent again.
    """
    if segment_bytes < OVERHEAD_BYTES or 0 < len(data) % segment_bytes < OVERHEAD_BYTES:
        return False
    for place in (0, HEADER_BYTES - 2, HEADER_BYTES - 1):
        column = data[place::segment_bytes]
        if column != column[:1] * len(column):
            return False
    return True


def _cut(data: bytes, segment_bytes: int) -> Iterator[bytes]:
    first, before = 0, None
    for start in range(0, len(data), segment_bytes):
        datagram = data[start : start + segment_bytes]
        kind = datagram[0], connection_id(datagram), len(datagram) < OVERHEAD_BYTES
        if kind != before and start:
            yield data[first:start]
            first = start
        before = kind
    yield data[first:]
