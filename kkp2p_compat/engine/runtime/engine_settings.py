"""What an engine's behaviour in time depends on, beyond what C's engine_conf_t sets."""

from __future__ import annotations

import time
from typing import NamedTuple

__all__ = ["EngineSettings"]


class EngineSettings(NamedTuple):
    """All are our choices.

    ``head_start_s``: in auto mode, how long a path is waited for before the relay is taken.
    ``reuse_s``: how long a live link may take to acknowledge that a channel is asked for, before
    another way is tried.
    ``attempt_s``: how long one attempt lasts at most; by then the callee has long given up.
    ``accept_queue_places``: calls that nobody has accepted yet; one more is refused.
    ``accept_s``: how long a call waits for somebody to accept it, before it is closed.  C has such
    a time, too, and does not say which.
    """

    head_start_s: float = 1.0
    reuse_s: float = 2.0
    attempt_s: float = 60.0
    accept_queue_places: int = 1024
    accept_s: float = 120.0

    def head_start_of(self, deadline: float) -> float:
        """Half of the caller's time is the relay's, however."""
        return max(0.0, min(self.head_start_s, (deadline - time.monotonic()) / 2))

    def reuse_of(self, deadline: float) -> float:
        """Half of the caller's time is a new link's, however."""
        return min(self.reuse_s, (deadline - time.monotonic()) / 2)

    def is_telling(self, searched_s: float) -> bool:
        """Whether a search in vain was long enough to say something about the path."""
        return searched_s >= self.head_start_s / 4
