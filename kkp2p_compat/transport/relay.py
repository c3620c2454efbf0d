"""A peer's way onto the relay: connect, show the token, wait for the other side.

Runs in the engine's hub; the relay's side is in cloud/relay.py, the bytes in docs/protocol.rst.
The caller bounds the time with its own gevent.Timeout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gevent import socket

from .._errors import BadPacket, CallRefused, LinkLost, from_os_error
from . import dial, tcp
from .relay_wire import (
    HERE,
    PAIRED,
    RECEIPT_BYTES,
    hello,
    parse_address_untrusted,
    status_text,
    token_from_text_untrusted,
)

__all__ = [
    "RelayPlace", "open_relay", "parse_place_untrusted", "read_receipt", "wait_for_pairing",
]  # fmt: skip

RelayPlace = tuple[str, int, bytes]  # host, port, token


def parse_place_untrusted(place: Any, default: tuple[str, int]) -> RelayPlace:
    """The ``relay`` field of a message; a null host or port means that of ``default``."""
    if not isinstance(place, list) or len(place) != 3:
        raise BadPacket("a relay field that is not [host, port, token]")
    host, port, token = place
    host, port = parse_address_untrusted(
        default[0] if host is None else host, default[1] if port is None else port
    )
    return host, port, token_from_text_untrusted(token)


def open_relay(
    addresses: Sequence[str], port: int, token: bytes, wants_receipt: bool = False
) -> socket.socket:
    """A TCP connection to one of a relay's numeric addresses that has shown its token.

    ``wants_receipt``: ``read_receipt`` follows.  Raises LinkLost or OutOfDescriptors.
    """
    try:
        sock, _ = dial.connect(addresses, port)
        try:
            tcp.tune(sock)
            sock.sendall(hello(token, wants_receipt))
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise from_os_error(error, f"relay {addresses[0]}:{port}") from error
    return sock


def read_receipt(sock: socket.socket) -> bytes:
    """The relay's receipt that we were there; raises CallRefused or LinkLost."""
    _expect(sock, HERE)
    receipt = b""
    while len(receipt) < RECEIPT_BYTES:
        receipt += _receive(sock, RECEIPT_BYTES - len(receipt))
    return receipt


def wait_for_pairing(sock: socket.socket) -> None:
    """Wait for the relay's answer; raises CallRefused or LinkLost.  The socket stays open."""
    _expect(sock, PAIRED)


def _expect(sock: socket.socket, status: int) -> None:
    answer = _receive(sock, 1)[0]  # one byte: the next ones are the peer's
    if answer != status:
        raise CallRefused(f"the relay refuses: {status_text(answer)}")


def _receive(sock: socket.socket, count: int) -> bytes:
    try:
        data: bytes = sock.recv(count)
    except OSError as error:
        raise LinkLost(f"relay: {error}") from error
    if not data:
        raise LinkLost("the relay closed the connection")
    return data
