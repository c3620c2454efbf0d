"""Signals for commands whose work is done in greenlets."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import gevent
from gevent.event import Event

__all__ = ["setting", "throwing"]

ENDS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def throwing(*numbers: int) -> Iterator[None]:
    """Make signals an exception of this greenlet, so that what was started is ended."""
    main = gevent.getcurrent()
    handlers = [
        # 128 + the signal is the exit status that shells have for it.
        gevent.signal_handler(number, gevent.kill, main, SystemExit(128 + number))
        for number in numbers or ENDS
    ]
    try:
        yield
    finally:
        for handler in handlers:
            handler.cancel()


@contextlib.contextmanager
def setting(event: Event, survives: bool = False) -> Iterator[None]:
    """Let SIGINT and SIGTERM set ``event``; a second one ends the program at once.

    So does SIGHUP, by which a terminal that goes away ends its programs; ``survives``: it does not.
    """

    def end() -> None:
        event.set()
        for handler in handlers:
            handler.cancel()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    numbers = ENDS if survives else (*ENDS, signal.SIGHUP)
    handlers = [gevent.signal_handler(number, end) for number in numbers]
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
        for handler in handlers:
            handler.cancel()
