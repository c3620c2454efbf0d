"""How much the peer may send, of one stream and of all together (RFC 9000 section 4).

A window is renewed by what applications take, and grows with the path; the memory that all windows
of a connection may grow by is bounded.
"""

from __future__ import annotations

__all__ = ["MAX_UNTAKEN_BYTES", "SLOW_S", "ReceiveBudget", "ReceiveWindow"]

# Our choices.
MAX_UNTAKEN_BYTES = 64 << 20  # that a connection holds for applications that do not read
GROWTH_BYTES = 40 << 20  # of these: by so much all windows of streams together may grow
SLOW_S = 1.0  # a window that was not renewed for so long is larger than its stream needs


class ReceiveBudget:
    """The memory that the receiving halves of a connection's streams share.

    A limit that was announced cannot be taken back (RFC 9000 section 4.1), and a reader that stops
    makes us hold all of it.  So a window takes at most a quarter of what is left to grow by:
    whatever the first readers do, something is left for the next one.
    """

    def __init__(self) -> None:
        self.growth_bytes = GROWTH_BYTES  # what is left
        self.short = False  # a window could not grow
        self.pieces = 0  # out of order

    def take(self, count: int) -> bool:
        if count > self.growth_bytes // 4:
            self.short = True
            return False
        self.growth_bytes -= count
        return True


class ReceiveWindow:
    """A limit that moves with what the application takes, and widens when the sender is fast.

    When half a window was used within two round trips, the window limited the sender, not the path,
    so it doubles; but not for an application that does not keep up.  A slow one halves it.
    """

    __slots__ = ("_budget", "_initial", "_largest", "_raised_at", "bytes", "limit")

    def __init__(self, initial: int, largest: int, budget: ReceiveBudget | None = None) -> None:
        self.bytes = initial
        self.limit = initial  # what the peer was told
        self._initial = initial
        self._largest = largest
        self._budget = budget
        self._raised_at: float | None = None

    def widen(self, highest: int, consumed: int, now: float, rtt_s: float) -> bool:
        """Data came, and what was in order before was taken; True: tell the peer a new limit.

        This is for a sender that is ahead of the application only because a lost piece is missing.
        """
        if self._raised_at is None:
            self._raised_at = now
        if self.limit - highest > self.bytes // 2 or not self._double(now, rtt_s):
            return False
        self._raise(consumed, now)
        return True

    def renew(self, consumed: int, now: float, rtt_s: float, waiting: bool) -> bool:
        """The application took something of one stream; True: tell the peer a new limit.

        ``waiting``: it has not taken all that is in order.
        """
        if self.limit - consumed > self.bytes // 2:
            return False
        if waiting and self._raised_at is not None and now - self._raised_at >= SLOW_S:
            self._shrink(max(self._initial, self.bytes // 2))
            self._raised_at = now
            if self.limit - consumed > self.bytes // 2:
                return False
        else:
            self._double(now, rtt_s)
        self._raise(consumed, now)
        return True

    def renew_all(self, received: int, consumed: int, now: float, rtt_s: float) -> bool:
        """As ``renew``, for the window of all streams together.

        It is renewed by half of what is left beside the data that some do not read.
        """
        held = received - consumed
        if self.limit - received > (self.bytes - held) // 2:
            return False
        self._double(now, rtt_s)
        self._raise(consumed, now)
        return True

    def idle(self, now: float) -> bool:
        """Whether it has not been renewed for a while."""
        return self._raised_at is not None and now - self._raised_at >= SLOW_S

    def restart(self) -> None:
        """Give back what it has grown by.  The limit that the peer was told stays."""
        self._shrink(self._initial)

    def _shrink(self, size: int) -> None:
        if self._budget is not None:
            self._budget.growth_bytes += self.bytes - size
        self.bytes = size

    def make_room(self, received: int, consumed: int) -> bool:
        """Widen for what came and is not taken, up to a bound; True: tell the peer a new limit.

        For the window of all streams together: a few that nobody reads must not block the others.
        """
        if self.limit - received > self.bytes // 2 or self.bytes >= MAX_UNTAKEN_BYTES:
            return False
        self.bytes = min(2 * self.bytes, MAX_UNTAKEN_BYTES)
        self.limit = consumed + self.bytes
        return True

    def _double(self, now: float, rtt_s: float) -> bool:
        fast = self._raised_at is None or now - self._raised_at < 2 * rtt_s
        size = min(2 * self.bytes, self._largest)
        if not fast or size <= self.bytes:
            return False
        if self._budget is not None and not self._budget.take(size - self.bytes):
            return False
        self.bytes = size
        return True

    def _raise(self, consumed: int, now: float) -> None:
        self._raised_at = now
        self.limit = max(self.limit, consumed + self.bytes)
