"""What is on its way over paths that were left while they were alive.

Packets of two paths overtake each other, so a packet of the new path that is acknowledged says
nothing of those before it.  Each path that was left therefore keeps its own account: a packet is
lost when later ones of the same stay were acknowledged (RFC 9002 section 6.1), or when the time for
an answer is over.  None of it counts for the new path: it is not in flight there, and shows neither
a round trip nor a delivery rate.

What was on its way over a path that was dead is sent again at once.  Some of it has arrived all the
same, and only the acknowledgement was lost: when that comes over the new path, what of it waits to
be sent again need not be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .recovery import Flight, Recovery

__all__ = ["LeftPaths"]

# Our choice.  The round trip of an acknowledgement may be half of one path and half of the other.
LEFT_PTOS = 1.5  # of the slower of the two paths


class _Stay:
    """Packets below ``stop``, until ``until``.  ``repeated``: they count as lost already."""

    __slots__ = ("recovery", "repeated", "stop", "until")

    def __init__(self, recovery: Recovery, stop: int, until: float, repeated: bool) -> None:
        self.recovery = recovery
        self.stop = stop
        self.until = until
        self.repeated = repeated

    def give_up(self, now: float) -> list[Flight]:
        flights = self.recovery
        lost = flights.take_all() if now >= self.until else flights.detect_lost(now)
        return [] if self.repeated else lost


class LeftPaths:
    """``stays`` is empty most of the time, and is asked for with every acknowledgement."""

    def __init__(self) -> None:
        self.stays: list[_Stay] = []
        self.next_at = math.inf  # something is to be given up

    def add(
        self, recovery: Recovery, stop: int, now: float, pto_s: float, *, repeated: bool
    ) -> None:
        """``stop``: the first packet number of the new path; ``pto_s``: of the slower path."""
        if recovery.oldest() is not None:
            self.stays.append(_Stay(recovery, stop, now + LEFT_PTOS * pto_s, repeated))
            self._arm()

    def handle_ack(
        self, ranges: Sequence[tuple[int, int]], now: float
    ) -> tuple[list[Flight], list[Flight]]:
        """What is newly acknowledged, and what is known by that to be lost."""
        acked: list[Flight] = []
        lost: list[Flight] = []
        for stay in self.stays:
            own = [(start, min(end, stay.stop)) for start, end in ranges if start < stay.stop]
            if own:
                acked += stay.recovery.handle_ack(own, None, now)
                lost += stay.give_up(now)
        self._tidy()
        return acked, lost

    def give_up(self, now: float) -> list[Flight]:
        """What is lost by now, as no acknowledgement has come."""
        lost: list[Flight] = []
        for stay in self.stays:
            lost += stay.give_up(now)
        self._tidy()
        return lost

    def _tidy(self) -> None:
        self.stays = [stay for stay in self.stays if stay.recovery.oldest() is not None]
        self._arm()

    def _arm(self) -> None:
        self.next_at = min(
            (min(stay.until, stay.recovery.loss_time) for stay in self.stays), default=math.inf
        )
