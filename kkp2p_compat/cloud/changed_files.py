"""Notices that files have changed, once whoever replaces them is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["ChangedFiles"]

_Stamp = tuple[int, int, int]


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

    def _stamps(self) -> list[_Stamp | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> _Stamp | None:
    """Differs when the file was replaced or written to."""
    try:
        status = file.stat()
    except OSError:  # it is being replaced
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
