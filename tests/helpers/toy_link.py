"""A link, and senders that do what congestion control tells them: deterministic, on a virtual
clock.

The link is one drop-tail queue in front of a fixed rate, then a fixed delay; packets are lost at
random before the queue, from a seed.  A sender works in flights of up to 64 packets, as the
transport does, and its timer has ticks of 1 ms.  Acknowledgements come back for every
``ack_every`` packets that arrive, and at the end of a flight.  Nothing is reordered, so a sender
knows a packet as lost when the third one after it is acknowledged, or from its probe time-out.

It is a toy: no retransmission, only bytes that were delivered or not.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable

from kkp2p_compat.transport.udp.congestion import (
    DeliveryRate,
    Pacer,
    Snapshot,
    Update,
    make_controller,
)

TICK_S = 0.001  # the event loop's timer
FLIGHT_PACKETS = 64
REORDER_PACKETS = 3  # RFC 9002 section 6.1.1
MBIT = 125_000  # bytes per second


class Clock:
    """Runs events in the order of their time, then of their making."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (max(when, self.now), self._count, event))

    def run(self, until: float) -> None:
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, event = heapq.heappop(events)
            event()
        self.now = until


class Link:
    """Packets in, times of arrival out.  The queue is kept as the time at which it is empty."""

    def __init__(
        self, clock: Clock, bytes_per_s: float, queue_bytes: int, loss: float = 0.0, seed: int = 1
    ) -> None:
        self.clock = clock
        self.bytes_per_s = bytes_per_s
        self.queue_bytes = queue_bytes
        self.loss = loss
        self._random = random.Random(seed)
        self._free_at = 0.0
        self.dropped = 0
        self.delays: list[tuple[float, float]] = []  # (when, time in the queue), one per flight

    def carry(self, packets: int, size: int) -> list[float | None]:
        """When each packet has left the link; None: lost."""
        now, free_at, rate = self.clock.now, max(self._free_at, self.clock.now), self.bytes_per_s
        self.delays.append((now, free_at - now))
        times: list[float | None] = []
        room_s = self.queue_bytes / rate
        step_s = size / rate
        for _ in range(packets):
            if self.loss and self._random.random() < self.loss:
                times.append(None)
            elif free_at - now + step_s > room_s + step_s:
                self.dropped += 1
                times.append(None)
            else:
                free_at += step_s
                times.append(free_at)
        self._free_at = free_at
        return times

    def mean_delay_s(self, since: float) -> float:
        delays = [delay for when, delay in self.delays if when >= since]
        return sum(delays) / len(delays)


