"""``kkp2p cloud --workers``: real processes at one port, on a real Redis."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.fileobject import FileObject

from helpers.cloud_client import Address, Client, StartProcess, cloud_process, end_process, until
from helpers.ports import free_port
from helpers.redis_server import RedisServer
from helpers.support import ENVIRONMENT, PATIENCE_S
from kkp2p_compat.cli import _workers
from kkp2p_compat.cli._workers import ALIVE, Workers, _are_free

__all__ = ["cloud_process"]

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


def test_workers_are_one_cloud(
    cloud_process: StartProcess, tmp_path: Path, redis_server: RedisServer
) -> None:
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


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body."""
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def is_served(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def nodes_shown(port: int) -> list[dict[str, Any]]:
    return list(json.loads(get(port, "/api/status")[1])["nodes"])


def login_nodes(file: Path) -> list[str]:
    """At which node each of the logins was that an audit log tells, one after the other."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line["node"] for line in lines if line["what"] == "login"]


def one_at_each(address: Address, stack: ExitStack, file: Path) -> dict[str, Client]:
    """Callers with a login, by their nodes: the kernel chooses these, so try until it has."""
    found: dict[str, Client] = {}
    while len(found) < 2:
        client, before = stack.enter_context(Client(address)), len(login_nodes(file))
        assert client.login(PEERS[0], "s", call_only=True)["op"] == "welcome"
        until(lambda: len(login_nodes(file)) > before)  # noqa: B023
        found[login_nodes(file)[-1]] = client
    return found


def second_call(client: Client, first: int) -> str:
    """What becomes of it while the first one is not answered."""
    assert client.call("callee", first)["op"] == "calling"
    second = client.call("callee", first + 1)
    for number in (first, first + 1):
        client.send("cancel", call=number)
    return str(second.get("reason", second["op"]))


def test_options_of_workers_and_what_sighup_reloads(
    cloud_process: StartProcess,
    tmp_path: Path,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command line comes before the environment, and that before the file; nobody is lost."""
    file, audit, rotated = (tmp_path / name for name in ("cloud.toml", "audit", "audit.1"))
    text = f'workers = 3\nregion = "file"\naudit = "{audit}"\n'
    file.write_text(text + "[limits]\nopen-calls = 2\n")
    monkeypatch.setitem(ENVIRONMENT, "KKP2P_CLOUD_REGION", "environment")
    monkeypatch.setitem(ENVIRONMENT, "KKP2P_CLOUD_WORKERS", "4")
    monkeypatch.setitem(ENVIRONMENT, "KKP2P_CLOUD_DRAIN", "0")
    admin = free_port()  # and the next one
    process, address = cloud_process(
        *("--directory", redis_server.url, "--workers", "2", "--data", str(tmp_path)),
        *(*OPTIONS, "--account", "callee:s", "--config", str(file), "--admin", str(admin)),
    )
    with ExitStack() as stack:
        callee = online(address, stack, "callee")
        callers = one_at_each(address, stack, audit)
        assert len(children(process)) == 2
        for port in (admin, admin + 1):
            until(lambda: is_served(port))  # noqa: B023
            until(lambda: len(nodes_shown(port)) == 2)  # noqa: B023
            assert {node["region"] for node in nodes_shown(port)} == {"environment"}
            assert {node["id"] for node in nodes_shown(port)} == set(callers)
        assert [second_call(client, 10) for client in callers.values()] == ["calling"] * 2
        new = tmp_path / "new"
        new.write_text(text + "[limits]\nopen-calls = 1\n")
        new.replace(file)
        audit.rename(rotated)
        process.send_signal(signal.SIGHUP)
        until(lambda: all(second_call(client, 20) == "limit" for client in callers.values()))
        while set(login_nodes(audit)) != set(callers):
            with Client(address) as client:
                assert client.login(PEERS[0], "s", call_only=True)["op"] == "welcome"
        before = len(login_nodes(rotated))
        assert set(one_at_each(address, stack, audit)) == set(callers)
        assert len(login_nodes(rotated)) == before
        for peer in (callee, *callers.values()):
            peer.send("beat")
            until(lambda: peer.receive()["op"] == "beat")  # noqa: B023
    status, log = end_process(process)
    assert status == 0
    assert "Traceback" not in log
    assert log.count("options have changed: open-calls") == 2


def test_a_redis_that_is_away_for_a_while(
    cloud_process: StartProcess, tmp_path: Path, redis_server: RedisServer
) -> None:
    """Each worker says so at its own port, keeps whom it has, and is ready again afterwards."""
    admin = free_port()  # and the next one
    process, address = cloud_process(
        *("--directory", redis_server.url, "--workers", "2", "--data", str(tmp_path)),
        *(*OPTIONS, "--drain", "0", "--admin", str(admin)),
    )

    def all_say(code: int, text: str, up: int) -> bool:
        for port in (admin, admin + 1):
            status, body = get(port, "/readyz")
            metrics = get(port, "/metrics")[1]
            if status != code or text not in body or f"kkp2p_redis_up {up}.0\n" not in metrics:
                return False
            assert get(port, "/healthz") == (200, "ok\n")
        return True

    with ExitStack() as stack:
        peers = [online(address, stack, peer) for peer in PEERS[:4]]
        until(lambda: is_served(admin) and is_served(admin + 1))
        until(lambda: all_say(200, "ok", 1))
        redis_server.stop()
        until(lambda: all_say(503, "the directory has been away for ", 0))
        assert [peer.ask("beat")["op"] for peer in peers] == ["beat"] * 4
        redis_server.start()
        until(lambda: all_say(200, "ok", 1))
        assert [peer.ask("beat")["op"] for peer in peers] == ["beat"] * 4
        caller = stack.enter_context(Client(address))
        for number, peer in enumerate(PEERS[:4]):  # at either node they are known again
            until(lambda: caller.call(peer, number)["op"] == "calling")  # noqa: B023
    status, log = end_process(process)
    assert status == 0
    assert "Traceback" not in log


def test_a_worker_that_stands_still_is_killed(
    cloud_process: StartProcess, tmp_path: Path, redis_server: RedisServer
) -> None:
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


class Played:
    """The process of a worker, whose output and end the test plays."""

    def __init__(self, is_up: bool = True) -> None:
        reading, self._writing = os.pipe()
        self.stdout = FileObject(reading, "rb")
        self.status: int | None = None
        self.signals: list[int] = []
        if is_up:
            self.say(ALIVE)

    def say(self, line: bytes) -> None:
        os.write(self._writing, line)

    def end(self, status: int) -> None:
        self.status = status
        os.close(self._writing)

    def kill(self) -> None:
        self.end(-signal.SIGKILL)

    def poll(self) -> int | None:
        return self.status

    wait = poll

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


Play = Callable[..., tuple[Workers, gevent.Greenlet]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Runs one worker whose processes are these, one after the other; an error: it cannot start."""

    def start(*processes: Played | OSError) -> tuple[Workers, gevent.Greenlet]:
        following = iter(processes)

        def popen(*_: object, **__: object) -> Played:
            process = next(following)
            if isinstance(process, OSError):
                raise process
            return process

        monkeypatch.setattr(_workers.subprocess, "Popen", popen)
        monkeypatch.setattr(_workers, "PAUSE_S", 0.0)
        monkeypatch.setattr(gevent, "signal_handler", lambda *_: None)  # they are this process's
        workers = Workers([], 1, ("127.0.0.1", 0))
        return workers, gevent.spawn(workers.run)

    return start


def test_a_worker_is_not_killed_because_its_parent_was_stopped(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Or both were, as by ``docker pause``: the time is over then, and not a sign has come."""
    every_s = 0.05
    monkeypatch.setattr(_workers, "ALIVE_EVERY_S", every_s)
    worker = Played()
    workers, running = play(worker)
    until(lambda: workers._has_said_hello)
    time.sleep(every_s * (_workers.STUCK + 2))  # nothing of this process runs meanwhile
    for _ in range(3):
        gevent.sleep(0.001)  # what the clock has made due
    workers._stop()
    worker.end(0)
    assert running.get() == 0
    assert caplog.text == ""


def test_a_worker_is_started_again_though_one_start_has_failed(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    killed, worker = Played(), Played()
    killed.end(-signal.SIGKILL)
    workers, running = play(killed, OSError(errno.EAGAIN, "no process is left"), worker)
    until(lambda: workers._running.get(0) is worker)
    workers._stop()
    worker.end(0)
    assert running.get() == 0
    assert "worker 0 cannot be started: [Errno 11] no process is left" in caplog.text


def test_workers_end_with_their_parent(
    cloud_process: StartProcess, tmp_path: Path, redis_server: RedisServer
) -> None:
    options = ("--directory", redis_server.url, "--workers", "2", "--data", str(tmp_path))
    process, _ = cloud_process(*options, *OPTIONS, "--drain", "0")
    until(lambda: len(children(process)) == 2)
    pids = children(process)
    process.kill()
    process.communicate()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_worker_that_is_not_up_yet_is_told_later_to_reload(play: Play) -> None:
    """Until it has a handler for SIGHUP, that would end it."""
    worker = Played(is_up=False)
    workers, running = play(worker)
    until(lambda: workers._running)
    workers._reload()
    assert worker.signals == []
    worker.say(ALIVE)
    until(lambda: worker.signals)
    workers._reload()
    workers._stop()
    worker.end(0)
    assert running.get() == 0
    assert worker.signals == [signal.SIGHUP, signal.SIGHUP, signal.SIGTERM]


def test_an_audit_log_has_who_came_before_the_first_sign_of_life(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = Played(), Played(is_up=False)
    first.end(1)
    workers, running = play(first, second)
    until(lambda: workers._running.get(0) is second)
    second.say(b"hello\n")
    second.say(b'{"what": "login"}\n')
    second.say(ALIVE)
    workers._stop()
    second.end(0)
    assert running.get() == 0
    assert capsys.readouterr().out == '  workers: 1\n{"what": "login"}\n'


def test_what_a_worker_says_between_the_lines_of_its_audit_log_is_printed(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = Played(is_up=False)
    workers, running = play(worker)
    until(lambda: workers._running)
    said = '{"what": "login"}\n7 lines were lost: nobody reads\n{"what": "login"}\n'
    for line in ("hello\n", ALIVE.decode(), *said.splitlines(keepends=True), ALIVE.decode()):
        worker.say(line.encode())
    workers._stop()
    worker.end(0)
    assert running.get() == 0
    assert capsys.readouterr().out == f"hello\n  workers: 1\n{said}"


def test_an_interrupt_at_the_terminal_lets_workers_drain(
    cloud_process: StartProcess, tmp_path: Path, redis_server: RedisServer
) -> None:
    """It is for the whole process group, and a second signal ends a worker at once."""
    admin = free_port()  # and the next one
    process, _ = cloud_process(
        *("--directory", redis_server.url, "--workers", "2", "--data", str(tmp_path)),
        *("--drain", "0", "--admin", str(admin)),
    )
    until(lambda: is_served(admin) and is_served(admin + 1))
    assert {get(port, "/healthz") for port in (admin, admin + 1)} == {(200, "ok\n")}
    group = os.getpgid(process.pid)
    members = [pid for pid in (process.pid, *children(process)) if os.getpgid(pid) == group]
    for pid in members:
        os.kill(pid, signal.SIGINT)
    _, log = process.communicate()
    assert process.returncode == 0
    assert members == [process.pid]
    assert log.count("stopped") == 2


def test_a_worker_that_has_not_stopped_by_itself_is_told_of(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Played()
    workers, running = play(worker)
    until(lambda: workers._has_said_hello)
    workers._stop()
    worker.end(-signal.SIGTERM)  # by a second one: the first lets it drain
    assert running.get() == 1
    assert "worker 0 has ended (-15) while stopping" in caplog.text


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
