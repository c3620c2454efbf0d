"""``kkp2p demo``: it passes, it really fails when something is wrong, and it leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from helpers.support import ENVIRONMENT
from kkp2p_compat.cli.demo import CLIENTS, MODES, PROTOCOLS
from kkp2p_compat.testing.plugin import need

CONNECTIONS = len(MODES) * sum(len(CLIENTS[protocol.name]) for protocol in PROTOCOLS)
DEMO_LIMIT_S = 55  # below conftest's

# Runs the demo with another "python" for the programs that it starts.
WITH_PYTHON = """
import sys
sys.executable = sys.argv.pop(1)
from kkp2p_compat.cli import main
sys.exit(main(["demo"]))
"""
PYTHON = """#!{python}
import os, runpy, sys
arguments = sys.argv[1:]
if not any("https_server" in argument for argument in arguments):
    os.execv({python!r}, [{python!r}, *arguments])

def run(argv):
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")

"""
BROKEN_SERVERS = {
    "cannot be imported": (
        "raise ImportError('broken on purpose')",
        "FAILED: server has ended, with exit status 1",
    ),
    "another mode": (
        "import builtins\n"
        "real = print\n"
        "builtins.print = lambda text: real(text.replace('mode is 1', 'mode is 2'))\n"
        "run(arguments)",
        "FAILED: the server did not print that it accepted mode 1",
    ),
    "another header": (
        "from kkp2p_compat import tls\n"
        "write = tls.Connection.write\n"
        "tls.Connection.write = lambda self, data: write(self, data.replace(b'kkp2p', b'other'))\n"
        "run(arguments)",
        "FAILED: the answer does not have the line 'X-Powered-By: kkp2p https'",
    ),
    "another exit status": (
        "try:\n    run(arguments)\nexcept SystemExit:\n    sys.exit(3)",
        "FAILED: server: exit status 3",
    ),
    "deaf to SIGUSR1 and SIGTERM": (
        "import builtins, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "real = print\n"
        "builtins.print = lambda text: real('a strange line')\n"
        "run(arguments)",
        "the server: a strange line\n--- ",
    ),
}


class Demo:
    """Where one demonstration runs: its temporary folder, and a mark on all its processes."""

    def __init__(self, folder: Path) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.mark = f"KKP2P_TEST_MARK={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.environment = ENVIRONMENT | {name: value, "TMPDIR": str(self.temporary)}

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return gevent.get_hub().threadpool.apply(  # type: ignore[no-any-return]
            lambda: subprocess.run(
                [sys.executable, *command],
                env=self.environment | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=DEMO_LIMIT_S,
            )
        )

    def check_nothing_left(self) -> None:
        assert list(self.temporary.iterdir()) == []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes()
            except OSError:
                continue  # another user's, or gone
            assert self.mark.encode() not in environment, (process / "cmdline").read_bytes()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path)
    yield made
    made.check_nothing_left()


def _check_shown(output: str) -> None:
    lines = [line.strip() for line in output.splitlines()]
    assert output.count("| HTTP/1.1 200 OK\n") == CONNECTIONS
    for protocol in PROTOCOLS:
        expected = len(MODES) * len(CLIENTS[protocol.name])
        assert lines.count(f"| X-Powered-By: kkp2p {protocol.name}") == expected
    for mode in {mode.transmit_mode for mode in MODES}:
        expected = CONNECTIONS * sum(m.transmit_mode == mode for m in MODES) // len(MODES)
        accepted = [line for line in lines if line.startswith("the server: accept new connection,")]
        assert sum(f" mode is {mode}," in line for line in accepted) == expected


def test_it_passes(demo: Demo) -> None:
    """With curl and openssl, the way a user starts it."""
    need("curl", "openssl")
    ended = demo.run("-m", "kkp2p_compat", "demo")
    assert ended.returncode == 0, ended.stdout
    _check_shown(ended.stdout)
    assert "Python's own client" not in ended.stdout
    assert f"\nPassed: {CONNECTIONS} connections, " in ended.stdout


def test_it_passes_without_tools_and_keeps_its_logs(demo: Demo, tmp_path: Path) -> None:
    arguments = ("demo", "--verbose", "--keep", str(tmp_path / "kept"))
    ended = demo.run("-m", "kkp2p_compat", *arguments, PATH=str(tmp_path))
    assert ended.returncode == 0, ended.stdout
    _check_shown(ended.stdout)
    assert ended.stdout.count("Python's own client") == CONNECTIONS
    assert "   [cloud] " in ended.stdout
    assert (tmp_path / "kept" / "server" / "kkp2p_engine.log").stat().st_size > 0
    assert "accept new connection" in (tmp_path / "kept" / "server" / "output.txt").read_text()


@pytest.mark.parametrize("name", BROKEN_SERVERS)
def test_it_fails_with_a_broken_server(demo: Demo, tmp_path: Path, name: str) -> None:
    body, verdict = BROKEN_SERVERS[name]
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable) + body)
    python.chmod(0o755)
    ended = demo.run("-c", WITH_PYTHON, str(python), PATH=str(tmp_path))
    assert ended.returncode == 1, ended.stdout
    assert verdict in ended.stdout
    assert "--- server: output.txt, the end of it:" in ended.stdout
    assert "Passed" not in ended.stdout


def test_it_fails_with_a_failing_client(demo: Demo, tmp_path: Path) -> None:
    curl = tmp_path / "curl"
    curl.write_text("#!/bin/sh\necho nothing works >&2\nexit 7\n")
    curl.chmod(0o755)
    ended = demo.run(
        "-m", "kkp2p_compat", "demo", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    )
    assert ended.returncode == 1
    assert "FAILED: http with curl, mode auto: exit status 7" in ended.stdout
    assert "\nnothing works\n" in ended.stdout


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_it_ends_what_it_started_when_interrupted(
    demo: Demo, number: signal.Signals, status: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kkp2p_compat", "demo"],
        env=demo.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []

        def read(until: str) -> None:
            for line in process.stdout or ():
                lines.append(line)
                if until in line:
                    return

        try:
            gevent.get_hub().threadpool.apply(read, ("A proxy client for each",))
            process.send_signal(number)
            gevent.get_hub().threadpool.apply(read, ("nothing holds this",))
        finally:
            process.kill()
    assert process.returncode == status, lines
    assert "Traceback" not in "".join(lines)


def test_it_cannot_write(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = demo.run("-m", "kkp2p_compat", "demo", "--keep", str(tmp_path / "file" / "below"))
    assert ended.returncode == 1
    assert ended.stdout.startswith("kkp2p demo: ")
    assert "Traceback" not in ended.stdout
