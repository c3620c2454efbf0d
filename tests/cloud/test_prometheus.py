"""A real Prometheus scrapes a cloud once, and knows every metric that the manual names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gevent
import pytest
from gevent import socket as gsocket

from helpers.cloud_client import Client, running_admin, running_cloud, until
from helpers.support import PATIENCE_S
from kkp2p_compat.cloud.counts import Spread
from kkp2p_compat.cloud.directory_local import LocalDirectory

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "operations"
MANUAL = (ROOT / "docs" / "operations.rst").read_text()
OF_PEERS = re.compile(r"``kkp2p_engine_\w+``")  # not of a cloud; tests/engine/calls/test_metrics.py
CLOUDS = OF_PEERS.sub("", MANUAL)
DOCUMENTED = set(re.findall(r"^``((?:kkp2p|process)_\w+)``  ", CLOUDS, re.MULTILINE))
CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: kkp2p
    static_configs: [{{targets: ["{}:{}"]}}]
"""

needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus") and not os.environ.get("KKP2P_REQUIRE_LAB"),
    reason="there is no prometheus",
)


def named_in(text: str) -> set[str]:
    """Without what a counter's or a histogram's name is given besides."""
    found = re.findall(r"\b((?:kkp2p|process)_[a-z_]+)", text)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found} - {"kkp2p_compat"}


def fetch(port: int, path: str) -> Any:
    with gsocket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        answer = b""
        while data := sock.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return json.loads(body)["data"] if b" 200 " in head.splitlines()[0] else None


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Any]:
    """Starts it, to scrape an address; gives its port."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(address: tuple[str, int]) -> int:
        (tmp_path / "prometheus.yml").write_text(CONFIG.format(*address))
        with gsocket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        command = [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (tmp_path / "prometheus.log").open("w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        return port

    yield start
    for process in processes:
        process.kill()
        process.wait()


def answer_to(port: int, query: str) -> Any:
    """The series that it gives for a query."""
    answer = fetch(port, f"/api/v1/query?query={quote(query)}")
    return answer["result"] if answer else []


def scraped(port: int) -> set[str]:
    """The names that it has, and all it complains of is nothing."""

    def is_whole() -> bool:
        """``up`` is written last: names can be read while a scrape is half written."""
        try:
            return bool(answer_to(port, "up"))
        except OSError:
            return False  # it has not begun to listen

    with gevent.Timeout(PATIENCE_S, AssertionError("it has scraped nothing")):
        until(is_whole)
    (target,) = fetch(port, "/api/v1/targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    return set(fetch(port, "/api/v1/label/__name__/values"))


@needs_prometheus
def test_prometheus_finds_every_documented_name(
    prometheus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = Spread((0.1,))
    spread.add(0.01)
    monkeypatch.setattr(LocalDirectory, "latency", spread)  # as the Redis one has it
    with (
        running_cloud({"peer": "s"}, {"open_calls": 1}) as cloud,
        running_admin(cloud) as admin,
        Client(cloud.address) as peer,
        Client(cloud.address) as caller,
    ):
        peer.login("peer", "s")
        caller.call("peer", 1)
        assert caller.call("peer", 2)["reason"] == "limit"
        peer.send("answer", call=peer.receive()["call"], answer="{}")
        caller.receive()
        caller.send("over", call=1, path="p2p", ms=250)
        until(lambda: cloud.gate.counts.paths)
        port = prometheus(admin.address)
        names = scraped(port)
        plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
        assert {name for name in plain if name.startswith("kkp2p_")} == {
            name for name in DOCUMENTED if name.startswith("kkp2p_")
        }
        assert named_in(CLOUDS.replace("engine_metrics", "")) <= plain
        (series,) = answer_to(port, 'kkp2p_call_setup_seconds_sum{path="p2p"}')
        assert series["value"][1] == "0.25"


def test_rules_and_dashboard_ask_for_metrics_that_exist() -> None:
    assert len(DOCUMENTED) > 15
    for file in ("alerts.yml", "grafana.json"):
        asked = named_in((OPERATIONS / file).read_text().replace("kkp2p-cloud", ""))
        assert asked - {"process_cpu_seconds_total", "process_resident_memory_bytes"} <= DOCUMENTED
        assert len(asked) >= 8
    alerts = re.findall(r"alert: (\w+)", (OPERATIONS / "alerts.yml").read_text())
    assert (
        alerts
        == re.findall(r"^([A-Z]\w+[a-z])  +\S", MANUAL.split("Alerts\n~~~", 1)[1], re.MULTILINE)[1:]
    )


@needs_prometheus
@pytest.mark.parametrize("command", [("config", "prometheus.yml"), ("rules", "alerts.yml")])
def test_prometheus_takes_our_files(command: tuple[str, str]) -> None:
    kind, file = command
    subprocess.run(["promtool", "check", kind, OPERATIONS / file], check=True, capture_output=True)
