"""How long the NAT in front of us keeps an idle binding (RFC 5780 section 4.6).

Runs in a greenlet of the engine's hub, and takes as long as the time that it finds out.
"""

from __future__ import annotations

import time

import gevent

from ..._address import Address
from ..._errors import TimedOut
from ...traversal.stun_client import Ask, at
from .own_addresses import OwnAddresses
from .questions import Questions

__all__ = ["measure_lifetime"]

# Our choice: the times that are tried, all at once, each on a socket of its own.
IDLE_S = (5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0)


def measure_lifetime(own: OwnAddresses, longest_s: float) -> float | None:
    """The longest time of IDLE_S, up to ``longest_s``, after which a binding was still there.

    0.0 if none was even after the first; None if no server can tell.  Raises OutOfDescriptors,
    LinkLost.
    """
    try:
        family, server = own.server()
    except TimedOut:
        return None
    questions = own.questions
    idle_s = [0.0, *(time_s for time_s in IDLE_S if time_s <= longest_s)]
    with questions.sockets(family, len(idle_s) + 1) as extra:
        asker, *idle = extra
        bound = questions.ask_all([at(server, number) for number in idle])
        started = time.monotonic()
        lived_s: float | None = None
        for time_s, ask in zip(idle_s, bound, strict=True):
            gevent.sleep(max(0.0, started + time_s - time.monotonic()))
            if not _binding_lives(questions, at(server, asker), ask):
                break
            lived_s = time_s
    return lived_s


def _binding_lives(questions: Questions, by: Address, bound: Ask) -> bool:
    """Have the server send the answer to another socket's question to the binding."""
    mapped = bound.mapped
    if mapped is None:
        return False
    (ask,) = questions.ask(
        lambda asks, now: [asks.ask(by, now, response_port=mapped[1], heard_by=bound.number)]
    )
    return ask.answer is not None
