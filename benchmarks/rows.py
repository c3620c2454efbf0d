"""The rows that can be measured: who is compared on which link, and how that is shown.

``python -m benchmarks p2p`` measures ours beside what a row names in the same run; ``python -m
benchmarks compare REVISION`` measures ours from two trees.  In both, turns alternate, and each
takes the first place in every second round: who comes second finds the machine warm, or slowed
down.  A figure is worth little on a machine that others use, too; the ratio of two turns that
follow each other is worth more: a ratio is the median of such pairs, with the least and greatest.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from kkp2p_compat.testing import lab as netns
from kkp2p_compat.testing.link import Link

from . import proxied, turns
from .p2p import BBR, CUBIC, FLOOR, KIB, LAN, OURS, RELAY, SEALED, Bench, Load
from .relay import TREE
from .turns import Figures

TCP = (BBR, CUBIC)


@dataclass(frozen=True)
class Row:
    title: str
    turn: Callable[[Bench, str], Figures]
    ours: tuple[str, ...] = (OURS,)
    beside: tuple[str, ...] = ()
    link: Link | None = None
    """None: a veth cable."""


def _link(title: str, link: Link) -> Row:
    way = "trains of up to 64 KB, dropped whole" if link.trains else "frame by frame"
    title = f"one channel over {title}, queue {link.queue_bytes // KIB} KB, {way}"
    return Row(title, turns.transfer, beside=TCP, link=link)


ROWS = {
    "trip": Row("a round trip on a cable", turns.trips, beside=(FLOOR, BBR)),
    "relay-trip": Row(
        "a round trip through the relay", turns.trips, (RELAY, SEALED), beside=(FLOOR, BBR)
    ),
    "channel": Row("one channel on a cable", turns.transfer, beside=TCP),
    "relay-channel": Row(
        "one channel through the relay", turns.transfer, (RELAY, SEALED), beside=TCP
    ),
    "many": Row("many channels at once on a cable", turns.many, beside=(BBR,)),
    "100M-10ms": _link("100 Mbit/s, 10 ms", Link(100e6, 0.010, 0.0, 256 * KIB)),
    "100M-25ms": _link("100 Mbit/s, 25 ms, 1 % loss", Link(100e6, 0.025, 0.01, 256 * KIB)),
    "100M-100ms": _link("100 Mbit/s, 100 ms, 0.1 % loss", Link(100e6, 0.100, 0.001, 1024 * KIB)),
    "20M-40ms": _link("20 Mbit/s, 40 ms, 3 % loss", Link(20e6, 0.040, 0.03, 256 * KIB)),
    "1G-5ms": _link("1 Gbit/s, 5 ms", Link(1e9, 0.005, 0.0, 1024 * KIB, trains=True)),
    "1G-1ms": _link("1 Gbit/s, 1 ms", Link(1e9, 0.001, 0.0, 1024 * KIB)),
    "100M-50ms": _link("100 Mbit/s, 50 ms, 0.1 % loss", Link(100e6, 0.050, 0.001, 1024 * KIB)),
    "100M-20ms": _link("100 Mbit/s, 20 ms, 5 % loss", Link(100e6, 0.020, 0.05, 256 * KIB)),
    "call": Row("calls by new engines on a cable, one after the other", turns.calls),
    "lossy-call": Row(
        "the same over 100 Mbit/s, 20 ms, 5 % loss",
        turns.calls,
        link=Link(100e6, 0.020, 0.05, 256 * KIB),
    ),
    "calls": Row("calls at one moment, through NATs, to one engine", turns.calls_at_once),
    "lan": Row("a LAN search on a cable", turns.lan_search, (LAN,)),
    "start": Row("import, and an idle engine", turns.start, beside=(FLOOR,)),
    "new": Row("new channels on a live connection", turns.new_channels, beside=(BBR,)),
    "relay-new": Row("new channels through the relay", turns.new_channels, (SEALED,)),
    "proxied": Row("short connections through a proxy", proxied.turn, beside=(BBR,)),
    "proxied-udp": Row("datagrams through a UDP proxy", proxied.udp_turn, beside=(FLOOR,)),
    "memory": Row("memory of idle channels", turns.memory),
    "relay-memory": Row("memory of idle relayed channels", turns.memory, (SEALED,)),
    # Without a limit, so that what limits is the emulator itself (with TCP at its ends).
    "emulator": Row("the emulator, frame by frame", turns.transfer, (), TCP, Link()),
    "emulator-trains": Row("the emulator, trains", turns.transfer, (), TCP, Link(trains=True)),
}


class Side(NamedTuple):
    """One of those who take turns."""

    name: str
    kind: str
    tree: Path = TREE


def sides(row: Row, trees: Mapping[str, Path]) -> tuple[list[Side], list[tuple[str, str]]]:
    """Who takes turns, and who is compared with whom; ``trees``: then and now, or nothing."""
    if not trees:
        pairs = [(one, other) for one in row.ours for other in row.beside]
        return [Side(kind, kind) for kind in (*row.ours, *row.beside)], pairs
    both = [Side(f"{kind} {when}", kind, tree) for kind in row.ours for when, tree in trees.items()]
    then, now = trees
    return both, [(f"{kind} {now}", f"{kind} {then}") for kind in row.ours]


Measured = dict[str, dict[str, list[float]]]  # by side and figure


def measure(bench: Bench, row: Row, sides: Sequence[Side]) -> Measured:
    measured: Measured = {side.name: {} for side in sides}
    with bench.joined(row.link):
        for number in range(bench.load.rounds):
            for side in reversed(sides) if number % 2 else sides:
                bench.tree = side.tree
                with ExitStack() as stack:
                    if side.kind in row.ours:
                        stack.enter_context(bench.cloud())
                    figures = row.turn(bench, side.kind)
                for name, value in figures.items():
                    measured[side.name].setdefault(name, []).append(value)
    return measured


def show(text: str) -> None:
    print(text, flush=True)


def spread(values: Sequence[float], form: str = "") -> str:
    form = form or (".0f" if abs(statistics.median(values)) >= 100 else ".2f")
    middle = format(statistics.median(values), form)
    return f"{middle} ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else middle


def show_row(measured: Measured, pairs: Sequence[tuple[str, str]]) -> None:
    for figure in dict.fromkeys(name for figures in measured.values() for name in figures):
        show(f"  {figure}")
        for side, figures in measured.items():
            ratios = [
                f"{_ratio(figures[figure], measured[other][figure])} of {other}"
                for one, other in pairs
                if one == side and not figure.startswith(turns.NOTES)
            ]
            show(f"    {side:22} {spread(figures[figure]):28} {', '.join(ratios)}".rstrip())


def _ratio(one: Sequence[float], other: Sequence[float]) -> str:
    ratios = [after / before for after, before in zip(one, other, strict=True) if before]
    return spread(ratios, ".2f") if ratios else "nothing"


def machine() -> str:
    cpu = next(
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    python = sys.version.split()[0]
    return f"{os.cpu_count()} cores ({cpu}), Linux {os.uname().release}, Python {python}"


@dataclass(frozen=True)
class Run:
    what: Sequence[str]
    """The words of the command line that say what is measured."""
    load: Load
    trees: Mapping[str, Path] = field(default_factory=dict)
    """Then and now; none: this one."""

    def command(self, name: str) -> str:
        """What measures a row alone."""
        size = ["--only", name, "--rounds", str(self.load.rounds)]
        return shlex.join(["python", "-m", "benchmarks", *self.what, *size])


def run(run: Run, names: Sequence[str], file: Path | None) -> None:
    """Measure these rows, show them, and keep them in a file."""
    reason = netns.why_not()
    if reason:
        sys.exit(f"no lab: {reason}")

    def ended(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)  # so that the namespaces are removed

    signal.signal(signal.SIGTERM, ended)
    with tempfile.TemporaryDirectory() as folder, closing(netns.Lab(Path(folder))) as lab:
        bench = Bench(lab, run.load)
        show(f"{machine()}; {run.load.rounds} rounds")
        for name in names:
            row = ROWS[name]
            show(f"{name}: {row.title}")
            those, pairs = sides(row, run.trees)
            measured = measure(bench, row, those)
            show_row(measured, pairs)
            if file:
                _keep(file, name, run, pairs, measured)


def _keep(
    file: Path, name: str, run: Run, pairs: Sequence[tuple[str, str]], measured: Measured
) -> None:
    """Put a row into a file of rows, one a line, in the place of what it had of that name."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept[f"compare {name}" if run.trees else name] = {
        "title": ROWS[name].title,
        "command": run.command(name),
        "machine": machine(),
        "revision": _revision(),
        "date": time.strftime("%Y-%m-%d"),
        "load": asdict(run.load),
        "pairs": pairs,
        "measured": _rounded(measured),
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(kept[key])}" for key in sorted(kept))
    file.write_text(f"{{\n{lines}\n}}\n")


def _rounded(measured: Measured) -> Measured:
    """To five digits: what follows is no measurement."""
    return {
        side: {name: [float(f"{value:.5g}") for value in values] for name, values in named.items()}
        for side, named in measured.items()
    }


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    asked = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False)
    return asked.stdout.strip()
