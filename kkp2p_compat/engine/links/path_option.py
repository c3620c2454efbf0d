"""One address at which a connection may reach its peer, and what its use has taught.

A path that has failed while it was in use is not taken again at once: it is *held* for a time that
doubles with each failure, and is then asked until it has answered several times in a row.  What it
has carried, when something was limited by it alone, is remembered for comparison.

``now`` is in seconds on any clock that does not go back; sizes are in bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..._address import Address
from ..paths.path_kind import PathKind

__all__ = ["ChoiceSettings", "PathOption"]

ASKED_S = 5.0  # our choice: longer than a question is repeated


@dataclass(frozen=True)
class ChoiceSettings:
    """Times are in seconds.  All are our choices."""

    hold_first_s: float = 2.0  # after the first failure in a row
    hold_most_s: float = 60.0
    stable_s: float = 60.0  # in use for so long: its failures are forgotten
    proofs_after_failure: int = 3  # answers in a row
    proof_gap_s: float = 0.2  # from one of them to the next question
    ask_first_s: float = 1.0  # between the questions to a better path
    ask_most_s: float = 15.0
    tried_first_s: float = 120.0  # until a path that lost a comparison is tried, or used, again
    tried_most_s: float = 1800.0
    trial_s: float = 4.0  # how long another path is measured, without what it needs to start
    settle_s: float = 1.0  # what it needs
    carried_s: float = 600.0  # how long what a path has carried is remembered


class PathOption:
    """Told by PathChoice of all that happens to this address."""

    def __init__(self, address: Address, kind: PathKind, settings: ChoiceSettings) -> None:
        self.address = address
        self.kind = kind
        self.ask_at = -math.inf  # the next question
        self.asked_until = -math.inf  # it may still answer the last one
        self.is_gone = False  # it was withdrawn while it was used
        self.proved_at = -math.inf
        self.unproved_at = -math.inf  # if the last question had no answer
        self.held_until = -math.inf
        self.tried_until = -math.inf  # it lost a comparison
        self._settings = settings
        self._proofs = 0  # in a row
        self._failures = 0  # in a row
        self._lost_trials = 0
        self._used_since = math.inf
        self._carried = 0.0
        self._carried_at = -math.inf

    # Questions.

    def handle_asked(self, now: float) -> None:
        self.ask_at = self.asked_until = now + ASKED_S

    def hasten(self, now: float) -> None:
        """Whatever was asked before, ask now."""
        self.ask_at, self.asked_until = now, -math.inf

    def handle_proved(self, now: float, wait_s: float) -> None:
        """``wait_s``: until the next question, unless it may be taken after some more."""
        self.proved_at = now
        self.unproved_at = self.asked_until = -math.inf
        self._proofs += 1
        gap_s = self._settings.proof_gap_s
        self.ask_at = max(now + (gap_s if self._proofs < self._needed else wait_s), self.free_at)

    def handle_unproved(self, now: float, wait_s: float) -> None:
        self._proofs = 0
        self.unproved_at, self.asked_until = now, -math.inf
        self.ask_at = now + wait_s

    @property
    def doubt(self) -> tuple[float, float]:
        """The less of it, the sooner it is asked: first who has answered last, and of many who have
        not, each in its turn.
        """
        return self.unproved_at, -self.proved_at

    def is_fit(self, now: float) -> bool:
        """Whether it may be taken because it is better."""
        return now >= self.free_at and self._proofs >= self._needed

    @property
    def _needed(self) -> int:
        return self._settings.proofs_after_failure if self._failures else 1

    @property
    def free_at(self) -> float:
        """When it may be taken because it is better."""
        return max(self.held_until, self.tried_until)

    def may_be_tried(self, now: float) -> bool:
        """What has not answered waits for its next question."""
        return now >= self.free_at and (self.unproved_at == -math.inf or now >= self.ask_at)

    # Its use.

    def handle_used(self, now: float) -> None:
        self._used_since = now

    def used_s(self, now: float) -> float:
        """For how long it has been in use; negative: it is not."""
        return now - self._used_since

    def handle_failed(self, now: float) -> float:
        """Nothing came through while it was used; for how long it is held."""
        settings = self._settings
        self.rest(now)
        self._proofs = 0
        hold_s = min(settings.hold_first_s * 2**self._failures, settings.hold_most_s)
        self._failures = min(self._failures + 1, 16)
        self.held_until = now + hold_s
        self.ask_at = self.held_until
        return hold_s

    def handle_lost_trial(self, now: float) -> float:
        """Another path carries more, or it carries no more than another."""
        settings = self._settings
        tried_s = min(settings.tried_first_s * 2**self._lost_trials, settings.tried_most_s)
        self._lost_trials = min(self._lost_trials + 1, 16)
        self.tried_until = now + tried_s
        return tried_s

    def handle_rehabilitated(self) -> None:
        """The peer has left it to measure another, and has come back."""
        self.tried_until = -math.inf
        self._lost_trials = max(self._lost_trials - 1, 0)

    def rest(self, now: float) -> None:
        """It is not used any more."""
        if self.used_s(now) >= self._settings.stable_s:
            self._failures = 0
        self._used_since = math.inf

    def forgive(self) -> None:
        """The network is another one."""
        self._failures = self._lost_trials = self._proofs = 0
        self.held_until = self.tried_until = self.unproved_at = self._carried_at = -math.inf

    # What it carries.

    def note_carried(self, bytes_per_s: float, now: float) -> None:
        if bytes_per_s >= self._carried or now - self._carried_at > self._settings.carried_s:
            self._carried, self._carried_at = bytes_per_s, now

    def carried(self, now: float) -> float:
        """The most that it has carried lately, in bytes per second; 0.0: that is not known."""
        return self._carried if now - self._carried_at <= self._settings.carried_s else 0.0
