"""Waiting for programs, and what is said where there can be no lab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from kkp2p_compat.testing import programs
from kkp2p_compat.testing.lab import why_not
from kkp2p_compat.testing.plugin import absent, need
from kkp2p_compat.testing.programs import output_of, runner, wait_for

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def run(text: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", text]
        processes.append(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


WAITING = "print('one\\ntwo', flush=True); input()"


def test_lines_and_the_end(start: Start) -> None:
    process = start("print('one\\ntwo\\nthree\\nfour')")
    assert wait_for(process, "^tw") == "two\n"
    assert output_of(process) == "three\nfour\n"


def test_its_input_ends(start: Start) -> None:
    process = start("import sys; print(sys.stdin.read(), 1)")
    assert process.stdin is not None
    process.stdin.write("given")
    assert output_of(process) == "given 1\n"
    gone = start("print('one')")
    gone.wait()
    assert gone.stdin is not None
    gone.stdin.write("too late")
    assert output_of(gone) == "one\n"
    assert gone.communicate() == (None, None)  # as the runner does


def test_a_line_that_never_comes(start: Start) -> None:
    waiting = start(WAITING)
    wait_for(waiting, "one")
    with pytest.raises(AssertionError, match=r"no 'three' within 0\.2 s: two\n"):
        wait_for(waiting, "three", 0.2)
    with pytest.raises(AssertionError, match="ended before 'two': one\n"):
        wait_for(start("print('one')"), "two")
    with pytest.raises(AssertionError, match="no end within"):
        output_of(start("import signal; signal.pause()"), 0.2)
    with pytest.raises(AssertionError, match="wrong"):
        output_of(start("import sys; sys.exit('wrong')"))


def test_the_caller_s_own_limit_passes(start: Start) -> None:
    limit = gevent.Timeout(0.2)
    with pytest.raises(gevent.Timeout) as caught, limit:
        wait_for(start(WAITING), "three")
    assert caught.value is limit


class Here:
    """Stands for a host."""

    @staticmethod
    def start(*command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


ENDS_LAST = """
import os, signal, sys
pipe = os.open(sys.argv[1], os.O_RDONLY)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(len(os.read(pipe, 1))))
print("ready", flush=True)
signal.pause()
"""
ENDS_AT_ONCE = "import os, signal, sys; os.open(sys.argv[1], os.O_WRONLY); signal.pause()"
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
signal.pause()
"""


def test_all_are_told_to_end_before_any_is_waited_for(tmp_path: Path) -> None:
    """As a cloud ends when the channels of its peers have ended."""
    os.mkfifo(tmp_path / "pipe")
    with runner() as run:
        first = run(Here(), None, "-c", ENDS_LAST, str(tmp_path / "pipe"))
        run(Here(), None, "-c", ENDS_AT_ONCE, str(tmp_path / "pipe"))
        wait_for(first, "ready")
    assert first.returncode == 0


def test_one_that_does_not_end_keeps_none_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "PATIENCE_S", 0.2)
    with pytest.raises(subprocess.TimeoutExpired), runner() as run:
        started = [run(Here(), "ready", "-c", text) for text in (DEAF, DEAF)]
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def test_no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_not() == "network namespaces need root"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert why_not() == "network namespaces are Linux's"
    monkeypatch.delenv("KKP2P_REQUIRE_LAB", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no lab: this is not there"):
        absent("this is not there")
    monkeypatch.setenv("KKP2P_REQUIRE_LAB", "1")
    with pytest.raises(pytest.fail.Exception, match="not installed: no-such-tool, none-such"):
        need(sys.executable, "no-such-tool", "none-such")
    need(sys.executable)
