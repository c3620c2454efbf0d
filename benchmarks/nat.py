"""Which NATs let two peers through, how often, and how long it takes: every pair of kinds.

Each host is a network namespace behind a NAT of the lab (``kkp2p_compat.testing``), 10 ms away from
the middle of the internet.  A try is a call between two engines that have just been started and
know their NATs: by mode 1 (p2p only, 10 s) where a path should be possible, else by auto.  Then
some channels in auto mode stay for a while: do they move?  Needs root.  The table is printed as it
stands in docs/nat-traversal.rst.
"""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from kkp2p_compat.testing import nat
from kkp2p_compat.testing.internet import Internet
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.miniupnpd import PUBLIC, start_miniupnpd
from kkp2p_compat.testing.nat import NatType
from kkp2p_compat.testing.programs import Run, runner, start_cloud

from .agents import Agent

DELAY_S = 0.010  # one way, of each access line
ROUND_TRIP_S = 4 * DELAY_S  # between two hosts, and to the cloud
TRIES = 20
TIMEOUT_MS = 10_000
STAYS, STAY_S = 5, 5.0
PEER, SECRET = "callee", "a secret"

Made = tuple[Any, bool]  # the host, and whether its router maps a port for it


def _behind(nat_type: NatType) -> Callable[[Run, Internet, str], Made]:
    return lambda _, net, name: (net.nat(f"{name}-nat", nat_type).host(name), False)


def _cgnat(_: Run, net: Internet, name: str) -> Made:
    carrier = net.nat(f"{name}-cgn", nat.PORT_RESTRICTED)
    return net.nat(f"{name}-nat", nat.PORT_RESTRICTED, behind=carrier).host(name), False


def _upnp(run: Run, net: Internet, name: str) -> Made:
    """A Linux router whose NAT is symmetric with random ports, and that maps ports when asked."""
    router = net.kernel_nat(f"{name}-r", random="fully-random")
    start_miniupnpd(run, router, pcp=False)
    return router.host(name), True


KINDS: dict[str, Callable[[Run, Internet, str], Made]] = {
    "public": lambda _, net, name: (net.host(name, ipv6=True), False),
    "full cone": _behind(nat.FULL_CONE),
    "address-restricted": _behind(nat.ADDRESS_RESTRICTED),
    "port-restricted": _behind(nat.PORT_RESTRICTED),
    "symmetric sequential": _behind(nat.SYMMETRIC_SEQUENTIAL),
    "symmetric random": _behind(nat.SYMMETRIC_RANDOM),
    "CGNAT": _cgnat,
    "UPnP router": _upnp,
    "UDP blocked": lambda _, net, name: (net.nat(f"{name}-nat", udp=False).host(name), False),
    "IPv6 only": lambda _, net, name: (net.host(name, ipv4=False, ipv6=True, firewall=True), False),
}
SAME = {"same NAT": False, "same NAT, hairpin": True}
IPV6 = {"public", "IPv6 only"}


def hopeless(one: str, other: str) -> bool:
    """Pairs that the relay is for."""
    pair = {one, other}
    symmetric = {"symmetric sequential", "symmetric random"}
    if "IPv6 only" in pair:
        return not pair <= IPV6
    if "UDP blocked" in pair:  # TCP has no port prediction
        return bool(pair & (symmetric | {"UPnP router"}))
    return pair <= symmetric and "symmetric random" in pair


@dataclass
class Result:
    """The tries of one pair, the first kind calling."""

    caller: str
    callee: str
    tries: list[dict[str, Any]] = field(default_factory=list)
    stays: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mode(self) -> str:
        return "auto" if hopeless(self.caller, self.callee) else "p2p"

    def row(self) -> list[str]:
        met = [one for one in self.tries if one.get("result") == 0]
        direct = [one for one in met if one["path"].startswith("p2p")]
        counted = direct if self.mode == "p2p" else met
        times = sorted(1000 * one["took_s"] for one in counted)
        paths = Counter(one["path"] for one in met)
        seconds = [1000 * one["second_s"] for one in counted]
        packets = [one["packets"] for one in self.tries if one.get("packets")]
        return [
            self.caller,
            self.callee,
            self.mode,
            f"{len(direct)}/{len(self.tries)}",
            f"{statistics.median(times):.0f}" if times else "",
            f"{times[min(len(times) - 1, int(0.95 * len(times)))]:.0f}" if times else "",
            f"{statistics.median(seconds):.0f}" if seconds else "",
            f"{max(packets)}" if packets else "",
            ", ".join(path for path, _ in paths.most_common()) or "none",
            *(_counted(stay[when] for stay in self.stays) for when in ("first", "later")),
        ]


def _counted(paths: Iterable[str]) -> str:
    """Such as "relay", or "4 relay, 1 p2p"."""
    counts = Counter(paths).most_common()
    return ", ".join(f"{count} {path}" if counts[1:] else path for path, count in counts)


