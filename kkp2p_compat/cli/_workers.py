"""``kkp2p cloud --workers N``: several processes at one port, and the parent that keeps them.

A worker writes its hello to the pipe that is its standard output, and then a line every second,
which is its sign of life: one that stands still is killed, for its peers cannot tell it from a slow
one.  Between them may be lines of the audit log (``--audit -``) and notices, as that lines of it
were lost, which the parent prints.  A worker whose parent is gone ends, as nobody reads its lines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gevent
from gevent import subprocess
from gevent.event import Event

from .._address import text_of
from ..cloud.door import Door
from ._words import _

__all__ = ["ALIVE", "Workers", "tell_alive"]

log = logging.getLogger(__name__)

# Our choices.
ALIVE = b".\n"
AUDIT = b"{"  # how a line of the audit log begins
ALIVE_EVERY_S = 1.0
STUCK = 10  # signs of life that did not come, one after the other
PORT_TRIES = 16  # to find a number whose neighbours are free, too, when any will do
START = 60  # until the first one
PAUSE_S = 1.0  # before a worker that has ended is started again; twice as long each time
PAUSE_MOST_S = 30.0
STAYED_S = 30.0  # then its next end is the first one again


def tell_alive(on_orphaned: Callable[[], object]) -> None:
    """In a worker: say that it lives, until its parent is gone."""
    while True:
        try:
            os.write(sys.stdout.fileno(), ALIVE)
        except OSError:
            on_orphaned()
            return
        gevent.sleep(ALIVE_EVERY_S)


def _door(host: str, port: int, count: int) -> Door:
    """Where any port will do: one that is free for all that the workers serve by default."""
    for tries_left in reversed(range(1 if port else PORT_TRIES)):
        door = Door(host, port, lambda sock, host: None, shared=True)
        number = door.address[1]
        relays = range(number + 2, number + 2 + count)
        if not tries_left or _are_free(
            host, {socket.SOCK_DGRAM: [number, *relays], socket.SOCK_STREAM: relays}
        ):
            break
        door.close()
    return door


def _are_free(host: str, ports: dict[socket.SocketKind, Iterable[int]]) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind, numbers in ports.items():
        for number in numbers:
            with socket.socket(family, kind) as sock:
                try:
                    sock.bind((host, number))
                except (OSError, OverflowError):  # OverflowError: there is no such port
                    return False
    return True


def _print(*lines: bytes) -> None:
    with contextlib.suppress(OSError):
        print(b"".join(lines).decode(errors="replace"), end="", flush=True)


class Workers:
    """``run`` until SIGTERM or SIGINT: workers get SIGTERM.  SIGHUP is passed on, too."""

    def __init__(self, arguments: Sequence[str], count: int, address: tuple[str, int]) -> None:
        """``arguments``: those of the command; ``address``: where all of them listen."""
        # The port is ours as long as we live, and free for the workers: this one does not listen.
        self._door = _door(*address, count)
        self._arguments = [*arguments, "--listen", text_of(self._door.address)]
        self._count = count
        self._stopping = Event()
        self._running: dict[int, Any] = {}
        self._up: set[int] = set()  # of these
        self._to_reload: set[int] = set()  # once they are up
        self._has_said_hello = False
        self._status = 0

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self._stop)
        gevent.signal_handler(signal.SIGHUP, self._reload)
        gevent.joinall([gevent.spawn(self._keep, index) for index in range(self._count)])
        self._door.close()
        return self._status

    def _stop(self) -> None:
        self._stopping.set()
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()

    def _reload(self) -> None:
        """A worker that is not up yet would be ended by the signal, and gets it later."""
        for index, process in self._running.items():
            if index not in self._up:
                self._to_reload.add(index)
            elif process.poll() is None:
                process.send_signal(signal.SIGHUP)

    def _keep(self, index: int) -> None:
        """Start one worker, and again whenever it has ended."""
        pause_s = PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            status, was_up = self._run_one(index)
            if self._stopping.is_set():
                if status != 0 and (was_up or status != -signal.SIGTERM):  # our own, at its start
                    log.error("worker %d has ended (%d) while stopping", index, status)
                    self._status = 1
            elif not was_up and not self._has_said_hello:
                self._status = max(status, 1)  # it has said why it cannot start
                self._stop()
            else:
                if time.monotonic() - began > STAYED_S:
                    pause_s = PAUSE_S
                log.error("worker %d has ended (%d), again in %g s", index, status, pause_s)
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MOST_S)

    def _run_one(self, index: int) -> tuple[int, bool]:
        """Its exit status, and whether it was up."""
        command = [sys.executable, "-m", "kkp2p_compat", "cloud", *self._arguments]
        try:
            process = subprocess.Popen(
                [*command, "--worker", str(index)],
                stdout=subprocess.PIPE,
                # Ctrl-C is for this process alone: a worker that got a second signal for it would
                # not drain.
                start_new_session=True,
            )
        except OSError as error:  # no memory, or no process is left
            log.error("worker %d cannot be started: %s", index, error)
            return 1, False
        self._running[index] = process
        if self._stopping.is_set():  # meanwhile: nobody has told this one
            process.terminate()
        hello: list[bytes] = []
        heard = Event()
        watching = gevent.spawn(self._watch, index, process, heard)
        for line in iter(process.stdout.readline, b""):
            heard.set()
            is_up = index in self._up
            if line != ALIVE:
                # Peers may be there before its first sign of life, and are in the audit log then.
                if is_up or line.startswith(AUDIT):
                    _print(line)
                else:
                    hello.append(line)
            elif not is_up:
                self._up.add(index)
                self._say_hello(hello)
                if index in self._to_reload:
                    process.send_signal(signal.SIGHUP)
                self._to_reload.discard(index)
        watching.kill()
        status = process.wait()
        process.stdout.close()
        was_up = index in self._up
        self._up.discard(index)
        return int(status), was_up

    def _watch(self, index: int, process: Any, heard: Event) -> None:
        """Kill a worker that stands still.

        What counts are waits without a sign, not the time since the last one: that passes for this
        process, too, while it is stopped, or the whole machine is.
        """
        missed = 0
        while missed < (STUCK if index in self._up else START):
            missed = 0 if heard.wait(ALIVE_EVERY_S) else missed + 1
            heard.clear()
        log.error("worker %d stands still: it is killed", index)
        process.kill()

    def _say_hello(self, hello: list[bytes]) -> None:
        """Once: all of them say the same."""
        if not self._has_said_hello:
            self._has_said_hello = True
            text = _("  workers: {count}").format(count=self._count)
            _print(*hello, f"{text}\n".encode())
