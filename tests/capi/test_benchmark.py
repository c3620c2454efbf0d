"""``python -m benchmarks capi`` runs; what it measures is not asserted."""

from __future__ import annotations

import subprocess
import sys

from helpers.document import need_program
from helpers.support import ENVIRONMENT, PATIENCE_S, ROOT


def test_a_small_one() -> None:
    need_program("cc")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "capi", "--quick"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["p2p:", "relay:"]
    assert sum("C of Python" in line for line in lines) == 2 * 6
