"""A word on standard error from inside a program that must neither end nor wait for it.

Standard error may be closed, on a full disk, a pipe whose reader has ended or does not read, or an
object of the application's.
"""

from __future__ import annotations

import io
import os
import select
import sys

from gevent import monkey

__all__ = ["PIPE_BUF", "say", "writable"]

PIPE_BUF = 512  # POSIX's least: a pipe that polls writable takes so much at once
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
        if type(stream) is not io.TextIOWrapper:  # the application's: it must know
            print(text, file=stream, flush=True)
            return
        # Not by the stream: what it cannot write it keeps, and fails with it at the exit.
        rest, fd = f"{text}\n".encode(errors="backslashreplace"), stream.fileno()
        while rest and writable(fd):
            rest = rest[os.write(fd, rest[:PIPE_BUF]) :]
    except Exception:  # noqa: BLE001, S110 - there is nowhere left to say it
        pass
