"""Is the peer still there?  Asked when somebody says that it is not; only the peer can answer.

A peer whose program was killed says nothing, and silence counts for an end only after a long time,
as a path may be cut for a while.  When the cloud has seen it go, a second and a half of questions
without an answer are enough.  Whoever says so falsely does no harm: one answer ends the doubt, and
the next is not taken up at once.

Sans-IO, as all of the connection; ``now`` in seconds of its clock.
"""

from __future__ import annotations

__all__ = ["Doubt"]

# Our choices.
QUESTIONS = 15  # where half of all packets are lost, one in 100 is left without an answer
WINDOW_S = 1.5  # for all of them; or more, where the way there and back is long
WINDOW_PTOS = 3  # probe time-outs
AGAIN_S = 10.0  # from one doubt to the next


class Doubt:
    """``poll`` until ``over``; ``answered_by`` tells whether an acknowledgement ends it."""

    __slots__ = ("_first_number", "_interval_s", "_left", "began_at", "next_at")

    def __init__(self, now: float, next_number: int, pto_s: float) -> None:
        """``next_number``: of the first packet that only a peer that still lives acknowledges."""
        self.began_at = now
        self.next_at = now
        self._first_number = next_number
        self._interval_s = max(WINDOW_S, WINDOW_PTOS * pto_s) / QUESTIONS
        self._left = QUESTIONS

    def allows_another(self, now: float) -> bool:
        return now >= self.began_at + AGAIN_S

    def poll(self, now: float) -> bool:
        """Whether to send a PING now.  Each has to wait for its turn, so a host that was busy, or
        asleep, has read what had come before the last one goes."""
        if not self._left or now < self.next_at:
            return False
        self._left -= 1
        self.next_at = now + self._interval_s
        return True

    def over(self, now: float) -> bool:
        return not self._left and now >= self.next_at

    def answered_by(self, acknowledged: int) -> bool:
        return acknowledged >= self._first_number

    def confirmed(self, now: float, heard_at: float) -> bool:
        """Once it is over.  What was on its way when a peer died comes at the beginning."""
        return now - heard_at >= self._interval_s * QUESTIONS / 2
