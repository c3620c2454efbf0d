"""C programs of the tests: compiled with the library, and run as processes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest

from helpers.document import need_program
from helpers.support import ENVIRONMENT, ROOT
from kkp2p_compat.capi import build

__all__ = ["CProgram", "Compiler", "StartC", "start_c"]

SOURCES = ROOT / "tests" / "capi" / "programs"
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


class Compiler:
    """Each library and program is compiled once; ``folder`` is for them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: dict[tuple[str, ...], Path] = {}

    def library(self, *options: str, cc: str = "gcc") -> build.Built:
        need_program(cc)
        name = "-".join([cc, *options]).replace("=", "-").replace(",", "-")
        return build.library(self._folder / name, cc, (*STRICT, *options))

    def program(
        self,
        source: str,
        *options: str,
        cc: str = "gcc",
        libraries: Sequence[str] = (),
        warnings: Sequence[str] = STRICT,
    ) -> Path:
        """``options``: as for the library, which is linked into the program."""
        key = (source, cc, *options)
        if key not in self._programs:
            built = self.library(*options, cc=cc)
            program = self._folder / "-".join([Path(source).stem, built.lib.name])
            command = [
                cc,
                "-g",
                "-O1",
                *warnings,
                *options,
                f"-I{built.include}",
                str(SOURCES / source),
                str(built.lib / "libkkp2p.a"),
                *libraries,
                "-pthread",
                "-o",
                str(program),
            ]
            ended = subprocess.run(command, capture_output=True, text=True)
            assert (ended.returncode, ended.stderr) == (0, "")
            self._programs[key] = program
        return self._programs[key]


class CProgram:
    """A program as a process of its own, in a folder of its own."""

    def __init__(self, folder: Path, command: Sequence[str], environment: dict[str, str]) -> None:
        folder.mkdir()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            text=True,
            env=ENVIRONMENT | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return str(_wait(self.process.stdout.readline))

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Its exit status, and what else it has printed; ``number``: a signal for it first."""
        assert self.process.stdout is not None
        if number is not None:
            self.process.send_signal(number)
        rest = str(_wait(self.process.stdout.read))
        return int(_wait(self.process.wait)), rest

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _wait(function: Callable[[], Any]) -> Any:
    """A native wait that the time limit of the test can leave."""
    return gevent.get_hub().threadpool.apply(function)


StartC = Callable[..., CProgram]


@pytest.fixture
def start_c(tmp_path: Path) -> Iterator[StartC]:
    started: list[CProgram] = []

    def start(program: Path, *arguments: str, **environment: str) -> CProgram:
        folder = tmp_path / f"{program.name}{len(started)}"
        started.append(CProgram(folder, [str(program), *arguments], environment))
        return started[-1]

    yield start
    for program in started:
        program.close()
