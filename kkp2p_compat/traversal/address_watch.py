"""Notice when this host's usable addresses or default routes change.

On Linux the kernel tells by netlink (rtnetlink(7)) that something has changed; its messages are
not read, they only make us look.  Changes come in bursts (a link, its addresses, its routes), so we
look DEBOUNCE_S after the first message, and compare what we see with what was seen last:
``on_change`` is called for a real difference only.  Where there is no netlink we look every POLL_S.

Runs in the hub of the greenlet that calls ``start``.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from logging import Logger
from typing import Any

import gevent
from gevent.pool import Group

from .._descriptors import keep_private
from .._io import READ, OneShot
from .candidates import host_candidates
from .routes import default_routes

__all__ = ["AddressWatch", "look"]

# linux/rtnetlink.h
RTMGRP_LINK = 0x1
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV4_ROUTE = 0x40
RTMGRP_IPV6_IFADDR = 0x100
RTMGRP_IPV6_ROUTE = 0x400
GROUPS = (
    RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
)

# Our choices.
DEBOUNCE_S = 0.2
POLL_S = 5.0
READS_PER_TURN = 64  # messages taken before others of the hub get their turn
MESSAGE_BYTES = 1  # of each that are read; the kernel drops the rest


def look() -> object:
    """The addresses and routes of this moment; equal to earlier ones when nothing has changed."""
    ports = {int(socket.AF_INET): 1, int(socket.AF_INET6): 1}
    return [candidate.address for candidate in host_candidates(ports)], default_routes()


class AddressWatch:
    """``start``, then ``close``, both in the engine's hub.

    ``on_change`` runs in a greenlet of its own, which ``close`` ends.
    """

    def __init__(
        self,
        on_change: Callable[[], object],
        log: Logger,
        *,
        look: Callable[[], object] = look,
        netlink: Callable[[], Any] | None = None,
    ) -> None:
        self._on_change = on_change
        self._log = log
        self._look = look
        self._open = netlink or _open_netlink  # OSError or AttributeError: there is none
        self._seen: object = None
        self._sock: Any = None
        self._watcher: Any = None
        self._timer: Any = None
        self._failing = False  # said once
        self._told: Group = Group()

    def start(self) -> None:
        loop = gevent.get_hub().loop
        try:
            self._sock = self._open()
        except (OSError, AttributeError) as error:
            self._log.info("no netlink: addresses are looked at every %g s: %s", POLL_S, error)
            self._timer = loop.timer(POLL_S, POLL_S)
            self._timer.start(self._check)
            self._seen = self._try_to_look()
        else:
            self._timer = OneShot(DEBOUNCE_S)
            self._watcher = loop.io(self._sock.fileno(), READ)
            # Not at once: whoever starts us wants to reach a peer, and soon waits for its answer.
            loop.run_callback(self._look_first)

    def close(self) -> None:
        """May be called again, also by ``on_change``."""
        watchers = self._watcher, self._timer
        self._watcher = self._timer = None
        for watcher in watchers:
            if watcher is not None:
                watcher.stop()
                watcher.close()
        if self._sock is not None:
            self._sock.close()
        self._told.discard(gevent.getcurrent())
        self._told.kill()

    def _look_first(self) -> None:
        if self._watcher is None:
            return  # closed
        self._seen = self._try_to_look()
        self._watcher.start(self._handle_readable)
        if self._handle_readable():
            self._seen = None  # somebody may have looked since the start, and before the change

    def _handle_readable(self) -> bool:
        """Whether there was a message; then we look soon."""
        for count in range(READS_PER_TURN):
            try:
                self._sock.recv(MESSAGE_BYTES)
            except BlockingIOError:
                if count == 0:
                    return False
                break
            except OSError as error:
                # ENOBUFS: more messages than the kernel keeps; the look will show what they said.
                if error.errno != errno.ENOBUFS:
                    self._log.warning("netlink: %s; address changes go unnoticed", error)
                    self._watcher.stop()
                    return False
        if not self._timer.active:  # not put off by more messages: a storm must not hide a change
            self._timer.start(self._check)
        return True

    def _check(self) -> None:
        seen = self._try_to_look()
        if seen is not None and seen != self._seen:
            self._seen = seen
            self._log.info("the addresses or default routes of this host have changed")
            self._told.spawn(self._on_change)

    def _try_to_look(self) -> object:
        try:
            seen = self._look()
        except OSError as error:  # out of descriptors
            if not self._failing:
                self._log.warning("cannot look at the addresses of this host: %s", error)
            self._failing = True
            if self._watcher is not None:  # without a message, as there may be none
                self._timer.start(self._check)
            return None
        self._failing = False
        return seen


def _open_netlink() -> Any:
    sock = keep_private(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE))
    try:
        sock.setblocking(False)
        sock.bind((0, GROUPS))
    except OSError:
        sock.close()
        raise
    return sock
