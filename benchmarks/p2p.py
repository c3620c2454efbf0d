"""What the direct path carries: channels between two hosts, beside kernel TCP on the same link.

Two network namespaces, joined by a veth cable or by the emulated links of testing/link.py.  The
cloud runs on the serving host, so that every byte passes the link.  Ours and TCP with BBR and with
CUBIC run in turns, each turn with new processes on both hosts and nothing remembered from the last
one.  Rates are bytes read by the receiving program / (last byte read - first byte sent).

A turn in which the machine's owner took more than ``STOLEN`` of its processors is taken again; of
three such turns, the least disturbed counts.  What was taken from those that count is shown.
"""

from __future__ import annotations

import os
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kkp2p_compat.testing import lab as netns
from kkp2p_compat.testing import link as emulated

from .relay import NO_LIMITS, TREE, Program, started

KIB, MB = 1 << 10, 1e6
PEER, PORT = "bench", "3080"
OURS, BBR, CUBIC = "kkp2p", "TCP BBR", "TCP CUBIC"
KINDS = (OURS, BBR, CUBIC)
DISTURBED = 0.05

# Name: the link, and what the C SDK was measured to carry on it, in MB/s.
LINKS = {
    "100M-10ms": (emulated.Link(100e6, 0.010, 0.0, 256 * KIB), "6.2"),
    "100M-25ms": (emulated.Link(100e6, 0.025, 0.01, 256 * KIB), "1.2"),
    "100M-100ms": (emulated.Link(100e6, 0.100, 0.001, 1024 * KIB), "under 0.6"),
    "20M-40ms": (emulated.Link(20e6, 0.040, 0.03, 256 * KIB), "0.6"),
    "1G-5ms": (emulated.Link(1e9, 0.005, 0.0, 1024 * KIB, trains=True), "10.2"),
}
# Without a limit, so that what limits is the emulator itself (beside the programs at its ends).
UNLIMITED = {
    "frame by frame": emulated.Link(),
    "in trains of up to 64 KB": emulated.Link(trains=True),
}
SECTIONS = ("emulator", *LINKS, "veth")


@dataclass(frozen=True)
class Load:
    rounds: int
    link_s: float
    veth_s: float
    trips: int
    calls: int
    idle_channels: int
    idle_connections: int
    at_once: tuple[int, ...]
    tries: int


FULL = Load(3, 12.0, 4.0, 20_000, 4_000, 1_000, 50, (1, 10, 100, 1000), 3)
QUICK = Load(1, 2.0, 1.0, 500, 200, 100, 5, (1, 10, 100), 1)


@dataclass(frozen=True)
class Turn:
    mb_s: float
    cpu_s_per_gb: tuple[float, float]
    """Of the sending and of the receiving process."""
    smallest: float
    """The least that one of the channels carried, as a part of the mean."""
    disturbed: float
    """The share of all processors that was somebody else's."""
    emulator: dict[str, float]
    """What it did during this turn; nothing on a cable."""


