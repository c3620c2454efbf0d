"""Notices that files have changed, once whoever replaces them is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .._kept_files import Stamp, stamp_of

__all__ = ["ChangedFiles"]


class ChangedFiles:
    """Ask ``look`` about once a second; ``forget`` says that they were loaded just now."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._loaded = self._seen = self._stamps()

    def look(self) -> bool:
        """Whether they differ from when they were loaded.

        Not before two looks in a row found them the same: they are replaced one after the other.
        """
        stamps = self._stamps()
        are_new = stamps == self._seen != self._loaded
        self._seen = stamps
        return are_new

    def forget(self) -> None:
        self._loaded = self._stamps()

    def _stamps(self) -> list[Stamp | None]:
        return [stamp_of(file) for file in self._files]
