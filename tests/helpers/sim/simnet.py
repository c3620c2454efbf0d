"""A network on a virtual clock: links with a rate, a queue and what a real path does to packets.

Nothing here waits: ``Network.run`` jumps from event to event.  Every random decision comes from a
generator seeded by the network's seed and the link's name, so a run can be repeated exactly, and
one more link does not change what the others do.  A run that does not come to its end in the
virtual time or the number of events it is given fails, and says the seed and the state.

A packet that is sent on a link meets, in this order: the filter (a test's own hand), the path MTU,
blackouts, random and burst loss, corruption, the queue (drop tail) and the rate, the delay with
its jitter, duplication.  Rates and queues count ``WIRE_OVERHEAD_BYTES`` with every packet, as a
real link does.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

__all__ = ["Address", "Conditions", "Link", "Network", "Stuck", "coalesce"]

Address = tuple[str, int]
Receiver = Callable[[list[tuple[bytes, Address]]], None]

WIRE_OVERHEAD_BYTES = 28  # RFC 791 and 768: the IPv4 and UDP headers of a packet
LONGEST_BURST_S = 1.0  # or one would last ever longer as its sender slows down
# Linux: what UDP_GRO merges into one buffer.
GRO_SEGMENTS = 64
GRO_BYTES = 65_507


class Stuck(AssertionError):
    """The run did not come to its end."""


@dataclass(frozen=True)
class Conditions:
    """What a link does to packets, one way; probabilities are per packet."""

    rate_bytes_per_s: float | None = None  # None: no bottleneck, and so no queue
    queue_bytes: float = 256 * 1024
    delay_s: float = 0.005
    jitter_s: float = 0.0  # up to this much more delay, in order
    reorder: float = 0.0  # with this probability ...
    reorder_s: float = 0.0  # ... up to this much more delay, so that later packets overtake
    loss: float = 0.0
    burst_enter: float = 0.0  # Gilbert-Elliott: from the good state to the bad one
    burst_leave: float = 1.0  # and back: bursts are 1 / burst_leave packets long on average
    burst_loss: float = 1.0  # loss in the bad state
    duplicate: float = 0.0
    corrupt: float = 0.0  # one bit is flipped
    mtu_bytes: int = 1500  # of the IP packet: larger ones vanish

    @property
    def bandwidth_delay_bytes(self) -> float:
        """Of a round trip over this link and one like it."""
        return (self.rate_bytes_per_s or 0.0) * 2 * self.delay_s


class Network:
    """The clock, the events to come, and who listens on which address."""

    def __init__(self, seed: object) -> None:
        self.seed = seed
        self.now = 1000.0  # not 0: a clock's origin means nothing
        self.hosts: dict[Address, Receiver] = {}
        self.links: list[Link] = []
        self.undeliverable = 0
        self.events = 0
        self.state: Callable[[], str] = lambda: ""  # what a failure says besides
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._order = 0

    def random(self, name: str) -> Random:
        """The generator of that name; the same for the same seed."""
        return Random(f"{self.seed}/{name}")

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Run ``action`` at that time (at once when it is past), after what is due before."""
        self._order += 1
        heapq.heappush(self._heap, (max(when, self.now), self._order, action))

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        self.at(self.now + seconds, action)

    def run(
        self,
        until: Callable[[], object] | None = None,
        limit_s: float = 600.0,
        max_events: int = 1_000_000,
    ) -> float:
        """Until the condition holds; how long that took, in virtual seconds.

        Without a condition: for ``limit_s`` seconds exactly.
        """
        heap, began, stop = self._heap, self.now, self.now + limit_s
        pop, left = heapq.heappop, max_events
        while until is None or not until():
            if not heap or heap[0][0] > stop:
                if until is not None:
                    self.fail("nothing to come" if not heap else f"not done after {limit_s} s")
                self.now = stop
                break
            if left <= 0:
                self.fail(f"not done after {max_events} events")
            left -= 1
            self.now, _, action = pop(heap)
            action()
        self.events += max_events - left
        return self.now - began

    def fail(self, why: str) -> None:
        """End the run with the seed and the state."""
        links = "\n".join(f"  {link}" for link in self.links)
        raise Stuck(
            f"{why} (seed {self.seed!r}, clock {self.now:.6f})\n{links}\n{self.state()}".rstrip()
        )

    def deliver(self, packets: list[tuple[bytes, Address]], destination: Address) -> None:
        host = self.hosts.get(destination)
        if host is None:
            self.undeliverable += len(packets)
        else:
            host(packets)


