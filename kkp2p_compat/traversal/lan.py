"""Find a peer on the local network by asking everybody, and answer those who ask for us.

A search is broadcast on every interface and repeated until an answer comes; a Responder listens on
the search port and answers the searches for its peer id.  Both run in the engine's hub.  The texts
carried are the engine's offer and answer: their meaning and their keys are not known here.
lan_wire.py has the datagrams, and what is remembered of them.

Nothing is authenticated here: whoever hears a search may answer it, as with the C SDK.  An answer
that its user refuses does not end the search at once, as the true one may still come.  And nothing
leaves the local network: routes through a gateway are not used (SO_DONTROUTE), and searches from
addresses that are in no network of this host are dropped.

Several engines may run on one host: each binds the port with SO_REUSEADDR, and the kernel then
gives a broadcast to every one of them (a unicast only to the last one that bound it).
127.255.255.255 is the broadcast address of lo, and loopback behaves the same: measured on Linux
6.18, each of the sockets bound to the wildcard address gets its copy, also where lo is the only
interface.  A broadcast on any other interface comes back to this host's sockets, too; a firewall
may drop it there, so lo is searched in any case.

A stateful firewall lets an answer in only if it comes from the address that the question went to,
and that was everybody's.  So a search listens on the search port, too, which its user can open; and
every second copy of an answer is broadcast to that port.
"""

from __future__ import annotations

import ipaddress
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from logging import INFO, WARNING, Logger
from typing import Any, TypeVar

import gevent
from gevent import select, socket
from gevent.pool import Pool

from .._address import Address
from .._codes import KKP2P_ERROR_SOCKET_BIND
from .._descriptors import keep_private
from .._errors import BadPacket, KKP2PError, OutOfDescriptors, TimedOut, UnprovenPeer, from_os_error
from .._io import READ, time_limit
from .._sentence import said
from .interfaces import interfaces
from .lan_wire import (
    ANSWER,
    ID_BYTES,
    SEARCH,
    SEARCH_BYTES,
    Heard,
    Message,
    SearchMemory,
    Verdict,
    encode,
    parse_untrusted,
)

__all__ = ["Responder", "search"]

MAX_BROADCAST_BITS = 30  # RFC 3021: smaller networks have no broadcast address

# Our choices.
FIRST_REPEAT_S = 0.05  # an answer on a LAN takes a few ms: one that is not there by then is lost
MAX_REPEAT_S = 1.0  # reached after five repeats; a peer that comes later is found within it
MAX_ANSWERING = 32  # answers that are being made at once, by one responder
READS_PER_TURN = 64  # datagrams read before others of the hub get their turn
UNPROVEN_S = 1.0  # after an answer without a proof that it needs: for the peer that has one
NETWORKS_S = 1.0  # how long the list of this host's networks is used

LIMITS = (Verdict.LIMIT, Verdict.SOURCE_LIMIT)  # drops that are worth a line in the log

AnswerFunction = Callable[[str, Address], "str | None"]
T = TypeVar("T")
Take = Callable[[str], T]  # raises KKP2PError for the text of an answer that is refused


class _Once:
    """Log each problem once: it comes back at every repeat, and strangers could fill the log.

    ``unproven``: of a search, the first answer without a proof that it needs, which is what the
    user gets to know if none with a proof has come by ``ends_at``.
    """

    def __init__(self, peer_id: str, log: Logger) -> None:
        self._peer_id = peer_id
        self._log = log
        self._seen: set[object] = set()
        self.unproven: UnprovenPeer | None = None
        self.ends_at = math.inf

    def warn(self, key: object, text: str, *args: object, level: int = WARNING) -> None:
        if key not in self._seen:
            self._seen.add(key)
            self._log.log(level, "%s: LAN: " + text, self._peer_id, *args)


def _networks(once: _Once) -> list[tuple[str, ipaddress.IPv4Interface]]:
    """The IPv4 networks of this host, and their interfaces' names."""
    try:
        found = interfaces()
    except OSError as error:
        once.warn("networks", "cannot list the interfaces: %s", error)
        return []
    return [
        (name, ipaddress.IPv4Interface(f"{address}/{bits}"))
        for name, address, bits in found
        if ":" not in address
    ]


def _broadcasts(once: _Once) -> list[str]:
    """Every network's broadcast address, loopback's last: peers see our address on the LAN first.

    It is computed: the one that is configured may be missing or another, but the kernel has a
    broadcast route for this one.  It is not 255.255.255.255, which the kernel sends to one
    interface only, and to none without a default route.
    """
    found: dict[str, bool] = {}
    for name, interface in _networks(once):
        if interface.network.prefixlen > MAX_BROADCAST_BITS:
            text = "no search on %s: %s has no broadcast address"
            once.warn((name, interface), text, name, interface, level=INFO)
        else:
            found[str(interface.network.broadcast_address)] = interface.is_loopback
    return sorted(found, key=lambda address: found[address])


