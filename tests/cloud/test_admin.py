"""The HTTP port for operators: what it tells, and what it tells nobody."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from helpers.cloud_client import Client, running_admin, running_cloud, until
from kkp2p_compat._address import HostPort
from kkp2p_compat.cloud import admin, metrics
from kkp2p_compat.cloud.counts import LAST_MINUTES
from kkp2p_compat.cloud.directory import DirectoryAway
from kkp2p_compat.cloud.directory_local import LocalDirectory
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.cloud.stats import stats_untrusted


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with running_cloud({"peer": "right"}, names=["cloud.test"]) as cloud:
        yield cloud


@pytest.fixture
def port(cloud: Cloud) -> Iterator[HostPort]:
    with running_admin(cloud) as admin:
        yield admin.address


def exchange(port: HostPort, request: bytes) -> bytes:
    with gsocket.create_connection(port) as sock:
        sock.sendall(request)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return answer


def get(port: HostPort, path: str, host: str = "127.0.0.1", method: str = "GET") -> tuple[int, str]:
    """Status and body."""
    lines = f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", "", ""
    head, _, body = exchange(port, "\r\n".join(lines).encode()).partition(b"\r\n\r\n")
    assert b"Content-Security-Policy: default-src 'none'" in head
    return int(head.split()[1]), body.decode()


def test_health_and_readiness(
    cloud: Cloud, port: HostPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert get(port, "/healthz") == (200, "ok\n")
    assert get(port, "/readyz") == (200, "ok\n")
    with monkeypatch.context() as patch:
        patch.setattr(LocalDirectory, "away_since", time.monotonic() - 3)
        patch.setattr(LocalDirectory, "away_reason", "it is gone")
        code, reason = get(port, "/readyz")
        assert get(port, "/healthz") == (200, "ok\n")
    assert code == 503
    assert reason == "the directory has been away for 3 s: it is gone\n"
    cloud.is_draining = True
    assert get(port, "/readyz")[0] == 503


def test_the_numbers_are_those_of_what_happened(cloud: Cloud, port: HostPort) -> None:
    with Client(cloud.address) as client:
        client.login("peer", "right")
        text = get(port, "/metrics")[1]
        assert "kkp2p_peers 1.0\n" in text
        assert 'kkp2p_logins_total{outcome="ok"} 1.0\n' in text
        assert "process_resident_memory_bytes" in text
        status = json.loads(get(port, "/api/status")[1])
        assert status["newest"] == [{"peer": "peer", "host": "127.0.0.1"}]
        assert status["nodes"][0]["stats"]["peers"] == 1
    until(lambda: "kkp2p_peers 0.0\n" in get(port, "/metrics")[1])


def test_one_peer(cloud: Cloud, port: HostPort) -> None:
    with Client(cloud.address) as client:
        client.login("peer", "right")
        client.send("nat", nat={"mapping": "none"})
        until(lambda: json.loads(get(port, "/api/peer?id=peer")[1])["here"]["nat"])
        found = json.loads(get(port, "/api/peer?id=peer")[1])
    assert found["online"]
    assert found["here"]["host"] == "127.0.0.1"
    assert found["account"]["allow"] == "anybody"
    nobody = json.loads(get(port, "/api/peer?id=nobody")[1])
    assert (nobody["online"], nobody["account"]) == (False, None)


def test_no_answer_has_a_secret(cloud: Cloud, port: HostPort) -> None:
    assert cloud.directory is not None
    account = cloud.directory.account("peer")
    assert account is not None
    secrets = [cloud._key, *account.verifier[:3]]
    for path in ("/", "/page.js", "/api/status", "/api/peer?id=peer", "/metrics"):
        body = get(port, path)[1]
        for secret in secrets:
            assert secret.hex() not in body
            assert repr(secret) not in body
        assert "verifier" not in body


def test_what_it_does_not_have(cloud: Cloud, port: HostPort) -> None:
    for query in ("", "?id=", "?id=a%20b", "?id=" + "x" * 33, "?id=%ff", "?x=1"):
        assert get(port, "/api/peer" + query) == (400, "that is no peer id\n")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):  # nothing can be changed
        assert get(port, "/api/status", method=method)[0] == 405
    for path in ("/nothing", "/../admin.py", "/page/index.html", "/api", "//"):
        assert get(port, path)[0] == 404
    assert get(port, "/healthz", method="HEAD") == (200, "")


def test_a_name_that_is_not_ours_gets_no_page(cloud: Cloud, port: HostPort) -> None:
    for host, code in (
        ("127.0.0.1:80", 200),
        ("[::1]:80", 200),
        ("localhost", 200),
        ("LocalHost:1", 200),
        ("cloud.test:9", 200),
        ("evil.test", 421),
        ("", 421),
        ("127.0.0.1.evil.test", 421),
        ("[evil.test]", 421),
    ):
        for path in ("/", "/api/status", "/api/peer?id=peer"):
            assert get(port, path, host)[0] == code, host
        for path in ("/healthz", "/readyz", "/metrics"):  # of a balancer, and a Prometheus
            assert get(port, path, host)[0] == 200


def test_garbage_is_answered_or_closed(cloud: Cloud, port: HostPort) -> None:
    for request in (
        b"\0" * 100,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000,
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ):
        with contextlib.suppress(ConnectionError):  # it did not read all of it
            exchange(port, request + b"\r\n\r\n")
        assert get(port, "/healthz")[0] == 200


def test_nobody_holds_a_connection_for_ever(
    cloud: Cloud, port: HostPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "CONNECTION_S", 0.1)
    with gsocket.create_connection(port) as slow:
        slow.sendall(b"GET / HT")
        with gevent.Timeout(20, AssertionError("it is still open")):
            while slow.recv(1000):
                pass


def test_a_directory_that_is_away(
    cloud: Cloud, port: HostPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> Any:
        raise DirectoryAway("no Redis")

    assert cloud.directory is not None
    monkeypatch.setattr(cloud.directory, "account", away)
    assert get(port, "/api/peer?id=peer") == (503, "the directory is away: no Redis\n")


def test_a_port_that_is_taken(cloud: Cloud, port: HostPort) -> None:
    with pytest.raises(OSError, match="no admin port at"):
        admin.Admin(cloud, port)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"peers": float("inf")},
        {"peers": -1},
        {"peers": "1"},
        {"minutes": [1]},
        {"minutes": {"p2p": [1]}},
        {"nats": []},
        {"nats": {"a": 1}},
        {"nats": {"a": [1, 2]}},
        {"minute": float("nan")},
        {"peers": [[]]},
        {"minutes": {"p2p": ["x"] * LAST_MINUTES}},
    ],
)
def test_the_numbers_of_another_node_may_be_anything(told: dict[str, Any]) -> None:
    clean = stats_untrusted(told)
    assert json.loads(json.dumps(clean, allow_nan=False)) == clean
    assert clean["peers"] == clean["minute"] == 0
    assert all(
        sum(calls) == 0 and len(calls) == LAST_MINUTES for calls in clean["minutes"].values()
    )


def test_good_numbers_of_another_node_are_taken(cloud: Cloud, port: HostPort) -> None:
    cloud.gate.counts.path("p2p", "none + none", 0.1)
    told = json.loads(json.dumps(cloud.stats()))
    assert stats_untrusted(told) == told
    assert told["nats"] == {"none + none": [1, 0, 0]}


def test_the_event_loop_rests_while_its_lag_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LAG_EVERY_S", 0.02)
    began = time.monotonic()
    lag = metrics.LoopLag()
    with gevent.Timeout(20):
        while sum(lag.spread.counts) < 5:
            gevent.sleep(0.005)
    lag.stop()
    assert time.monotonic() - began > 5 * 0.015
