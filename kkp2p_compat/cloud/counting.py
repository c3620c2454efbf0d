"""What limits count by, addresses and the networks around them; and the tables they count in.

An address is an IPv4 address or an IPv6 /64.  The networks around it are an IPv4 /24, or an IPv6
/56 and /48, and have WIDER times as much.  A home has a /56 and a customer of a hoster a /48: here
they do not count as 256 and 65,536 addresses.  Every table that strangers can grow is bounded;
where one is full, the entry that was used least recently goes.
"""

from __future__ import annotations

import functools
import ipaddress
from collections import Counter, OrderedDict

from .._bucket import Bucket

__all__ = [
    "TABLE_SIZE",
    "WIDER",
    "Buckets",
    "Different",
    "Networks",
    "Tally",
    "address_key",
    "address_keys",
    "is_loopback",
]

# Our choices.
TABLE_SIZE = 20_000  # addresses remembered for rates; about 300 bytes each
WIDER = (1, 4, 16)  # times what an address has: for it, and for the networks around it
NAMES_SIZE = 5_000  # addresses remembered for the peers that they call; about 3 KB each
MINUTE_S = 60.0


@functools.lru_cache(TABLE_SIZE)
def address_keys(host: str) -> tuple[str, ...]:
    """What limits count a numeric address by: itself, then the networks around it."""
    if ":" in host:
        address = ipaddress.IPv6Address(host.partition("%")[0])
        if address.ipv4_mapped is None:
            return ("::1",) if address.is_loopback else _networks(int(address))
        host = str(address.ipv4_mapped)
    return (host,) if is_loopback(host) else (host, f"{host.rpartition('.')[0]}.0/24")


def _networks(address: int) -> tuple[str, ...]:
    return tuple(
        f"{ipaddress.IPv6Address(address >> 128 - bits << 128 - bits)}/{bits}"
        for bits in (64, 56, 48)
    )


def address_key(host: str) -> str:
    """The narrowest of its keys."""
    return address_keys(host)[0]


def is_loopback(key: str) -> bool:
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
        """Take ``count``, below 0 if need be."""
        self._used(key, now).spend(now, count)

    def wait_s(self, key: str, now: float, count: float = 0.0) -> float:
        """How long until there are ``count``."""
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

    def __init__(self, rate: float, burst: float, wider: tuple[float, ...] = WIDER) -> None:
        self._tables = [Buckets(rate * factor, burst * factor) for factor in wider]

    def take(self, keys: tuple[str, ...], now: float) -> bool:
        """Take one token of each if all have one."""
        for table, key in zip(self._tables, keys, strict=False):
            if table.level(key, now) < 1:
                return False
        self.spend(keys, now, 1)
        return True

    def spend(self, keys: tuple[str, ...], now: float, count: float) -> None:
        """Take ``count`` of each, below 0 if need be."""
        for table, key in zip(self._tables, keys, strict=False):
            table.spend(key, now, count)

    def wait_s(self, keys: tuple[str, ...], now: float, count: float = 0.0) -> float:
        """How long until each has ``count``."""
        longest = 0.0
        for table, key in zip(self._tables, keys, strict=False):
            longest = max(longest, table.wait_s(key, now, count))
        return longest


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


class Tally:
    """How many of something each address has now, and each of the networks around them."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # by each of the keys

    def add(self, host: str) -> None:
        for key in address_keys(host):
            self.counts[key] += 1

    def remove(self, host: str) -> None:
        """One that was added is over."""
        for key in address_keys(host):
            self.counts[key] -= 1
            if self.counts[key] <= 0:
                del self.counts[key]

    def full(self, host: str, most: int) -> str:
        """Whether ``host`` has ``most``, or a network around it WIDER times as many.

        Then "5 of KEY"; else empty.
        """
        for key, factor in zip(address_keys(host), WIDER, strict=False):
            if self.counts[key] >= most * factor:
                return f"{most * factor} of {key}"
        return ""

    def __len__(self) -> int:
        return len(self.counts)
