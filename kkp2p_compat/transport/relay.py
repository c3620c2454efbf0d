"""How a side of a call gets paired at a relay: connect, show the token, wait for the other side.

A track may name several relays, and a name may have several addresses: the two sides have to meet
at one of these *spots*, although each may reach only some of them.  The caller goes to one at a
time, the first that it reaches; the callee waits at every one that it reaches.  So they meet
wherever the caller goes, and at one spot only.

Runs in the engine's hub; the relay's side is in cloud/relay.py, the bytes in docs/protocol.rst.
The caller bounds the time with its own gevent.Timeout.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gevent
from gevent import socket
from gevent.event import AsyncResult, Event

from .._address import host_port_untrusted
from .._errors import BadPacket, CallRefused, EngineClosed, KKP2PError, LinkLost, from_os_error
from .._io import time_limit
from .._sentence import said
from . import dial, tcp
from .relay_wire import (
    HERE,
    PAIRED,
    RECEIPT_BYTES,
    hello,
    session_of,
    status_text,
    token_from_text_untrusted,
)

__all__ = ["MAX_SPOTS", "Visit", "parse_places_untrusted", "receive_receipt", "sort_spots"]

T = TypeVar("T")
RelayPlace = tuple[str, int]  # host, port
Spot = tuple[str, int]  # the same with a numeric host, or a name that a proxy looks up

# Our choices.
MAX_SPOTS = 4  # of a call: its callee may wait at all of them
PAIR_S = 2.0  # how long a caller waits at a spot for the other side, while there are others to try


def parse_places_untrusted(
    place: Any, others: Any, default: tuple[str, int]
) -> tuple[list[RelayPlace], bytes]:
    """The ``relay`` and ``relays`` fields of a message: where to, in order, and the token.

    A null host or port means that of ``default``.
    """
    if not isinstance(place, list) or len(place) != 3:
        raise BadPacket("a relay field that is not [host, port, token]")
    host, port = place[:2]
    first = default[0] if host is None else host, default[1] if port is None else port
    rest = others[: MAX_SPOTS - 1] if isinstance(others, list) else []
    if not all(isinstance(other, list) and len(other) == 2 for other in rest):
        raise BadPacket("relays that are not [host, port]")
    places = [host_port_untrusted(*other) for other in (first, *rest)]
    return places, token_from_text_untrusted(place[2])


def sort_spots(addresses: Sequence[str], token: bytes) -> list[str]:
    """The addresses of one name, in the order in which both sides of a call try them.

    Resolvers may give them in any order.  Another call has another order, so that each of the
    machines behind a name gets its share.
    """
    if len(addresses) == 1:
        return list(addresses)
    session = session_of(token)
    drawn = sorted(addresses, key=lambda ip: hashlib.sha256(session + ip.encode()).digest())
    drawn.sort(key=lambda ip: ":" not in ip)  # RFC 8305: IPv6 first
    return dial.interleave(drawn)


class Visit:
    """Call order: ``begin``, ``pair``, ``take``; ``close`` in any case.

    ``begin`` returns when the token has been shown somewhere, ``pair`` when the other side is
    there, too: then ``sock`` is the connection to it.  Both raise LinkLost, CallRefused or
    OutOfDescriptors.
    """

    def __init__(
        self,
        spots: Sequence[Spot],
        token: bytes,
        is_caller: bool,
        wants_receipt: bool = False,
        connect: Callable[[str, int], Any] = tcp.connect,
    ) -> None:
        """``spots``: at least one, in the order that both sides have.  A caller that
        ``wants_receipt`` calls ``read_receipt`` after ``begin``.  ``connect``: to one of them.
        """
        self.sock: Any = None
        self._wants_receipt = wants_receipt
        self._way = connect
        self._left = list(spots)
        self._token = token
        self._everywhere = not is_caller and len(spots) > 1
        self._shown = Event()
        self._paired: AsyncResult[Any] = AsyncResult()  # of one that waits everywhere
        self._waiting: gevent.Greenlet[..., None] | None = None

    def begin(self) -> None:
        if not self._everywhere:
            self._go()
            return
        self._waiting = gevent.spawn(self._wait_everywhere)
        gevent.wait([self._shown, self._paired], count=1)
        if not self._shown.is_set():
            self._paired.get()  # raises

    def read_receipt(self) -> bytes:
        """The relay's receipt that we are there; raises what ``pair`` does."""
        receipt = self._hear(lambda: receive_receipt(self.sock))
        self._wants_receipt = False
        return receipt

    def pair(self) -> None:
        if self._everywhere:
            self.sock = self._paired.get()
            self._everywhere = False
        else:
            self._hear(lambda: _expect(self.sock, PAIRED))

    def _hear(self, receive: Callable[[], T]) -> T:
        """What the relay answers here or, if that fails, at one of the spots that are left."""
        while True:
            late = LinkLost("relay: the other side did not come")
            try:
                with time_limit(PAIR_S, late) if self._left else contextlib.nullcontext():
                    return receive()
            except (CallRefused, LinkLost) as error:
                self.close()
                if not self._left:
                    raise
                try:
                    self._go()
                except KKP2PError as another:
                    raise error from another

    def take(self) -> Any:
        """The connection, which is the taker's from now on."""
        sock, self.sock = self.sock, None
        return sock

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.kill(block=False)
        if self._everywhere and self._paired.successful():
            self._everywhere = False
            _leave(self._paired.get())
        if self.sock is not None:
            _leave(self.take())

    # One at a time.

    def _go(self) -> None:
        """Connect to the first that we reach of the spots that are left, and show the token."""
        attempts = [functools.partial(self._try, spot) for spot in self._left]
        self.sock, spot = dial.race(attempts, lambda made: made[0].close())
        self._left.remove(spot)
        _show(self.sock, hello(self._token, self._wants_receipt), spot)

    def _try(self, spot: Spot) -> tuple[Any, Spot]:
        try:
            return self._connect(spot)
        except KKP2PError:
            self._left.remove(spot)
            raise

    def _connect(self, spot: Spot) -> tuple[Any, Spot]:
        try:
            sock, _ = dial.connect([spot[0]], spot[1], self._way)
        except OSError as error:
            raise from_os_error(error, f"relay {spot[0]}:{spot[1]}") from error
        return sock, spot

    # Everywhere.

    def _wait_everywhere(self) -> None:
        error: KKP2PError = EngineClosed()  # when killed
        attempts = [functools.partial(self._wait_at, spot) for spot in self._left]
        try:
            self._paired.set(dial.race(attempts, _leave))
        except KKP2PError as caught:
            error = caught
        finally:
            if not self._paired.ready():
                self._paired.set_exception(error)

    def _wait_at(self, spot: Spot) -> Any:
        sock, _ = self._connect(spot)
        try:
            _show(sock, hello(self._token), spot)
            self._shown.set()
            _expect(sock, PAIRED)
        except BaseException:
            _leave(sock)
            raise
        return sock


