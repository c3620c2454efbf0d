"""What only tests ask of the streams of a connection: frames alone, and what is held in memory."""

from __future__ import annotations

from kkp2p_compat.transport.udp import frames as f
from kkp2p_compat.transport.udp.streams import ReceiveStream, SendStream

__all__ = ["encode_stream", "encode_stream_sized", "held_bytes"]


def encode_stream(stream: int, offset: int, data: bytes | memoryview, fin: bool) -> bytes:
    """Some bytes of a stream; no frame may follow it in the packet."""
    return f.STREAM_HEADER.pack(f.STREAM_FIN if fin else f.STREAM, stream, offset) + data


def encode_stream_sized(stream: int, offset: int, data: bytes | memoryview, fin: bool) -> bytes:
    """Some bytes of a stream; any frame may follow it in the packet."""
    return f.encode_stream_header(stream, offset, len(data), fin) + data


def held_bytes(stream: SendStream | ReceiveStream) -> int:
    if isinstance(stream, SendStream):
        return sum(map(len, stream._chunks))
    return sum(map(len, stream._ready)) + sum(map(len, stream._pieces.values()))
