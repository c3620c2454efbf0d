"""What the lab's tests start on its hosts, and how they wait for it.

Waits are in native threads, so that the time limit of the test (``conftest.py``) ends them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import gevent
import pytest
from netns import Host, Lab
from support import PATIENCE_S, ROOT, SECRET

__all__ = [
    "PORT", "SAMPLES", "Run", "absent", "need", "output_of", "run", "start_cloud",
    "wait_for",
]  # fmt: skip

SAMPLES = ROOT / "samples"
PORT = "3080"
Run = Callable[..., "subprocess.Popen[str]"]


def absent(reason: str) -> None:
    """Skip the test; or fail it, where all that the lab needs must be."""
    if os.environ.get("KKP2P_REQUIRE_LAB") == "1":
        pytest.fail(f"the lab is required, and: {reason}")
    pytest.skip(f"no lab: {reason}")


def need(*tools: str) -> None:
    """Programs that not every test of the lab needs."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        absent(f"not installed: {', '.join(missing)}")


@pytest.fixture
def run(lab: Lab) -> Iterator[Run]:
    """Start a program on a host, and wait for a line (None: do not); ended by the test or after."""
    processes: list[subprocess.Popen[str]] = []

    def start(
        host: Host, line: str | None, *command: str, program: str = sys.executable
    ) -> subprocess.Popen[str]:
        process = host.start(program, *command)
        processes.append(process)
        if line is not None:
            wait_for(process, line)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=PATIENCE_S)


def wait_for(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdout is not None
    read, seen = process.stdout.readline, []
    while text := gevent.get_hub().threadpool.apply(read):
        seen.append(text)
        if re.search(line, text):
            return text
    raise AssertionError(f"{process.args} ended before {line!r}: {''.join(seen)}")


def output_of(process: subprocess.Popen[str]) -> str:
    """What else it prints until its end, which must be a good one."""
    output, _ = gevent.get_hub().threadpool.apply(process.communicate)
    assert process.returncode == 0, (process.args, output)
    return str(output)


def start_cloud(lab: Lab, run: Run, *options: str, host: Host | None = None) -> Host:
    host = host or lab.host("cloud")
    run(
        host, PORT, "-m", "kkp2p_compat", "cloud", "--data", "data",
        "--account", f"peer:{SECRET}", *options,
    )  # fmt: skip
    return host