class Sender:
    """One flow.  ``backlog_bytes`` is what the application has written and is not sent."""

    def __init__(
        self,
        clock: Clock,
        link: Link,
        controller: str = "bbr",
        rtt_s: float = 0.05,
        size: int = 1_400,
        ack_every: int = 2,
        backlog_bytes: float = math.inf,
        start: float = 0.0,
        seed: int = 7,
        ack_jitter_s: float = 0.0,
    ) -> None:
        self.clock = clock
        self.link = link
        self.rtt_s = rtt_s
        self.size = size
        self.ack_every = ack_every
        self.backlog_bytes = backlog_bytes
        self.ack_jitter_s = ack_jitter_s
        self._random = random.Random(seed)
        self.rate = DeliveryRate()
        self.controller = make_controller(controller, size, start, random.Random(seed))
        self.pacer = Pacer(start)
        self.in_flight = 0
        self.smoothed_rtt_s = 0.333
        self.min_rtt_s = math.inf
        self.sent_bytes = 0
        self.lost_bytes = 0
        self.delivered: list[tuple[float, int]] = []  # (when, all bytes delivered), for each ACK
        self.finished_at: float | None = None
        self.watch: Callable[[Sender], None] | None = None  # called after each update
        self._next_number = 0
        self._missing: deque[tuple[int, Snapshot, int]] = deque()  # runs of lost packets
        self._ack_free_at = 0.0
        self._wake_at = math.inf
        self._probe_at = math.inf
        clock.at(start, self.send)

    def write(self, size: float) -> None:
        self.backlog_bytes += size
        self.finished_at = None
        self.send()

    def goodput_bytes_per_s(self, since: float, until: float) -> float:
        """Delivered from ``since`` to ``until``."""
        before = max((total for when, total in self.delivered if when <= since), default=0)
        after = max((total for when, total in self.delivered if when <= until), default=0)
        return (after - before) / (until - since)

    def send(self) -> None:
        now, controller, pacer = self.clock.now, self.controller, self.pacer
        while True:
            if self.backlog_bytes <= 0:
                if self.in_flight < controller.window_bytes:
                    self.rate.app_limited(self.in_flight)
                break
            room = controller.window_bytes - self.in_flight
            if room < self.size:
                break
            pace = controller.pacing_bytes_per_s
            budget = pacer.budget(now, pace, controller.quantum_bytes)
            if budget < self.size:
                self._wake(pacer.next_send(now, pace))
                break
            wanted = min(self.backlog_bytes, FLIGHT_PACKETS * self.size, room, budget)
            self._send_flight(max(int(wanted) // self.size, 1))

    def _send_flight(self, packets: int) -> None:
        now, size = self.clock.now, packets * self.size
        self.controller.handle_sent(now, size, self.in_flight)
        snapshot = self.rate.sent(size, self.in_flight, now)
        self.pacer.sent(size, now, self.controller.pacing_bytes_per_s)
        self.in_flight += size
        self.sent_bytes += size
        self.backlog_bytes -= size
        first, self._next_number = self._next_number, self._next_number + packets
        self._probe_at = now + 3 * self.smoothed_rtt_s
        self.clock.at(self._probe_at, self._probe)
        arrived = lost = 0
        last_at = 0.0
        for number, when in enumerate(self.link.carry(packets, self.size), first):
            if when is None:
                lost += 1
                continue
            if lost:
                self._missing.append((number - 1, snapshot, lost * self.size))
                lost = 0
            arrived += 1
            last_at = when
            if arrived == self.ack_every:
                self._acknowledge(when, number, snapshot, arrived)
                arrived = 0
        if lost:
            self._missing.append((self._next_number - 1, snapshot, lost * self.size))
        if arrived:
            self._acknowledge(last_at, self._next_number - 1 - lost, snapshot, arrived)

    def _acknowledge(self, arrived_at: float, number: int, snapshot: Snapshot, count: int) -> None:
        back_at = arrived_at + self.rtt_s + self._random.random() * self.ack_jitter_s
        self._ack_free_at = max(self._ack_free_at, back_at)
        self.clock.at(self._ack_free_at, lambda: self._handle_ack(number, snapshot, count))

    def _handle_ack(self, number: int, snapshot: Snapshot, packets: int) -> None:
        now, before = self.clock.now, self.in_flight
        rtt_s = now - snapshot.sent_at
        first = math.isinf(self.min_rtt_s)
        self.min_rtt_s = min(self.min_rtt_s, rtt_s)
        self.smoothed_rtt_s = rtt_s if first else self.smoothed_rtt_s * 7 / 8 + rtt_s / 8
        acked = packets * self.size
        self.rate.acked(snapshot, acked, now)
        self.in_flight -= acked
        lost = self._give_up(number - REORDER_PACKETS)
        self.delivered.append((now, self.rate.delivered_bytes))
        self._probe_at = now + 3 * self.smoothed_rtt_s
        self.clock.at(self._probe_at, self._probe)
        sample = self.rate.sample(now, self.min_rtt_s)
        self._update(
            Update(
                now,
                acked,
                lost,
                before,
                self.in_flight,
                rtt_s,
                self.smoothed_rtt_s,
                self.min_rtt_s,
                sample,
                snapshot.sent_at,
            )
        )
        if not self.in_flight and self.backlog_bytes <= 0 and self.finished_at is None:
            self.finished_at = now
        self.send()

    def _give_up(self, below: int) -> list[tuple[Snapshot, int]]:
        lost = []
        while self._missing and self._missing[0][0] <= below:
            _, snapshot, size = self._missing.popleft()
            lost.append((snapshot, size))
            self.rate.lost(size)
            self.in_flight -= size
            self.lost_bytes += size
            self.backlog_bytes += size  # it is sent again, as other bytes
        return lost

    def _probe(self) -> None:
        """Nothing was heard for long: give up what is missing, and send a packet in any case."""
        if self.clock.now < self._probe_at or not self.in_flight:
            return
        before = self.in_flight
        lost = self._give_up(self._next_number)
        self._update(
            Update(
                self.clock.now,
                0,
                lost,
                before,
                self.in_flight,
                None,
                self.smoothed_rtt_s,
                self.min_rtt_s,
                None,
                None,
            )
        )
        self._send_flight(1)

    def _update(self, update: Update) -> None:
        self.controller.update(update)
        if self.watch is not None:
            self.watch(self)

    def _wake(self, when: float) -> None:
        when = math.ceil(when / TICK_S) * TICK_S
        if when < self._wake_at:
            self._wake_at = when
            self.clock.at(when, self._wake_up)

    def _wake_up(self) -> None:
        if self._wake_at <= self.clock.now:
            self._wake_at = math.inf
            self.send()