class Bench:
    """Two hosts, what joins them, and the programs at their ends; ours from ``tree``."""

    def __init__(self, lab: netns.Lab, load: Load, mode: int) -> None:
        self.load = load
        self.mode = mode
        self.tree = TREE
        self.server, self.client = lab.host("server"), lab.host("client")
        self._emulator: emulated.LinkProcess | None = None
        self._secret = secrets.token_urlsafe(12)
        for host in (self.server, self.client):
            # A TCP connection starts with what the last one to that address learnt, else.
            path = "/proc/sys/net/ipv4/tcp_no_metrics_save"
            host.run("sh", "-c", f"echo 1 > {path}")

    @contextmanager
    def joined(self, link: emulated.Link | None) -> Iterator[None]:
        with emulated.joined(self.server, self.client, link) as self._emulator:
            yield

    @contextmanager
    def cloud(self) -> Iterator[None]:
        command = (
            "-m", "kkp2p_compat", "cloud", "--listen", f"0.0.0.0:{PORT}", "--data", "data",
            "--account", f"{PEER}:{self._secret}", *NO_LIMITS,
        )  # fmt: skip
        with self._started(self.server, *command) as cloud:
            while PORT not in cloud.line():
                pass
            yield

    @contextmanager
    def ends(self, kind: str) -> Iterator[tuple[Program, Program]]:
        ends = ("-m", "benchmarks.p2p_ends")
        if kind == OURS:
            serve = (*ends, "peer_server", PORT, PEER, self._secret)
            call = (*ends, "peer_client", self.server.address, PORT, PEER, str(self.mode))
        else:
            congestion = "bbr" if kind == BBR else "cubic"
            serve = (*ends, "tcp_server", congestion)
        with self._started(self.server, *serve) as server:
            ready = server.answer()
            if kind != OURS:
                call = (*ends, "tcp_client", self.server.address, str(ready["port"]), congestion)
            with self._started(self.client, *call) as client:
                client.answer()
                yield server, client

    def _started(self, host: netns.Host, *command: str) -> Any:
        within = ("ip", "netns", "exec", host.namespace)
        return started(*command, folder=host.folder, within=within, tree=self.tree)

    def transfer(self, kind: str, seconds: float, channels: int = 1) -> Turn:
        turns = []
        while len(turns) < self.load.tries:
            with self.ends(kind) as (server, client):
                turns.append(transfer(server, client, seconds, channels, self._emulator))
            if turns[-1].disturbed <= DISTURBED:
                return turns[-1]
        return min(turns, key=lambda turn: turn.disturbed)


def both(server: Program, client: Program, names: tuple[str, str], **fields: Any) -> tuple:
    """One command at each end, at the same time: their answers."""
    server.ask(names[0], **(fields if names[0] != "echo" else {}))
    client.ask(names[1], **fields)
    answer = client.answer()
    return server.answer(), answer


def transfer(
    server: Program,
    client: Program,
    seconds: float,
    channels: int,
    emulator: emulated.LinkProcess | None,
) -> Turn:
    both(server, client, ("open", "open"), count=channels)
    watch = Watch(emulator) if emulator else None
    begin = client.cpu_s(), server.cpu_s()
    programs = [server, client, *([emulator] if emulator else [])]
    disturbance = Disturbance(lambda: sum(program.cpu_s() for program in programs))
    server.ask("receive")
    client.ask("send", seconds=seconds)
    sent, got = client.answer(), server.answer()
    if sent["bytes"] != got["bytes"]:
        raise RuntimeError(f"{sent['bytes']} bytes were sent, {got['bytes']} arrived")
    cpu = client.cpu_s() - begin[0], server.cpu_s() - begin[1]
    return Turn(
        mb_s=got["bytes"] / (got["last_s"] - sent["first_s"]) / MB,
        cpu_s_per_gb=(cpu[0] / got["bytes"] * 1e9, cpu[1] / got["bytes"] * 1e9),
        smallest=got["smallest"] * channels / got["bytes"],
        disturbed=disturbance.share(),
        emulator=watch.read() if watch else {},
    )


class Watch:
    """What the emulator does from here on."""

    def __init__(self, process: emulated.LinkProcess) -> None:
        self._process = process
        self._before = process.counters(), process.cpu_s(), time.monotonic()

    def read(self) -> dict[str, float]:
        """Its share of a core; frames both ways; seconds behind their time on average, at worst."""
        before, before_cpu_s, before_s = self._before
        now, cpu_s, now_s = self._process.counters(), self._process.cpu_s(), time.monotonic()
        done = {
            name: sum(now[way][name] - before[way][name] for way in ("there", "back"))
            for name in ("frames", "lost", "overflowed", "delivered", "late_s")
        }
        return {
            **done,
            "core": (cpu_s - before_cpu_s) / (now_s - before_s),
            "late_s": done["late_s"] / max(done["delivered"], 1),
            "worst_s": max(now[way]["latest_s"] for way in ("there", "back")),
        }


