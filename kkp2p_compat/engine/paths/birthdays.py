"""Which birthday punches an engine may make: one at a time, and not at every address.

Each takes hundreds of sockets and of packets a second, so a call waits for its turn until it is
given up.  An address whose ports were probed in vain is not probed again for a while: a peer that
names a third party's could otherwise have it scanned without end, call by call.
"""

from __future__ import annotations

import time

from gevent.lock import BoundedSemaphore

__all__ = ["Birthdays"]

# Our choices.
SWEEP_PAUSE_S = 60.0  # one sweep meets a peer that is there in 99.9 % of all cases
MAX_REMEMBERED = 1024  # addresses that were probed in vain


class Birthdays:
    """Take ``turn`` before a birthday punch, and ask ``may_sweep`` before ports are probed."""

    def __init__(self) -> None:
        self.turn = BoundedSemaphore(1)
        self._swept_at: dict[str, float] = {}  # by IP address

    def may_sweep(self, ip: str) -> bool:
        """Whether the ports of this address may be probed now; if so they count as probed."""
        now = time.monotonic()
        if now - self._swept_at.get(ip, -SWEEP_PAUSE_S) < SWEEP_PAUSE_S:
            return False
        self._swept_at.pop(ip, None)
        self._swept_at[ip] = now
        if len(self._swept_at) > MAX_REMEMBERED:
            del self._swept_at[next(iter(self._swept_at))]
        return True

    def forgive(self, ip: str) -> None:
        """The peer was there."""
        self._swept_at.pop(ip, None)
