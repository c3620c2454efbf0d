"""The bytes of TURN's ChannelData (RFC 8656 section 12.4), for whole batches of datagrams.

A batch is what the kernel cuts apart or has joined: datagrams of one length, of which the last may
be shorter.  Here each of them gets, or loses, the 4 bytes of channel and length in front of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["HEADER", "HEADER_BYTES", "unwrap_untrusted", "wrap"]

HEADER = struct.Struct(">HH")  # channel, bytes of the datagram
HEADER_BYTES = HEADER.size
_CHANNELS = 0x4  # the first four bits of a channel's number (section 12)
_STUN_BELOW = 4  # the first byte of a STUN message (section 12)


def wrap(channel: int, data: bytes, segment_bytes: int) -> bytes:
    """Datagrams of ``segment_bytes``, HEADER_BYTES longer each."""
    size = len(data)
    if size <= segment_bytes:
        return HEADER.pack(channel, size) + data
    header = HEADER.pack(channel, segment_bytes)
    whole = size - size % segment_bytes
    wrapped = header + header.join(
        [data[start : start + segment_bytes] for start in range(0, whole, segment_bytes)]
    )
    if whole < size:
        wrapped += HEADER.pack(channel, size - whole) + data[whole:]
    return wrapped


def unwrap_untrusted(data: bytes, segment_bytes: int) -> Iterator[tuple[int, bytes, int]]:
    """What is in messages of ``segment_bytes``: the channel, datagrams, the bytes of each.

    Joined are those of one channel and one length.  A STUN message is given as it is, with channel
    0; a message that is cut short, or none, is left out.
    """
    channel, size = HEADER.unpack(data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0"))
    alike = 0  # bytes of the messages that begin as the first does
    if channel >> 12 == _CHANNELS and size == segment_bytes - HEADER_BYTES:
        alike = len(data) - len(data) % segment_bytes
        for place in range(HEADER_BYTES):
            if data[place:alike:segment_bytes].strip(data[place : place + 1]):
                alike = 0
    if alike:
        starts = range(HEADER_BYTES, alike, segment_bytes)
        yield channel, b"".join([data[start : start + size] for start in starts]), size
    for start in range(alike, len(data), segment_bytes or 1):
        message = data[start : start + segment_bytes]
        if len(message) < HEADER_BYTES:
            continue
        channel, size = HEADER.unpack_from(message)
        if message[0] < _STUN_BELOW:
            yield 0, message, len(message)
        elif channel >> 12 == _CHANNELS and size <= len(message) - HEADER_BYTES:
            # What is behind is padding, to 4 bytes (section 12.5).
            yield channel, message[HEADER_BYTES : HEADER_BYTES + size], size
