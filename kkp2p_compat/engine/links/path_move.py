"""That a connection has gone from one path to another, and why: for the log and channel_stats."""

from __future__ import annotations

from dataclasses import dataclass

from ..._address import Address, text_of
from ..._sentence import Sentence
from ..paths.path_kind import PathKind

__all__ = ["Move"]


@dataclass(frozen=True, slots=True)
class Move:
    """``why``: in words, for the log and ``channel_stats``.

    From a path to itself: one that was tried is kept.
    """

    at: float
    before: Address
    after: Address
    kind_before: PathKind
    kind: PathKind
    why: Sentence

    @property
    def text(self) -> Sentence:
        before = f"{self.kind_before.value} {text_of(self.before)}"
        if self.before == self.after:
            return Sentence("{path} is kept: {why}", path=before, why=self.why)
        after = f"{self.kind.value} {text_of(self.after)}"
        return Sentence("{before} to {after}: {why}", before=before, after=after, why=self.why)

    def __str__(self) -> str:
        return str(self.text)
