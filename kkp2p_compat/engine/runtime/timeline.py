"""What happened in one attempt to reach a peer, and when.

The log's line about a connect, ``--explain`` and ``channel_stats`` are made of it.  Bounded: an
attempt that goes on for long keeps its beginning.
"""

from __future__ import annotations

import time

from ...traversal.nat import UNKNOWN, NatBehaviour
from ...traversal.plan import Plan

__all__ = ["Timeline"]

MAX_ENTRIES = 2000  # our choice: a birthday punch has most


class Timeline:
    """``step`` for what the log shall tell in one line, ``note`` for all the rest."""

    def __init__(self) -> None:
        self.started_at = time.monotonic()
        self.plan: Plan | None = None
        self.own_nat = UNKNOWN
        self.peer_nat: NatBehaviour = UNKNOWN
        self._entries: list[tuple[float, str]] = []
        self._steps: list[tuple[float, str]] = []

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_at

    def note(self, text: str, at: float | None = None) -> None:
        """``at``: of the monotonic clock; now by default."""
        if len(self._entries) < MAX_ENTRIES:
            self._entries.append(((time.monotonic() if at is None else at), text))

    def step(self, text: str) -> None:
        self._steps.append((self.elapsed_s, text))
        self.note(text)

    @property
    def entries(self) -> list[tuple[float, str]]:
        """In order, with the seconds since the start."""
        return [(at - self.started_at, text) for at, text in sorted(self._entries)]

    @property
    def steps(self) -> list[tuple[float, str]]:
        """Of the entries, what matters most."""
        return list(self._steps)

    @property
    def summary(self) -> str:
        """The steps, in one line."""
        return ", ".join(f"{text} after {1000 * at:.0f} ms" for at, text in self._steps)
