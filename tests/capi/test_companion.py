"""A companion that does not start, that speaks another version, and that comes to an end."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import gevent
import pytest

from helpers.c_programs import Compiler, CProgram, StartC
from helpers.support import ROOT, CloudProcess
from kkp2p_compat.testing.programs import marked

MARK = "KKP2P_TEST_MARK"  # in the environment of a companion
START = "kkp2p: no engine: "


def _script(tmp_path: Path, *lines: str) -> str:
    """A program in the place of Python."""
    path = tmp_path / "python"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (None, "No such file or directory"),
        (["echo first >&2", "echo No module named kkp2p_compat >&2"], "No module named kkp2p_comp"),
        (["exit 0"], "it has ended without a word"),
        (
            [f"exec {sys.executable} -I -m kkp2p_compat.capi 99"],
            r"kkp2p_compat \S+ wants packets of version 1, and the library has 99: "
            "build the library",
        ),
        (
            [f"exec {sys.executable} -c 'import os; os.write(3, bytes([99, 0, 0, 0]))'"],
            "it is of another version than this library .99, not 1.; build the library again",
        ),
    ],
)
def test_no_companion(
    compiler: Compiler, start_c: StartC, tmp_path: Path, lines: list[str] | None, reason: str
) -> None:
    """One sentence on standard error, the same as error_text, and the code of a system's fault."""
    python = str(tmp_path / "nowhere") if lines is None else _script(tmp_path, *lines)
    program = compiler.program("scenarios.c")
    status, output = start_c(program, "init", "127.0.0.1", KKP2P_PYTHON=python).end()
    assert status == 0
    text = re.escape(f"{python} -I -m kkp2p_compat.capi: ") + f"({reason}.*)"
    match = re.fullmatch(rf"{START}{text}\nNULL -105 {text}\nok\n", output)
    assert match, output
    assert match[1] == match[2]


@pytest.mark.parametrize(
    ("domain", "environment", "told"),
    [
        ("127.0.0.1", {}, "engine 0 "),
        ("no name", {}, "NULL -101 .*no name.*"),
        ("127.0.0.1", {"KKP2P_LOGIN": "127.0.0.1#x"}, "NULL -106 login: .*"),
        ("127.0.0.1", {"KKP2P_LOGIN": ""}, "engine 0 "),
        ("127.0.0.1", {"KKP2P_LOGIN_CA": "/nowhere.pem"}, "NULL -106 .*/nowhere.pem.*"),
    ],
)
def test_what_engine_init_says(
    compiler: Compiler, start_c: StartC, domain: str, environment: dict[str, str], told: str
) -> None:
    status, output = start_c(compiler.program("scenarios.c"), "init", domain, **environment).end()
    assert status == 0
    assert re.fullmatch(rf"(.*\n)?{told}\nok\n", output), output


def _companions(mark: str) -> list[int]:
    return [
        int(place.name)
        for place in marked(f"{MARK}={mark}")
        if b"kkp2p_compat.capi" in _command(place)
    ]


def _command(place: Path) -> bytes:
    try:
        return (place / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return b""


@pytest.fixture
def waiting(
    compiler: Compiler, start_c: StartC, cloud: CloudProcess, tmp_path: Path
) -> tuple[CProgram, int]:
    """A program that waits, and its companion."""
    environment = {"KKP2P_LOGIN": cloud.pinned(), MARK: str(tmp_path)}
    program = start_c(compiler.program("scenarios.c"), "companion", "peer", **environment)
    assert program.line() == "waiting\n"
    (companion,) = _companions(str(tmp_path))
    return program, companion


def test_the_end_of_a_companion(waiting: tuple[CProgram, int]) -> None:
    """It outlives what ends programs, and every call fails once it is killed all the same."""
    program, companion = waiting
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(companion, number)
    ignored = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{companion}/status").read_text())
    assert ignored
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        assert int(ignored[1], 16) & 1 << (number - 1)
    assert os.getsid(companion) == companion  # a terminal's signals do not reach it
    assert {os.readlink(f"/proc/{companion}/fd/{fd}") for fd in (0, 1)} == {os.devnull}
    os.kill(companion, signal.SIGKILL)
    assert program.end() == (0, "ok\n")


def test_a_companion_ends_with_its_program(waiting: tuple[CProgram, int], tmp_path: Path) -> None:
    program, _ = waiting
    assert program.end(signal.SIGKILL)[0] == -signal.SIGKILL
    while _companions(str(tmp_path)):
        gevent.sleep(0.01)  # nothing tells of the end of another's process


def test_another_python_in_the_program(
    start_c: StartC, compiler: Compiler, cloud: CloudProcess
) -> None:
    """A program that has a Python of its own: its SIGINT, its threads, its forks and its end."""
    library = compiler.library().lib / "libkkp2p.so"
    script = str(ROOT / "tests" / "capi" / "programs" / "embedded.py")
    arguments = ["-I", script, str(library)]
    program = start_c(Path(sys.executable), *arguments, KKP2P_LOGIN=cloud.pinned())
    assert program.line() == "waiting\n"
    status, output = program.end(signal.SIGINT)
    assert (status, output) == (0, "interrupted\nchild 0\nok\n")
