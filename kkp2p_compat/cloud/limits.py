"""Who may come in, how often and for how long.

One Gatekeeper belongs to a cloud process.  Limits count by address and by the networks around it
(see counting.py), and never by a peer id that a stranger merely names.

Loopback is exempt unless ``limit_loopback`` is set: behind a tunnel or proxy on this host all the
world would come from one address.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from gevent.event import Event

from .._bucket import Bucket
from .audit import Audit
from .counting import TABLE_SIZE, Different, Networks, Tally, address_key, address_keys
from .counts import Counts
from .settings import Limits

__all__ = ["Allowance", "Deadlines", "Gatekeeper", "Shares", "SparingLog", "Timed"]

log = logging.getLogger(__name__)

# Our choices.
LOG_EVERY_S = 30.0  # refusals of one address: the first is logged, then a count this often
WORK_WIDER = (1, 1.5, 2)  # WIDER, of processor time: nobody can have more than one second of it
WORK_BURST_S = 0.1  # of processor time at once for an address: others may notice that much
CONNECTION_WORK_BURST_S = 0.05  # the same for one of its connections
KEPT_PART = 4  # one in so many places for connections is kept for networks that have few
FEW = 16  # connections


class Shares:
    """What all connections of an address together may use of this process, which is one thread."""

    def __init__(self, limits: Limits) -> None:
        rate = limits.bytes_per_s_per_address
        self._limits = limits
        self._bytes = Networks(rate, rate * limits.burst_s)
        self._work = Networks(limits.work_per_address, WORK_BURST_S, WORK_WIDER)

    def wait_s(self, host: str, now: float) -> float:
        """How long it has to wait because it has used more than its share."""
        keys = address_keys(host)
        if not self._limits.hold_for(keys):
            return 0.0
        return max(self._work.wait_s(keys, now), self._bytes.wait_s(keys, now))

    def spend(self, host: str, now: float, seconds: float, size: int = 0) -> None:
        """Processor time that it has used, and how many bytes were read of it."""
        keys = address_keys(host)
        if self._limits.hold_for(keys):
            self._work.spend(keys, now, seconds)
            if size:
                self._bytes.spend(keys, now, size)


class Allowance:
    """What one connection may use of this process, and how much it may say."""

    __slots__ = ("_bytes", "_messages", "_work")

    def __init__(self, limits: Limits, now: float) -> None:
        self._messages = Bucket(limits.messages_per_s, limits.messages_per_s, now)
        self._bytes = Bucket(limits.bytes_per_s, limits.bytes_per_s * limits.burst_s, now)
        self._work = Bucket(limits.work, CONNECTION_WORK_BURST_S, now)

    def take_message(self, now: float) -> bool:
        """Whether one message more is within its rate."""
        return self._messages.take(now)

    def wait_s(self, now: float) -> float:
        """How long it has to wait because it has used more than its share."""
        return max(self._work.wait_s(now), self._bytes.wait_s(now))

    def spend(self, now: float, seconds: float, size: int) -> None:
        """Processor time that it has used, and how many bytes were read of it."""
        self._work.spend(now, seconds)
        self._bytes.spend(now, size)


class SparingLog:
    """Logs the first line of each key, and then every LOG_EVERY_S how many more there were.

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
                log.exception("a deadline that cannot be kept")  # the others are kept all the same
                self._items.discard(item)