@dataclass
class Link:
    """One direction of a path.  Several flows may share it: that is a bottleneck.

    ``wake_s``: the receiver looks this long after a first packet, and takes what is there by then
    in one go, as an interrupt or a busy event loop does; 0: packet by packet.
    ``filter``: gets each packet and returns the packets to go on in its place.
    """

    network: Network
    name: str
    conditions: Conditions
    wake_s: float = 0.00025
    filter: Callable[[bytes], Iterable[bytes]] | None = None
    counts: Counter[str] = field(default_factory=Counter)
    # (time, seconds that a packet waits in the queue), one entry per call of send().
    queueing: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = self.network.random(self.name)
        self._free_at = 0.0  # when what is in the queue has left
        self._bad = False  # Gilbert-Elliott's state
        self._bad_until = 0.0
        self._last_arrival = 0.0
        self._blackouts: list[tuple[float, float]] = []
        # (arrival, order, departure, packet, source, destination)
        self._flying: list[tuple[float, int, float, bytes, Address, Address]] = []
        self._order = 0
        self._wake_at: float | None = None
        self.network.links.append(self)

    def __str__(self) -> str:
        return f"{self.name}: {dict(self.counts)}, {len(self._flying)} flying"

    def change(self, **fields: Any) -> None:
        """Change the conditions now.  What waits in the queue leaves at the new rate."""
        old, new = self.conditions, replace(self.conditions, **fields)
        self.conditions = new
        if old.rate_bytes_per_s == new.rate_bytes_per_s:
            return
        now = self.network.now
        scale = (old.rate_bytes_per_s or 0.0) / (new.rate_bytes_per_s or float("inf"))
        self._free_at = now + max(self._free_at - now, 0.0) * scale
        for index, (arrival, order, departure, packet, *ends) in enumerate(self._flying):
            if departure > now:
                earlier = (departure - now) * (1 - scale)
                moved = (arrival - earlier, order, departure - earlier, packet, ends[0], ends[1])
                self._flying[index] = moved
        heapq.heapify(self._flying)
        self._last_arrival = 0.0
        self._arm()

    def change_at(self, when: float, **fields: Any) -> None:
        self.network.at(when, lambda: self.change(**fields))

    def blackout(self, start: float, stop: float) -> None:
        """Every packet sent in [start, stop) is lost."""
        self._blackouts.append((start, stop))

    def send(self, data: bytes, segment_bytes: int, source: Address, destination: Address) -> None:
        """Take consecutive datagrams of ``segment_bytes``; the last may be shorter."""
        now, conditions, random = self.network.now, self.conditions, self._random.random
        counts, rate = self.counts, conditions.rate_bytes_per_s
        loss, burst, corrupt = conditions.loss, conditions.burst_enter, conditions.corrupt
        jitter, reorder = conditions.jitter_s, conditions.reorder
        largest = conditions.mtu_bytes - WIRE_OVERHEAD_BYTES
        packets: Iterable[bytes] = [
            data[start : start + segment_bytes] for start in range(0, len(data), segment_bytes)
        ]
        if self.filter is not None:
            packets = [new for old in packets for new in self.filter(old)]
        dark = any(start <= now < stop for start, stop in self._blackouts)
        free_at = max(self._free_at, now)
        if rate is not None:
            self.queueing.append((now, free_at - now))
        for packet in packets:
            counts["sent"] += 1
            size = len(packet) + WIRE_OVERHEAD_BYTES
            if len(packet) > largest:
                counts["too large"] += 1
                continue
            if dark:
                counts["blackout"] += 1
                continue
            if loss and random() < loss:
                counts["lost"] += 1
                continue
            if (burst or self._bad) and self._lost_in_burst():
                counts["lost in bursts"] += 1
                continue
            if corrupt and packet and random() < corrupt:
                counts["corrupted"] += 1
                packet = self._flip_a_bit(packet)
            departure = now
            if rate is not None:
                if (free_at - now) * rate + size > conditions.queue_bytes:
                    counts["queue full"] += 1
                    continue
                departure = free_at = free_at + size / rate
            arrival = departure + conditions.delay_s
            if jitter:
                arrival = max(arrival + random() * jitter, self._last_arrival)
                self._last_arrival = arrival
            if reorder and random() < reorder:
                counts["delayed"] += 1
                arrival += random() * conditions.reorder_s
            self._order += 1
            entry = (arrival, self._order, departure, packet, source, destination)
            heapq.heappush(self._flying, entry)
            if conditions.duplicate and random() < conditions.duplicate:
                counts["duplicated"] += 1
                again = arrival + random() * conditions.delay_s
                self._order += 1
                entry = (again, self._order, departure, packet, source, destination)
                heapq.heappush(self._flying, entry)
        self._free_at = free_at
        self._arm()

    def queueing_s(self, start: float = 0.0) -> list[float]:
        """How long packets sent since then have waited in the queue, ascending."""
        return sorted(wait for when, wait in self.queueing if when >= start)

    def _lost_in_burst(self) -> bool:
        random, conditions = self._random.random, self.conditions
        now = self.network.now
        if self._bad:
            self._bad = random() >= conditions.burst_leave and now < self._bad_until
        else:
            self._bad = random() < conditions.burst_enter
            self._bad_until = now + LONGEST_BURST_S
        return self._bad and random() < conditions.burst_loss

    def _flip_a_bit(self, packet: bytes) -> bytes:
        bit = self._random.randrange(len(packet) * 8)
        return (int.from_bytes(packet, "big") ^ (1 << bit)).to_bytes(len(packet), "big")

    def _arm(self) -> None:
        if self._flying:
            wake_at = self._flying[0][0] + self.wake_s
            if self._wake_at is None or wake_at < self._wake_at:
                self._wake_at = wake_at
                self.network.at(wake_at, lambda: self._wake(wake_at))

    def look(self) -> None:
        """Do not wait for ``wake_s``: a receiver reads now, and takes what is there."""
        if self._wake_at is not None and self._flying[0][0] <= self.network.now:
            self._wake(self._wake_at)

    def _wake(self, planned: float) -> None:
        if planned != self._wake_at:
            return  # an earlier one came in between
        self._wake_at = None
        now, flying, pop = self.network.now, self._flying, heapq.heappop
        deliver = self.network.deliver
        batch: list[tuple[bytes, Address]] = []
        to: Address | None = None
        while flying and flying[0][0] <= now:
            _, _, _, packet, source, destination = pop(flying)
            if to is not None and (destination != to or not self.wake_s):
                deliver(batch, to)
                batch = []
            to = destination
            batch.append((packet, source))
        if to is not None:
            self.counts["delivered in"] += 1
            deliver(batch, to)
        self._arm()


def coalesce(packets: list[tuple[bytes, Address]]) -> list[tuple[bytes, int, Address]]:
    """As UDP_GRO does it: neighbours of one source and size become one buffer.

    Only the last datagram of a buffer may be shorter.  Gives (data, segment_bytes, source).
    """
    buffers = []
    index = 0
    while index < len(packets):
        first, source = packets[index]
        size, run = len(first), [first]
        most = min(GRO_SEGMENTS, GRO_BYTES // size) if size else 1
        index += 1
        while index < len(packets) and len(run) < most and len(run[-1]) == size:
            packet, other = packets[index]
            if other != source or not 0 < len(packet) <= size:
                break
            run.append(packet)
            index += 1
        buffers.append((b"".join(run), size, source))
    return buffers
