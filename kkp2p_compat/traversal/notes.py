"""What was done and learnt in the search for one path: a text for people, and a kind to count.

A call has dozens, which nobody reads as a rule: so a text is made when it is asked for.
"""

from __future__ import annotations

from enum import Enum
from string import Formatter
from typing import NamedTuple

from .._sentence import Sentence

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
    template: str  # of a Sentence
    kind: NoteKind = NoteKind.OTHER
    amount: int = 1  # how many of its kind it tells of
    values: tuple[object, ...] = ()  # of the template's fields, in their order

    @property
    def text(self) -> Sentence:
        if isinstance(self.template, Sentence):
            return self.template
        names = (name for _, name, _, _ in Formatter().parse(self.template) if name)
        return Sentence(self.template, **dict(zip(names, self.values, strict=True)))