def _open_socket(port: int | None = None) -> Any:
    """Bound to ``port``, which it shares with other engines of this host; or not yet bound."""
    sock = keep_private(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    try:
        for option in (socket.SO_DONTROUTE, socket.SO_BROADCAST):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.setblocking(False)
        if port is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", port))
    except OSError:
        sock.close()
        raise
    return sock


# The side that searches.


def search(
    peer_id: str, offer_text: str, port: int, timeout_s: float, log: Logger, take: Take[T]
) -> tuple[T, str]:
    """Ask the LAN for a peer: what ``take`` makes of the first answer that it does not refuse, and
    the IPv4 address that it came from.

    Raises TimedOut after ``timeout_s``, at once if that is 0; UnprovenPeer if ``take`` has raised
    it, and no other answer has come in the second after the first such one; ValueError if the offer
    is over 1,000 bytes (UTF-8).  An interface that cannot send is logged, and tried again at each
    repeat.  Called in a greenlet of the engine.
    """
    question = Message(SEARCH, secrets.token_bytes(ID_BYTES), peer_id, offer_text)
    datagram = encode(question)
    not_found = TimedOut("nobody answered the LAN search on port {port}", port=port)
    if timeout_s <= 0:
        raise not_found
    once = _Once(peer_id, log)
    with ExitStack() as stack:
        try:
            socks = [stack.enter_context(closing(_open_socket()))]
            try:
                socks.append(stack.enter_context(closing(_open_socket(port))))
            except OSError as error:
                once.warn("port", "answers to port %d are not heard: %s", port, error, level=INFO)
            with time_limit(timeout_s, not_found):
                return _ask(socks, datagram, question, port, take, once)
        except OSError as error:
            raise from_os_error(error, "LAN search") from error


def _ask(
    socks: list[Any], datagram: bytes, question: Message, port: int, take: Take[T], once: _Once
) -> tuple[T, str]:
    """The first of ``socks`` asks, all of them listen."""
    interval_s = FIRST_REPEAT_S
    while True:
        for address in _broadcasts(once):
            try:
                socks[0].sendto(datagram, (address, port))
            except OSError as error:
                once.warn((address, error.errno), "cannot search %s: %s", address, error)
        answer = _wait_for_answer(socks, question, interval_s, take, once)
        if answer is not None:
            return answer
        interval_s = min(2 * interval_s, MAX_REPEAT_S)


def _wait_for_answer(
    socks: list[Any], question: Message, seconds: float, take: Take[T], once: _Once
) -> tuple[T, str] | None:
    deadline = time.monotonic() + seconds
    while (left_s := min(deadline, once.ends_at) - time.monotonic()) > 0:
        for sock in select.select(socks, [], [], left_s)[0]:
            answer = _take_answer(sock, question, take, once)
            if answer is not None:
                return answer
        gevent.sleep(0)  # a flood must not keep timers and others from running
    if once.unproven is not None and time.monotonic() >= once.ends_at:
        raise once.unproven
    return None


def _take_answer(sock: Any, question: Message, take: Take[T], once: _Once) -> tuple[T, str] | None:
    """Look at one datagram."""
    with suppress(BlockingIOError):  # the kernel has dropped it, as it was damaged
        data, source = sock.recvfrom(SEARCH_BYTES + 1)
        try:
            message = parse_untrusted(data)
        except BadPacket as error:
            once.warn("bad", "%s:%d sent %s", *source, error)
            return None
        if message[:3] == (ANSWER, question.search_id, question.peer_id):
            try:
                return take(message.text), source[0]
            except KKP2PError as error:
                text = "the answer of %s:%d is not taken, the search goes on: %s"
                once.warn(type(error), text, *source, error)
                if once.unproven is None and isinstance(error, UnprovenPeer):
                    once.unproven, once.ends_at = error, time.monotonic() + UNPROVEN_S
    return None


# The side that is found.


class Responder:
    """Answers searches for ``peer_id``.  ``start``, then ``close``, both in the engine's hub.

    ``answer(offer_text, source)`` is called once for each search, in a greenlet that may wait; what
    it returns (at most 1,000 bytes of UTF-8) is sent, and again when the search is repeated.  If it
    returns None or raises a KKP2PError the search gets no answer, however often it is repeated.  It
    should take a bounded time: MAX_ANSWERING searches are answered at once, more are dropped until
    they are repeated.
    """

    def __init__(self, peer_id: str, port: int, answer: AnswerFunction, log: Logger) -> None:
        self.port = port  # 0: ``start`` chooses a free one
        self.dropped: Counter[str] = Counter()  # datagrams, by reason
        self._peer_id = peer_id
        self._make_answer = answer
        self._log = log
        self._once = _Once(peer_id, log)
        self._memory = SearchMemory()
        self._pool = Pool(MAX_ANSWERING)
        self._sock: Any = None
        self._watcher: Any = None
        self._networks: list[ipaddress.IPv4Network] = []
        self._networks_at = -NETWORKS_S

    def start(self) -> None:
        """Raises an error with the code -115 when another program has the port for itself."""
        try:
            sock = _open_socket(self.port)
        except OSError as error:
            problem = from_os_error(error, f"LAN search port {self.port}")
            if not isinstance(problem, OutOfDescriptors):
                problem = KKP2PError(said(problem), KKP2P_ERROR_SOCKET_BIND)
            raise problem from error
        self.port = sock.getsockname()[1]
        self._sock = sock
        self._watcher = gevent.get_hub().loop.io(sock.fileno(), READ)
        self._watcher.start(self._handle_readable)

    def close(self) -> None:
        """Give up the answers that are being made.  May be called again."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()
            self._sock.close()
        self._pool.kill()

    def _handle_readable(self) -> None:
        for _ in range(READS_PER_TURN):
            try:
                data, source = self._sock.recvfrom(SEARCH_BYTES + 1)
            except BlockingIOError:
                return
            except OSError as error:
                self._once.warn(error.errno, "cannot receive: %s", error)
                return
            try:
                message = parse_untrusted(data)
            except BadPacket as error:
                self.dropped[str(error)] += 1
            else:
                self._handle_message(message, source)

    def _handle_message(self, message: Message, source: Address) -> None:
        if message.kind != SEARCH or message.peer_id != self._peer_id:
            self.dropped["for another peer"] += 1
            return
        if not self._is_local(source):
            self._drop("not from a network of this host", source)
            return
        verdict, heard = self._memory.hear(message.search_id, source, time.monotonic())
        if heard is None:
            self._drop(verdict.value, source, quietly=verdict not in LIMITS)
        elif verdict is Verdict.REPEAT:
            self._send(heard, self._all_at(source) if heard.repeats % 2 else source)
        elif self._pool.free_count():
            self._pool.spawn(self._answer, message, heard)
        else:
            self._memory.forget(message.search_id)
            self._drop("too many answers are being made", source)

    def _drop(self, reason: str, source: Address, quietly: bool = False) -> None:
        self.dropped[reason] += 1
        if not quietly:
            self._once.warn(reason, "a search from %s:%d is dropped: %s", *source, reason)

    def _is_local(self, source: Address) -> bool:
        return source[1] != 0 and self._network_of(source) is not None

    def _all_at(self, source: Address) -> Address:
        """The search port of that whole network, or of that host if there is no broadcast."""
        network = self._network_of(source)
        if network is None or network.prefixlen > MAX_BROADCAST_BITS:
            return source[0], self.port
        return str(network.broadcast_address), self.port

    def _network_of(self, source: Address) -> ipaddress.IPv4Network | None:
        now = time.monotonic()
        if now - self._networks_at >= NETWORKS_S:
            self._networks = [interface.network for _, interface in _networks(self._once)]
            self._networks_at = now
        address = ipaddress.IPv4Address(source[0])
        return next((network for network in self._networks if address in network), None)

    def _answer(self, message: Message, heard: Heard) -> None:
        try:
            text = self._make_answer(message.text, heard.source)
        except KKP2PError as error:
            self._log.info(
                "%s: LAN: the search from %s:%d: %s", self._peer_id, *heard.source, error
            )
            return
        if text is None:
            self._log.info("%s: LAN: no answer to %s:%d", self._peer_id, *heard.source)
            return
        heard.answer = encode(message._replace(kind=ANSWER, text=text))
        heard.sent_at = time.monotonic()
        self._send(heard, heard.source)
        self._log.info("%s: LAN: found by %s:%d", self._peer_id, *heard.source)

    def _send(self, heard: Heard, to: Address) -> None:
        try:
            self._sock.sendto(heard.answer, to)
        except OSError as error:  # the search is repeated, and so is this
            self._once.warn(("send", error.errno), "no answer to %s:%d: %s", *to, error)
