"""Who may come in, how often and for how long.

One Gatekeeper belongs to a cloud process.  Limits count by address (IPv4 address or IPv6 /64), and
by the networks around it (IPv4 /24; IPv6 /56 and /48), which have WIDER times as much: a home has
a /56 and a customer of a hoster a /48, so whoever has one is not 256 or 65,536 addresses here.
Every table that strangers can grow is bounded; where one is full, the entry used least recently
goes.

Loopback is exempt unless ``limit_loopback`` is set: behind a tunnel or proxy on this host all the
world would come from one address.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import time
from collections import Counter, OrderedDict
from typing import Protocol

from gevent.event import Event

from .._bucket import Bucket
from .settings import Limits

__all__ = [
    "Buckets",
    "Deadlines",
    "Gatekeeper",
    "Networks",
    "Shares",
    "Timed",
    "address_key",
    "address_keys",
]

log = logging.getLogger(__name__)

# Our choices.
TABLE_SIZE = 20_000  # addresses remembered for rates; about 300 bytes each
NAMES_SIZE = 5_000  # addresses remembered for the peers that they call; about 3 KB each
MINUTE_S = 60.0
LOG_EVERY_S = 30.0  # refusals of one address: the first is logged, then a count this often
WIDER = (1, 4, 16)  # times what an address has: for it, and for the networks around it
WORK_WIDER = (1, 1.5, 2)  # the same of processor time, of which there is one second in a second
WORK_BURST_S = 0.1  # of processor time at once for an address: what everybody else may notice
FEW = 16  # connections: who has fewer gets in while a part of the places is left
KEPT_PART = 4  # one in so many places is kept for those


@functools.lru_cache(TABLE_SIZE)
def address_keys(host: str) -> tuple[str, ...]:
    """The units that limits count by, of a numeric address: it, then the networks around it."""
    if ":" in host:
        address = ipaddress.IPv6Address(host.partition("%")[0])
        if address.ipv4_mapped is None:
            return ("::1",) if address.is_loopback else _networks(int(address))
        host = str(address.ipv4_mapped)
    return (host,) if _is_loopback(host) else (host, f"{host.rpartition('.')[0]}.0/24")


def _networks(address: int) -> tuple[str, ...]:
    return tuple(
        f"{ipaddress.IPv6Address(address >> 128 - bits << 128 - bits)}/{bits}"
        for bits in (64, 56, 48)
    )


def address_key(host: str) -> str:
    """The narrowest of its keys."""
    return address_keys(host)[0]


def _is_loopback(key: str) -> bool:
    return key.startswith("127.") or key == "::1"


class Buckets:
    """Token buckets, one for each key: ``rate`` a second, ``burst`` at once."""

    __slots__ = ("_burst", "_by_key", "_rate", "_size")

    def __init__(self, rate: float, burst: float, size: int = TABLE_SIZE) -> None:
        self._rate = rate
        self._burst = burst
        self._size = size
        self._by_key: OrderedDict[str, Bucket] = OrderedDict()

    def level(self, key: str, now: float) -> float:
        """How many tokens there are; nothing is taken."""
        bucket = self._by_key.get(key)
        return self._burst if bucket is None else bucket.level(now)

    def take(self, key: str, now: float) -> bool:
        """Take one token if there is one."""
        return self.level(key, now) >= 1 and self._used(key, now).take(now)

    def spend(self, key: str, now: float, count: float) -> None:
        """Take so many, below 0 if need be."""
        self._used(key, now).spend(now, count)

    def wait_s(self, key: str, now: float, count: float = 0.0) -> float:
        """How long until there are so many."""
        bucket = self._by_key.get(key) or Bucket(self._rate, self._burst, now)
        return bucket.wait_s(now, count)

    def _used(self, key: str, now: float) -> Bucket:
        bucket = self._by_key.get(key)
        if bucket is None:
            bucket = self._by_key[key] = Bucket(self._rate, self._burst, now)
            if len(self._by_key) > self._size:
                self._by_key.popitem(last=False)
        else:
            self._by_key.move_to_end(key)
        return bucket

    def __len__(self) -> int:
        return len(self._by_key)


class Networks:
    """Buckets for addresses and the networks around them; ``keys`` are those of one address."""

    __slots__ = ("_tables",)

    def __init__(
        self, rate: float, burst: float, wider: tuple[float, ...] = WIDER
    ) -> None:  # fmt: skip
        self._tables = [Buckets(rate * factor, burst * factor) for factor in wider]

    def take(self, keys: tuple[str, ...], now: float) -> bool:
        """Take one token of each if all have one."""
        pairs = list(zip(self._tables, keys, strict=False))
        if any(table.level(key, now) < 1 for table, key in pairs):
            return False
        for table, key in pairs:
            table.take(key, now)
        return True

    def spend(self, keys: tuple[str, ...], now: float, count: float) -> None:
        """Take so many of each, below 0 if need be."""
        for table, key in zip(self._tables, keys, strict=False):
            table.spend(key, now, count)

    def wait_s(self, keys: tuple[str, ...], now: float, count: float = 0.0) -> float:
        """How long until all have so many."""
        pairs = zip(self._tables, keys, strict=False)
        return max(table.wait_s(key, now, count) for table, key in pairs)


class Different:
    """How many different things an address, and the networks around it, may name in a minute.

    What is named again is free.  A minute begins with the first.
    """

    __slots__ = ("_most", "_tables")

    def __init__(self, most: int, wider: tuple[int, ...] = WIDER) -> None:
        self._most = [most * factor for factor in wider]
        self._tables: list[OrderedDict[str, _Minute]] = [OrderedDict() for _ in wider]

    def take(self, keys: tuple[str, ...], what: str, now: float) -> bool:
        minutes = [
            self._minute(table, key, now) for table, key in zip(self._tables, keys, strict=False)
        ]
        for (_, named), most in zip(minutes, self._most, strict=False):
            if what not in named and len(named) >= most:
                return False
        for _, named in minutes:
            named.add(what)
        return True

    def _minute(self, table: OrderedDict[str, _Minute], key: str, now: float) -> _Minute:
        minute = table.get(key)
        if minute is None or now - minute[0] >= MINUTE_S:
            minute = table[key] = (now, set())
        table.move_to_end(key)
        if len(table) > NAMES_SIZE:
            table.popitem(last=False)
        return minute


_Minute = tuple[float, set[str]]  # when it began, what was named in it


class Shares:
    """What the connections of an address may have together of this process, which is one thread."""

    def __init__(self, limits: Limits) -> None:
        rate = limits.bytes_per_s_per_address
        self._limits = limits
        self._bytes = Networks(rate, rate * limits.burst_s)
        self._work = Networks(limits.work_per_address, WORK_BURST_S, WORK_WIDER)

    def wait_s(self, host: str, now: float) -> float:
        """How long it has to wait for what it has used over its share."""
        keys = address_keys(host)
        return max(self._work.wait_s(keys, now), self._bytes.wait_s(keys, now))

    def spend_work(self, host: str, now: float, seconds: float) -> None:
        """Processor time that it has used."""
        self._spend(self._work, host, now, seconds)

    def spend_bytes(self, host: str, now: float, count: int) -> None:
        """Bytes that were read of it."""
        self._spend(self._bytes, host, now, count)

    def _spend(self, networks: Networks, host: str, now: float, count: float) -> None:
        keys = address_keys(host)
        if self._limits.limit_loopback or not _is_loopback(keys[0]):
            networks.spend(keys, now, count)


class SparingLog:
    """Lines of which the first of each key is logged, then a count every LOG_EVERY_S.

    So a stranger cannot fill the disk.
    """

    def __init__(self, level: int, what: str) -> None:
        self._level = level
        self._what = what
        self._by_key: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since, not logged

    def tell(self, key: str, message: str, *arguments: object) -> None:
        now = time.monotonic()
        since, hidden = self._by_key.get(key, (now - LOG_EVERY_S, 0))
        if now - since < LOG_EVERY_S:
            self._by_key[key] = (since, hidden + 1)
            return
        self._tell_hidden(key, hidden)
        log.log(self._level, message, *arguments)
        self._by_key[key] = (now, 0)
        self._by_key.move_to_end(key)
        if len(self._by_key) > TABLE_SIZE:
            key, (_, hidden) = self._by_key.popitem(last=False)
            self._tell_hidden(key, hidden)

    def sweep(self, now: float) -> None:
        while self._by_key:
            key, (since, hidden) = next(iter(self._by_key.items()))
            if now - since < LOG_EVERY_S:
                break
            del self._by_key[key]
            self._tell_hidden(key, hidden)

    def _tell_hidden(self, key: str, hidden: int) -> None:
        if hidden:
            log.log(self._level, "%s: %d more %s in %d s", key, hidden, self._what, LOG_EVERY_S)

    def __len__(self) -> int:
        return len(self._by_key)


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
        self.relay_sessions: Counter[str] = Counter()  # by the caller's address
        self.relay_callees: Counter[str] = Counter()  # that wait for their callers, by address
        self._connections: Counter[str] = Counter()
        self._total = 0
        self.shares = Shares(limits)
        burst_s = limits.burst_s
        self._connects = Networks(limits.connects_per_s, limits.connects_per_s * burst_s)
        self._handshakes = Networks(limits.handshakes_per_s, limits.handshakes_per_s * burst_s)
        self._strangers_calls = Networks(
            limits.stranger_calls_per_s, limits.stranger_calls_per_s * burst_s
        )
        self._named_by_strangers = Different(limits.stranger_peers)
        self._named_by_accounts = Different(limits.account_peers, (1,))
        self.refusals = SparingLog(logging.WARNING, "refusals")
        self.paired = SparingLog(logging.INFO, "relay sessions that began")
        self.ended = SparingLog(logging.INFO, "relay sessions that ended")

    def limited(self, key: str) -> bool:
        """Whether the limits per address hold for this one."""
        return self.limits.limit_loopback or not _is_loopback(key)

    # Connections.

    def enter(self, host: str) -> bool:
        """A new connection: True lets it in, and ``leave`` must follow; a refusal is logged."""
        keys = address_keys(host)
        reason = self._no_room(keys)
        if reason:
            self.refused(host, reason)
            return False
        self._total += 1
        self.empty.clear()
        self._connections.update(keys)
        return True

    def _no_room(self, keys: tuple[str, ...]) -> str:
        limits = self.limits
        most = min(limits.connections, self.most_connections)
        if self._total >= most:
            return f"over {most} connections in all"
        if not self.limited(keys[0]):
            return ""
        for key, factor in zip(keys, WIDER, strict=False):
            of_it = limits.connections_per_address * factor
            if self._connections[key] >= of_it:
                return f"over {of_it} connections of {key}"
        if self._connections[keys[-1]] >= FEW and self._total >= most - most // KEPT_PART:
            return f"{self._total} of {most} connections in all; the rest is for who has few"
        if not self._connects.take(keys, time.monotonic()):
            return f"over {limits.connects_per_s:g} new connections a second"
        return ""

    def leave_address(self, host: str) -> None:
        """The connection counts for its address no longer, only in all."""
        for key in address_keys(host):
            uncount(self._connections, key)

    def leave(self, host: str, of_address: bool = True) -> None:
        """``of_address``: it still counted for its address."""
        self._total -= 1
        if of_address:
            self.leave_address(host)
        if self._total == 0:
            self.empty.set()

    @property
    def connections(self) -> int:
        return self._total

    def may_shake_hands(self, host: str) -> bool:
        """Before a TLS handshake, which costs a signature; a refusal is logged."""
        keys = address_keys(host)
        if not self.limited(keys[0]) or self._handshakes.take(keys, time.monotonic()):
            return True
        self.refused(host, f"over {self.limits.handshakes_per_s:g} TLS handshakes a second")
        return False

    # Calls.

    def stranger_may_call(self, host: str) -> bool:
        """One call more by a caller that has not logged in."""
        keys = address_keys(host)
        return not self.limited(keys[0]) or self._strangers_calls.take(keys, time.monotonic())

    def may_name(self, host: str, peer_id: str | None, callee: str) -> bool:
        """Whether it may call that peer, too, in this minute; ``peer_id``: its own, if any.

        Online or not: else whoever tries many ids would learn who is.
        """
        now = time.monotonic()
        if peer_id is not None:
            return self._named_by_accounts.take((peer_id,), callee, now)
        keys = address_keys(host)
        return not self.limited(keys[0]) or self._named_by_strangers.take(keys, callee, now)

    # The log.

    def refused(self, host: str, reason: str) -> None:
        """Log a refusal; those of one address that follow soon are only counted."""
        self.refusals.tell(address_key(host), "%s refused: %s", host, reason)

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        self.deadlines.sweep(now)
        for log_of_it in (self.refusals, self.paired, self.ended):
            log_of_it.sweep(now)


def uncount(counter: Counter[str], key: str) -> None:
    """Take one off, and forget a key that is at none."""
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
