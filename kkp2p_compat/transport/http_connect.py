"""A tunnel through an HTTP proxy: the method CONNECT of RFC 9110, section 9.3.6.

Runs in the engine's hub; the caller bounds the time with its own gevent.Timeout.  What a proxy
answers is read as far as the empty line that ends its header and no further: what comes behind it
is the other server's.
"""

from __future__ import annotations

import base64
import re
import socket
from typing import Any

from .._address import HostPort, text_of

__all__ = ["ProxyRefuses", "connect_request", "read_answer"]

# Our choices.
MAX_HEADER_BYTES = 16 << 10
MAX_INTERIM_ANSWERS = 8  # RFC 9110 section 15.2: 1xx, before the answer that counts
_PEEK_BYTES = 4096

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: ([ -~\x80-\xff\t]*))?\r?\n")
_HEADER_END = re.compile(rb"\r?\n\r?\n")  # RFC 9112 section 2.2: a lone line feed will do
_PROXY_AUTHENTICATION_REQUIRED = 407


class ProxyRefuses(ConnectionError):
    """the HTTP proxy makes no tunnel"""


def connect_request(target: HostPort, user: str | None) -> bytes:
    """``user``: the name and the password for the proxy, with a colon between (RFC 7617)."""
    where = text_of(target)
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if user is not None:
        secret = base64.b64encode(user.encode(errors="surrogateescape")).decode()
        lines.append(f"Proxy-Authorization: Basic {secret}")
    return "\r\n".join([*lines, "", ""]).encode()


def read_answer(sock: Any) -> None:
    """Wait for the proxy's word on a request that was sent; raises ProxyRefuses, OSError."""
    for _ in range(MAX_INTERIM_ANSWERS):
        header = _read_header_untrusted(sock)
        line = _STATUS_LINE.match(header)
        if line is None:
            raise ProxyRefuses("it does not answer in HTTP")
        status, reason = int(line[1]), (line[2] or b"").decode("latin-1").strip()
        if 200 <= status <= 299:
            return
        if status == _PROXY_AUTHENTICATION_REQUIRED:
            raise ProxyRefuses("407: it wants a name and a password, or other ones")
        if status >= 200:
            raise ProxyRefuses(f"{status} {reason[:100]!a}")
    raise ProxyRefuses("it does not come to an answer")


def _read_header_untrusted(sock: Any) -> bytes:
    """Up to the empty line.  We look before we take: the next byte is another's."""
    header = b""
    while len(header) <= MAX_HEADER_BYTES:
        seen = sock.recv(_PEEK_BYTES, socket.MSG_PEEK)
        if not seen:
            raise ProxyRefuses("it has closed the connection")
        start = max(0, len(header) - 3)
        end = _HEADER_END.search(header + seen, start)
        take = len(seen) if end is None else end.end() - len(header)
        header += sock.recv(take)
        if end is not None:
            return header
    raise ProxyRefuses(f"its answer's header is longer than {MAX_HEADER_BYTES} bytes")
