"""What a killed run has left of its lab is removed by the next one, and nothing else is."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.support import ENVIRONMENT, PATIENCE_S
from kkp2p_compat.testing.hosts import ip
from kkp2p_compat.testing.lab import Lab

# Tells when it runs in its namespace.
PROGRAM = ("sh", "-c", "echo; exec sleep infinity")
# A run that starts one, says where, and waits.
RUN = f"""
import sys
from pathlib import Path
from kkp2p_compat.testing.lab import Lab

host = Lab(Path(sys.argv[1])).host("host")
program = host.start(*{PROGRAM})
program.stdout.readline()
print(host.namespace, program.pid, flush=True)
sys.stdin.read()
"""
NAMESPACES = Path("/run/netns")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def watch(stack: ExitStack, pid: int) -> int:
    """A descriptor that polls readable once the process has ended."""
    fd = os.pidfd_open(pid)
    stack.callback(os.close, fd)
    stack.enter_context(contextlib.suppress(ProcessLookupError))
    stack.callback(signal.pidfd_send_signal, fd, signal.SIGKILL)  # if the test has failed
    return fd


def has_ended(watched: int, timeout_s: float = 0) -> bool:
    return bool(select.select([watched], [], [], timeout_s)[0])


def make_lab(tmp_path: Path) -> None:
    """As the next run does."""
    Lab(tmp_path).close()


def test_a_killed_run(lab: Lab, tmp_path: Path, stack: ExitStack) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder)],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    stack.callback(run.kill)
    assert run.stdout is not None
    namespace, pid = run.stdout.readline().split()
    program = watch(stack, int(pid))
    make_lab(tmp_path)
    assert (NAMESPACES / namespace).exists()
    assert not has_ended(program), "its run lives"
    run.kill()
    run.wait()
    make_lab(tmp_path)
    assert not (NAMESPACES / namespace).exists()
    assert has_ended(program, PATIENCE_S)


def test_a_run_that_had_our_process_id(lab: Lab, tmp_path: Path) -> None:
    """As in a container that was started again."""
    ours = lab.host("host").namespace
    left = f"kkp2p{os.getpid()}.1-1-host"
    ip("netns", "add", left)
    make_lab(tmp_path)
    assert not (NAMESPACES / left).exists()
    assert (NAMESPACES / ours).exists()


def test_a_program_does_not_outlive_its_lab(lab: Lab, tmp_path: Path, stack: ExitStack) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = Lab(folder)
    program = stack.enter_context(other.internet().host("host").start(*PROGRAM))
    stack.callback(program.kill)
    assert program.stdout is not None
    assert program.stdout.readline() == "\n"
    other.close()
    assert program.wait(PATIENCE_S) == -9
