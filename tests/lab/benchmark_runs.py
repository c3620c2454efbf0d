"""Short runs of the benchmarks that start a lab of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gevent

from helpers.support import ENVIRONMENT, ROOT

__all__ = ["run_benchmark"]


def run_benchmark(folder: Path, *arguments: str) -> str:
    """What it says.  It must succeed, and leave nothing behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        env={**ENVIRONMENT, "TMPDIR": str(folder)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
    )
    try:
        output, _ = gevent.get_hub().threadpool.apply(process.communicate)
    finally:
        if process.poll() is None:  # it has some to end itself
            process.terminate()
            process.communicate()
    assert process.returncode == 0, output
    assert list(folder.iterdir()) == []
    assert not list(Path("/run/netns").glob(f"kkp2p{process.pid}.*"))
    return output
