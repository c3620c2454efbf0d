"""Redis of the test's own: on a port of loopback, in a folder of its own, without persistence."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from helpers.ports import free_port
from helpers.support import PATIENCE_S
from kkp2p_compat.testing.plugin import absent, need

HOST = "127.0.0.1"
MASTER = "fleet"  # how the sentinels name it


class RedisServer:
    """``lines``: of its configuration file.

    ``stop`` (it is killed, and what it knew is gone), ``start`` it again on the same port,
    ``pause`` and ``go_on``; ``ask`` a command, as a tool would.
    """

    def __init__(self, folder: Path, *lines: str, is_sentinel: bool = False) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self._lines = lines
        self._is_sentinel = is_sentinel
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def start(self) -> None:
        config = self.folder / f"redis-{self.port}.conf"
        lines = [f"port {self.port}", f"bind {HOST}", f"dir {self.folder}", "logfile log"]
        lines += self._lines if self._is_sentinel else ('save ""', "appendonly no", *self._lines)
        config.write_text("\n".join(lines) + "\n")
        command = ["redis-server", str(config), *(["--sentinel"] if self._is_sentinel else [])]
        self.process = subprocess.Popen(command)
        with gevent.Timeout(PATIENCE_S, AssertionError("no Redis")):
            while not self._answers():
                if self.process.poll() is not None:
                    raise ChildProcessError("Redis has ended")
                gevent.sleep(0.005)

    def _answers(self) -> bool:
        try:
            return self.ask("PING") == b"PONG"
        except OSError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.go_on()
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """It takes everything and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def ask(self, *command: object) -> Any:
        """The answer; raises OSError where there is none."""
        from redis import exceptions

        from kkp2p_compat.cloud.redis_place import RedisPlace

        try:
            connection = RedisPlace.parse(self.url).connect()
            try:
                connection.send_command(*command)
                return connection.read_response()
            finally:
                connection.disconnect()
        except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
            raise OSError(str(error)) from error


class SentinelFleet:
    """A master, its replica, and a sentinel that makes the replica the master when that dies."""

    def __init__(self, folder: Path, start: Callable[..., RedisServer]) -> None:
        self.master = start("repl-diskless-sync-delay 0")
        self.replica = start(f"replicaof {HOST} {self.master.port}")
        self.sentinel = start(
            f"sentinel monitor {MASTER} {HOST} {self.master.port} 1",
            f"sentinel down-after-milliseconds {MASTER} 2000",
            is_sentinel=True,
        )
        for period in ("INFO-PERIOD", "PUBLISH-PERIOD"):  # how soon it sees what has changed
            self.sentinel.ask("SENTINEL", "DEBUG", period, "100")
        with gevent.Timeout(PATIENCE_S, AssertionError("no replica")):
            while not self._knows_replica():
                gevent.sleep(0.02)

    def is_replica(self, server: RedisServer) -> bool:
        try:
            return bool(server.ask("ROLE")[0] == b"slave")
        except OSError:  # whose connections end when it becomes one
            return False

    def _knows_replica(self) -> bool:
        """Else it would have nobody to make the master."""
        for replica in self.sentinel.ask("SENTINEL", "REPLICAS", MASTER):
            state = dict(zip(replica[::2], replica[1::2], strict=True))
            return state[b"flags"] == b"slave" and state[b"master-link-status"] == b"ok"
        return False

    @property
    def url(self) -> str:
        return f"redis+sentinel://{HOST}:{self.sentinel.port}/{MASTER}"


def need_redis() -> None:
    """Skip the test, with the reason, where Redis or redis-py is missing; fail where all is to be
    there."""
    need("redis-server")
    try:
        import redis  # noqa: F401
    except ModuleNotFoundError:
        absent("no redis-py")


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Servers of the test's own, ended by it or afterwards."""
    need_redis()
    servers: list[RedisServer] = []

    def start(*lines: str, **options: bool) -> RedisServer:
        folder = tmp_path / f"redis{len(servers)}"
        folder.mkdir()
        servers.append(RedisServer(folder, *lines, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def redis_server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis()
