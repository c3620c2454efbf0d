"""Standard output and error of a program that serves others: neither may stop or end it.

A pipe that nobody reads, a terminal that is stopped or gone, a full disk: lines wait, up to a
bound; then the oldest are dropped, and the first line that can be written again is preceded by one
that says how many are missing and why.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import gevent
from gevent import monkey

from .._io import WRITE
from .._say import PIPE_BUF, writable
from ._words import ngettext

__all__ = ["MAX_WAITING", "Output", "lost_as_json", "lost_in_words", "never_waiting"]

# Our choices.
MAX_WAITING = 10_000  # lines; a burst that a reader catches up with
LAST_WORDS_S = 1.0  # how long the end of the program waits for a reader

Notice = Callable[[int, str], str]


def lost_in_words(count: int, why: str) -> str:
    text = ngettext("{count} line was lost: {why}", "{count} lines were lost: {why}", count)
    return text.format(count=count, why=why)


def lost_as_json(count: int, why: str) -> str:
    return json.dumps({"event": "lost", "lines": count, "reason": why})


class Output(io.TextIOBase):
    """In place of ``stream``, from any thread.  Make it, and ``finish`` it, in the main one."""

    def __init__(self, stream: TextIO, notice: Notice = lost_in_words) -> None:
        self._stream = stream
        self._notice = notice
        self._lock: Any = monkey.get_original("_thread", "RLock")()
        self._fd = _open_again(stream.fileno())
        self._begun = ""  # a line whose end is not there yet
        self._waiting: deque[bytes] = deque()
        self._rest = b""  # of what is being written
        self._lost, self._why = 0, ""
        self._telling = 0  # so many lost ones, with _rest
        self._torn = False  # the last line has no end
        self._finished = False
        self._loop = gevent.get_hub().loop
        self._watcher = self._loop.io(self._fd, WRITE)

    def write(self, text: str) -> int:
        with self._lock:
            if self._finished:
                return len(text)
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                if len(self._waiting) >= MAX_WAITING:
                    self._waiting.popleft()
                    self._lost, self._why = self._lost + 1, "nobody reads"
                self._waiting.append(self._encoded(line))
            if lines and self._drain():
                self._loop.run_callback_threadsafe(self._watch)
        return len(text)

    def finish(self) -> None:
        """Write what waits, if somebody takes it soon."""
        deadline = time.monotonic() + LAST_WORDS_S
        with self._lock:
            if self._begun:
                self.write("\n")
            self._finished = True
            while self._drain() and (left_s := deadline - time.monotonic()) > 0:
                writable(self._fd, int(1000 * left_s) + 1)
            self._watcher.stop()
            self._watcher.close()
            os.close(self._fd)

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def _watch(self) -> None:
        with self._lock:
            if not self._finished:
                self._watcher.start(self._handle_writable)

    def _handle_writable(self) -> None:
        with self._lock:
            if self._finished or not self._drain():
                self._watcher.stop()

    def _drain(self) -> bool:
        """Write what can be written now; returns whether something waits for a reader."""
        while self._rest or self._waiting:
            if not self._rest:
                self._next()
            try:
                if not writable(self._fd):
                    return True
                count = os.write(self._fd, self._rest[:PIPE_BUF])
            except BlockingIOError:
                return True
            except OSError as error:
                self._lose(error)
                return False
            self._torn = not self._rest.startswith(b"\n", count - 1)
            self._rest = self._rest[count:]
            if not self._rest:
                self._lost, self._telling = self._lost - self._telling, 0
        return False

    def _next(self) -> None:
        if self._lost:
            self._telling = self._lost
            end = "\n" if self._torn else ""
            self._rest = self._encoded(f"{end}{self._notice(self._lost, self._why)}")
        else:
            self._rest = self._waiting.popleft()

    def _encoded(self, line: str) -> bytes:
        return f"{line}\n".encode(self._stream.encoding, "backslashreplace")

    def _lose(self, error: OSError) -> None:
        """All that waits: the next line finds out whether it can be written again."""
        self._lost += len(self._waiting) + (not self._telling)
        self._why = error.strerror or str(error)
        self._waiting.clear()
        self._rest, self._telling = b"", 0


def _open_again(fd: int) -> int:
    """For us alone, so that O_NONBLOCK does not hit the shell and others that share ``fd``."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with contextlib.suppress(OSError):  # another user's, no reader, no /proc: polling must do
            return os.open(f"/proc/self/fd/{fd}", flags)
    return os.dup(fd)


@contextlib.contextmanager
def never_waiting(notice: Notice = lost_in_words, has_stdout: bool = True) -> Iterator[None]:
    """sys.stdout and sys.stderr, as far as they are descriptors; ``notice``: for stdout.

    Without ``has_stdout`` that is left alone, and ``notice`` is for stderr.
    """
    before, ours = (sys.stdout, sys.stderr), []

    def replace(stream: Any, notice: Notice) -> Any:
        try:
            ours.append(Output(stream, notice))
        except (AttributeError, OSError, ValueError):  # none, closed, or not a descriptor's
            return stream
        return ours[-1]

    if has_stdout:
        sys.stdout = replace(before[0], notice)
    sys.stderr = replace(before[1], lost_in_words if has_stdout else notice)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for output in ours:
            output.finish()
