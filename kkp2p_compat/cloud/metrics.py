"""The metrics of a cloud process, for Prometheus.  docs/operations.rst says what each one means.

They are read when somebody scrapes, of what the parts count anyway.  Imported only where metrics
are wanted: prometheus-client is not among the dependencies that everybody needs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .._io import OneShot
from .._version import __version__
from .counts import Spread
from .server import Cloud
from .stats import relay_sessions, relayed_bytes
from .status import living, why_not_ready

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Our choices.
LAG_EVERY_S = 0.25  # how often the lag of the event loop is looked at
LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

# Those that are shown from the beginning, at 0.
_LOGINS = ("ok", "bad-secret", "unknown-peer", "limit")
_CALLS = ("answered", "offline", "declined", "no-answer", "cancelled", "not-allowed", "limit")


class LoopLag:
    """How late a timer of the event loop is, which all others wait for, too."""

    def __init__(self) -> None:
        self.spread = Spread(LAG_S)
        self._due = 0.0
        self._timer = OneShot(LAG_EVERY_S)
        self._start()

    def stop(self) -> None:
        self._timer.close()

    def _start(self) -> None:
        self._due = time.monotonic() + LAG_EVERY_S
        self._timer.start(self._on_timer)

    def _on_timer(self) -> None:
        self.spread.add(max(0.0, time.monotonic() - self._due))
        self._start()


class Metrics:
    """Call order: ``text`` as often as somebody scrapes, ``stop`` at the end."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._lag = LoopLag()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def stop(self) -> None:
        self._lag.stop()

    def text(self) -> bytes:
        return bytes(generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield from self._state()
        yield from self._control()
        yield from self._relay()
        yield _histogram(
            "kkp2p_loop_lag_seconds", "How late the event loop is.", [], {(): self._lag.spread}
        )

    def _state(self) -> Iterator[Metric]:
        cloud = self._cloud
        about = {"version": __version__, "role": cloud.settings.role, "node": cloud.own_node().id}
        yield InfoMetricFamily("kkp2p_node", "This process.", about)
        yield _gauge("kkp2p_ready", "1: it takes new peers.", not why_not_ready(cloud))
        yield _gauge("kkp2p_nodes", "Nodes of the cloud that live.", len(living(cloud)))
        yield _gauge("kkp2p_connections", "TCP connections.", cloud.gate.connections)
        if cloud.certificate_ends is not None:
            text = "When the certificate ends, Unix time."
            yield _gauge("kkp2p_certificate_end_timestamp_seconds", text, cloud.certificate_ends)
        directory = cloud.directory
        latency = None if directory is None else directory.latency
        if directory is not None and latency is not None:
            here = directory.away_since is None
            yield _gauge("kkp2p_redis_up", "1: Redis answers, and takes writes.", here)
            text = "How long Redis took to answer."
            yield _histogram("kkp2p_redis_seconds", text, [], {(): latency})

    def _control(self) -> Iterator[Metric]:
        track, counts = self._cloud.track, self._cloud.gate.counts
        if track is not None:
            yield _gauge("kkp2p_peers", "Peers that are online here.", track.online)
            yield _gauge("kkp2p_calls_open", "Calls that the track carries now.", track.calls)
        logins = {(outcome,): 0 for outcome in _LOGINS} | _keyed(counts.logins)
        yield _counter("kkp2p_logins", "Logins, by how they came out.", ["outcome"], logins)
        calls = {(outcome,): 0 for outcome in _CALLS} | _keyed(counts.calls)
        yield _counter("kkp2p_calls", "Calls, by how they came out.", ["outcome"], calls)
        text = "Answered calls, by path and the two NATs."
        yield _counter("kkp2p_call_paths", text, ["path", "nats"], counts.paths)
        set_up = {(path,): spread for path, spread in counts.set_up.items()}
        text = "From a call to its first path."
        yield _histogram("kkp2p_call_setup_seconds", text, ["path"], set_up)
        text = "How often a limit was hit, by its name."
        yield _counter("kkp2p_limits_hit", text, ["limit"], _keyed(counts.limits))

    def _relay(self) -> Iterator[Metric]:
        cloud = self._cloud
        sessions = GaugeMetricFamily(
            "kkp2p_relay_sessions", "Pairs of peers that are relayed.", labels=["kind"]
        )
        for kind, count in relay_sessions(cloud.relay, cloud.lane).items():
            sessions.add_metric([kind], count)
        yield sessions
        relayed = _keyed(relayed_bytes(cloud.relay, cloud.lane))
        yield _counter("kkp2p_relay_bytes", "Bytes relayed.", ["kind"], relayed)
        if cloud.stun is not None:
            answered = cloud.stun.counts["answered"]
            counts = {("answered",): answered, ("dropped",): cloud.stun.counts.total() - answered}
            yield _counter("kkp2p_stun_requests", "STUN requests by UDP.", ["outcome"], counts)
        if cloud.lane is not None:
            dropped = cloud.lane.counts.total()
            text = "Datagrams at the relay's UDP port that went nowhere."
            yield CounterMetricFamily("kkp2p_lane_drops", text, dropped)


_Keys = Mapping[Any, Any]  # the labels' values, a tuple of texts


def _keyed(counts: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    return {(key,): count for key, count in counts.items()}


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, float(value))


def _counter(name: str, text: str, labels: list[str], values: _Keys) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _histogram(name: str, text: str, labels: list[str], spreads: _Keys) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, spread in spreads.items():
        total, buckets = 0, []
        for bound, count in zip((*spread.bounds, "+Inf"), spread.counts, strict=True):
            total += count
            buckets.append((str(bound), float(total)))
        family.add_metric(list(key), buckets, spread.sum)
    return family
