"""How far away a server is, by TCP, TLS and UDP: measured from sockets of our own.

No engine takes part, so the results show the network and not the engine.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
from gevent import socket, ssl
from gevent.event import Event

from .._errors import BadPacket
from .._sentence import said
from ..traversal.stun import Kind, Message, parse_untrusted
from ._words import _

__all__ = ["Reach", "UdpHealth", "probe_tcp", "probe_udp"]

# Our choices.
TCP_LIMIT_S = 5.0  # for a connection, and for the TLS handshake on it
CONNECTS = 3  # the quickest one counts: it is nearest to the round trip
PROBES = 10
PROBE_PAUSE_S = 0.03
ANSWER_S = 1.0  # after the last probe
REQUEST_BYTES = 100  # a good server answers with no more bytes than the request has
MAX_ANSWER_BYTES = 1472
_BARE_BYTES = 20 + 8 + 4  # header, FINGERPRINT, and the header of SOFTWARE
_SOFTWARE = "kkp2p".ljust(REQUEST_BYTES - _BARE_BYTES)


class Reach(NamedTuple):
    """A TCP server; times in seconds, None: not reached."""

    tcp_s: float | None
    tls_s: float | None
    problem: str = ""
    certificate: bytes = b""  # DER, that the handshake showed


class UdpHealth(NamedTuple):
    """What became of single requests to a STUN server, each sent once."""

    sent: int
    round_trips_s: list[float]  # of those that were answered, sorted

    @property
    def loss(self) -> float:
        return 1 - len(self.round_trips_s) / self.sent


def probe_tcp(host: str, port: int, connect: Callable[[str, int], Any]) -> Reach:
    """Raises nothing.  In a greenlet; takes up to four times TCP_LIMIT_S."""
    tcp_s: float | None = None
    tls_s: float | None = None
    certificate = b""
    try:
        late = _("no answer within {seconds:.0f} s").format(seconds=TCP_LIMIT_S)
        with gevent.Timeout(TCP_LIMIT_S, TimeoutError(late)):
            for __ in range(CONNECTS):
                began = time.monotonic()
                sock: Any = connect(host, port)
                try:
                    took_s = time.monotonic() - began
                    tcp_s = took_s if tcp_s is None else min(tcp_s, took_s)
                    if tls_s is None:
                        began = time.monotonic()
                        sock = _context().wrap_socket(sock)
                        tls_s = time.monotonic() - began
                        certificate = sock.getpeercert(binary_form=True)
                finally:
                    sock.close()
    except OSError as error:
        return Reach(tcp_s, tls_s, said(error))
    return Reach(tcp_s, tls_s, certificate=certificate)


def _context() -> Any:
    """For a handshake and nothing else, so any certificate will do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def probe_udp(ip: str, port: int) -> UdpHealth:
    """In a greenlet; takes PROBES * PROBE_PAUSE_S and up to ANSWER_S.  Raises OSError."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sent_at: dict[bytes, float] = {}
    took_s: list[float] = []
    answered = Event()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((ip, port))  # the kernel drops what others send

        def listen() -> None:
            while len(took_s) < PROBES:
                try:
                    data = sock.recv(MAX_ANSWER_BYTES)
                except ConnectionRefusedError:  # nobody is there, or it was for an earlier probe
                    continue
                now = time.monotonic()
                began = sent_at.pop(_id_untrusted(data), None)
                if began is not None:
                    took_s.append(now - began)
            answered.set()

        listener = gevent.spawn(listen)
        try:
            for __ in range(PROBES):
                transaction_id = secrets.token_bytes(12)
                sent_at[transaction_id] = time.monotonic()
                request = Message(Kind.REQUEST, transaction_id, software=_SOFTWARE).encode(None)
                with contextlib.suppress(ConnectionRefusedError):  # told of an earlier probe
                    sock.send(request)
                gevent.sleep(PROBE_PAUSE_S)
            answered.wait(ANSWER_S)
        finally:
            listener.kill()
    return UdpHealth(PROBES, sorted(took_s))


def _id_untrusted(data: bytes) -> bytes:
    try:
        message = parse_untrusted(data, MAX_ANSWER_BYTES)
    except BadPacket:
        return b""
    return message.transaction_id if message.kind is Kind.RESPONSE else b""
