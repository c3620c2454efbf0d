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

from .._address import network_of
from .._bucket import Bucket

__all__ = ["TABLE_SIZE", "WIDER", "Different", "Networks", "Tally", "address_key", "address_keys"]

# Our choices.
TABLE_SIZE = 20_000  # addresses remembered for rates; about 300 bytes each
WIDER = (1, 4, 16)  # times what an address has: for it, and for the networks around it
NAMES_SIZE = 5_000  # addresses remembered for the peers that they call; about 3 KB each
MINUTE_S = 60.0


@functools.lru_cache(TABLE_SIZE)
def address_keys(host: str) -> tuple[str, ...]:
    """What limits count a numeric address by: itself, then the networks around it.

    Loopback has none around it.
    """
    narrowest = network_of(host)
    if ":" not in narrowest:
        around = () if narrowest.startswith("127.") else (f"{narrowest.rpartition('.')[0]}.0/24",)
        return (narrowest, *around)
    if ipaddress.IPv6Address(host.partition("%")[0]).is_loopback:
        return ("::1",)
    return narrowest, network_of(host, 56), network_of(host, 48)


def address_key(host: str) -> str:
    """The narrowest of its keys."""
    return address_keys(host)[0]


class Networks:
    """Token buckets for addresses and the networks around them; ``keys`` are those of one address.

    An address has ``rate`` tokens a second and ``burst`` at once.
    """

    __slots__ = ("_rates", "_size", "_tables")

    def __init__(
        self, rate: float, burst: float, wider: tuple[float, ...] = WIDER, size: int = TABLE_SIZE
    ) -> None:
        self._rates = [(rate * factor, burst * factor) for factor in wider]
        self._tables: list[OrderedDict[str, Bucket]] = [OrderedDict() for _ in wider]
        self._size = size

    def take(self, keys: tuple[str, ...], now: float) -> bool:
        """Take one token of each if all have one."""
        for table, key, (_, burst) in zip(self._tables, keys, self._rates, strict=False):
            bucket = table.get(key)
            if (burst if bucket is None else bucket.level(now)) < 1:
                return False
        self.spend(keys, now, 1)
        return True

    def spend(self, keys: tuple[str, ...], now: float, count: float) -> None:
        """Take ``count`` of each, below 0 if need be."""
        for table, key, rate in zip(self._tables, keys, self._rates, strict=False):
            bucket = table.get(key)
            if bucket is None:
                bucket = table[key] = Bucket(*rate, now)
                if len(table) > self._size:
                    table.popitem(last=False)
            else:
                table.move_to_end(key)
            bucket.spend(now, count)

    def wait_s(self, keys: tuple[str, ...], now: float, count: float = 0.0) -> float:
        """How long until each has ``count``."""
        longest = 0.0
        for table, key, rate in zip(self._tables, keys, self._rates, strict=False):
            bucket = table.get(key)
            if bucket is not None or count:
                bucket = bucket or Bucket(*rate, now)
                longest = max(longest, bucket.wait_s(now, count))
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
