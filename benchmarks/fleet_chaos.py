"""Calls and transfers while the nodes of a cloud, and Redis, are killed: ``fleet --only chaos``.

Three nodes, each with a sentinel beside it, and two hosts with Redis, are hosts on one switch, as
are the programs of the peers, which call each other in auto mode and through the relay.  Meanwhile
nodes are killed, stopped, drained and started again, and cut off from Redis or from everybody;
Redis is killed, stopped, slow and full, and fails over.  One node and one Redis are hit at a time.
What happens when is a function of the seed alone.

Counted are calls, those that failed at first, and again when they were made once more 15 s later;
transfers that ended early, by the way they took; peers that are not online in the end; bytes that
are not what was sent.  Exit status 1: a retry failed, a peer is lost, or a byte is wrong.
"""

from __future__ import annotations

import heapq
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import IO, Any, NamedTuple, NoReturn

from kkp2p_compat.testing.hosts import SwitchHost, ip
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import CLOUD_PORT, Run, wait_for

from . import chaos
from .agents import Agent
from .chaos import SECRET, Service

NODES, REDISES = 3, 2
NAME = "fleet"  # the sentinels'
ENDS = "benchmarks.fleet_chaos_ends"
PEERS_OF_PROGRAM = 50
CALLS_PER_S = 12.0  # that all peers together begin
MEAN_GAP_S = 4.0  # until what is well is hit
WELL_S = 15.0  # our choice: so long after a fault the same sort is not hit again
BEAT_S = "5"  # so a peer notices in 15 s that its node is stopped
DRAIN_S = "5"
SETTLE_S = 45.0  # after the last fault, until all must be online
REST_S = 120.0  # for calls that are under way
MOST_MORE_S = 420.0  # for all that is not the faults: an end that hangs ends the run
REDIS_PORT, SENTINEL_PORT = "6379", "26379"

# Of each kind: what it hits, how often (weight), and how many seconds it lasts.
FAULTS = {
    "kill node": ("node", 5, (0.5, 6.0)),
    "stop node": ("node", 2, (1.0, 20.0)),
    "drain node": ("node", 4, (8.0, 10.0)),
    "cut node": ("node", 2, (1.0, 15.0)),
    "part node from Redis": ("node", 3, (1.0, 15.0)),
    "kill redis": ("redis", 3, (0.5, 8.0)),
    "stop redis": ("redis", 2, (0.5, 8.0)),
    "fill redis": ("redis", 2, (1.0, 6.0)),
    "slow redis": ("redis", 2, (0.5, 4.0)),
    "fail over": ("redis", 2, (4.0, 6.0)),
}


class Fault(NamedTuple):
    at_s: float
    kind: str
    target: int
    lasts_s: float


def schedule(seed: int, seconds: float) -> list[Fault]:
    """One of each sort at a time, with a while between them."""
    rng, faults, at_s = random.Random(seed), [], 0.0
    free_s = {"node": 0.0, "redis": 0.0}
    while (at_s := at_s + rng.expovariate(1 / MEAN_GAP_S)) < seconds:
        (kind,) = rng.choices(list(FAULTS), [weight for _, weight, _ in FAULTS.values()])
        what, _, lasts = FAULTS[kind]
        fault = Fault(at_s, kind, rng.randrange(NODES), rng.uniform(*lasts))
        if at_s >= free_s[what]:
            free_s[what] = at_s + fault.lasts_s + WELL_S
            faults.append(fault)
    return faults


class Redis(Service):
    """Which of them is the master, the sentinels say."""

    program = "redis-server"


class Node(Service):
    """``verbose``: show what it logs."""

    verbose = False

    def listen(self, output: IO[str]) -> None:
        for line in output:
            if self.verbose:
                print(f"{time.monotonic():.1f}  {self.host.name}: {line}", end="", flush=True)


