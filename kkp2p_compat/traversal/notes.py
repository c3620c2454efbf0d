"""What was done and learnt in the search for one path: a text for people, and a kind to count."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["Note", "NoteKind"]


class NoteKind(Enum):
    """The values are the names that programs get with ``--json --explain``."""

    CHECK = "checks_sent"
    GUESS = "ports_guessed"
    ANSWER = "answers"
    LEARNT = "addresses_learnt"
    OTHER = "other"


class Note(NamedTuple):
    at: float  # s, of the monotonic clock
    text: str
    kind: NoteKind = NoteKind.OTHER
    amount: int = 1  # how many of its kind it tells of
