"""Runs other programs for a command: reads what they print, and leaves none behind.

Rules: the programs run in sessions of their own, so Ctrl-C reaches this process only, which then
ends them (the command must have the signal raised in its main greenlet: Python's own handler raises
KeyboardInterrupt anywhere).  It waits for a printed line or for the end of a program.  When a
program ends before it was told to, every wait fails.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import gevent
from gevent import subprocess
from gevent.event import Event
from gevent.pool import Group

__all__ = ["Failure", "Program", "Programs"]

OUTPUT_FILE = "output.txt"
ERRORS_FILE = "errors.txt"
TAIL_LINES = 10  # our choice: of each log, shown after a failure
END_S = 5  # our choice: how long a program may take over SIGTERM before it is killed


class Failure(Exception):
    """A step did not have the expected result; the text is for the user."""


class Program:
    """One child process.  ``lines``: what it has printed so far, without line ends."""

    def __init__(
        self, programs: Programs, name: str, command: list[str], text: bytes | None, apart: bool
    ) -> None:
        self.name = name
        self.lines: list[str] = []
        self.told_to_end = text is not None  # else it runs until it is told
        self._programs = programs
        self._folder = programs.folder / name.replace(" ", "-")
        self._folder.mkdir(exist_ok=True)
        self._output = (self._folder / OUTPUT_FILE).open("w", encoding="utf-8")
        with (self._folder / ERRORS_FILE).open("w") as errors:
            try:
                self._process = subprocess.Popen(
                    command,
                    cwd=self._folder,
                    env=programs.environment,
                    stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors if apart else subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                self._output.close()
                raise Failure(f"{name}: {error}") from error
        self._reader = gevent.spawn(self._read, text)
        self._reader.rawlink(lambda _: programs.changed.set())

    @property
    def status(self) -> int | None:
        """The exit status once it has ended and everything was read; None before."""
        return self._process.poll() if self._reader.dead else None

    def signal(self, number: int) -> None:
        self.told_to_end = True
        if self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self) -> int:
        self._reader.join()
        return int(self._process.wait())

    def print_tail(self) -> None:
        for path in sorted(self._folder.iterdir()):
            last = path.read_text("utf-8", "replace").splitlines()[-TAIL_LINES:]
            if last:
                print(f"--- {self.name}: {path.name}, the end of it:")
                print("\n".join(last))

    def _read(self, text: bytes | None) -> None:
        try:
            if text is not None:
                try:
                    self._process.stdin.write(text)
                    self._process.stdin.close()
                except OSError as error:
                    self._take(f"(its standard input: {error})")
            for line in self._process.stdout:
                self._take(line.decode("utf-8", "replace").rstrip("\r\n"))
            self._process.wait()
        finally:
            self._process.stdout.close()
            self._output.close()

    def _take(self, line: str) -> None:
        self.lines.append(line)
        self._output.write(line + "\n")
        self._output.flush()
        if self._programs.verbose:
            print(f"   [{self.name}] {line}", flush=True)
        self._programs.changed.set()


class Programs:
    """Programs that work together, each in a folder of its own below ``folder``.

    A context manager: whatever happens inside, at its end no program is left.
    """

    def __init__(self, folder: Path, verbose: bool) -> None:
        self.folder = folder
        self.verbose = verbose
        self.changed = Event()
        self.environment = dict(os.environ)
        # The programs find this package wherever it is, and no web proxy in between.
        root = str(Path(__file__).parents[2])
        paths = [root, os.environ.get("PYTHONPATH", "")]
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self.environment["no_proxy"] = "*"
        self.environment.pop("KKP2P_LOGIN", None)
        self.environment["LC_ALL"] = "C"  # what they print is read
        self._programs: list[Program] = []
        self._making = Group()

    def start(self, name: str, command: list[str]) -> Program:
        """A program that runs until it is told to end."""
        return self._start(name, command, None, False)

    def run(self, name: str, command: list[str], text: bytes = b"", apart: bool = False) -> Program:
        """A program that reads ``text`` and ends by itself, with 0, or it is a Failure.

        ``apart``: its standard error does not go into ``lines``.
        """
        program = self._start(name, command, text, apart)
        self.wait_for_end([program])
        return program

    def wait_for_line(self, program: Program, pattern: str, number: int = 1) -> re.Match[str]:
        """The ``number``-th line of the program that holds ``pattern``."""
        while True:
            self.changed.clear()
            matches = [match for line in program.lines if (match := re.search(pattern, line))]
            if len(matches) >= number:
                return matches[number - 1]
            self._check_all()
            self.changed.wait()

    def wait_for_end(self, programs: Iterable[Program]) -> None:
        """Wait for the end of programs that were told to; another status than 0 is a Failure."""
        for program in programs:
            while program.status is None:
                self.changed.clear()
                self._check_all()
                self.changed.wait()
            if program.status != 0:
                raise Failure(f"{program.name}: exit status {program.status}")

    def end(self) -> None:
        """End what still runs."""
        try:
            self._making.join()
            with gevent.Timeout(END_S, False):
                for program in self._programs:
                    program.signal(signal.SIGTERM)
                for program in self._programs:
                    program.wait()
        finally:  # also when Ctrl-C is pressed again
            for program in self._programs:
                program.signal(signal.SIGKILL)
            for program in self._programs:
                program.wait()

    def print_tails(self) -> None:
        for program in self._programs:
            program.print_tail()

    def _start(self, name: str, command: list[str], text: bytes | None, apart: bool) -> Program:
        print(
            f"   $ {shlex.join(command)}{'  # reads its standard input' if text else ''}",
            flush=True,
        )

        def make() -> Program | Failure:
            try:
                program = Program(self, name, command, text, apart)
            except Failure as failure:
                return failure
            self._programs.append(program)
            return program

        # In a greenlet of its own: what interrupts ours must not come between the start of a
        # process and its place in the list.
        made = self._making.spawn(make).get()
        if isinstance(made, Failure):
            raise made
        return made

    def _check_all(self) -> None:
        for program in self._programs:
            if program.status is not None and not program.told_to_end:
                raise Failure(f"{program.name} has ended, with exit status {program.status}")

    def __enter__(self) -> Programs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
