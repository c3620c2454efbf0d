"""Who may come in, how often and for how long.

One Gatekeeper belongs to a cloud process.  Limits count by address (IPv4 address or IPv6 /64), and
never by a peer id that a stranger merely names: so nobody can lock somebody else out.  Every table
that strangers can grow is bounded; where one is full, the entry used least recently goes.

Loopback is exempt unless ``limit_loopback`` is set: behind a tunnel or proxy on this host all the
world would come from one address.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import Counter, OrderedDict
from typing import Protocol

from gevent.event import Event

from .settings import Limits

__all__ = ["Buckets", "Deadlines", "Gatekeeper", "Timed", "address_key"]

log = logging.getLogger(__name__)

# Our choices.
TABLE_SIZE = 20_000  # addresses remembered for rates; about 200 bytes each
LOG_EVERY_S = 30.0  # refusals of one address: the first is logged, then a count this often


def address_key(host: str) -> str:
    """The unit that limits count by, of a numeric address."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if address.is_loopback:
        return str(address)
    return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"


def _is_loopback(key: str) -> bool:
    return key.startswith("127.") or key == "::1"


class Buckets:
    """Token buckets, one for each key: ``rate`` a second, ``burst`` at once."""

    __slots__ = ("_burst", "_levels", "_rate", "_size")

    def __init__(self, rate: float, burst: float, size: int = TABLE_SIZE) -> None:
        self._rate = rate
        self._burst = burst
        self._size = size
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, when

    def level(self, key: str, now: float) -> float:
        """How many tokens there are; nothing is taken."""
        level, then = self._levels.get(key, (self._burst, now))
        return min(self._burst, level + (now - then) * self._rate)

    def take(self, key: str, now: float) -> bool:
        """Take one token if there is one."""
        level = self.level(key, now)
        if level < 1:
            return False
        self._levels[key] = (level - 1, now)
        self._levels.move_to_end(key)
        if len(self._levels) > self._size:
            self._levels.popitem(last=False)
        return True

    def __len__(self) -> int:
        return len(self._levels)


class Timed(Protocol):
    """Something that must be over by ``deadline`` (seconds, monotonic clock)."""

    deadline: float

    def expire(self) -> None:
        """The deadline is over."""

    def shut_down(self) -> None:
        """The cloud is about to end: say good-bye, and go."""


class Deadlines:
    """Every connection that has a deadline: one sweep a second instead of a timer each."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: set[Timed] = set()

    def add(self, item: Timed) -> None:
        self._items.add(item)

    def discard(self, item: Timed) -> None:
        self._items.discard(item)

    def items(self) -> list[Timed]:
        return list(self._items)

    def sweep(self, now: float) -> None:
        for item in [item for item in self._items if item.deadline <= now]:
            if item not in self._items:
                continue  # one that expired has ended this one, too
            try:
                item.expire()
            except Exception:
                log.exception("a deadline that cannot be kept")  # the others must be all the same
                self._items.discard(item)


class Gatekeeper:
    """The limits in force, and what they are counted in."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.most_connections = limits.connections  # may be lowered to what the system grants
        self.empty = Event()  # no connection is left
        self.empty.set()
        self.deadlines = Deadlines()
        self.open_calls: Counter[str] = Counter()  # by address
        self.kept_calls: Counter[str] = Counter()  # by address
        self.relay_sessions: Counter[str] = Counter()  # by address
        self._connections: Counter[str] = Counter()
        self._total = 0
        burst_s = limits.burst_s
        self._connects = Buckets(limits.connects_per_s, limits.connects_per_s * burst_s)
        self._handshakes = Buckets(limits.handshakes_per_s, limits.handshakes_per_s * burst_s)
        self._failures = Buckets(limits.login_failures / 60, limits.login_failures)
        self._refusals: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since, not logged

    def limited(self, key: str) -> bool:
        """Whether the limits per address hold for this one."""
        return self.limits.limit_loopback or not _is_loopback(key)

    # Connections.

    def enter(self, host: str) -> bool:
        """A new connection: True lets it in, and ``leave`` must follow; a refusal is logged."""
        key, now = address_key(host), time.monotonic()
        most = min(self.limits.connections, self.most_connections)
        if self._total >= most:
            reason = f"over {most} connections in all"
        elif not self.limited(key):
            reason = ""
        elif self._connections[key] >= self.limits.connections_per_address:
            reason = f"over {self.limits.connections_per_address} connections"
        elif not self._connects.take(key, now):
            reason = f"over {self.limits.connects_per_s:g} new connections a second"
        else:
            reason = ""
        if reason:
            self.refused(host, reason)
            return False
        self._total += 1
        self.empty.clear()
        self._connections[key] += 1
        return True

    def leave(self, host: str) -> None:
        self._total -= 1
        uncount(self._connections, address_key(host))
        if self._total == 0:
            self.empty.set()

    @property
    def connections(self) -> int:
        return self._total

    def may_shake_hands(self, host: str) -> bool:
        """Before a TLS handshake, which costs a signature; a refusal is logged."""
        key = address_key(host)
        if not self.limited(key) or self._handshakes.take(key, time.monotonic()):
            return True
        self.refused(host, f"over {self.limits.handshakes_per_s:g} TLS handshakes a second")
        return False

    # Logins.

    def may_log_in(self, host: str) -> bool:
        """False after too many failed logins from there, for a while."""
        key = address_key(host)
        return not self.limited(key) or self._failures.level(key, time.monotonic()) >= 1

    def login_failed(self, host: str) -> None:
        key = address_key(host)
        if self.limited(key):
            self._failures.take(key, time.monotonic())

    # The log.

    def refused(self, host: str, reason: str) -> None:
        """Log a refusal; those of one address that follow soon are only counted."""
        key, now = address_key(host), time.monotonic()
        since, hidden = self._refusals.get(key, (now - LOG_EVERY_S, 0))
        if now - since < LOG_EVERY_S:
            self._refusals[key] = (since, hidden + 1)
            return
        self._log_hidden(key, hidden)
        log.warning("%s refused: %s", host, reason)
        self._refusals[key] = (now, 0)
        self._refusals.move_to_end(key)
        if len(self._refusals) > TABLE_SIZE:
            key, (_, hidden) = self._refusals.popitem(last=False)
            self._log_hidden(key, hidden)

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        self.deadlines.sweep(now)
        while self._refusals:
            key, (since, hidden) = next(iter(self._refusals.items()))
            if now - since < LOG_EVERY_S:
                break
            del self._refusals[key]
            self._log_hidden(key, hidden)

    def _log_hidden(self, key: str, hidden: int) -> None:
        if hidden:
            log.warning("%s: %d more refusals in %d s", key, hidden, LOG_EVERY_S)


def uncount(counter: Counter[str], key: str) -> None:
    """Take one off, and forget a key that is at none."""
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
