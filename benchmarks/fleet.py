"""A cloud of four workers with Redis, beside one process: what they hold, how peers come back.

``one``: one process, with accounts in SQLite.  ``workers``: ``kkp2p cloud --workers 4``, with
accounts and who is online where in Redis.  Peers stay online by CloudClient, as those of engines
do, in a few processes, and answer each call at once.  Printed: logins in a second, memory of a peer
(in the cloud, and in Redis), processor time with heartbeats alone, calls in a second (offer and
answer, nothing more) with many at once and one at a time, between peers of one node and of two;
when all are back after one worker, and after everything, was killed and started again.  ``chaos``
is in fleet_chaos.py, and needs root.

All on one machine: the peers' half of each TLS handshake, login and call costs more than the
cloud's, and takes its processor time.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kkp2p_compat.cloud.directory import Account, Directory, Verifier
from kkp2p_compat.cloud.open_directory import open_directory

from . import fleet_chaos
from .agents import Agent
from .redis_server import Redis
from .relay import NO_LIMITS, started
from .rows import machine, show

PARTS = ("one", "workers", "chaos")
PEERS = {"one": 20_000, "workers": 20_000, "chaos": 300}
QUICK_PEERS = {"one": 200, "workers": 200, "chaos": 12}
WORKERS = 4
SPARE = 1000  # descriptors of a process that are not for peers
PROGRAMS = 4  # of peers
REST_S = 12.5  # with heartbeats alone: half of those of 25 s
AT_ONCE = 16  # calls of each program
CALLS_S = 5.0
PAIRS = 300
PATIENCE_S = 180.0


class Group:
    """Processes: what all of them use."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids

    def mb(self) -> float:
        """Each page once, however many share it."""
        total_kb = 0
        for pid in self._pids:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total_kb += int(line.split()[1])
        return total_kb / 1024

    def cpu_s(self) -> float:
        ticks = 0
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


