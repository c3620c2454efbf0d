"""A local UDP port that forwards to a peer: one channel for each client address.

In the words of RFC 4787 a client address is mapped to a channel.  Datagrams of the client refresh
that mapping, and so do answers; it ends in order when neither has come for IDLE_S.  Answers go to
the client alone.  A channel that fails, is refused or ends costs its client the datagrams that were
with it, no more: the next one opens another, at a bounded pace.

Datagrams are lost, never waited for: each loss is counted by its reason, and the log has the sums.
All is done in callbacks of the hub's watchers; a greenlet dials only where there is no live link.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

import gevent

from ..._bucket import Bucket
from ..._errors import EngineClosed, KKP2PError
from ..._io import READ
from ..._sentence import Sentence, said
from ...control.backoff import Backoff
from ...transport.udp.pipe import MessagePort
from ..links.streams import OpenStream
from .base import Proxy, binding
from .dialing import Dialing
from .listening import address_at
from .proxied import STOPPED, Proxied
from .udp_socket import Ancillary, UdpSocket

__all__ = ["UdpProxy"]

IDLE_S = 120.0  # RFC 4787 REQ-5: a mapping must not expire in less than two minutes

# Our choices.
SWEEP_S = 15.0  # how often idle clients are looked for: they end so much later at most
READS_PER_TURN = 64  # datagrams; about a millisecond
MAX_CLIENTS = 4096  # one more takes the place of the one that was idle for longest ...
SPARED_S = 10.0  # ... if that was for so long, else it is refused
MAX_OPENING = 64  # channels asked for at once; other clients wait
OPENED_PER_S, OPENED_BURST = 500, 1000  # channels: a peer accepts each one
REOPEN_S = 1.0  # between two channels of one client, so that a peer that ends each is not pestered
MAX_KEPT, MAX_KEPT_BYTES = 64, 128 << 10  # datagrams of a client while its channel is opened
ALL_KEPT_BYTES = 4 << 20  # of all clients together
REST_FIRST_S, REST_MOST_S = 0.5, 15.0  # after the peer was not reached

UNREACHED = "the peer was not reached"


class UdpProxy(Proxy):
    """A channel for each client address."""

    kind = "UDP"
    _socket: Any = None  # while it listens
    _readable: Any = None  # its watcher
    _sweeping: Any = None  # a timer

    def start(self, place: str, port: int) -> None:
        with binding(place, port):
            self._socket = UdpSocket(address_at(place), port)
        self.address = self._socket.address
        now = time.monotonic()
        self.dropped: Counter[str] = Counter()  # datagrams, by reason
        self.kept_bytes = 0  # of datagrams whose channel is being opened
        self._resting_until = now  # nobody is dialed before
        self._pace = Bucket(OPENED_PER_S, OPENED_BURST, now)
        self._backoff = Backoff(random.Random(), REST_FIRST_S, REST_MOST_S, 2 * REST_FIRST_S)
        self._clients: OrderedDict[Any, _Client] = OrderedDict()  # the longest idle one first
        self._waiting: dict[_Channel, None] = {}  # for others to be done with opening
        self._opening = 0
        self._told: Counter[str] = Counter()
        loop = gevent.get_hub().loop
        self._readable = loop.io(self._socket.fileno(), READ)
        self._readable.start(self._handle_readable)
        self._sweeping = loop.timer(SWEEP_S, SWEEP_S)
        self._sweeping.start(self._sweep)

    def stop(self) -> None:
        if self._socket is None:
            return
        for thing in (self._readable, self._sweeping, self._socket):
            thing.close()
        self._socket = None
        for client in list(self._clients.values()):
            self._expire(client)
        self._none_left.wait()
        self._tell_dropped()

    def _handle_readable(self) -> None:
        now, receive = time.monotonic(), self._socket.receive
        for _ in range(READS_PER_TURN):
            received = receive()
            if received is None:
                break
            data, address, answers_by = received
            client = self._clients.get(address) or self._admit(address, now)
            if client is None:
                continue
            client.answers_by = answers_by
            self._touch(client, now)
            channel = client.channel or self._open(client, now)
            if channel is not None:
                channel.send(data)
        self._open_waiting()

    def answer(self, client: _Client, data: bytes) -> str:
        """Send one to the client; returns why it is lost, if it is."""
        self._touch(client, time.monotonic())
        if self._socket is None:
            return STOPPED
        problem: str = self._socket.send(data, client.address, client.answers_by)
        if problem:
            self.dropped[problem] += 1
        return problem

    # Clients.

    def _touch(self, client: _Client, now: float) -> None:
        client.used_at = now
        self._clients.move_to_end(client.address)

    def _admit(self, address: Any, now: float) -> _Client | None:
        if now < self._resting_until:
            self.dropped[UNREACHED] += 1
            return None
        if len(self._clients) >= MAX_CLIENTS:
            oldest = next(iter(self._clients.values()))
            if now - oldest.used_at < SPARED_S:
                self.dropped[f"over {MAX_CLIENTS} clients"] += 1
                return None
            self._expire(oldest)
        client = self._clients[address] = _Client(address)
        return client

    def _expire(self, client: _Client) -> None:
        del self._clients[client.address]
        if client.channel is not None:
            client.channel.stop()

    def _sweep(self) -> None:
        idle_since = time.monotonic() - IDLE_S
        while self._clients:
            oldest = next(iter(self._clients.values()))
            if oldest.used_at > idle_since:
                break
            self._expire(oldest)
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        """A line for each reason that there is more of, however many datagrams were lost."""
        for reason, count in (self.dropped - self._told).items():
            self.log_error(f"datagrams dropped: {count}: {reason}")
        self._told = self.dropped.copy()

    # Their channels.

    def _open(self, client: _Client, now: float) -> _Channel | None:
        if now < self._resting_until:
            self.dropped[UNREACHED] += 1
        elif now < client.opened_at + REOPEN_S:
            self.dropped["a channel that has just been opened has ended"] += 1
        elif not self._pace.take(now):
            self.dropped["too many new channels at once"] += 1
        else:
            client.opened_at = now
            client.channel = channel = _Channel(self, client)
            self._waiting[channel] = None
            return channel
        return None

    def _open_waiting(self) -> None:
        while self._waiting and self._opening < MAX_OPENING:
            channel = next(iter(self._waiting))
            del self._waiting[channel]
            self._opening += 1
            channel.open()

    def note_dialed(self, result: OpenStream | Exception | None) -> None:
        """What became of one that is not being opened any more; None: it was called off."""
        self._opening -= 1
        now = time.monotonic()
        if isinstance(result, OpenStream):
            self._backoff.reset()
        elif result is not None and now >= self._resting_until:
            self._resting_until = now + self._backoff.next()
            while self._waiting:
                self._waiting.popitem()[0].fail(result)
        self._open_waiting()

    def forget(self, channel: _Channel) -> None:
        self._waiting.pop(channel, None)
        self.note_over()


@dataclass(slots=True)
class _Client:
    """A client address: a mapping, in the words of RFC 4787."""

    address: Any  # as the socket has it
    answers_by: Ancillary = ()
    used_at: float = -math.inf
    opened_at: float = -math.inf  # the last channel
    channel: _Channel | None = None


class _Channel:
    """A channel of one client, from when it is wanted until it is over."""

    __slots__ = (
        "_client",
        "_dialing",
        "_kept",
        "_port",
        "_proxied",
        "_proxy",
        "_stopped",
        "_stream",
    )

    def __init__(self, proxy: UdpProxy, client: _Client) -> None:
        self._proxy = proxy
        self._client = client
        port = client.address[1]
        self._proxied = Proxied(proxy.peer_id, Sentence("port {number}", number=port), port)
        self._kept: list[bytes] = []  # until it is open
        self._dialing: Dialing | None = None
        self._stream: OpenStream | None = None
        self._port: MessagePort | None = None  # while it is open
        self._stopped = False
        proxy.note_begun()

    def send(self, data: bytes) -> None:
        if self._port is not None:
            self._proxied.datagrams_sent += 1
            self._port.send(data)
            return
        proxy, kept, size = self._proxy, self._kept, len(data)
        if (
            len(kept) < MAX_KEPT
            and sum(map(len, kept)) + size <= MAX_KEPT_BYTES
            and proxy.kept_bytes + size <= ALL_KEPT_BYTES
        ):
            kept.append(data)
            proxy.kept_bytes += size
        else:
            proxy.dropped["too many before the channel was open"] += 1

    def _take_kept(self) -> list[bytes]:
        kept, self._kept = self._kept, []
        self._proxy.kept_bytes -= sum(map(len, kept))
        return kept

    # Its life.

    def open(self) -> None:
        dialing = self._dialing = self._proxy.dialing(self._handle_dialed)
        dialing.begin(self._kept[0])

    def _handle_dialed(self, result: OpenStream | Exception) -> None:
        if self._stopped:
            if isinstance(result, OpenStream):
                result.give_up()
            self.fail(EngineClosed(STOPPED))
        elif isinstance(result, OpenStream):
            self._carry(result)
        else:
            self._proxy.log_error(f"{self._proxied.name}: {result}")
            self.fail(result)
        self._proxy.note_dialed(None if self._stopped else result)

    def _carry(self, stream: OpenStream) -> None:
        proxy, proxied = self._proxy, self._proxied
        has_first = self._dialing is not None and self._dialing.gave_early
        self._dialing, self._stream = None, stream
        proxied.take(stream)
        proxy.log_info(f"{proxied.name}: connected by {proxied.path}")
        proxy.watch(proxied)
        port = stream.exchange(self._handle_message, self._handle_end)
        kept = self._take_kept()
        if proxied.over:
            return
        self._port = port
        proxied.datagrams_sent += len(kept)
        for data in kept[has_first:]:
            port.send(data)

    def _handle_message(self, data: bytes) -> None:
        if problem := self._proxy.answer(self._client, data):
            self._proxied.datagrams_lost[problem] += 1
        else:
            self._proxied.datagrams_received += 1

    def _handle_end(self, error: KKP2PError | None) -> None:
        proxied, port, self._port = self._proxied, self._port, None
        if self._stream is not None:
            proxied.take_end(self._stream, port)
        if error is None:
            self._proxy.log_info(f"{proxied.name}: ended")
        else:
            self._proxy.log_error(f"{proxied.name}: broken: {error}")
        self._end([] if error is None else [error])

    def stop(self) -> None:
        """Nobody uses it any more: what it was given still goes out."""
        self._stopped = True
        if self._port is not None:
            self._port.finish()
        elif self._dialing is not None:
            self._dialing.stop()
        else:
            self.fail(EngineClosed(STOPPED))

    def fail(self, error: Exception) -> None:
        """It was never open."""
        proxy = self._proxy
        proxy.dropped[UNREACHED] += len(self._take_kept())
        self._proxied.timeline = proxy.dialer.last_attempt(proxy.peer_id, proxy.ctx.connect_mode)
        self._end([error])

    def _end(self, errors: list[Exception]) -> None:
        self._client.channel = self._dialing = None
        self._proxied.over, self._proxied.problems = True, [said(error) for error in errors]
        self._proxy.watch(self._proxied)
        self._proxy.forget(self)