def _leave(sock: Any) -> None:
    """Close by a reset: the other side may be paired with us, and must not take it for an end.

    So it learns of it even if a forked child has a copy of the descriptor.
    """
    tcp.abort(sock)
    sock.close()


def _show(sock: socket.socket, greeting: bytes, spot: Spot) -> None:
    try:
        tcp.tune(sock)
        sock.sendall(greeting)
    except OSError as error:
        raise from_os_error(error, f"relay {spot[0]}:{spot[1]}") from error


def receive_receipt(sock: socket.socket) -> bytes:
    """The relay's receipt that we were there; raises CallRefused or LinkLost."""
    _expect(sock, HERE)
    receipt = b""
    while len(receipt) < RECEIPT_BYTES:
        receipt += _receive(sock, RECEIPT_BYTES - len(receipt))
    return receipt


def _expect(sock: socket.socket, status: int) -> None:
    answer = _receive(sock, 1)[0]  # one byte: the next ones are the peer's
    if answer != status:
        raise CallRefused("the relay refuses: {why}", why=status_text(answer))


def _receive(sock: socket.socket, count: int) -> bytes:
    try:
        data: bytes = sock.recv(count)
    except OSError as error:
        raise LinkLost("relay: {why}", why=said(error)) from error
    if not data:
        raise LinkLost("the relay closed the connection")
    return data
