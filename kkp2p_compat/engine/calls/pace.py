"""The pace at which an engine begins to answer calls: one after the other.

What a meeting costs comes in its first round trips.  When hundreds of peers call at once and all
are answered at once, every answer and check is late, so that both sides of each repeat their
checks, and most of the work is done for nothing.  One after the other they are met sooner: all of
them, and the one in the middle in half the time.  (RFC 8445 section 14 paces the checks of all
check lists of an agent together for the same reason.)

The next one's turn is told by a timer of the hub's loop, so a host that is too busy takes a new
call only when it has done what its earlier ones wanted.  Nobody can hold up the others for longer.
"""

from __future__ import annotations

from gevent import get_hub
from gevent.lock import Semaphore

__all__ = ["Pace"]

PACE_S = 0.005  # RFC 8445 section 14.2: the least time between two transactions


class Pace:
    """Of calls that compete with each other; ``wait`` before one is answered."""

    def __init__(self) -> None:
        self._turn = Semaphore()

    def wait(self) -> None:
        """Until it is this call's turn, in the order of asking.  One that comes alone goes on."""
        self._turn.acquire()
        timer = get_hub().loop.timer(PACE_S)

        def end() -> None:
            timer.close()
            self._turn.release()

        timer.start(end, update=True)
