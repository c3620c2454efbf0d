"""Writes to standard error from inside a program that this must neither end nor block.

Standard error may be closed, on a full disk, a pipe whose reader has ended or does not read, or an
object of the application.
"""

from __future__ import annotations

import io
import os
import select
import sys

from gevent import monkey

__all__ = ["PIPE_BUF", "say", "writable"]

PIPE_BUF = 512  # the minimum of POSIX: a pipe that polls writable takes as much at once
_poll = monkey.get_original("select", "poll")


def writable(fd: int, timeout_ms: int = 0) -> bool:
    """Whether a write of up to PIPE_BUF bytes would not wait; it may fail."""
    poll = _poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(timeout_ms))


def say(text: str) -> None:
    """Write a line, or several, as far as they can be written now.  Never raises, never waits."""
    try:
        stream = sys.stderr
        if stream is None:  # closed before the program began
            return
        if type(stream) is not io.TextIOWrapper:  # the application's own, which decides
            print(text, file=stream, flush=True)
            return
        # Not through the stream: it keeps what it cannot write, and fails with that at the exit.
        rest, fd = f"{text}\n".encode(errors="backslashreplace"), stream.fileno()
        while rest and writable(fd):
            rest = rest[os.write(fd, rest[:PIPE_BUF]) :]
    except Exception:  # noqa: BLE001, S110 - there is nowhere left to say it
        pass
