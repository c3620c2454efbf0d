"""STUN over TCP (RFC 8489 section 6.2.2): tells whoever asks at which address a connection is seen.

A peer asks from the local port that it will punch a hole from.  A connection is worth one answer.
It then stays until its peer ends it, or its time is over: a NAT may forget the port with it.
"""

from __future__ import annotations

from typing import Any

from gevent import get_hub

from .._address import HostPort
from .._errors import BadPacket
from .._io import READ
from ..transport import tcp
from ..traversal import stun
from .limits import Gatekeeper
from .stun import MAX_REQUEST_BYTES, parse_request_untrusted

__all__ = ["FIRST_BYTE", "StunConnection"]

FIRST_BYTE = b"\0"  # of every STUN request; neither TLS nor the relay begins with it


class StunConnection:
    """Belongs to the gate's deadlines, and is one of its connections until it is over."""

    def __init__(self, sock: Any, host: str, gate: Gatekeeper, deadline: float) -> None:
        """Raises OSError if it is over already."""
        self.deadline = deadline
        self._sock = sock
        self._host = host
        self._gate = gate
        ip, port = sock.getpeername()[:2]
        if "." in ip:  # one of IPv4 that came to a socket for both has ::ffff: in front
            ip = ip.rpartition(":")[2]
        self._source: HostPort = (ip, port)
        self._request = b""
        self._answered = False
        self._readable = get_hub().loop.io(sock.fileno(), READ)
        self._readable.start(self._on_readable)

    def _on_readable(self) -> None:
        try:
            if self._answered:
                if tcp.discard(self._sock):
                    self._end()
                return
            data = self._sock.recv(MAX_REQUEST_BYTES - len(self._request))
            if not data:
                raise BadPacket("no whole request")
            self._request += data
            self._answer_untrusted()
        except BlockingIOError:
            return
        except (OSError, BadPacket) as error:
            self._end(str(error))

    def _answer_untrusted(self) -> None:
        if len(self._request) < stun.size_untrusted(self._request, MAX_REQUEST_BYTES):
            return
        request = parse_request_untrusted(self._request, self._source)
        answer = stun.Message(stun.Kind.RESPONSE, request.transaction_id, mapped=self._source)
        self._sock.send(answer.encode(None))  # of a fresh connection: there is room
        self._answered = True

    def _end(self, reason: str = "") -> None:
        if reason:
            self._gate.refused(self._host, f"STUN over TCP: {reason}")
        self._readable.close()
        self._gate.deadlines.discard(self)
        self._sock.close()
        self._gate.leave(self._host)

    def expire(self) -> None:
        self._end("" if self._answered else "asks nothing")

    def shut_down(self) -> None:
        self._end()
