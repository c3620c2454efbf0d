"""Output that nobody reads or that cannot be written, of the tools that serve others."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

from helpers.cloud_client import Client, StartProcess, cloud_process, end_process
from helpers.support import ENVIRONMENT, PATIENCE_S, SECRET, CloudProcess, Program
from kkp2p_compat.cli import _output as output_module
from kkp2p_compat.cli._output import Output

__all__ = ["cloud_process"]


@contextlib.contextmanager
def output_to(fd: int, **options: Any) -> Iterator[Output]:
    with os.fdopen(fd, "w", closefd=False) as stream:
        output = Output(stream, **options)
        try:
            yield output
        finally:
            output.finish()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(fd)


def read_now(fd: int) -> str:
    os.set_blocking(fd, False)
    found = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(fd, 65536):
            found += piece
    return found.decode()


def test_lines_come_as_they_are_printed(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with output_to(writer) as output:
        print("one", "two", sep="\n", file=output, flush=True)
        print("a begun", end="", file=output)
        assert read_now(reader) == "one\ntwo\n"
    assert read_now(reader) == "a begun\n"


def test_a_pipe_that_nobody_reads_takes_no_time_and_loses_the_oldest(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_module, "MAX_WAITING", 10)
    reader, writer = pipe
    with output_to(writer) as output:
        for number in range(5000):
            print(f"{number:099d}", file=output)
        assert os.get_blocking(writer), "others share it"
        found = ""
        while "4999\n" not in found:
            found += read_now(reader)
            gevent.sleep(0.001)  # the rest comes by itself, as soon as there is room
    lines = found.splitlines()
    (told,) = (number for number, line in enumerate(lines) if "lost" in line)
    lost = re.fullmatch(r"(\d+) lines were lost: nobody reads", lines[told])
    assert lost is not None
    kept = [int(line) for line in lines[:told] + lines[told + 1 :]]
    assert kept == [*range(told), *range(told + int(lost[1]), 5000)]


def test_a_reader_that_ends(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with output_to(writer) as output:
        print("read", file=output)
        os.close(reader)
        for _ in range(3):
            print("lost", file=output)


def test_a_file_that_takes_no_more(tmp_path: Path) -> None:
    """Here the limit on a file's size: a line is torn, as by a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(tmp_path / "file", "w") as file, output_to(file.fileno()) as output:
        print("first", file=output)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            print("torn line", file=output)
            print("lost", file=output)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        print("last", file=output)
    lines = (tmp_path / "file").read_text().splitlines()
    assert lines == ["first", "torn", "2 lines were lost: File too large", "last"]


def test_a_terminal_that_is_gone(tmp_path: Path) -> None:
    watcher, screen = pty.openpty()
    try:
        with output_to(screen) as output:
            print("seen", file=output)
            os.close(watcher)
            print("lost", file=output)
    finally:
        os.close(screen)


def test_what_it_is_not_made_for(capsys: pytest.CaptureFixture[str]) -> None:
    """A stream of the caller's that is no descriptor, or none at all, stays."""
    with output_module.never_waiting():
        print("here")
    assert capsys.readouterr().out == "here\n"


# The tools.


@pytest.fixture
def server(cloud: CloudProcess, start_program: Callable[..., Program]) -> Program:
    program = start_program("server", str(cloud.port), "peer", SECRET)
    assert program.first_line == "joined"
    return program


def exchange(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"


def wait_for_listener(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            gevent.sleep(0.01)  # it cannot tell: its output is not read


@pytest.mark.parametrize("output", ["full", "no reader", "not read"])
def test_a_proxy_serves_on(
    cloud: CloudProcess,
    server: Program,
    tmp_path: Path,
    held_port: int,
    output: str,
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    if output == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    elif output == "no reader":
        os.close(reader)
    else:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"\n" * 4096)
        os.set_blocking(writer, True)
    proxy = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kkp2p_compat",
            "proxy",
            str(held_port),
            "peer",
            "--verbose",
            "--login",
            f"127.0.0.1:{cloud.port}",
        ],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=writer,
        stderr=writer,
    )
    try:
        wait_for_listener(held_port)
        for _ in range(3):
            exchange(held_port)
        proxy.send_signal(signal.SIGTERM)
        assert gevent.get_hub().threadpool.apply(proxy.wait, (PATIENCE_S,)) == 0
    finally:
        proxy.kill()
        proxy.wait()
        if output == "full":
            os.close(writer)


