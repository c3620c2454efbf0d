"""Standard input and output as one connection: what ``-`` stands for.

Two native threads copy, each with calls that block: a file cannot be polled, and O_NONBLOCK would
hit the shell and others that share the descriptors.  The end of either is passed on by itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket as _socket
from collections.abc import Callable
from typing import Any

import gevent
from gevent import monkey
from gevent.event import Event

__all__ = ["Stdio"]

CHUNK_BYTES = 64 << 10
BUFFER_BYTES = 1 << 20  # our choice: per direction; the kernel bounds it by net.core.wmem_max
_start_thread: Any = monkey.get_original("_thread", "start_new_thread")


class Stdio:
    """``socket`` is for whoever carries it on, and theirs to close.

    ``on_problem`` is called in the hub of whoever made it.  ``written`` is set once all that came
    is written, or cannot be.
    """

    def __init__(self, on_problem: Callable[[str], object]) -> None:
        new_pair: Any = monkey.get_original("socket", "socketpair")
        self.socket, self._ours = new_pair()
        self.socket.setblocking(False)
        for end in (self.socket, self._ours):
            end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, BUFFER_BYTES)
        self.written = Event()
        self._on_problem = on_problem
        self._is_ending = False
        self._loop = gevent.get_hub().loop
        self._is_open = self._loop.async_()  # or a hub with nothing else to do would give up
        self._is_open.start(lambda: None)

    def start(self) -> None:
        _start_thread(self._read, ())
        _start_thread(self._write, ())

    def _read(self) -> None:
        while True:
            try:
                data = os.read(0, CHUNK_BYTES)
            except BlockingIOError:  # whoever started us has set the mode
                _wait(0, select.POLLIN)
                continue
            except OSError as error:
                self._tell(f"standard input: {error.strerror}")
                return
            try:
                if not data:
                    self._ours.shutdown(_socket.SHUT_WR)
                    return
                self._ours.sendall(data)
            except OSError:
                return  # the connection is over, which its own end tells

    def _write(self) -> None:
        try:
            for data in iter(self._receive, b""):
                view = memoryview(data)
                while view:
                    try:
                        view = view[os.write(1, view) :]
                    except BlockingIOError:
                        _wait(1, select.POLLOUT)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)  # whoever reads it sees the end
            os.close(null)
        except OSError as error:
            self._tell(f"standard output: {error.strerror}")
        self._loop.run_callback_threadsafe(self.written.set)

    def _receive(self) -> bytes:
        try:
            return bytes(self._ours.recv(CHUNK_BYTES))
        except OSError:
            return b""  # broken, which the connection's own end tells

    def _tell(self, problem: str) -> None:
        if not self._is_ending:
            self._loop.run_callback_threadsafe(self._on_problem, problem)

    def finish(self) -> None:
        """Whoever started us wants no more: what was read is sent, what comes need not be taken."""
        self._is_ending = True
        with contextlib.suppress(OSError):  # the connection is over
            self._ours.shutdown(_socket.SHUT_WR)

    def close(self) -> None:
        """Its threads end with the program, if not before: nothing interrupts a read."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(_socket.SHUT_RDWR)
        self._ours.close()
        self.socket.close()  # if nobody has carried it
        self._is_open.close()


def _wait(fd: int, events: int) -> None:
    poll: Any = monkey.get_original("select", "poll")()
    poll.register(fd, events)
    poll.poll()
