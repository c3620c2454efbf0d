"""Cut apart what the kernel hands over as one buffer, where it is for more than one receiver.

The kernel joins datagrams that come from one address and port, so one buffer may hold packets of
two connections between the same two engines, or a connectivity check behind a batch of packets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .protection import HEADER_BYTES, OVERHEAD_BYTES

__all__ = ["connection_id", "runs"]

_ID_PLACE = 8  # in the header, behind the number


def connection_id(packet: bytes) -> bytes:
    return packet[_ID_PLACE:HEADER_BYTES]


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