class Disturbance:
    """What somebody else does with the processors from here on: other programs, or a hypervisor.

    The part of the kernel's work that it does for nobody in particular counts as well.
    """

    def __init__(self, ours: Callable[[], float]) -> None:
        """``ours``: processor seconds of those who are no disturbance."""
        self._ours = ours
        self._begin = self._read()

    def _read(self) -> tuple[float, float]:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split()[1:9]]
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle - self._ours() * os.sysconf("SC_CLK_TCK"), sum(ticks)

    def share(self) -> float:
        """Of all processors."""
        taken, ticks = (now - then for now, then in zip(self._read(), self._begin, strict=True))
        return max(taken, 0.0) / max(ticks, 1.0)


def show(text: str) -> None:
    print(text, flush=True)


def spread(values: list[float], form: str) -> str:
    middle = format(statistics.median(values), form)
    return f"{middle} ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else middle


def show_turns(kind: str, turns: list[Turn], note: str = "") -> None:
    ends = [statistics.median(turn.cpu_s_per_gb[end] for turn in turns) for end in (0, 1)]
    rates = spread([turn.mb_s for turn in turns], ".1f")
    show(
        f"  {kind:9} {rates:26} MB/s; CPU s/GB: sending {ends[0]:.1f}, receiving {ends[1]:.1f}"
        f"; disturbed {max(turn.disturbed for turn in turns):.0%}{note}"
    )


def ratio(turns: dict[str, list[Turn]], to: str) -> float:
    medians = {kind: statistics.median(turn.mb_s for turn in turns[kind]) for kind in (OURS, to)}
    return medians[OURS] / medians[to]


def in_turns(bench: Bench, seconds: float, kinds: tuple[str, ...]) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {kind: [] for kind in kinds}
    for _ in range(bench.load.rounds):
        for kind in kinds:
            turns[kind].append(bench.transfer(kind, seconds))
    return turns


def show_emulator(turns: list[Turn]) -> None:
    did = [turn.emulator for turn in turns]
    seen = {name: sum(one[name] for one in did) for name in did[0]}
    show(
        f"  emulator  {max(one['core'] for one in did):.0%} of a core;"
        f" {seen['frames']:.0f} frames, {seen['lost']:.0f} lost, {seen['overflowed']:.0f} without"
        f" room; late by {seen['late_s'] / len(did) * 1e6:.0f} us on average,"
        f" at worst {max(one['worst_s'] for one in did) * 1e3:.1f} ms"
    )


def measure_emulator(bench: Bench) -> None:
    show("emulator: what it carries itself, without a limit (TCP at its ends)")
    for name, link in UNLIMITED.items():
        with bench.joined(link):
            for kind in (BBR, CUBIC):
                turns = [bench.transfer(kind, bench.load.veth_s)]
                show_turns(kind, turns, f"; {name}")
                show_emulator(turns)


def measure_link(bench: Bench, name: str) -> None:
    link, sdk = LINKS[name]
    show(
        f"{name}: {link.rate_bps / 1e6:.0f} Mbit/s, {link.delay_s * 1e3:.0f} ms one way,"
        f" {link.loss:.1%} loss, queue {link.queue_bytes // KIB} KB, "
        + ("trains of up to 64 KB, dropped whole" if link.trains else "frame by frame")
    )
    with bench.joined(link), bench.cloud():
        turns = in_turns(bench, bench.load.link_s, KINDS)
        notes = {OURS: f"; {ratio(turns, BBR):.2f} of BBR, {ratio(turns, CUBIC):.2f} of CUBIC"}
        for kind in KINDS:
            show_turns(kind, turns[kind], notes.get(kind, ""))
        show(f"  C SDK     {sdk} MB/s, measured elsewhere")
        show_emulator([turn for kind in KINDS for turn in turns[kind]])


