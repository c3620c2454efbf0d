"""Whether the peer is still there, and whether the path still carries anything.

Three questions, each with a deadline of its own:

- *Silence*: when a peer that was sending stops, one PING soon finds out whether it is there.
- *Suspicion*: probe time-outs in a row, and nothing acknowledged, mean that another path should be
  looked for.  One genuine packet ends a suspicion, but not the wait for an acknowledgement: the
  path may carry nothing in our direction.  If it comes by the suspected path, that was only slow:
  for a minute the next suspicion takes twice as long, and so on.  A peer that is too busy would
  else be called again and again by all who wait for it, and never get out of that.
- *Doubt*: the cloud says that the peer is gone, and only the peer itself can answer.  A peer whose
  program was killed says nothing, and silence alone ends a connection only after a long time,
  because a path may be cut for a while.  Here a second and a half of PINGs without an answer is
  enough.  Whoever says so falsely does no harm: one answer ends the doubt, and the next doubt is
  not taken up at once.  A doubt is independent of suspicion.

``now`` is in seconds of the connection's clock.
"""

from __future__ import annotations

import math
from enum import Enum

from .recovery import RoundTrip

__all__ = ["FOLLOWERS", "Doubt", "Hearing", "Liveness", "Sign"]

# Our choices.
SUSPECT_PTOS = 3  # probe time-outs in a row after which the path is suspected
SUSPECT_S = 1.0  # or this long after the first: where the estimate is large, the third is far away
MOST_PATIENCE = 8  # times that, after three false alarms
PATIENT_S = 60.0  # after one
SILENCE_S = 2.0  # after something from the peer
QUESTIONS = 15  # of a doubt; where half of all packets are lost, 1 in 100 gets no answer
QUESTIONS_S = 1.5  # for all of them; or more, where the way there and back is long
QUESTIONS_PTOS = 3  # probe time-outs
DOUBT_AGAIN_S = 10.0  # from the beginning of one doubt to that of the next


class Hearing(Enum):
    HEARD = "heard"
    WAITING = "waiting"  # for an acknowledgement; the path is suspected if none comes in time
    SUSPECTED = "suspected"  # PathSuspected was put out


class Sign(Enum):
    """What changes our mind."""

    TIMEOUT = "the first probe time-out in a row"
    PACKET = "a genuine packet"
    ANSWERED = "the wait is over, and something was acknowledged"
    UNANSWERED = "the wait is over, and nothing was acknowledged"


# A sign that leaves the state as it is, is ignored; one that is missing here is a bug and raises.
FOLLOWERS = {
    (Hearing.HEARD, Sign.TIMEOUT): Hearing.WAITING,
    (Hearing.HEARD, Sign.PACKET): Hearing.HEARD,
    (Hearing.WAITING, Sign.TIMEOUT): Hearing.WAITING,
    (Hearing.WAITING, Sign.PACKET): Hearing.WAITING,
    (Hearing.WAITING, Sign.ANSWERED): Hearing.HEARD,
    (Hearing.WAITING, Sign.UNANSWERED): Hearing.SUSPECTED,
    (Hearing.SUSPECTED, Sign.TIMEOUT): Hearing.SUSPECTED,
    (Hearing.SUSPECTED, Sign.PACKET): Hearing.WAITING,
}
_SUSPECTED = Hearing.SUSPECTED  # for the hot path: an attribute of a class takes ten times as long


class Doubt:
    """``poll`` until ``over``; ``answered_by`` tells whether an acknowledgement ends it."""

    __slots__ = ("_first_number", "_interval_s", "_left", "next_at")

    def __init__(self, now: float, next_number: int, pto_s: float) -> None:
        """``next_number``: of the first packet that only a live peer can acknowledge."""
        self.next_at = now
        self._first_number = next_number
        self._interval_s = max(QUESTIONS_S, QUESTIONS_PTOS * pto_s) / QUESTIONS
        self._left = QUESTIONS

    def poll(self, now: float) -> bool:
        """Whether to send a PING now.

        Each waits for its own turn, so a host that was busy or asleep has read what had come before
        the last one goes.
        """
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
        """Once it is over: whether the peer was not heard in the second half of it.

        What was on its way when the peer died arrives in the first half.
        """
        return now - heard_at >= self._interval_s * QUESTIONS / 2


class Liveness:
    """Deadlines are ``math.inf`` while their question is not asked."""

    def __init__(self, now: float) -> None:
        self.hearing = Hearing.HEARD
        self.heard_at = now  # a genuine packet
        self.ask_at = math.inf  # silence
        self.suspect_at = math.inf  # suspicion, while WAITING
        self.doubt: Doubt | None = None
        self._doubt_from = -math.inf  # the next doubt may begin
        self._patience = 1
        self._patient_until = -math.inf

    def _move(self, sign: Sign) -> None:
        """KeyError for a sign that cannot come now."""
        self.hearing = FOLLOWERS[self.hearing, sign]

    # Suspicion.

    def handle_packet(self, now: float, rtt: RoundTrip, *, by_path: bool) -> bool:
        """A genuine packet came, perhaps by the path in use; True: it ends a suspicion."""
        self.heard_at = now
        if self.hearing is not _SUSPECTED:
            return False
        self._move(Sign.PACKET)
        if by_path:
            self._patience = min(2 * self._patience_at(now), MOST_PATIENCE)
            self._patient_until = now + PATIENT_S
        self._wait(now, rtt)
        return True

    def handle_probe_timeout(self, in_a_row: int, now: float, rtt: RoundTrip) -> None:
        if in_a_row == 1:
            self._move(Sign.TIMEOUT)
            if self.hearing is Hearing.WAITING:
                self._wait(now, rtt)
        elif (
            in_a_row == SUSPECT_PTOS
            and self.hearing is Hearing.WAITING
            and self._patience_at(now) == 1
        ):
            self.suspect_at = now

    def _patience_at(self, now: float) -> int:
        return self._patience if now < self._patient_until else 1

    def _wait(self, now: float, rtt: RoundTrip) -> None:
        self.suspect_at = now + self._patience_at(now) * max(SUSPECT_S, rtt.pto_s)

    def handle_wait_over(self, answered: bool) -> bool:
        """``suspect_at`` has come; True: the path is suspected from now on."""
        self.suspect_at = math.inf
        self._move(Sign.ANSWERED if answered else Sign.UNANSWERED)
        return not answered

    # Doubt.

    def begin_doubt(self, now: float, next_number: int, rtt: RoundTrip) -> bool:
        """``next_number``: see Doubt.  False: the last doubt began a moment ago."""
        if now < self._doubt_from:
            return False
        self._doubt_from = now + DOUBT_AGAIN_S
        self.doubt = Doubt(now, next_number, rtt.pto_s)
        return True

    def handle_acked(self, largest: int) -> None:
        if self.doubt is not None and self.doubt.answered_by(largest):
            self.doubt = None

    def is_gone(self, now: float) -> bool:
        """Whether a doubt is over, and the peer was not heard; if it is over, it is forgotten."""
        doubt = self.doubt
        if doubt is None or not doubt.over(now):
            return False
        self.doubt = None
        return doubt.confirmed(now, self.heard_at)