class Gatekeeper:
    """The limits in force, and what they are counted in."""

    def __init__(self, limits: Limits) -> None:
        self.audit: Audit | None = None
        self.limits = limits
        self.most_connections = limits.connections  # may be lowered to what the system grants
        self.empty = Event()  # no connection is left
        self.empty.set()
        self.deadlines = Deadlines()
        self.open_calls = Tally()
        self.kept_calls = Tally()
        self.relay_sessions = Tally()  # by the caller's address
        self.relay_callees = Tally()  # that wait for their callers
        self.lane_sessions = Tally()  # the same by UDP
        self.lane_callees = Tally()
        self.connections_of = Tally()
        self.counts = Counts()
        self._total = 0
        self._on_change: list[Callable[[], None]] = []
        self.when_limits_change(self._set_rates)
        self.refusals = SparingLog(logging.WARNING, "refusals")
        self.paired = SparingLog(logging.INFO, "relay sessions that began")
        self.ended = SparingLog(logging.INFO, "relay sessions that ended")

    # The limits.

    def when_limits_change(self, set_up: Callable[[], None]) -> None:
        """Call it now, and again whenever the limits have changed."""
        self._on_change.append(set_up)
        set_up()

    def change_limits(self, limits: Limits) -> None:
        """For all that comes from now on; connections that are open keep their own rates."""
        if limits != self.limits:
            self.limits.become(limits)
            for set_up in self._on_change:
                set_up()

    def _set_rates(self) -> None:
        limits = self.limits
        self.shares = Shares(limits)
        burst_s = limits.burst_s
        self._connects = Networks(limits.connects_per_s, limits.connects_per_s * burst_s)
        self._handshakes = Networks(limits.handshakes_per_s, limits.handshakes_per_s * burst_s)
        self._strangers_calls = Networks(
            limits.stranger_calls_per_s, limits.stranger_calls_per_s * burst_s
        )
        self._named_by_strangers = Different(limits.stranger_peers)
        self._named_by_accounts = Different(limits.account_peers, (1,))

    def full(self, tally: Tally, host: str, most: int) -> str:
        """As Tally's, where the limits hold."""
        return tally.full(host, most) if self.limits.hold_for(address_keys(host)) else ""

    # Connections.

    def enter(self, host: str) -> bool:
        """A new connection: True lets it in, and ``leave`` must follow; a refusal is logged."""
        reason = self._no_room(host)
        if reason:
            self.refused(host, reason)
            return False
        self._total += 1
        self.empty.clear()
        self.connections_of.add(host)
        return True

    def _no_room(self, host: str) -> str:
        limits, keys = self.limits, address_keys(host)
        most = min(limits.connections, self.most_connections)
        if self._total >= most:
            return self.over("connections", f"over {most} connections in all")
        if not self.limits.hold_for(keys):
            return ""
        full = self.connections_of.full(host, limits.connections_per_address)
        if full:
            why = f"over {full}: connections at once (--connections-per-address)"
            return self.over("connections_per_address", why)
        if self.connections_of.counts[keys[-1]] >= FEW and self._total >= most - most // KEPT_PART:
            why = f"{self._total} of {most} connections in all; the rest is for those with few"
            return self.over("connections", why)
        if not self._connects.take(keys, time.monotonic()):
            why = f"over {limits.connects_per_s:g} new connections a second"
            return self.over("connects_per_s", why)
        return ""

    def leave_address(self, host: str) -> None:
        """The connection counts for its address no longer, only in all."""
        self.connections_of.remove(host)

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
        if not self.limits.hold_for(keys) or self._handshakes.take(keys, time.monotonic()):
            return True
        why = f"over {self.limits.handshakes_per_s:g} TLS handshakes a second"
        self.refused(host, self.over("handshakes_per_s", why))
        return False

    # Calls.

    def stranger_may_call(self, host: str) -> bool:
        """One call more by a caller that has not logged in."""
        keys = address_keys(host)
        return not self.limits.hold_for(keys) or self._strangers_calls.take(keys, time.monotonic())

    def may_name(self, host: str, peer_id: str | None, callee: str) -> bool:
        """Whether it may call that peer, too, in this minute; ``peer_id``: its own, if any.

        Peers that are not online count: else whoever tries many ids would learn which ones are.
        """
        now = time.monotonic()
        if peer_id is not None:
            return self._named_by_accounts.take((peer_id,), callee, now)
        keys = address_keys(host)
        return not self.limits.hold_for(keys) or self._named_by_strangers.take(keys, callee, now)

    # What happened.

    def over(self, limit: str, reason: str) -> str:
        """``reason``; it is a limit's, one of Limits, and so is counted."""
        self.counts.limits[limit] += 1
        return reason

    def refused(self, host: str, reason: str) -> None:
        """Log a refusal; those of one address that follow soon are only counted."""
        self.counts.trouble(host, reason)
        self.refusals.tell(address_key(host), "%s refused: %s", host, reason)

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        self.deadlines.sweep(now)
        for log_of_it in (self.refusals, self.paired, self.ended):
            log_of_it.sweep(now)
