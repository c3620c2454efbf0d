"""What happened in one attempt to reach a peer, and when.

The log's line about a connect, ``--explain`` and ``channel_stats`` are made of it.  It is bounded:
of an attempt that goes on for long it keeps the beginning.
"""

from __future__ import annotations

import time
from collections import Counter

from ..._sentence import Sentence
from ...traversal.nat import UNKNOWN, NatBehaviour
from ...traversal.notes import Note, NoteKind
from ...traversal.plan import Plan

__all__ = ["Timeline"]

MAX_NOTES = 2000  # our choice: a birthday punch has most


class Timeline:
    """``step`` for what the log tells in its one line, ``note`` and ``add`` for all the rest."""

    def __init__(self) -> None:
        self.started_at = time.monotonic()
        self.plan: Plan | None = None
        self.own_nat = UNKNOWN
        self.peer_nat: NatBehaviour = UNKNOWN
        self._notes: list[Note] = []
        self._steps: list[tuple[float, str]] = []

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_at

    def note(self, template: str, *values: object) -> None:
        self.add(Note(time.monotonic(), template, values=values))

    def add(self, note: Note) -> None:
        if len(self._notes) < MAX_NOTES:
            self._notes.append(note)

    def step(self, text: str) -> None:
        self._steps.append((self.elapsed_s, Sentence(text)))
        self.note(text)

    @property
    def entries(self) -> list[tuple[float, str]]:
        """Steps and notes in order, with the seconds since the start."""
        notes = sorted(self._notes, key=lambda note: note.at)
        return [(note.at - self.started_at, note.text) for note in notes]

    @property
    def counts(self) -> Counter[NoteKind]:
        counted = Counter[NoteKind]()
        for note in self._notes:
            counted[note.kind] += note.amount
        return counted

    @property
    def steps(self) -> list[tuple[float, str]]:
        """Of the entries, what matters most."""
        return list(self._steps)

    @property
    def summary(self) -> str:
        """The steps, in one line."""
        return ", ".join(f"{text} after {1000 * at:.0f} ms" for at, text in self._steps)
