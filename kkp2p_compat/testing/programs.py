"""Start programs on the lab's hosts, and wait for their output.

Waits are in native threads, so that a ``gevent.Timeout`` of the caller ends them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import gevent

from .hosts import PATIENCE_S, Host

__all__ = [
    "CLOUD_PORT",
    "Run",
    "marked",
    "output_of",
    "runner",
    "start_cloud",
    "start_redis",
    "wait_for",
]

CLOUD_PORT = "3080"  # the document's
MAX_WAIT_S = 6 * PATIENCE_S  # for one line or an end, unless a call says otherwise

Run = Callable[..., "subprocess.Popen[str]"]


@contextmanager
def runner() -> Iterator[Run]:
    """Gives ``run(host, line, *command, program=python)``: start it, and wait for a line in which
    the pattern ``line`` is found (None: do not).  All are ended with the context."""
    processes: list[subprocess.Popen[str]] = []

    def start(
        host: Host, line: str | None, *command: str, program: str = sys.executable
    ) -> subprocess.Popen[str]:
        process = host.start(program, *command)
        processes.append(process)
        if line is not None:
            wait_for(process, line)
        return process

    try:
        yield start
    finally:
        for process in processes:  # all of them first: a cloud waits for the channels of its peers
            if process.poll() is None:
                process.terminate()
        with ExitStack() as ends:
            for process in processes:
                ends.callback(_end, process)


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        try:
            process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()  # if it has not ended


def wait_for(process: subprocess.Popen[str], line: str, max_wait_s: float = MAX_WAIT_S) -> str:
    """The next line of the program's output that the pattern is found in."""
    assert process.stdout is not None
    read = process.stdout.readline
    with _within(max_wait_s, process, repr(line)) as seen:
        while text := gevent.get_hub().threadpool.apply(read):
            seen.append(text)
            if re.search(line, text):
                return str(text)
    raise AssertionError(f"{process.args!r} ended before {line!r}: {''.join(seen)}")


def output_of(process: subprocess.Popen[str], max_wait_s: float = MAX_WAIT_S) -> str:
    """Close its input and wait for its end, with status 0; returns the rest of its output.

    (``communicate`` would miss lines that ``wait_for`` has read together with the one it returned.)
    """
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # of what was written to it and not sent
        process.stdin.close()
    process.stdin = None
    threads = gevent.get_hub().threadpool
    with _within(max_wait_s, process, "end"):
        output = str(threads.apply(process.stdout.read))
        threads.apply(process.wait)
    process.stdout.close()
    process.stdout = None  # nothing is left for communicate
    assert process.returncode == 0, (process.args, output)
    return output


def start_cloud(run: Run, host: Host, *options: str, port: str = CLOUD_PORT) -> None:
    """``kkp2p cloud`` in its folder ``data``, such as with --account ID:SECRET, or --listen
    '[::]:3080' for IPv6, too; it listens."""
    listen = ("--listen", f"0.0.0.0:{port}")
    run(host, port, "-m", "kkp2p_compat", "cloud", "--data", "data", *listen, *options)


def start_redis(run: Run, host: Host) -> str:
    """For several clouds that are one: what each of them is given as --directory."""
    options = ("--protected-mode", "no", "--save", "")  # for all hosts, and nothing is kept
    run(host, "Ready to accept connections", *options, program="redis-server")
    return f"redis://{host.address}"


@contextmanager
def _within(max_wait_s: float, process: subprocess.Popen[str], what: str) -> Iterator[list[str]]:
    """Fail after that time, and show the lines seen until then."""
    seen: list[str] = []
    timeout = gevent.Timeout(max_wait_s)
    try:
        with timeout:
            yield seen
    except gevent.Timeout as caught:
        if caught is not timeout:
            raise
        text = f"{process.args!r}: no {what} within {max_wait_s} s: {''.join(seen)}"
        raise AssertionError(text) from None


def marked(mark: str) -> list[Path]:
    """The processes, in /proc, that have this NAME=VALUE in their environment: a program's, and
    those that it has started, which may not be its children."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append(place)
        except OSError:  # it has just ended, or is not ours
            continue
    return found
