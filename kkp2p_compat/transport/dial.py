"""Connect to one of several addresses: a dead one costs a quarter of a second, not a time-out.

RFC 8305 (Happy Eyeballs) sections 4 and 5: address families take turns, the next attempt starts a
moment after the one before or as soon as that fails, and the first that succeeds ends the others.
Runs in the engine's hub; the caller bounds the time with its own gevent.Timeout.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gevent
from gevent.queue import Empty, SimpleQueue

from . import tcp

__all__ = ["MOST_HOLDS", "NEXT_S", "connect", "interleave", "race"]

NEXT_S = 0.25  # RFC 8305 section 5: "Connection Attempt Delay"
MOST_HOLDS = 12  # our choice: so many of them one who has answered may take, before the next one

T = TypeVar("T")


def interleave(addresses: Sequence[str]) -> list[str]:
    """IPv6 and IPv4 in turns, the first one's family first; within a family the order stays."""
    v6 = [address for address in addresses if ":" in address]
    v4 = [address for address in addresses if ":" not in address]
    pair = (v6, v4) if v6[:1] == list(addresses[:1]) else (v4, v6)
    turns = itertools.zip_longest(*pair)
    return [address for turn in turns for address in turn if address is not None]


def race(
    attempts: Sequence[Callable[[], T]],
    drop: Callable[[T], object],
    is_held: Callable[[], bool] = lambda: False,
) -> T:
    """What the first attempt that succeeds returns; raises the first one's error if none does.

    An attempt is killed when another has won, and when the caller's time is up.  If it succeeds in
    that very moment, ``drop`` gets the result.  ``is_held``: whether an attempt has got somewhere,
    so that the next one has time.
    """
    if len(attempts) == 1:
        return attempts[0]()
    ends: SimpleQueue[tuple[list[T], Exception | None]] = SimpleQueue()
    over = False

    def run(attempt: Callable[[], T]) -> None:
        try:
            made = attempt()
        except Exception as error:  # noqa: BLE001 - raised again below
            ends.put(([], error))
            return
        if over:
            drop(made)
        else:
            ends.put(([made], None))

    running: list[gevent.Greenlet[..., None]] = []
    waiting = list(attempts)
    problems: list[Exception] = []
    holds = 0
    try:
        while len(problems) < len(attempts):
            if waiting and not holds:
                running.append(gevent.spawn(run, waiting.pop(0)))
            try:
                made, error = ends.get(timeout=NEXT_S if waiting else None)
            except Empty:
                holds = (holds + 1) % MOST_HOLDS if is_held() else 0
                continue
            holds = 0
            if error is None:
                return made[0]
            problems.append(error)
        raise problems[0]
    finally:
        over = True
        gevent.killall(running, block=False)
        while not ends.empty():
            for unwanted in ends.get()[0]:
                drop(unwanted)


def connect(
    addresses: Sequence[str], port: int, way: Callable[[str, int], Any] = tcp.connect
) -> tuple[Any, str]:
    """A TCP connection to one of these numeric addresses, and which; raises OSError.

    ``way``: makes one connection.

    The last attempt is a second one to the first address: where that one's SYN was lost, or the
    answer, the kernel would not repeat it before a second is over (RFC 6298 section 2.1).
    """

    def attempt(address: str) -> tuple[Any, str]:
        return way(address, port), address

    turns = interleave(addresses)
    attempts = [functools.partial(attempt, address) for address in [*turns, *turns[:1]]]
    return race(attempts, lambda made: made[0].close())
