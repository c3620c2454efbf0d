"""Lines of the control plane: one JSON object a line, ``"op"`` first, at most 64 KiB.

Sans-IO: bytes in, messages out, and back.  Every byte that comes in is a stranger's: the only
exception a reader raises is BadPacket, and it never holds more than one line.
The messages themselves are in docs/protocol.rst.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from .._errors import BadPacket

__all__ = ["MAX_LINE_BYTES", "PROTOCOL_VERSION", "LineReader", "Message", "encode"]

PROTOCOL_VERSION = 1

# Our choice: an offer with a hundred candidates is about 10 KB; a stranger may make us hold this.
MAX_LINE_BYTES = 65536

Message = dict[str, Any]


def encode(op: str, **fields: Any) -> bytes:
    """One message as a line.  Fields that are None are left out."""
    message = {"op": op, **{name: value for name, value in fields.items() if value is not None}}
    line = json.dumps(message, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a message {op} of {len(line)} bytes is over {MAX_LINE_BYTES}")
    return line


class LineReader:
    """Cut a byte stream into messages: ``feed`` what arrived, then iterate ``messages``."""

    __slots__ = ("_buffer", "_max_line")

    def __init__(self, max_line: int = MAX_LINE_BYTES) -> None:
        self._buffer = b""  # bytes, not bytearray: an idle connection shares the empty one
        self._max_line = max_line

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def messages(self) -> Iterator[Message]:
        """Every complete message fed so far; raises BadPacket at the first bad one."""
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if len(line) >= self._max_line:
                self._buffer = b""
                raise BadPacket(f"a line of over {self._max_line} bytes")
            if not newline:
                return
            self._buffer = rest
            yield _parse_untrusted(line)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


# Python's own decoder takes NaN, Infinity and 1e999; int() of those raises what nobody expects.
_decoder = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _parse_untrusted(line: bytes) -> Message:
    try:
        message = _decoder.decode(line.decode())
        if b"\\ud" in line.lower():
            # Half a surrogate pair would make whoever encodes or hashes the text fail.
            json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadPacket("a line that is not JSON") from error
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise BadPacket("a line that is not an object with an op")
    return message