class Fleet:
    """The cloud under test, with peers."""

    def __init__(self, part: str, peers: int, folder: Path, stack: ExitStack) -> None:
        self.redis = Redis(folder, stack) if part == "workers" else None
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.peers = min(peers, (most - SPARE) * (WORKERS if self.redis else 1))
        self.port = 0
        self.secret = secrets.token_hex(5)
        self._folder = folder
        self._stack = stack
        self._make_accounts(None if self.redis else folder / "data")
        self.start_cloud()

        def run(host: None, line: None, *command: str) -> subprocess.Popen[str]:
            return stack.enter_context(started(*command, folder=folder)).process

        self.crowds = [Agent(run, None, "benchmarks.fleet_ends") for _ in range(PROGRAMS)]

    @contextmanager
    def directory(self, data: Path | None = None) -> Iterator[Directory]:
        directory = open_directory(None if self.redis is None else self.redis.url, data)
        directory.start()
        yield directory
        directory.close()

    def _make_accounts(self, data: Path | None) -> None:
        verifier = Verifier.of(self.secret)
        with self.directory(data) as directory:
            for number in range(self.peers):
                directory.put(Account(f"{self.secret}{number}", verifier, int(time.time())))

    def start_cloud(self) -> None:
        options: tuple[str, ...] = ()
        if self.redis is not None:
            options = ("--directory", self.redis.url, "--workers", str(WORKERS))
        program = self._stack.enter_context(
            started(
                "-m",
                "kkp2p_compat",
                "cloud",
                *NO_LIMITS,
                *options,
                "--data",
                "data",
                "--listen",
                f"0.0.0.0:{self.port}",
                "--log-level",
                "error",
                folder=self._folder,
            )
        )
        while not (found := re.fullmatch(r"  at .*:(\d+)\n", program.line())):
            pass
        self.port, self._program = int(found[1]), program.process
        if self.redis is not None:
            _wait_until(lambda: self.living() == WORKERS, "not all workers are there")
        self.group = Group([program.process.pid, *self.workers()])

    def workers(self) -> list[int]:
        pid = self._program.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def living(self) -> int:
        with self.directory() as directory:
            return len(directory.nodes())

    def kill_worker(self) -> None:
        os.kill(self.workers()[0], signal.SIGKILL)

    def restart(self) -> None:
        workers = self.workers()
        for pid in (self._program.pid, *workers):
            os.kill(pid, signal.SIGKILL)
        self._program.wait()
        if self.redis is not None:
            self.redis.ask("DEL", "kkp2p:nodes")  # only to see the new ones come
        self.start_cloud()

    def all(self, what: str, **fields: Any) -> list[dict[str, Any]]:
        return self._ask([{"op": what, **fields} for _ in self.crowds])

    def _ask(self, questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        for crowd, question in zip(self.crowds, questions, strict=True):
            crowd.ask(question.pop("op"), **question)
        return [crowd.answer() for crowd in self.crowds]

    def log_in(self) -> float:
        """All peers; logins in a second."""
        share = self.peers // PROGRAMS
        began = time.monotonic()
        self._ask(
            [
                {
                    "op": "log_in",
                    "port": self.port,
                    "hosts": [f"127.0.0.{number + 1}"],
                    "secret": self.secret,
                    "first": number * share,
                    "count": share,
                }
                for number in range(PROGRAMS)
            ]
        )
        self.peers = share * PROGRAMS
        return self.peers / (time.monotonic() - began)

    def node_of(self, numbers: Sequence[int]) -> dict[int, str]:
        with self.directory() as directory:
            found = {number: directory.where(f"{self.secret}{number}") for number in numbers}
        return {number: there.node for number, there in found.items() if there is not None}

    def calls(
        self, pairs: list[tuple[int, int]], at_once: int, crowds: int = PROGRAMS
    ) -> tuple[list[float], int, float]:
        """How long they took, how many failed, and how many there were in a second."""
        share = self.peers // PROGRAMS
        of_program: list[list[list[str]]] = [[] for _ in self.crowds]
        for caller, callee in pairs:
            names = [f"{self.secret}{number}" for number in (caller, callee)]
            of_program[caller // share].append(names)
        began = time.monotonic()
        answers = self._ask(
            [
                {
                    "op": "calls",
                    "pairs": those,
                    "at_once": at_once if number < crowds else 0,
                    "seconds": CALLS_S,
                }
                for number, those in enumerate(of_program)
            ]
        )
        took_s = time.monotonic() - began
        times = sorted(one for answer in answers for one in answer["took_s"])
        return times, sum(answer["failed"] for answer in answers), len(times) / took_s

    def back(self, what: Callable[[], object]) -> list[float]:
        """Do it, and wait until all are online again; when each that was lost came, in seconds."""
        self.all("mark")
        began = time.monotonic()
        what()
        _wait_until(lambda: self._online() < self.peers, "nobody was lost")
        with contextlib.suppress(TimeoutError):  # what has come by then is shown
            _wait_until(lambda: self._online() == self.peers, "not all are back")
        return sorted(at - began for answer in self.all("came") for at in answer["at"])

    def lost(self) -> int:
        return self.peers - self._online()

    def _online(self) -> int:
        return sum(answer["online"] for answer in self.all("online"))


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(0.1)  # nothing tells of it


def _show_calls(name: str, calls: tuple[list[float], int, float]) -> None:
    times, failed, per_s = calls
    if not times:
        raise RuntimeError(f"{failed} calls failed, and none came through")
    p50, p99 = (1000 * times[int(part * (len(times) - 1))] for part in (0.5, 0.99))
    show(
        f"  calls {name}: {per_s:.0f} a second, p50 {p50:.1f} ms, p99 {p99:.1f} ms; {failed} failed"
    )


def _show_back(name: str, fleet: Fleet, what: Callable[[], object]) -> None:
    came = fleet.back(what)
    lost = f"; {fleet.lost()} not after {PATIENCE_S:.0f} s" if fleet.lost() else ""
    p50, p95 = (came[int(part * (len(came) - 1))] for part in (0.5, 0.95))
    times_text = f"half after {p50:.1f} s, 95 % after {p95:.1f} s, the last after {came[-1]:.1f} s"
    show(f"  {name}: {len(came)} peers came back, {times_text}{lost}")


def _pairs(fleet: Fleet, count: int) -> dict[str, list[tuple[int, int]]]:
    """Of peers of one node, and of two; of one process, all."""
    chosen = random.Random(1).sample(range(fleet.peers), min(fleet.peers, 8 * count) // 2 * 2)
    pairs = list(zip(chosen[::2], chosen[1::2], strict=True))
    if fleet.redis is None:
        return {"in one process": pairs[:count]}
    node_of = fleet.node_of(chosen)
    within = [pair for pair in pairs if node_of[pair[0]] == node_of[pair[1]]]
    across = [pair for pair in pairs if node_of[pair[0]] != node_of[pair[1]]]
    return {"within a node": within[:count], "between two nodes": across[:count]}


def measure(part: str, peers: int) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        fleet = Fleet(part, peers, Path(name), stack)
        before, redis_kb = fleet.group.mb(), fleet.redis.used_kb() if fleet.redis else 0.0
        cpu_s = fleet.group.cpu_s()
        per_s = fleet.log_in()
        cpu_s = fleet.group.cpu_s() - cpu_s
        show(
            f"  {fleet.peers} peers online: {per_s:.0f} logins a second; the cloud took"
            f" {1000 * cpu_s / fleet.peers:.2f} ms of processor time for each"
        )
        began, cpu_s = time.monotonic(), fleet.group.cpu_s()
        time.sleep(REST_S)  # what is measured is nothing but heartbeats
        cpu_s = (fleet.group.cpu_s() - cpu_s) / (time.monotonic() - began)
        kb = 1024 * (fleet.group.mb() - before) / fleet.peers
        show(f"  with heartbeats alone: {100 * cpu_s:.0f} % of a core; {kb:.1f} KB a peer")
        if fleet.redis is not None:
            kb = (fleet.redis.used_kb() - redis_kb) / fleet.peers
            show(f"  Redis: {kb:.2f} KB more for each peer that is online")
        for way, pairs in _pairs(fleet, PAIRS).items():
            _show_calls(f"{way}, {PROGRAMS * AT_ONCE} at once", fleet.calls(pairs, AT_ONCE))
            _show_calls(f"{way}, one at a time", fleet.calls(pairs, 1, crowds=1))
        if fleet.redis is not None:
            _show_back("one worker killed", fleet, fleet.kill_worker)
        _show_back("all killed, and started again", fleet, fleet.restart)


def run(
    quick: bool, only: Sequence[str], peers: int | None, *, minutes: float, seed: int, verbose: bool
) -> None:
    show(machine())
    for part in only or PARTS:
        show(f"{part}:")
        count = peers or (QUICK_PEERS if quick else PEERS)[part]
        if part == "chaos":
            fleet_chaos.run(minutes, seed, count, verbose)
        else:
            measure(part, count)
