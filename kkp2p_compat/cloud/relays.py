"""Which relays a call is given: those of the nodes that live, near to both peers, and not busy.

Peers measure their round trips to the relays that they are told of (``told``), and tell us.  What a
peer has not measured is taken to be like what it has: another relay at the same host, one in the
same region, or the median of all.
"""

from __future__ import annotations

import math
import secrets
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from random import Random
from typing import Any, NamedTuple

from .._address import host_port_untrusted, parse_host_port, text_of
from .._errors import BadPacket
from ..control.wire import MAX_ROUND_TRIP_MS, MAX_TOLD_RELAYS
from ..transport import relay_wire
from .directory import Node
from .members import Call, Member
from .usage import USED_UP, Payer, Usage, tag_of

__all__ = ["MAX_RELAYS", "Relays", "choose", "round_trips_untrusted", "to_measure"]

HostPortOrHere = tuple[str | None, int | None]  # None: where the control connection goes to
RoundTrips = Mapping[str, int]  # "host:port" of a relay: milliseconds

# Our choices.
MAX_RELAYS = 3  # of a call
TOKEN_MARGIN_S = 10  # a token outlives its call by this: the clocks of track and relay differ
BUSY_MS = 10.0  # what a relay that is half busy counts as farther away, and more and more above
MOST_BUSY = 0.98
ALIKE_MS = 5.0  # relays that differ by less take turns

_random = secrets.SystemRandom()


class Places(NamedTuple):
    """What the two sides of a call are told of relays: where, with a token of its own, and what
    both are told besides.  None: they get no relay, and ``why``.
    """

    of_caller: list[str | int | None] | None
    of_callee: list[str | int | None] | None
    fields: dict[str, Any]
    why: str = ""


class Relays:
    """``key``: with which tokens are made.  ``usage``: of relays, by account.  ``living``: the
    nodes of the cloud; None: it is this process alone, and the relay is where the control
    connection goes to.
    """

    def __init__(
        self, key: bytes, usage: Usage, living: Callable[[], Iterable[Node]] | None = None
    ) -> None:
        self._key = key
        self._usage = usage
        self._living = living

    def new_session(self, caller: Member, callee: Member) -> bytes:
        """An id on the relay for a call, which the caller's account pays for, if it has one."""
        member = callee if caller.peer_id is None else caller
        quota = member.limits.relay_bytes_per_day
        return self._usage.new_session(Payer(tag_of(str(member.peer_id)), quota))

    def places(self, call: Call) -> Places:
        if self._usage.is_over(self._usage.payer(call.session)):
            return Places(None, None, {"no_relay": "limit"}, USED_UP)
        found = self.near(call.caller.round_trips, call.callee.round_trips)
        if not found:
            return Places(None, None, {"no_relay": "none"}, "none lives")
        (host, port), *others = found
        expiry = math.ceil(time.time() + call.budget_ms / 1000) + TOKEN_MARGIN_S

        def place(side: int) -> list[str | int | None]:
            token = relay_wire.make_token(self._key, call.session, side, expiry)
            return [host, port, relay_wire.token_to_text(token)]

        fields = {"relays": others or None}
        return Places(place(relay_wire.CALLER), place(relay_wire.CALLEE), fields)

    def _alive(self) -> list[Node]:
        return [] if self._living is None else _relays_of(self._living())

    def living_places(self) -> frozenset[tuple[str, int]]:
        return frozenset((node.relay_host, node.relay_port) for node in self._alive())

    def near(self, *sides: RoundTrips) -> list[HostPortOrHere]:
        """The first one, and those to go to when one of the two sides cannot reach it.

        Empty where there is none.
        """
        if self._living is None:
            return [(None, None)]
        return [(node.relay_host, node.relay_port) for node in choose(self._alive(), sides)]

    def told(self) -> list[list[str | int]] | None:
        return to_measure(self._alive(), _random)


def _relays_of(nodes: Iterable[Node]) -> list[Node]:
    """One of each place: behind a name there may be several."""
    places = {(node.relay_host, node.relay_port): node for node in nodes if not node.draining}
    return [node for node in places.values() if node.relay_port]


def to_measure(nodes: Iterable[Node], random: Random) -> list[list[str | int]] | None:
    """Which relays a peer is to measure; None where there is nothing to choose.

    One of each host, of each region in turn: those at one host are equally far.  ``random``: a
    seeded one draws the same of the same places.
    """
    alive = sorted(_relays_of(nodes), key=lambda node: (node.relay_host, node.relay_port))
    by_region: defaultdict[str, dict[str, Node]] = defaultdict(dict)
    for node in random.sample(alive, len(alive)):
        by_region[node.region].setdefault(node.relay_host, node)
    turns = chain.from_iterable(zip_longest(*(each.values() for each in by_region.values())))
    found = [[node.relay_host, node.relay_port] for node in turns if node is not None]
    return found[:MAX_TOLD_RELAYS] if len(found) > 1 else None


def choose(
    relays: Sequence[Node], sides: Sequence[RoundTrips], random: Random = _random
) -> list[Node]:
    """Up to MAX_RELAYS, the best first; those behind it are at other hosts, where there are."""
    distances = [_distances(relays, side) for side in sides if side]
    costs = {
        node.id: sum(each[node.id] for each in distances)
        + _busy_ms(node.load)
        + random.uniform(0, ALIKE_MS)
        for node in relays
    }
    left = sorted(relays, key=lambda node: costs[node.id])
    chosen: list[Node] = []
    while left and len(chosen) < MAX_RELAYS:
        hosts = {node.relay_host for node in chosen}
        best = next((node for node in left if node.relay_host not in hosts), left[0])
        left.remove(best)
        chosen.append(best)
    return chosen


def _busy_ms(load: float) -> float:
    """As the wait in a queue grows with its load."""
    load = min(max(load, 0.0), MOST_BUSY)
    return BUSY_MS * load / (1 - load)


def _distances(relays: Sequence[Node], measured: RoundTrips) -> dict[str, float]:
    """From one peer, which has measured some, by the nodes' ids."""
    by_host: defaultdict[str, list[int]] = defaultdict(list)
    by_region: defaultdict[str, list[int]] = defaultdict(list)
    regions = {node.relay_host: node.region for node in relays}
    for name, ms in measured.items():
        host, _ = parse_host_port(name)
        by_host[host].append(ms)
        if regions.get(host):
            by_region[regions[host]].append(ms)
    median = statistics.median(measured.values())

    def distance(node: Node) -> float:
        exact = measured.get(text_of((node.relay_host, node.relay_port)))
        if exact is not None:
            return exact
        near = by_host.get(node.relay_host) or by_region.get(node.region)
        return statistics.median(near) if near else median

    return {node.id: distance(node) for node in relays}


def round_trips_untrusted(told: object) -> dict[str, int]:
    """What a peer tells in ``rtt``; raises BadPacket.  None tells nothing."""
    if told is None:
        return {}
    if not isinstance(told, dict) or len(told) > MAX_TOLD_RELAYS:
        raise BadPacket(f"rtt is not an object of at most {MAX_TOLD_RELAYS} relays")
    for name, ms in told.items():
        if type(ms) is not int or not 0 <= ms <= MAX_ROUND_TRIP_MS:
            raise BadPacket("a round trip that is not a number of milliseconds")
        try:
            host_port_untrusted(*parse_host_port(name))
        except ValueError as error:
            raise BadPacket("a round trip to what is not a relay") from error
    return dict(told)
