"""``kkp2p cloud --workers``: real processes at one port, on a real Redis."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest

from helpers.cloud_client import Address, Client, cloud_process, end_process, until
from helpers.redis_server import RedisServer
from helpers.support import ENVIRONMENT
from kkp2p_compat.cli._workers import _are_free

PEERS = [f"peer{number}" for number in range(8)]
OPTIONS = [word for peer in PEERS for word in ("--account", f"{peer}:s")]


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    with gevent.Timeout(150):
        yield


def children(process: subprocess.Popen[str]) -> set[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return {int(pid) for pid in path.read_text().split()}


def online(address: Address, stack: ExitStack, peer: str) -> Client:
    client = stack.enter_context(Client(address))
    assert client.login(peer, "s")["op"] == "welcome"
    return client


def audited(text: str) -> list[str]:
    """Who has logged in, by the lines of an audit log between others."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return sorted(line["account"] for line in lines if line["what"] == "login")


def test_workers_are_one_cloud(tmp_path: Path, redis_server: RedisServer) -> None:
    options = ("--directory", redis_server.url, "--workers", "3", "--data", str(tmp_path))
    process, address = cloud_process(*options, *OPTIONS, "--drain", "0", "--audit", "-")
    with ExitStack() as stack:
        clients = [online(address, stack, peer) for peer in PEERS]
        caller = stack.enter_context(Client(address))
        for number, (peer, client) in enumerate(zip(PEERS, clients, strict=True)):
            calling = caller.call(peer, number)
            assert calling["op"] == "calling"
            offer = client.receive()
            assert offer["relay"][:2] == calling["relay"][:2]
            assert address[1] + 2 <= calling["relay"][1] < address[1] + 5
        before = children(process)
        assert len(before) == 3
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in children(process) and len(children(process)) == 3)
    process.terminate()
    output, log = process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in log
    assert "has ended (-9)" in log
    assert audited(output) == sorted(PEERS)


def test_a_worker_that_stands_still_is_killed(tmp_path: Path, redis_server: RedisServer) -> None:
    options = ("--directory", redis_server.url, "--workers", "2", "--data", str(tmp_path))
    process, _ = cloud_process(*options, *OPTIONS, "--drain", "0")
    until(lambda: len(children(process)) == 2)
    victim = min(children(process))
    os.kill(victim, signal.SIGSTOP)
    until(lambda: victim not in children(process))
    until(lambda: len(children(process)) == 2)
    status, log = end_process(process)
    assert status == 0
    assert "stands still" in log


def test_workers_end_with_their_parent(tmp_path: Path, redis_server: RedisServer) -> None:
    options = ("--directory", redis_server.url, "--workers", "2", "--data", str(tmp_path))
    process, _ = cloud_process(*options, *OPTIONS, "--drain", "0")
    until(lambda: len(children(process)) == 2)
    pids = children(process)
    process.kill()
    process.communicate()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ((), 2, "--workers needs --directory"),
        (("--directory", "redis://127.0.0.1:1"), 1, "kkp2p cloud: "),
    ],
)
def test_workers_that_cannot_start(
    tmp_path: Path, options: tuple[str, ...], status: int, why: str
) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "kkp2p_compat", "cloud", "--workers", "2"),
            *("--listen", "127.0.0.1:0", "--data", str(tmp_path), *options),
        ],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert ended.returncode == status, ended.stderr
    assert why in ended.stderr


def test_a_port_counts_as_free_if_all_that_is_served_there_is() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        number = taken.getsockname()[1]
        assert not _are_free("127.0.0.1", {socket.SOCK_DGRAM: [number]})
    assert _are_free("127.0.0.1", {socket.SOCK_DGRAM: [number]})
    assert not _are_free("127.0.0.1", {socket.SOCK_STREAM: [65536]})
