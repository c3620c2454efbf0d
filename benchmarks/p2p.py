"""Two hosts, what joins them, and what one turn between them measures.

The hosts are network namespaces, joined by a veth cable or by the emulated links of
testing/link.py.  The cloud runs on the serving host, so that every byte passes the link.  A turn
has new processes on both hosts, and nothing is remembered from the turn before.  Who takes part in
a turn is one of ``KINDS``; the programs at both ends are p2p_ends.py.  Rates are bytes read by the
receiving program / (last byte read - first byte sent).

A transfer during which others took more than ``DISTURBED`` of the machine's processors is repeated;
of ``Load.tries`` such transfers, the least disturbed one counts.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kkp2p_compat.testing import lab as netns
from kkp2p_compat.testing import link as emulated

from .relay import NO_LIMITS, TREE, Program, started

KIB, MB = 1 << 10, 1e6
PEER, PORT, LAN_PORT = "bench", "3080", "3549"
OURS, RELAY, SEALED = "kkp2p", "kkp2p relay", "kkp2p relay, encrypted"
FLOOR, BBR, CUBIC = "floor", "TCP BBR", "TCP CUBIC"
LAN = "kkp2p LAN"
MODES = {OURS: ("1", "1"), RELAY: ("2", "0"), SEALED: ("2", "1")}  # connect_mode, encrypt_data
DISTURBED = 0.05
ENDS = ("-m", "benchmarks.p2p_ends")


@dataclass(frozen=True)
class Load:
    """How much one turn measures; ``rounds``: turns of each of those who are compared."""

    rounds: int
    link_s: float
    veth_s: float
    trips: int
    channels: int
    idle_channels: int
    idle_connections: int
    at_once: tuple[int, ...]
    tries: int
    calls: int
    crowd: tuple[int, int, int]
    """NATs, programs behind each of them, and engines in each program, which call at once."""
    searches: int
    starts: int


FULL = Load(3, 12.0, 4.0, 20_000, 4_000, 1_000, 50, (10, 100, 1000), 3, 40, (5, 5, 20), 10, 7)
QUICK = Load(1, 2.0, 1.0, 500, 200, 100, 5, (10, 100), 1, 3, (2, 1, 10), 2, 2)


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

    def __init__(self, lab: netns.Lab, load: Load) -> None:
        self.load = load
        self.tree = TREE
        self.seconds = load.veth_s
        """How long a transfer takes on what joins the hosts now."""
        self.server, self.client = lab.host("server"), lab.host("client")
        self._emulator: emulated.LinkProcess | None = None
        self.others: list[Program] = []
        """The cloud, while it runs."""
        self.secret = secrets.token_urlsafe(12)
        for host in (self.server, self.client):
            # A TCP connection starts with what the last one to that address learnt, else.
            path = "/proc/sys/net/ipv4/tcp_no_metrics_save"
            host.run("sh", "-c", f"echo 1 > {path}")

    @contextmanager
    def joined(self, link: emulated.Link | None) -> Iterator[None]:
        self.seconds = self.load.link_s if link else self.load.veth_s
        with emulated.joined(self.server, self.client, link) as self._emulator:
            yield

    @contextmanager
    def cloud(self) -> Iterator[Program]:
        """What every kind of ours needs."""
        command = (
            "-m",
            "kkp2p_compat",
            "cloud",
            "--listen",
            f"0.0.0.0:{PORT}",
            "--data",
            "data",
            "--account",
            f"{PEER}:{self.secret}",
            *NO_LIMITS,
        )
        with self.started(self.server, *command) as cloud:
            while PORT not in cloud.line():
                pass
            self.others.append(cloud)
            yield cloud
            self.others.remove(cloud)

    @contextmanager
    def ends(self, kind: str) -> Iterator[tuple[Program, Program]]:
        """The programs at both ends, ready for commands."""
        serve, call = self._programs(kind)
        with self.started(self.server, *ENDS, *serve) as server:
            server.answer()
            with self.started(self.client, *ENDS, *call) as client:
                client.answer()
                yield server, client

    def _programs(self, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What serves, and what calls."""
        server, client = self.server.address, self.client.address
        if kind in MODES:
            call = ("peer_client", server, PORT, PEER, *MODES[kind])
            return ("peer_server", PORT, PEER, self.secret), call
        if kind == LAN:
            return ("lan_server", LAN_PORT, PEER), ("lan_client", LAN_PORT, PEER)
        if kind == FLOOR:
            return ("floor", server, client, PORT), ("floor", client, server, PORT)
        congestion = "bbr" if kind == BBR else "cubic"
        return ("tcp_server", PORT, congestion), ("tcp_client", server, PORT, congestion)

    def started(self, host: netns.Host, *command: str) -> Any:
        within = ("ip", "netns", "exec", host.namespace)
        return started(*command, folder=host.folder, within=within, tree=self.tree)

    def transfer(self, kind: str, seconds: float, channels: int = 1) -> Turn:
        turns: list[Turn] = []
        while len(turns) < self.load.tries:
            with self.ends(kind) as programs:
                turns.append(transfer(*programs, seconds, channels, self._emulator, self.others))
            if turns[-1].disturbed <= DISTURBED:
                return turns[-1]
        return min(turns, key=lambda turn: turn.disturbed)


def both(
    server: Program, client: Program, names: tuple[str, str], **fields: Any
) -> tuple[Any, Any]:
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
    emulator: emulated.LinkProcess | None = None,
    others: Sequence[Program] = (),
) -> Turn:
    both(server, client, ("open", "open"), count=channels)
    watch = Watch(emulator) if emulator else None
    begin = client.cpu_s(), server.cpu_s()
    programs = [server, client, *others]

    def ours() -> float:
        emulators = emulator.cpu_s() if emulator else 0.0
        return sum(program.cpu_s() for program in programs) + emulators

    disturbance = Disturbance(ours)
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
