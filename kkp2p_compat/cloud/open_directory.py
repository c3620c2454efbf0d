"""Which directory a cloud has: its own, or the one that is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .directory import Directory
from .directory_local import LocalDirectory

__all__ = ["open_directory"]


def open_directory(
    url: str | None, data: Path | None, throw_away: Mapping[str, str] | None = None
) -> Directory:
    """``url``: of Redis; None: SQLite in ``data``, or memory alone.

    Raises OSError, sqlite3.Error or ValueError, with a sentence for the user.
    """
    return LocalDirectory(data, throw_away)