def measure_veth(bench: Bench) -> None:
    show("veth: a plain cable")
    with bench.joined(None), bench.cloud():
        turns = in_turns(bench, bench.load.veth_s, KINDS)
        for kind in KINDS:
            note = f"; {ratio(turns, BBR):.2f} of BBR" if kind == OURS else ""
            show_turns(kind, turns[kind], note)
        measure_trips(bench)
        measure_at_once(bench)
        measure_calls(bench)
        measure_memory(bench)


def trips(bench: Bench, kind: str) -> dict[str, float]:
    with bench.ends(kind) as (server, client):
        both(server, client, ("open", "open"), count=1)
        answer: dict[str, float] = both(server, client, ("echo", "trips"), count=bench.load.trips)[
            1
        ]
        return answer


def measure_trips(bench: Bench) -> None:
    answers: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(bench.load.rounds):
        for kind in KINDS:
            answers[kind].append(trips(bench, kind))
    for kind in KINDS:
        p50, p99 = (
            spread([a[name] for a in answers[kind]], ".0f") for name in ("p50_us", "p99_us")
        )
        show(f"  {kind:9} one byte there and back: p50 {p50} us, p99 {p99} us")


def measure_at_once(bench: Bench) -> None:
    for count in bench.load.at_once:
        parts = []
        for kind in (OURS, BBR):
            turn = bench.transfer(kind, bench.load.veth_s, count)
            parts.append(
                f"{kind} {turn.mb_s:.0f} MB/s, the slowest {turn.smallest:.2f} of the mean"
            )
        show(f"  {count} at once: " + "; ".join(parts))


def calls_per_s(bench: Bench, kind: str) -> float:
    """Of new channels, one after the other, beside one that stays."""
    with bench.ends(kind) as (server, client):
        both(server, client, ("open", "open"), count=1)
        count = bench.load.calls
        answers = both(server, client, ("accept_and_close", "connect_and_close"), count=count)
        return float(count / (answers[0]["last_s"] - answers[1]["first_s"]))


def measure_calls(bench: Bench) -> None:
    for kind in (OURS, BBR):
        rates = [calls_per_s(bench, kind) for _ in range(bench.load.rounds)]
        what = "channels on a live connection" if kind == OURS else "connections"
        show(f"  {kind:9} {spread(rates, '.0f')} new {what} per second")


def measure_memory(bench: Bench) -> None:
    """Open some, look, open as many again, look at the difference."""
    count = bench.load.idle_channels
    with bench.ends(OURS) as (server, client):
        grown = growth(server, client, ("open", "open"), count)
    show(
        f"  memory per idle channel: calling {grown[1]:.1f} KB, called {grown[0]:.1f} KB"
        f" ({count} of them)"
    )
    count = bench.load.idle_connections
    with bench.ends(OURS) as (server, client):
        grown = growth(server, client, ("open", "open_new"), count)
    show(f"  memory per idle connection with one channel: called {grown[0]:.1f} KB ({count})")


def growth(
    server: Program, client: Program, names: tuple[str, str], count: int
) -> tuple[float, float]:
    both(server, client, names, count=count)
    before = server.rss_kb(), client.rss_kb()
    both(server, client, names, count=count)
    return (server.rss_kb() - before[0]) / count, (client.rss_kb() - before[1]) / count


def run(quick: bool, only: list[str], mode: int) -> None:
    reason = netns.why_not()
    if reason:
        sys.exit(f"no lab: {reason}")

    def ended(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)  # so that the namespaces are removed

    signal.signal(signal.SIGTERM, ended)
    sections: dict[str, Callable[[Bench], None]] = {
        "emulator": measure_emulator, "veth": measure_veth,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        lab = netns.Lab(Path(folder))
        stack.callback(lab.close)
        bench = Bench(lab, QUICK if quick else FULL, mode)
        show(
            f"{os.cpu_count()} cores, Linux {os.uname().release}, Python {sys.version.split()[0]};"
            f" ours in mode {mode}, encrypted; {bench.load.rounds} rounds"
        )
        for section in only or SECTIONS:
            if section in LINKS:
                measure_link(bench, section)
            else:
                sections[section](bench)
