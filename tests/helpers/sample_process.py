"""A sample as a real process, with its standard streams apart, for the tests of the samples."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import gevent
import pytest

from helpers.support import ENVIRONMENT, ROOT, SECRET, CloudProcess

__all__ = ["SampleProcess", "StartSample", "load_sample", "read_terminal", "start_sample"]

StartSample = Callable[..., "SampleProcess"]


class SampleProcess:
    """``python samples/NAME.py ARGUMENTS`` in a folder of its own.

    ``keyboard``, ``screen``: descriptors for its standard input and error; None: a pipe.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        arguments: tuple[str, ...],
        login: str,
        keyboard: int | None,
        screen: int | None,
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "samples" / f"{name}.py"), *arguments],
            env=ENVIRONMENT | {"KKP2P_LOGIN": login, "KKP2P_SECRET": SECRET},
            cwd=folder,
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE if keyboard is None else keyboard,
            stderr=subprocess.PIPE if screen is None else screen,
        )

    def line(self) -> str:
        """The next line of its standard output; empty at the end of it."""
        return self._wait(self._stream(self.process.stdout).readline).decode()

    def error_line(self) -> str:
        return self._wait(self._stream(self.process.stderr).readline).decode()

    def type(self, data: bytes) -> None:
        stdin = self._stream(self.process.stdin)
        self._wait(lambda: (stdin.write(data), stdin.flush()))

    def end_input(self) -> None:
        self._stream(self.process.stdin).close()

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Its exit status, and what else it says; ``number``: a signal for it first."""
        if number is not None:
            self.process.send_signal(number)
        errors = gevent.spawn(self._read, self.process.stderr)
        output = self._read(self.process.stdout)
        return self._wait(self.process.wait), output, errors.get()

    def kill(self) -> None:
        self.process.kill()
        self._wait(self.process.wait)

    def close(self) -> None:
        """After the test."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:  # it had not read all of its input
                    continue

    def _read(self, stream: IO[bytes] | None) -> str:
        return "" if stream is None else self._wait(stream.read).decode()

    @staticmethod
    def _stream(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None
        return stream

    @staticmethod
    def _wait(function: Callable[[], Any]) -> Any:
        """A native wait that the time limit of the test can leave."""
        return gevent.get_hub().threadpool.apply(function)


@pytest.fixture
def start_sample(tmp_path: Path, cloud: CloudProcess) -> Iterator[StartSample]:
    """Start a sample that logs in at the cloud of the tests."""
    started: list[SampleProcess] = []

    def start(
        name: str, *arguments: str, keyboard: int | None = None, screen: int | None = None
    ) -> SampleProcess:
        folder = tmp_path / f"{name}{len(started)}"
        pinned = cloud.pinned()
        started.append(SampleProcess(folder, name, arguments, pinned, keyboard, screen))
        return started[-1]

    yield start
    for sample in started:
        sample.close()


def read_terminal(fd: int) -> bytes:
    """What was written to the other end of a pseudo-terminal, which is closed by now."""
    data = b""
    while True:
        try:
            data += os.read(fd, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # how Linux tells the end of a terminal
                raise
            return data


def load_sample(name: str) -> ModuleType:
    """A sample as a module: they are programs, and in no package here."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "samples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
