"""Thousands of transfers while everything breaks: is a byte ever wrong, does a call ever hang?

Peers behind NATs of all kinds call each other in every mode: streams of one byte to two megabytes
that are compared byte by byte on both sides, and messages.  Meanwhile peers, relays and the cloud
are killed, stopped and cut off, peers move to other NATs, NATs reboot and become others, lines are
slow and lose packets, disks fill up and descriptors run out.  What happens when is a function of
the seed alone.  (What becomes of it is not: real processes and a real kernel take part.)

What counts as a fault of ours: a byte that is not what was sent; an end in order of a transfer that
is not complete (docs/porting.rst, "How a channel ends", has the one case that cannot be told); a
call of the API that takes longer than it says; a result code that its documentation does not name.
Then the exit status is 1.  Needs root.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from kkp2p_compat.testing import nat
from kkp2p_compat.testing.internet import Internet, InternetHost
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.miniupnpd import PUBLIC
from kkp2p_compat.testing.programs import CLOUD_PORT, Run, runner, start_redis, wait_for

from .agents import Agent
from .calls import Usage

DELAY_S = 0.005
MEAN_GAP_S = 1.5  # between two faults
SETTLE_S = 75.0  # how long it may take until nothing is left of what was closed
REST_S = 90.0  # a transfer's own limit, and some
SECRET = "a secret"
ENDS = "benchmarks.chaos_ends"
DISK = "size=128k"  # of a peer's log
DESCRIPTORS = 400  # of a peer
PEERS, AT_ONCE, PAUSE_S = 8, 4, 1.0  # calls of each, and the mean pause after each
AFTER_S = 15.0  # our choice: until a program is started and online again, a dead path is left
BOXES = {
    "full cone": nat.FULL_CONE,
    "address-restricted": nat.ADDRESS_RESTRICTED,
    "port-restricted": nat.PORT_RESTRICTED,
    "sequential": nat.SYMMETRIC_SEQUENTIAL,
    "random": nat.SYMMETRIC_RANDOM,
    "behind a carrier's": nat.PORT_RESTRICTED,
    "UDP blocked": nat.PORT_RESTRICTED,
}

# Of each kind: what it hits, how often (weight), and how many seconds it lasts.
FAULTS = {
    "kill peer": ("peer", 6, (0.0, 2.0)),
    "stop peer": ("peer", 6, (0.5, 4.0)),
    "cut peer": ("peer", 6, (1.0, 8.0)),
    "move peer": ("peer", 6, (0.0, 0.0)),
    "fill disk": ("peer", 3, (3.0, 8.0)),
    "take descriptors": ("peer", 3, (3.0, 3.0)),
    "reboot NAT": ("box", 4, (0.0, 0.0)),
    "another NAT": ("box", 3, (0.0, 0.0)),
    "block UDP": ("box", 3, (3.0, 8.0)),
    "slow": ("all", 3, (3.0, 8.0)),
    "kill relay": ("relay", 3, (0.5, 3.0)),
    "stop relay": ("relay", 2, (0.5, 4.0)),
    "cut relay": ("relay", 2, (1.0, 5.0)),
    "kill cloud": ("cloud", 2, (0.5, 3.0)),
    "stop cloud": ("cloud", 2, (0.5, 4.0)),
    "cut cloud": ("cloud", 2, (1.0, 5.0)),
}


class Fault(NamedTuple):
    at_s: float
    kind: str
    target: int  # which of its kind
    lasts_s: float
    detail: int  # where to, which other kind, ...


def schedule(seed: int, seconds: float, counts: dict[str, int]) -> list[Fault]:
    """``counts``: how many there are of what may be hit."""
    rng, faults, at_s = random.Random(seed), [], 0.0
    while (at_s := at_s + rng.expovariate(1 / MEAN_GAP_S)) < seconds:
        (kind,) = rng.choices(list(FAULTS), [weight for _, weight, _ in FAULTS.values()])
        what, _, lasts = FAULTS[kind]
        # The first peers and the first relay live through it all: what do they leak?
        first = counts[what] // 2 if kind in ("kill peer", "kill relay") else 0
        target = rng.randrange(first, counts[what])
        faults.append(Fault(at_s, kind, target, rng.uniform(*lasts), rng.randrange(1000)))
    return faults


class Service:
    """A program on a host that can be killed and started again."""

    program = sys.executable

    def __init__(self, run: Run, host: Any, *command: str) -> None:
        self.host = host
        self.lives = 0
        self.dead = False
        self.usages: list[Usage] = []  # of this life
        self._run = run
        self._command = command
        self._process: subprocess.Popen[str]
        self.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        self.lives += 1
        self.dead = False
        self._process = self._run(self.host, None, *self._command, program=self.program)
        assert self._process.stdout is not None
        threading.Thread(target=self.listen, args=(self._process.stdout,), daemon=True).start()

    def listen(self, output: IO[str]) -> None:
        output.read()  # or the program gets stuck

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.dead = True
        self.signal(signal.SIGKILL)

    def measure(self) -> None:
        self.usages.append(Usage(self.pid))


class Member(Service):
    """A peer."""

    def __init__(self, run: Run, host: InternetHost, settings: dict[str, Any], box: str) -> None:
        self.settings = settings
        self.box = box
        self.killed: list[tuple[float, float]] = []
        self.agent: Agent
        self.read = 0  # bytes of its records
        self.disk = host.folder / "log"
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", self.disk], check=True)
        super().__init__(run, host)

    def start(self) -> None:
        self.lives += 1
        self.dead = False
        self.agent = Agent(self._run, self.host, ENDS)
        self.agent.ask("begin", **self.settings, life=self.lives)

    @property
    def pid(self) -> int:
        return self.agent.pid

    @property
    def name(self) -> str:
        return str(self.settings["name"])

    def fill(self) -> None:
        with contextlib.suppress(OSError), open(self.disk / "full", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        (self.disk / "full").unlink(missing_ok=True)

    def remove(self) -> None:
        self.signal(signal.SIGCONT)
        subprocess.run(["umount", "-l", self.disk], check=False)


@dataclass
class Results:
    """What the records of all peers say."""

    callers: list[dict[str, Any]] = field(default_factory=list)
    callees: list[dict[str, Any]] = field(default_factory=list)
    hangs: list[dict[str, Any]] = field(default_factory=list)
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    hits: list[tuple[float, float, set[str]]] = field(default_factory=list)  # when, whom

    def take(self, record: dict[str, Any]) -> None:
        what = record.pop("what")
        if what == "transfer":
            (self.callers if record["side"] == "caller" else self.callees).append(record)
        elif what == "hang":
            self.hangs.append(record)
        else:
            self.codes[record["call"], record["code"]] += 1

    def was_hit(self, record: dict[str, Any]) -> bool:
        ends = {record["by"], record["to"]}
        return any(
            began <= record["ended"] and record["began"] <= ended + AFTER_S and whom & ends
            for began, ended, whom in self.hits
        )


class Chaos:
    """The internet, who is in it, and what happens to them."""

    def __init__(self, lab: Lab, run: Run, stack: ExitStack, seed: int, peers: int) -> None:
        self.net: Internet = lab.internet(delay_s=DELAY_S, seed=seed, public=PUBLIC)
        self.results = Results()
        self._places = self._make_places()
        host = self.net.host("cloud", addresses=2)
        directory = ("--directory", start_redis(run, host))
        listen = ("--listen", f"0.0.0.0:{CLOUD_PORT}", "--data", "data")
        command = ("-m", "kkp2p_compat", "cloud", *listen, *directory)
        hosts = [self.net.host(f"relay{number}") for number in range(2)]
        self.relays = [Service(run, host, *command, "--role", "relay") for host in hosts]
        accounts = [f"--account=peer{number}:{SECRET}" for number in range(peers)]
        self.cloud = Service(
            run, host, *command, "--role", "track", *accounts, "--stun-address", host.addresses[1]
        )
        self.peers: list[Member] = []
        names = [f"peer{number}" for number in range(peers)]
        _wait_for_port(run, self.cloud)
        for number, name in enumerate(names):
            settings = {
                "name": name,
                "number": number,
                "seed": seed,
                "secret": SECRET,
                "others": [other for other in names if other != name],
                "login": host.address,
                "at_once": AT_ONCE,
                "pause_s": PAUSE_S,
                "descriptors": DESCRIPTORS,
            }
            place = list(self._places)[number % len(self._places)]
            self.peers.append(Member(run, self._places[place].host(name), settings, place))
            stack.callback(self.peers[-1].remove)
        for service in (*self.relays, self.cloud):
            stack.callback(service.signal, signal.SIGCONT)

    def _make_places(self) -> dict[str, Any]:
        carrier = self.net.nat("carrier", nat.PORT_RESTRICTED)
        made: dict[str, Any] = {}
        for number, (name, nat_type) in enumerate(BOXES.items()):
            behind = carrier if "carrier" in name else None
            made[name] = self.net.nat(
                f"box{number}", nat_type, behind=behind, udp=name != "UDP blocked"
            )
        return made | {"public": self.net}

    def counts(self) -> dict[str, int]:
        return {
            "peer": len(self.peers),
            "relay": len(self.relays),
            "cloud": 1,
            "all": 1,
            "box": len(BOXES),
        }

    def services(self) -> dict[str, Service]:
        relays = {f"relay{number}": relay for number, relay in enumerate(self.relays)}
        return {"cloud": self.cloud, **relays, **{peer.name: peer for peer in self.peers}}

    # The run.

    def begin(self) -> None:
        for peer in self.peers:
            peer.agent.answer()
        for service in self.services().values():
            service.measure()
        for peer in self.peers:
            peer.agent.ask("work")

    def go(self, faults: list[Fault], seconds: float, transfers: int, verbose: bool) -> None:
        began, order = time.monotonic(), count()
        todo: list[tuple[float, int, Callable[[], object]]] = []
        undone: dict[int, Callable[[], object]] = {}

        def plan(at_s: float, number: int, what: Callable[[], object]) -> None:
            heapq.heappush(todo, (at_s, number, what))

        def strike(fault: Fault) -> None:
            service = self._service(fault)
            if service is not None and service.dead:
                return  # it is hit already
            if verbose:
                text = f"{fault.kind} {fault.target}, {fault.lasts_s:.1f} s"
                print(f"{fault.at_s:8.1f} s  {text}", flush=True)
            self.results.faults[fault.kind] += 1
            undo = self._strike(fault)
            if undo is not None:
                number = next(order)
                undone[number] = undo
                at_s = time.monotonic() - began + fault.lasts_s
                plan(at_s, number, lambda: undone.pop(number)())

        for fault in faults:
            plan(fault.at_s, next(order), partial(strike, fault))
        half = seconds / 2
        while (now_s := time.monotonic() - began) < seconds and self._count() < transfers:
            while todo and todo[0][0] <= now_s:
                heapq.heappop(todo)[2]()
            if now_s > half:
                half = seconds
                for service in self.services().values():
                    with contextlib.suppress(OSError):  # it is dead at this moment
                        service.measure()
            time.sleep(0.1)
        for undo in list(undone.values()):
            undo()

    def end(self) -> None:
        """Let all come to its end, and measure what is left."""
        for op, enough_s in (("rest", REST_S), ("part", SETTLE_S)):
            until = time.monotonic() + enough_s
            while any(left := [_left(peer, op) for peer in self.peers]):
                if time.monotonic() > until:
                    print(f"left after {enough_s:.0f} s, by peer: {left}")
                    break
                time.sleep(0.5)  # nothing tells of it
        for service in self.services().values():
            service.measure()
        for peer in self.peers:
            peer.agent.do("leave")
        self._count()

    def _count(self) -> int:
        """Reads the records; how many transfers are over."""
        for peer in self.peers:
            with contextlib.suppress(FileNotFoundError), open(peer.host.folder / "records") as file:
                file.seek(peer.read)
                while (line := file.readline()).endswith("\n"):
                    peer.read = file.tell()
                    with contextlib.suppress(json.JSONDecodeError):  # of one that was killed
                        self.results.take(json.loads(line))
        return len(self.results.callers)

    # Faults: each returns how to undo it.

    def _strike(self, fault: Fault) -> Callable[[], object] | None:
        what, where = fault.kind.split(" ", 1)[0], FAULTS[fault.kind][0]
        now = time.monotonic()
        if where == "peer":
            peer = self.peers[fault.target]
            self.results.hits.append((now, now + fault.lasts_s, {peer.name}))
            return self._strike_peer(what, peer, fault)
        if where == "box":
            name = list(BOXES)[fault.target]
            whom = {peer.name for peer in self.peers if peer.box == name}
            self.results.hits.append((now, now + fault.lasts_s, whom))
            return self._strike_box(what, self._places[name], fault)
        everybody = {peer.name for peer in self.peers}
        self.results.hits.append((now, now + fault.lasts_s, everybody))
        if where == "all":
            self.net.set(delay_s=0.03 + fault.detail / 10_000, loss=fault.detail / 10_000)
            return lambda: self.net.set(delay_s=DELAY_S, loss=0.0)
        return self._strike_service(what, self._service(fault))

    def _service(self, fault: Fault) -> Any:
        """What is hit, if it is a program."""
        services: dict[str, Sequence[Any]] = {
            "peer": self.peers,
            "relay": self.relays,
            "cloud": [self.cloud],
        }
        of_that_kind = services.get(FAULTS[fault.kind][0])
        return of_that_kind[fault.target] if of_that_kind else None

    def _strike_service(self, what: str, service: Service) -> Callable[[], object]:
        if what == "stop":
            service.signal(signal.SIGSTOP)
            return lambda: service.signal(signal.SIGCONT)
        if what == "cut":
            self.net.cut(service.host)
            return lambda: self.net.mend(service.host)
        service.kill()
        service.usages.clear()
        return service.start

    def _strike_peer(self, what: str, peer: Member, fault: Fault) -> Callable[[], object] | None:
        if what == "move":
            peer.box = list(self._places)[fault.detail % len(self._places)]
            self.net.move(peer.host, self._places[peer.box])
            return None
        if what == "fill":
            peer.fill()
            return peer.empty
        if what == "take":
            if len(peer.usages):  # it has begun, and so knows the signal
                peer.signal(signal.SIGUSR1)
            return None
        undo = self._strike_service(what, peer)
        if what != "kill":
            return undo
        began = time.monotonic()

        def start() -> None:
            peer.killed.append((began, time.monotonic()))
            peer.start()
            peer.agent.ask("work")

        return start

    def _strike_box(self, what: str, box: Any, fault: Fault) -> Callable[[], object] | None:
        if what == "reboot":
            box.reboot(new_address=bool(fault.detail % 2))
        elif what == "another":
            kinds = list(BOXES.values())
            box.become(kinds[fault.detail % len(kinds)])
        else:
            self.net.block_udp(box)
            return lambda: self.net.block_udp(box, False)
        return None

    # The judgement.

    def lies(self) -> list[dict[str, Any]]:
        """Ends in order of transfers that were not complete, which no end may have told."""
        killed = {peer.name: peer.killed for peer in self.peers}
        numbers = {peer.settings["number"]: peer.name for peer in self.peers}
        found = []
        for record in (*self.results.callers, *self.results.callees):
            if record["outcome"] != "end":
                continue
            number = record["number"]
            other = record.get("to") or (numbers[number // 10**9] if number else "")
            excused = record.get("plain") and any(
                record["began"] <= ended and began <= record["ended"]
                for began, ended in killed.get(other, [])
            )
            if not excused:
                found.append(record)
        return found


def _left(peer: Member, op: str) -> dict[str, Any]:
    left = peer.agent.do(op)
    while not left:
        left = peer.agent.answer()  # that was to what a new life had been asked
    return {what: number for what, number in left.items() if number}


def _wait_for_port(run: Run, cloud: Service) -> None:
    probe = "import socket,sys,time\nwhile True:\n try: socket.create_connection((sys.argv[1], " + (
        f"{CLOUD_PORT})); break\n except OSError: time.sleep(0.05)\nprint('there')"
    )
    wait_for(run(cloud.host, None, "-c", probe, cloud.host.address), "there")


# What is printed.


def _table(rows: list[list[object]]) -> None:
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join([str(row[0]).ljust(widths[0]), *cells]))


def _print_transfers(results: Results) -> None:
    kinds = sorted({record["kind"] for record in results.callers})
    columns = ["done", "end", "cut", "closed", "late", "wrong"]
    rows: list[list[object]] = [
        ["transfers", "all", "hit", *columns, "no connection", "bytes compared"]
    ]
    for kind in [*kinds, ""]:
        mine = [record for record in results.callers if record["kind"] == (kind or record["kind"])]
        ends = Counter(record["outcome"].partition(":")[0] for record in mine)
        hit = sum(results.was_hit(record) for record in mine)
        compared = sum(record["right"] for record in mine)
        cells = [ends[column] for column in columns]
        rows.append([kind or "all", len(mine), hit, *cells, ends["connect"], f"{compared:,}"])
    _table(rows)
    codes = Counter(record["outcome"] for record in results.callers if ":" in record["outcome"])
    print(f"no connection: {dict(codes.most_common())}")
    ends = Counter(record["outcome"] for record in results.callees)
    compared = sum(record["right"] for record in results.callees)
    print(f"answered: {dict(ends.most_common())}, {compared:,} bytes compared")
    talks = [record for record in results.callers if "sent" in record]
    sent, back = (sum(record[key] for record in talks) for key in ("sent", "back"))
    print(f"messages: {sent} sent, {back} came and were sent back")
    for record in results.callers:
        if record["outcome"] == "late":
            print(f"late: {record}")
    unhit = [record for record in results.callers if not results.was_hit(record)]
    failed = [record for record in unhit if record["outcome"] not in ("done", "end")]
    print(f"failed though nothing had hit either end: {len(failed)} of {len(unhit)}")
    for record in failed[:10]:
        print(f"  {record}")


def _print_usage(services: dict[str, Service]) -> None:
    rows: list[list[object]] = [["process", "lives", "MB", "descriptors", "threads"]]
    for name, service in services.items():
        columns = [
            " ".join(f"{getattr(usage, what):.0f}" for usage in service.usages)
            for what in ("mb", "descriptors", "threads")
        ]
        rows.append([name, service.lives, *columns])
    print("at the start (if it has lived through all), in the middle, and at the end:")
    _table(rows)


def run(
    minutes: float, seed: int, transfers: int, *, peers: int = PEERS, verbose: bool = False
) -> None:
    """``transfers``: it ends after so many, if not after those minutes."""
    print(
        f"seed {seed}; {minutes:g} minutes or {transfers} transfers; {os.cpu_count()} cores",
        flush=True,
    )
    with _lab() as (lab, start, stack):
        chaos = Chaos(lab, start, stack, seed, peers)
        faults = schedule(seed, 60 * minutes, chaos.counts())
        chaos.begin()
        began = time.monotonic()
        chaos.go(faults, 60 * minutes, transfers, verbose)
        took_s = time.monotonic() - began
        chaos.end()
        results, lies = chaos.results, chaos.lies()
        count = sum(results.faults.values())
        print(f"{len(results.callers)} transfers and {count} faults in {took_s:.0f} s")
        _print_transfers(results)
        print(f"faults: {dict(results.faults.most_common())}")
        _print_usage(chaos.services())
    wrong = sum(record["wrong"] for record in (*results.callers, *results.callees))
    print(f"wrong bytes: {wrong}")
    print(f"ends in order that were not complete: {len(lies)}", *lies[:10], sep="\n  ")
    print(f"calls that took too long: {len(results.hangs)}", *results.hangs[:10], sep="\n  ")
    print(f"codes that are not documented: {dict(results.codes)}")
    if wrong or lies or results.hangs or results.codes:
        raise SystemExit(f"seed {seed}: not as it should be")


def _end(*_: object) -> NoReturn:
    """Nothing of the lab is left behind, also by a second signal."""
    _ignore_signals()
    sys.exit(1)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _lab() -> Iterator[tuple[Lab, Run, ExitStack]]:
    """Ends, in this order, what stops or hides a process, the processes, and the lab."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Lab(Path(folder))) as lab,
        runner() as start,
        ExitStack() as stack,
    ):
        try:
            yield lab, start, stack
        finally:
            _ignore_signals()
