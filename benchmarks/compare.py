"""This tree beside another revision of it, in turns in one run: ratios, and how far they spread.

Two hosts on a plain cable (network namespaces), each turn with new processes.  The programs that
measure are this tree's for both, so only the product differs.  A figure of one tree is worth
little on a machine that others use, too; the ratio of two turns that follow each other is.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from kkp2p_compat.testing import lab as netns

from .p2p import FULL, OURS, QUICK, Bench, calls_per_s, growth, show, spread, trips
from .relay import TREE

LOAD = replace(FULL, rounds=5, veth_s=3.0, trips=5_000, calls=1_000, idle_channels=300, tries=1)
P2P, RELAY = 1, 2


def _of_one_turn(bench: Bench) -> dict[str, float]:
    """Each figure by its name; of all but times and sizes more is better."""
    turn = bench.transfer(OURS, bench.load.veth_s)
    trip = trips(bench, OURS)
    figures = {
        "one channel, MB/s": turn.mb_s,
        "CPU s/GB, sending": turn.cpu_s_per_gb[0],
        "CPU s/GB, receiving": turn.cpu_s_per_gb[1],
        "one byte there and back, p50 us": trip["p50_us"],
        "one byte there and back, p99 us": trip["p99_us"],
        "new channels a second": calls_per_s(bench, OURS),
    }
    with bench.ends(OURS) as (server, client):
        grown = growth(server, client, ("open", "open"), bench.load.idle_channels)
    figures["KB per idle channel, calling"] = grown[1]
    figures["KB per idle channel, called"] = grown[0]
    return figures


def _unpack(revision: str, folder: Path) -> Path:
    """The product as it was at that revision, beside what measures as it is now."""
    archive = folder / "archive.tar"
    command = ["git", "archive", "--output", str(archive), revision, "kkp2p_compat"]
    subprocess.run(command, cwd=TREE, check=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (folder / "benchmarks").symlink_to(TREE / "benchmarks")
    return folder


def run(quick: bool, revision: str) -> None:
    reason = netns.why_not()
    if reason:
        sys.exit(f"no lab: {reason}")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "then").mkdir()
        trees = {"then": _unpack(revision, folder / "then"), "now": TREE}
        lab = netns.Lab(folder)
        stack.callback(lab.close)
        bench = Bench(lab, QUICK if quick else LOAD, P2P)
        stack.enter_context(bench.joined(None))
        show(f"this tree against {revision}; {bench.load.rounds} rounds, in turns")
        for bench.mode, title in ((P2P, "p2p"), (RELAY, "relay, encrypted")):
            figures: dict[str, list[dict[str, float]]] = {kind: [] for kind in trees}
            for turn in range(bench.load.rounds):
                # Who comes second finds the machine warm, or slowed down: each is that in turn.
                for kind, bench.tree in sorted(trees.items(), reverse=bool(turn % 2)):
                    with bench.cloud():
                        figures[kind].append(_of_one_turn(bench))
            _show(title, figures)


def _show(title: str, figures: dict[str, list[dict[str, float]]]) -> None:
    show(title)
    for name in figures["now"][0]:
        then, now = ([turn[name] for turn in figures[kind]] for kind in ("then", "now"))
        ratios = [after / before for before, after in zip(then, now, strict=True) if before]
        middle: Callable[[list[float]], float] = statistics.median
        show(
            f"  {name:32} {middle(then):9.1f} -> {middle(now):9.1f}"
            f"   ratio {spread(ratios, '.2f') if ratios else 'none'}"
        )