@pytest.mark.parametrize("command", ["identity", "capi"])
def test_a_command_that_answers_says_why_its_answer_is_not_there(
    tmp_path: Path, command: str
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kkp2p_compat", command],
            env={**ENVIRONMENT, "XDG_DATA_HOME": str(tmp_path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "kkp2p: [Errno 28] No space left on device\n")


CLOSED = {"input": "<&-", "output": ">&-", "errors": "2>&-", "all": "<&- >&- 2>&-"}
each_closed = pytest.mark.parametrize("closed", CLOSED)


def closing(closed: str, *arguments: str) -> list[str]:
    """The command line of a tool that is started without these streams."""
    return [
        *("sh", "-c", f'exec "$0" "$@" {CLOSED[closed]}'),
        *(sys.executable, "-m", "kkp2p_compat", *arguments),
    ]


def run_closing(folder: Path, closed: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        closing(closed, *arguments),
        cwd=folder,
        env={**ENVIRONMENT, "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@each_closed
@pytest.mark.parametrize(
    ("arguments", "status", "answer", "problem"),
    [
        (["netcheck", "--no-upnp", "--login", "{cloud}"], 0, "The cloud", ""),
        (["proxy", "-", "peer", "--login", "{cloud}"], 0, "", "connected"),
        (["join", "{cloud}"], 0, "joined the cloud", ""),
        (["join", "-"], 1, "", "kkp2p join: not the HOST[:PORT] of a cloud"),
        (["identity"], 0, "sha256:", ""),
        (["--version"], 0, "kkp2p_compat ", ""),
    ],
    ids=["netcheck", "proxy", "join", "join -", "identity", "version"],
)
def test_a_command_does_its_work_without_streams(
    cloud: CloudProcess,
    server: Program,
    tmp_path: Path,
    closed: str,
    arguments: list[str],
    status: int,
    answer: str,
    problem: str,
) -> None:
    given = [argument.format(cloud=f"127.0.0.1:{cloud.port}") for argument in arguments]
    done = run_closing(tmp_path, closed, *given)
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stderr
    assert (answer if CLOSED[closed] in ("<&-", "2>&-") else "") in done.stdout
    assert (problem if CLOSED[closed] in ("<&-", ">&-") else "") in done.stderr


@each_closed
def test_a_proxy_without_streams_opens_nothing_else_under_their_numbers(
    cloud: CloudProcess, server: Program, tmp_path: Path, held_port: int, closed: str
) -> None:
    command = closing(closed, "proxy", str(held_port), "peer", "--login", f"127.0.0.1:{cloud.port}")
    with open(tmp_path / "streams", "w+") as file:
        proxy = subprocess.Popen(
            command, cwd=tmp_path, env=ENVIRONMENT, stdin=file, stdout=file, stderr=file
        )
        try:
            wait_for_listener(held_port)
            exchange(held_port)
            places = {os.readlink(f"/proc/{proxy.pid}/fd/{number}") for number in range(3)}
            assert places <= {file.name, os.devnull}
            proxy.send_signal(signal.SIGTERM)
            assert gevent.get_hub().threadpool.apply(proxy.wait, (PATIENCE_S,)) == 0
        finally:
            proxy.kill()
            proxy.wait()
        assert "Traceback" not in Path(file.name).read_text()


@pytest.mark.parametrize("command", [["invite"], ["account", "add"]], ids=" ".join)
def test_no_account_is_made_whose_secret_nobody_would_see(
    start_cloud: Callable[..., CloudProcess], tmp_path: Path, command: list[str]
) -> None:
    start_cloud(data="data").pinned()
    place = ["zoe", "--data", str(tmp_path / "data")]
    done = run_closing(tmp_path, "output", *command, *place)
    problem = "standard output goes nowhere, and the new secret would be lost"
    assert (done.returncode, done.stderr) == (1, f"kkp2p {command[0]}: {problem}\n")
    again = run_closing(tmp_path, "input", *command, *place)
    assert (again.returncode, again.stderr) == (0, "")
    assert re.search("zoe:[0-9a-f]{32}@|now: [0-9a-f]{32}$", again.stdout.rstrip())


def test_a_cloud_whose_log_nobody_reads_goes_on(
    cloud_process: StartProcess, tmp_path: Path
) -> None:
    """More log than the pipe holds; whoever reads it at last has it all."""
    process, address = cloud_process("--data", str(tmp_path), "--account", "alice:a")
    assert process.stderr is not None
    size = fcntl.fcntl(process.stderr.fileno(), 1031, 4096)  # linux/fcntl.h: F_SETPIPE_SZ
    logins = size // 30  # each writes a longer line
    for _ in range(logins):
        with Client(address) as alice:
            assert alice.login("alice", "a")["op"] == "welcome"
    status, log = end_process(process)
    assert status == 0
    assert log.count("(alice): online") == logins
