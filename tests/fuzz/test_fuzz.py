"""The fuzz targets, for a bounded number of inputs; run.py runs them for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.support import ENVIRONMENT, PATIENCE_S
from wire_targets import TARGETS, kept

RUNS = 2000  # inputs, shared by all targets: about ten seconds


@pytest.mark.parametrize("name", list(TARGETS))
def test_seeds_whole_cut_short_and_with_trailing_bytes(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed + bytes(20))
        for cut in range(max(0, len(seed) - 300), len(seed) + 1):
            target.run(seed[:cut])


@pytest.mark.parametrize("name", list(TARGETS))
def test_what_long_runs_have_found_is_still_taken(name: str) -> None:
    for data in kept(name):
        TARGETS[name].run(data)


def test_a_bounded_run_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 only")
    ended = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("run.py")),
            "all",
            f"-runs={RUNS}",
            "-seed=1",
            f"-timeout={PATIENCE_S:.0f}",
            f"-artifact_prefix={tmp_path}/",
        ],
        env=ENVIRONMENT | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=10 * PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-10000:]
    assert f"Done {RUNS} runs" in ended.stderr