class Ends:
    """A pair of hosts with an agent on each."""

    def __init__(self, run: Any, net: Internet, login: Sequence[str], made: Sequence[Made]) -> None:
        self._net = net
        self._login = login
        self._made = made
        self._caller, self._callee = self._agents = [
            Agent(run, host, "benchmarks.nat_ends") for host, _ in made
        ]

    def close(self) -> None:
        for agent in self._agents:
            agent.end()

    def meet(self, mode: int) -> dict[str, Any]:
        with self._engines() as nats:
            before = self._sent()
            met = self._caller.do("meet", peer_id=PEER, mode=mode, timeout_ms=TIMEOUT_MS)
            met.update(packets=self._sent() - before, nats=nats)
        return met

    def stay(self) -> dict[str, Any]:
        """A channel in auto mode, and what its path is STAY_S later."""
        with self._engines():
            return self._caller.do("stay", peer_id=PEER, timeout_ms=TIMEOUT_MS, seconds=STAY_S)

    @contextmanager
    def _engines(self) -> Iterator[list[str]]:
        """One on each host for a while; gives what they say of their NATs."""
        (_, caller_mapped), (_, callee_mapped) = self._made
        self._callee.ask(
            "join", login=self._login[1], peer_id=PEER, secret=SECRET, mapped=callee_mapped
        )
        self._caller.ask("start", login=self._login[0], mapped=caller_mapped)
        yield [agent.answer()["nat"] for agent in self._agents]
        for agent in self._agents:
            agent.ask("leave")
        for agent in self._agents:
            agent.answer()

    def _sent(self) -> int:
        """Packets that left hosts for other places than the cloud, or in vain."""
        counted = self._net.counters()
        carried = sum(
            count
            for name, targets in counted["carried"].items()
            if name != "cloud"
            for target, count in targets.items()
            if target != "cloud"
        )
        dropped = (reasons for name, reasons in counted["dropped"].items() if name != "cloud")
        return carried + sum(sum(reasons.values()) for reasons in dropped)


class Room:
    """An internet with a cloud of two addresses; ``pair`` adds two hosts to it."""

    def __init__(self, lab: Lab, run: Run) -> None:
        self._run = run
        self.net = lab.internet(delay_s=DELAY_S, public=PUBLIC)
        cloud = self.cloud = self.net.host("cloud", addresses=2, ipv6=True)
        start_cloud(
            run,
            cloud,
            "--listen",
            "[::]:3080",
            "--account",
            f"{PEER}:{SECRET}",
            "--stun-address",
            cloud.addresses[1],
        )
        self._pairs = 0

    def pair(self, caller: str, callee: str) -> Ends:
        self._pairs += 1
        run, net, names = self._run, self.net, (f"a{self._pairs}", f"b{self._pairs}")
        if caller in SAME:
            home = net.nat(f"nat{self._pairs}", NatType(hairpin=SAME[caller]))
            made = [(home.host(name), False) for name in names]
        else:
            made = [KINDS[caller](run, net, names[0]), KINDS[callee](run, net, names[1])]
        cloud = self.cloud
        login = [
            cloud.address6 if kind == "IPv6 only" else cloud.address for kind in (caller, callee)
        ]
        return Ends(run, net, login, made)


def work(pairs: Sequence[Sequence[str]], tries: int) -> None:
    """Measure these pairs, and print each as a line of JSON."""
    with (
        tempfile.TemporaryDirectory() as folder,
        runner() as run,
        closing(Lab(Path(folder))) as lab,
    ):
        room = Room(lab, run)
        for caller, callee in pairs:
            ends = room.pair(caller, callee)
            mode = 0 if hopeless(caller, callee) else 1
            met = [ends.meet(mode) for _ in range(tries)]
            stayed = [ends.stay() for _ in range(min(tries, STAYS))]
            ends.close()
            print(json.dumps([caller, callee, met, stayed]), flush=True)


def _measure_elsewhere(pairs: Sequence[Sequence[str]], tries: int) -> list[str]:
    """``work``, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.nat", json.dumps(pairs), str(tries)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        lines = []
        for line in worker.stdout:
            lines.append(line)
            print(" ".join(Result(*json.loads(line)).row()), file=sys.stderr, flush=True)
    if worker.returncode:
        raise SystemExit("a worker failed")
    return lines


def run(quick: bool, only: Sequence[str], jobs: int) -> None:
    """``only``: kinds; pairs of others are left out."""
    pairs = [*combinations_with_replacement(KINDS, 2), *((name, name) for name in SAME)]
    pairs = [pair for pair in pairs if not only or set(pair) & set(only)]
    results = []
    with ThreadPoolExecutor(jobs) as pool:
        for lines in pool.map(
            lambda first: _measure_elsewhere(pairs[first::jobs], 3 if quick else TRIES), range(jobs)
        ):
            results += [Result(*json.loads(line)) for line in lines]
    results.sort(key=lambda result: pairs.index((result.caller, result.callee)))
    print_table(HEADS, [result.row() for result in results])


HEADS = ["caller", "callee", "mode", "p2p", "p50 ms", "p95 ms", "2nd ms", "packets", "paths"]
HEADS += ["auto: first byte", f"after {STAY_S:.0f} s"]


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As the pages in docs/ have them; a row may be short."""
    columns = itertools.zip_longest(heads, *rows, fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    rule = "  ".join("=" * width for width in widths)
    print(rule)
    for number, row in enumerate([heads, *rows]):
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=False))
        print("  ".join(cells).rstrip())
        if number == 0:
            print(rule)
    print(rule)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing of the lab is left behind
    work(json.loads(sys.argv[1]), int(sys.argv[2]))