class Fleet:
    def __init__(self, lab: Lab, run: Run, peers: int) -> None:
        self._run = run
        hosts = [lab.host(f"redis{number}") for number in range(REDISES)]
        self._master = hosts[0].address
        self.redises = {
            host.address: Redis(run, host, *_redis_options(host, self._master)) for host in hosts
        }
        self._node_hosts = [lab.host(f"node{number}") for number in range(NODES)]
        sentinels = [self._sentinel(host) for host in self._node_hosts]
        for service in (*self.redises.values(), *sentinels):
            port = REDIS_PORT if service in self.redises.values() else SENTINEL_PORT
            _wait_for_port(run, service.host, port)
        self.url = "redis+sentinel://{}/{}".format(
            ",".join(f"{host.address}:{SENTINEL_PORT}" for host in self._node_hosts), NAME
        )
        self.nodes = [self._node(host, number) for number, host in enumerate(self._node_hosts)]
        for node in self.nodes:
            _wait_for_port(run, node.host, CLOUD_PORT)
        names = [f"peer{number}" for number in range(peers)]
        self._make_accounts(names)
        programs = -(-peers // PEERS_OF_PROGRAM)
        self._ends = [Agent(run, lab.host(f"peers{number}"), ENDS) for number in range(programs)]
        self._names = [names[number::programs] for number in range(programs)]
        self._everybody = names

    def _sentinel(self, host: SwitchHost) -> Service:
        config = host.folder / "sentinel.conf"
        config.write_text(
            f"port {SENTINEL_PORT}\nprotected-mode no\ndir {host.folder}\n"
            f"sentinel monitor {NAME} {self._master} {REDIS_PORT} 2\n"
            f"sentinel down-after-milliseconds {NAME} 2000\n"
            f"sentinel failover-timeout {NAME} 6000\n"
        )
        return Redis(self._run, host, str(config), "--sentinel")

    def _node(self, host: SwitchHost, number: int) -> Service:
        return Node(
            self._run,
            host,
            "-m",
            "kkp2p_compat",
            "cloud",
            "--data",
            "data",
            "--listen",
            f"{host.address}:{CLOUD_PORT}",
            "--directory",
            self.url,
            "--beat-s",
            BEAT_S,
            "--drain",
            DRAIN_S,
            "--region",
            f"region{number}",
        )

    def _make_accounts(self, names: Sequence[str]) -> None:
        """On a node's host: Redis is reached from there."""
        program = (
            "import sys, time\n"
            "from kkp2p_compat.cloud.directory import Account, Verifier\n"
            "from kkp2p_compat.cloud.open_directory import open_directory\n"
            "directory = open_directory(sys.argv[1], None)\n"
            "directory.start()\n"
            "verifier = Verifier.of(sys.argv[2])\n"
            "for name in sys.argv[3:]:\n"
            "    directory.put(Account(name, verifier, int(time.time())))\n"
            "directory.close()\n"
        )
        self._node_hosts[0].run(sys.executable, "-c", program, self.url, SECRET, *names)

    def begin(self, seed: int) -> None:
        login = "|".join(host.address for host in self._node_hosts)
        for end, names in zip(self._ends, self._names, strict=True):
            end.do("begin", login=login, secret=SECRET, names=names)
        pause_s = len(self._everybody) / CALLS_PER_S
        for end in self._ends:
            end.do("work", everybody=self._everybody, seed=seed, pause_s=pause_s)

    def go(self, faults: Sequence[Fault], seconds: float, verbose: bool) -> Counter[str]:
        struck: Counter[str] = Counter()
        began, order = time.monotonic(), count()
        todo: list[tuple[float, int, Callable[[], object]]] = []

        def plan(at_s: float, what: Callable[[], object]) -> None:
            heapq.heappush(todo, (at_s, next(order), what))

        def strike(fault: Fault) -> None:
            if verbose:
                text = f"{fault.kind} {fault.target}, {fault.lasts_s:.1f} s"
                print(f"{time.monotonic():.1f}  {fault.at_s:8.1f} s  {text}", flush=True)
            struck[fault.kind] += 1
            undo = self._strike(fault)
            plan(time.monotonic() - began + fault.lasts_s, undo)

        for fault in faults:
            plan(fault.at_s, partial(strike, fault))
        while todo:
            time.sleep(max(0.0, todo[0][0] - (time.monotonic() - began)))
            heapq.heappop(todo)[2]()
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        return struck

    def end(self) -> tuple[Counter[str], list[dict[str, Any]], list[dict[str, Any]], list[str]]:
        """What the peers have counted, failures, strange things, and the peers that are lost."""
        until = time.monotonic() + SETTLE_S
        while (lost := self._rest()[1]) and time.monotonic() < until:
            time.sleep(0.5)  # nothing tells of it
        until = time.monotonic() + REST_S
        while self._rest()[0] and time.monotonic() < until:
            time.sleep(0.5)
        counts: Counter[str] = Counter()
        failures, strange = [], []
        for end in self._ends:
            report = end.do("report")
            counts.update(report["counts"])
            failures += report["failures"]
            strange += report["strange"]
            end.do("leave")
        return counts, failures, strange, lost

    def _rest(self) -> tuple[int, list[str]]:
        answers = [end.do("rest") for end in self._ends]
        working = sum(answer["working"] for answer in answers)
        return working, [name for answer in answers for name in answer["lost"]]

    # Faults: each returns how to undo it.

    def _strike(self, fault: Fault) -> Callable[[], object]:
        what = fault.kind.partition(" ")[0]
        if FAULTS[fault.kind][0] == "node":
            return self._strike_node(what, self.nodes[fault.target])
        return self._strike_redis(fault, what)

    def _strike_node(self, what: str, node: Service) -> Callable[[], object]:
        host = node.host
        if what == "cut":
            host.unplug()
            return host.plug_in
        if what == "part":
            for address in self.redises:
                ip("-n", host.namespace, "route", "add", "blackhole", address)

            def mend() -> None:
                for address in self.redises:
                    ip("-n", host.namespace, "route", "delete", "blackhole", address)

            return mend
        return _hit(what, node)

    def _strike_redis(self, fault: Fault, what: str) -> Callable[[], object]:
        redis = self.redises[self._ask_sentinel("get-master-addr-by-name", NAME) or self._master]
        if what == "fail":
            self._ask_sentinel("failover", NAME)
            return lambda: None
        if what == "fill":
            _ask(redis.host, "config", "set", "maxmemory", "1")
            return lambda: _ask(redis.host, "config", "set", "maxmemory", "0")
        if what == "slow":
            _ask(redis.host, "client", "pause", str(int(1000 * fault.lasts_s)))
            return lambda: None
        return _hit(what, redis)

    def _ask_sentinel(self, *words: str) -> str:
        """The first word that a sentinel answers; "" if none does."""
        for host in self._node_hosts:
            answer = _ask(host, "sentinel", *words, port=SENTINEL_PORT)
            if answer and answer.split()[0] in (*self.redises, "OK"):
                return answer.split()[0]
        return ""


def _redis_options(host: SwitchHost, master: str) -> list[str]:
    # A master that forgot the accounts when it is killed would have its replica forget them, too.
    options = ["--port", REDIS_PORT, "--protected-mode", "no", "--appendonly", "yes", "--dir", "."]
    options += ["--repl-diskless-sync-delay", "0"]
    return options if host.address == master else [*options, "--replicaof", master, REDIS_PORT]


def _hit(what: str, service: Service) -> Callable[[], object]:
    if what == "stop":
        service.signal(signal.SIGSTOP)
        return lambda: service.signal(signal.SIGCONT)
    if what == "drain":
        service.signal(signal.SIGTERM)

        def again() -> None:
            service.kill()  # if it has not ended by itself
            service.start()

        return again
    service.kill()
    return service.start


def _ask(host: SwitchHost, *words: str, port: str = REDIS_PORT) -> str:
    """What Redis on this host answers; "" if it does not."""
    command = ("redis-cli", "-p", port, *words)
    with suppress(subprocess.TimeoutExpired):
        process = host.start("timeout", "2", *command)
        return str(process.communicate(timeout=chaos.SETTLE_S)[0])
    return ""


def _wait_for_port(run: Run, host: SwitchHost, port: str) -> None:
    probe = "import socket,sys,time\nwhile True:\n try: socket.create_connection((sys.argv[1], " + (
        f"{port})); break\n except OSError: time.sleep(0.05)\nprint('there')"
    )
    wait_for(run(host, None, "-c", probe, host.address), "there")


def _give_up(*_: object) -> NoReturn:
    raise TimeoutError("the run takes too long")


def run(minutes: float, seed: int, peers: int, verbose: bool) -> None:
    print(f"seed {seed}; {minutes:g} minutes, {peers} peers; {os.cpu_count()} cores", flush=True)
    Node.verbose = verbose
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(int(60 * minutes + MOST_MORE_S))
    with chaos._lab() as (lab, start, stack):
        fleet = Fleet(lab, start, peers)
        for service in (*fleet.nodes, *fleet.redises.values()):
            stack.callback(service.kill)  # at the end nobody drains
        fleet.begin(seed)
        print(f"{peers} peers online", flush=True)
        struck = fleet.go(schedule(seed, 60 * minutes), 60 * minutes, verbose)
        counts, failures, strange, lost = fleet.end()
    print(f"faults: {dict(struck.most_common())}")
    print(
        f"calls: {counts['calls']}; failed on the first try: {counts['failed first']}; after one"
        f" retry: {counts['failed retry']}"
    )
    early = {name: number for name, number in sorted(counts.items()) if "early" in name}
    made = {name: number for name, number in sorted(counts.items()) if "transfers" in name}
    print(f"{made}; {early}; {counts['right']:,} bytes compared; wrong: {counts['wrong']}")
    others = {name: number for name, number in counts.items() if " gave " in name}
    print(f"peers lost: {len(lost)}; strange: {strange[:10]}, {others}")
    for failure in failures if verbose else [each for each in failures if "retry" in each["why"]]:
        print(f"  {failure}")
    if counts["failed retry"] or lost or counts["wrong"] or strange:
        raise SystemExit(f"seed {seed}: not as it should be")
