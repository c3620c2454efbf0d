"""Waiting for programs, and what is said where there can be no lab."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import gevent
import pytest

from kkp2p_compat.testing.lab import why_not
from kkp2p_compat.testing.plugin import absent, need
from kkp2p_compat.testing.programs import output_of, wait_for

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def run(text: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", text]
        processes.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
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
