"""Lines of the control plane: one JSON object a line, ``"op"`` first, at most 64 KiB.

Sans-IO: bytes in, messages out, and back.  Every byte that comes in is a stranger's: the only
exception a reader raises is BadPacket, and it never holds more than one line.  Parsing calls no
Python function for each value of a line, or a line of numbers would cost a hundred times as much as
one of text.  So a number may be infinite (1e999), which ``number_untrusted`` refuses.
The messages themselves are in docs/protocol.rst.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from .._errors import BadPacket

__all__ = [
    "CALL_PATHS",
    "MAX_BUDGET_MS",
    "MAX_LINE_BYTES",
    "MAX_NAT_CHARS",
    "MAX_OFFER_CHARS",
    "MAX_ROUND_TRIP_MS",
    "MAX_SEEN",
    "MAX_SET_UP_MS",
    "MAX_TICKETS",
    "MAX_TOLD_RELAYS",
    "MAX_TRICKLES",
    "MAX_TRICKLE_CHARS",
    "PROTOCOL_VERSION",
    "LineReader",
    "Message",
    "encode",
    "encode_message",
    "number_untrusted",
    "parse_untrusted",
]

PROTOCOL_VERSION = 1

# Limits of docs/protocol.rst, which both sides keep.
# A line: an offer with a hundred candidates is about 10 KB; a stranger may make us hold this.
MAX_LINE_BYTES = 65536
MAX_BUDGET_MS = 60_000  # of a call: a track keeps none for longer before it is answered
MAX_OFFER_CHARS = 32_768  # of an offer or an answer
MAX_TRICKLE_CHARS = 4096
MAX_TRICKLES = 64  # of a call and direction
MAX_NAT_CHARS = 512  # of JSON
MAX_TICKETS = 3  # that a peer hands to its track
MAX_SET_UP_MS = 600_000  # that a call may have taken
MAX_SEEN = 1 + MAX_TICKETS  # addresses at which a track has seen one side of a call
MAX_TOLD_RELAYS = 8  # that a peer is to measure
MAX_ROUND_TRIP_MS = 10_000  # to one of them

# By which path a call has led to a connection, as its caller tells.
CALL_PATHS = ("p2p", "p2p-tcp", "lane", "turn", "relay-tcp")

Message = dict[str, Any]

# What makes a line long: an offer, or a text of 4,096 characters that JSON may write as six each.
_LONG_OPS = re.compile(rb'\{ ?"op" ?: ?"(?:call|trickle)"')


_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def encode(op: str, *, nat_text: str | None = None, **fields: Any) -> bytes:
    """One message as a line.  Fields that are None are left out.  ``nat_text``: ``nat`` as JSON."""
    return encode_message({"op": op, **fields}, nat_text)


def encode_message(message: Message, nat_text: str | None = None) -> bytes:
    """As ``encode``; raises ValueError for one that is too long."""
    text = _encoder.encode({name: value for name, value in message.items() if value is not None})
    if nat_text is not None:
        text = f'{text[:-1]},"nat":{nat_text}}}'
    line = text.encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a message {message['op']} of {len(line)} bytes is over {MAX_LINE_BYTES}")
    return line


def number_untrusted(fields: Message, name: str, least: int, most: int) -> int:
    """The whole number of that name, from ``least`` to ``most``; raises BadPacket."""
    value = fields.get(name)
    if type(value) is not int or not least <= value <= most:
        raise BadPacket(f"{name} is not a whole number from {least} to {most}")
    return value


class LineReader:
    """Cut a byte stream into messages: ``feed`` what arrived, then iterate ``messages``.

    ``short_line``: the most for lines that do not begin as those of ``call`` and ``trickle`` do; a
    longer one is refused before it is parsed, and before all of it has arrived.
    """

    __slots__ = ("_at", "_buffer", "_max_line", "_short_line")

    def __init__(self, max_line: int = MAX_LINE_BYTES, short_line: int | None = None) -> None:
        self._buffer = b""  # bytes, not bytearray: an idle connection shares the empty one
        self._at = 0  # where in it the next line begins
        self._max_line = max_line
        self._short_line = max_line if short_line is None else min(short_line, max_line)

    def allow_long_lines(self) -> None:
        """Whatever they begin with: the sender has proved who it is."""
        self._short_line = self._max_line

    def feed(self, data: bytes) -> None:
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    def messages(self) -> Iterator[Message]:
        """Every complete message fed so far; raises BadPacket at the first bad one."""
        while True:
            end = self._buffer.find(b"\n", self._at)
            self._check_length((len(self._buffer) if end < 0 else end) - self._at)
            if end < 0:
                return
            line = self._buffer[self._at : end]
            self._at = end + 1
            if self._at == len(self._buffer):
                self._buffer, self._at = b"", 0
            yield parse_untrusted(line)

    def _check_length(self, size: int) -> None:
        if size < self._short_line:
            return
        is_long = _LONG_OPS.match(self._buffer, self._at) is not None
        most = self._max_line if is_long else self._short_line
        if size >= most:
            self._buffer, self._at = b"", 0
            raise BadPacket(f"a line of over {most} bytes")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Python's own decoder takes NaN and Infinity; int() of those raises what nobody expects.
_decoder = json.JSONDecoder(parse_constant=_no_constant)
_WHITE_SPACE = " \t\n\r"  # RFC 8259 section 2

# The escapes of UTF-16 surrogates: a high one without a low one after it, or the reverse.
_HALF_PAIR = re.compile(
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F])"
)


def _has_half_pair(line: bytes) -> bool:
    """Whether texts of a line that is JSON hold half a surrogate pair.

    Whoever encodes or hashes such a text would fail.
    """
    if b"\\ud" not in line and b"\\uD" not in line:
        return False
    # Without escaped backslashes every backslash begins an escape.
    return _HALF_PAIR.search(line.replace(b"\\\\", b"__")) is not None


def parse_untrusted(line: bytes) -> Message:
    """One line, without its end; raises BadPacket."""
    try:
        text = line.decode().strip(_WHITE_SPACE)
        message, end = _decoder.raw_decode(text)
        if end < len(text):
            raise ValueError("more than one value")
    except (ValueError, RecursionError) as error:
        raise BadPacket("a line that is not JSON") from error
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise BadPacket("a line that is not an object with an op")
    if _has_half_pair(line):
        raise BadPacket("a line with half a surrogate pair")
    return message
