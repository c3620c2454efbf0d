"""``kkp2p COMMAND ARGUMENTS`` as a real process, for the tests of the tools."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from helpers.support import ENVIRONMENT

__all__ = ["StartTool", "Tool", "all_paths", "start_tool"]

StartTool = Callable[..., "Tool"]

# Options of ``proxy``, and the path that it then says to be on.
_PATHS = {
    "p2p": (["--mode", "p2p"], "p2p"),
    "auto": ([], "p2p"),
    "relay": (["--mode", "relay"], "relay"),
    "sealed": (["--mode", "relay", "--encrypt"], "relay"),
}
all_paths = pytest.mark.parametrize(("options", "path"), _PATHS.values(), ids=list(_PATHS))


class Tool:
    """``lines``: what it has printed and was read so far."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], environment: dict[str, str]):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kkp2p_compat", *arguments],
            cwd=folder,
            text=True,
            env=ENVIRONMENT | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def line(self) -> str:
        """The next line of its output; empty at the end of it."""
        assert self.process.stdout is not None
        return str(_wait(self.process.stdout.readline)).rstrip("\n")

    def error_line(self) -> str:
        """The next line of its standard error; empty at the end of it."""
        assert self.process.stderr is not None
        return str(_wait(self.process.stderr.readline)).rstrip("\n")

    def event(self) -> dict[str, Any]:
        """The next line, as JSON."""
        fields = json.loads(self.line())
        assert isinstance(fields, dict)
        return fields

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Exit status, the rest of the output, the errors; ``number``: a signal for it first."""
        if number is not None:
            self.process.send_signal(number)
        output, errors = _wait(self.process.communicate)
        return self.process.returncode, output, errors

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def _wait(function: Callable[[], Any]) -> Any:
    """A native wait that the time limit of the test can leave."""
    return gevent.get_hub().threadpool.apply(function)


@pytest.fixture
def start_tool(tmp_path: Path) -> Iterator[StartTool]:
    started: list[Tool] = []

    def start(*arguments: str, **environment: str) -> Tool:
        folder = tmp_path / f"tool{len(started)}"
        folder.mkdir()
        started.append(Tool(folder, arguments, environment))
        return started[-1]

    yield start
    for tool in started:
        tool.close()
