"""The packets between the C library and its companion; ``internal.h`` is the other side.

Native byte order, as both are on one host.  A request brings a descriptor on which it is answered,
unless it needs no answer; some bring one more, or get some back (SCM_RIGHTS).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from .._errors import BadPacket
from .._structs import channel_t

__all__ = ["HELLO", "MAX_PACKET_BYTES", "MAX_TEXT_BYTES", "VERSION", "Answer", "Call", "Request"]

VERSION = 1  # to be changed with the layouts below
MAX_TEXT_BYTES = 8192

HELLO = struct.pack("=I", VERSION)  # the companion's first word

_REQUEST = struct.Struct("=II6i2I")
_ANSWER = struct.Struct("=iiI36siiiIiiI")
_TEXTS = 2
_NO_TEXT = 0xFFFFFFFF  # as a length
MAX_PACKET_BYTES = _REQUEST.size + _TEXTS * MAX_TEXT_BYTES


class Call(IntEnum):
    """What a request asks for; behind each: its numbers; its texts."""

    INIT = 1  # login_port, lan_search_port, disable_upnp, max_log_size, enable_engine_thread_pool,
    # timeout; login_domain, log_path; the tag is the log's level
    DESTROY = 2
    ENGINE_LEVEL = 3  # level
    LEVEL = 4  # level
    LOG_TO = 5  # level
    LOG_END = 6  # level
    DOMAINIP = 7
    JOIN_NET = 8  # -; peer_id, secret
    JOIN_LAN = 9  # -; peer_id
    ACCEPT = 10
    CONNECT = 11  # channel_type, connect_mode, encrypt_data, timeout, connect_desc; peer_id
    LAN_SEARCH = 12  # as CONNECT
    START_PROXY = 13  # as CONNECT, and port; peer_id, ip
    START_PROXY_UDP = 14
    STOP_PROXY = 15  # the tag is the proxy's number
    CLOSE_CHANNEL = 16  # the tag is the channel's id
    LINGER = 17  # with a descriptor


@dataclass(frozen=True)
class Request:
    """``tag``: of an asynchronous connect, 0 if it waits; or as ``Call`` says."""

    call: Call
    tag: int
    numbers: tuple[int, ...]
    texts: tuple[bytes | None, ...]

    @classmethod
    def parse(cls, packet: bytes) -> Request:
        """Raises BadPacket."""
        try:
            call, tag, *numbers = _REQUEST.unpack_from(packet)
            known = Call(call)
        except (struct.error, ValueError) as error:
            raise BadPacket(f"a request of the library: {error}") from error
        texts: list[bytes | None] = []
        at = _REQUEST.size
        for length in numbers[-_TEXTS:]:
            texts.append(None if length == _NO_TEXT else packet[at : at + length])
            at += 0 if length == _NO_TEXT else length
        if at != len(packet):
            raise BadPacket("a request of the library is not as long as it says")
        return cls(known, tag, tuple(numbers[:-_TEXTS]), tuple(texts))


@dataclass
class Answer:
    """``error``: what error_no has; ``number``: of a proxy."""

    result: int = 0
    error: int = 0
    tag: int = 0
    channel: channel_t | None = None
    number: int = 0
    text: str = ""

    def pack(self) -> bytes:
        channel = self.channel or channel_t(channel_id=self.number)
        text = self.text.encode()[:MAX_TEXT_BYTES]
        return (
            _ANSWER.pack(
                self.result,
                self.error,
                self.tag,
                channel.peer_id.encode(),
                channel.channel_type,
                channel.transmit_mode,
                channel.encrypt_data,
                channel.channel_id,
                channel.is_ipv6_p2p,
                channel.connect_desc,
                len(text),
            )
            + text
        )
