"""The C library beside the Python API: the same steps, in turns, on loopback.

The peer that serves is a Python program for both.  The memory of a program is what it has for
itself and its share of what it has together with others (Pss): of a C program with its companion.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from kkp2p_compat.capi.build import library
from kkp2p_compat.testing.programs import marked

from .capi_ends import SECRET
from .relay import CLOUD, PEER, TREE, cloud_port, environment, started

CALLER = Path(__file__).with_name("capi_ends.c")
ENDS = ("-m", "benchmarks.capi_ends")
MODES = {"1": "p2p", "2": "relay"}
MARK = "KKP2P_BENCH"  # in the environment of a caller, and so of its companion


def run(*, quick: bool) -> None:
    rounds, trips, megabytes = (1, 200, 4) if quick else (7, 5000, 200)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        account = ("--account", f"{PEER}:{SECRET}", "--log-level", "warning")
        cloud = stack.enter_context(started(*CLOUD, *account, folder=folder))
        port = str(cloud_port(cloud))
        server = stack.enter_context(started(*ENDS, "serve", port, folder=folder))
        server.line()  # it has logged in
        callers = {"C": [str(_compiled(folder))], "Python": [sys.executable, *ENDS, "call", port]}
        for mode, text in MODES.items():
            print(f"{text}:", flush=True)
            words = [PEER, mode, str(trips), str(megabytes)]
            found: dict[str, list[dict[str, float]]] = {name: [] for name in callers}
            for _ in range(rounds):
                for name, command in callers.items():
                    found[name].append(_figures([*command, *words], folder, port))
            _print(found)


def _compiled(folder: Path) -> Path:
    built = library(folder / "library")
    command = [
        "cc",
        "-O2",
        str(CALLER),
        f"-I{built.include}",
        f"-L{built.lib}",
        "-lkkp2p",
        f"-Wl,-rpath,{built.lib}",
        "-pthread",
        "-o",
        str(folder / "caller"),
    ]
    subprocess.run(command, check=True)
    return folder / "caller"


def _figures(command: list[str], folder: Path, port: str) -> dict[str, float]:
    env = {**environment(TREE), "KKP2P_LOGIN": f"127.0.0.1:{port}", MARK: str(folder)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, env=env
    ) as process:
        assert process.stdout is not None
        figures: dict[str, float] = json.loads(process.stdout.readline())
        figures["memory, MB"] = sum(map(_pss_kb, marked(f"{MARK}={folder}"))) / 1000
    return figures


def _pss_kb(place: Path) -> int:
    text = (place / "smaps_rollup").read_text()
    return int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0])


def _print(found: dict[str, list[dict[str, float]]]) -> None:
    for what in found["C"][0]:
        c, python = ([turn[what] for turn in turns] for turns in found.values())
        ratios = sorted(one / other for one, other in zip(c, python, strict=True))
        print(
            f"  {what:32} C {statistics.median(c):8.2f}   Python {statistics.median(python):8.2f}"
            f"   C of Python {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )
