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
    if url is None:
        return LocalDirectory(data, throw_away)
    try:
        from .directory_redis import RedisDirectory
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ValueError("--directory needs redis-py: pip install 'kkp2p_compat[fleet]'") from error
    return RedisDirectory(url, throw_away)
