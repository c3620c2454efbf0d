"""The numbers of a node that it tells the others with its lease: what the status page adds up."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from typing import Any

from .counts import LAST_MINUTES, Counts
from .lane import LaneRelay
from .limits import Gatekeeper
from .relay import Relay
from .track import Track

__all__ = ["NodeStats", "relay_sessions", "relayed_bytes", "stats_untrusted"]

# Our choices.
RATE_S = 1.0  # over which a rate is taken, at least
MAX_NATS = 36  # pairs of NATs that a node may tell of
MAX_NUMBER = 1e15
_NUMBERS = ("peers", "calls", "connections", "relay_sessions", "relay_bytes_per_s", "up_s")
_MINUTES = ("p2p", "relay", "failed")


class NodeStats:
    """The numbers of this node."""

    def __init__(self, gate: Gatekeeper) -> None:
        self._gate = gate
        self._started = self._taken_at = time.monotonic()
        self._relayed = 0
        self._rate = 0.0

    def take(
        self, track: Track | None, relay: Relay | None, lane: LaneRelay | None
    ) -> dict[str, Any]:
        """As a small JSON object."""
        now = time.monotonic()
        passed_s = now - self._taken_at
        if passed_s >= RATE_S:
            relayed = sum(relayed_bytes(relay, lane).values())
            self._rate = (relayed - self._relayed) / passed_s
            self._relayed, self._taken_at = relayed, now
        minute, calls = self._gate.counts.minutes()
        return {
            "peers": 0 if track is None else track.online,
            "calls": 0 if track is None else track.calls,
            "connections": self._gate.connections,
            "relay_sessions": sum(relay_sessions(relay, lane).values()),
            "relay_bytes_per_s": round(self._rate),
            "up_s": round(now - self._started),
            "minute": minute,
            "minutes": calls,
            "nats": _by_nats(self._gate.counts),
        }


def relayed_bytes(relay: Relay | None, lane: LaneRelay | None) -> dict[str, int]:
    """By "tcp" and "udp"."""
    return {
        "tcp": 0 if relay is None else relay.bytes_forwarded,
        "udp": 0 if lane is None else lane.bytes_forwarded,
    }


def relay_sessions(relay: Relay | None, lane: LaneRelay | None) -> dict[str, int]:
    return {
        "tcp": 0 if relay is None else relay.sessions,
        "udp": 0 if lane is None else lane.table.paired,
    }


def _by_nats(counts: Counts) -> dict[str, list[int]]:
    """For each pair of NATs: calls by p2p, by a relay, and without a path."""
    found: dict[str, list[int]] = {}
    for (path, nats), count in counts.paths.items():
        by_path = found.setdefault(nats, [0, 0, 0])
        by_path[2 if path == "none" else 0 if path.startswith("p2p") else 1] += count
    return found


def stats_untrusted(told: Mapping[str, Any]) -> dict[str, Any]:
    """What of a node's numbers can be so; the rest is 0, or left out."""
    minutes, nats = told.get("minutes"), told.get("nats")
    return {
        **{name: _number_untrusted(told.get(name)) for name in (*_NUMBERS, "minute")},
        "minutes": {
            name: _numbers_untrusted(minutes.get(name), LAST_MINUTES)
            if isinstance(minutes, dict)
            else [0] * LAST_MINUTES
            for name in _MINUTES
        },
        "nats": {
            str(pair)[:80]: _numbers_untrusted(by_path, 3)
            for pair, by_path in itertools.islice(nats.items(), MAX_NATS)
        }
        if isinstance(nats, dict)
        else {},
    }


def _number_untrusted(value: object) -> int:
    if isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= MAX_NUMBER:
        return int(value)
    return 0


def _numbers_untrusted(values: object, count: int) -> list[int]:
    if not isinstance(values, list) or len(values) != count:
        return [0] * count
    return [_number_untrusted(value) for value in values]
