"""Who may log in, in SQLite: verifiers, never a secret.

DATA/accounts.db is written by ``kkp2p account`` and read by a running track, in different
processes; the track writes to it where an invitation is taken up.  ``version`` tells the track
cheaply that something has changed.  Without a data folder the accounts live in memory and end with
the process.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._kept_files import data_folder
from .directory import MAX_CHANGES, Account, AccountLimits, Verifier, changes_to

__all__ = ["Accounts", "default_data", "open_private"]

_FILE = "accounts.db"
_BUSY_TIMEOUT_S = 5.0  # our choice: how long a writer waits for another
_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    peer_id TEXT PRIMARY KEY,
    salt BLOB NOT NULL,
    stored_key BLOB NOT NULL,
    server_key BLOB NOT NULL,
    iterations INTEGER NOT NULL,
    changed INTEGER NOT NULL
) WITHOUT ROWID
"""
_CHANGES = "CREATE TABLE IF NOT EXISTS changes (number INTEGER PRIMARY KEY, record TEXT NOT NULL)"
# Those of later releases, in the order in which they came: files of earlier ones get them.
_LATER = {
    "disabled": "INTEGER NOT NULL DEFAULT 0",
    "allow": "TEXT NOT NULL DEFAULT 'anybody'",
    "calls_per_s": "REAL",
    "relay_bytes_per_day": "INTEGER",
    "channels": "INTEGER",
    "once_until": "INTEGER NOT NULL DEFAULT 0",
}
_COLUMNS = ("peer_id", "salt", "stored_key", "server_key", "iterations", "changed", *_LATER)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM accounts"
_INSERT = f"INSERT INTO accounts ({', '.join(_COLUMNS)}) VALUES (?{', ?' * (len(_COLUMNS) - 1)})"


def default_data() -> Path:
    """Where a cloud keeps its files when nobody says otherwise."""
    return Path(data_folder(), "cloud")


def open_private(path: Path | None) -> sqlite3.Connection:
    """A database that only this user may read, in a folder that is made; None: in memory."""
    name = ":memory:" if path is None else str(path)
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its -wal and -shm files the mode of this one.
        os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(
        name,
        timeout=_BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=path is not None,  # one in memory ends with its object, in any thread
    )
    try:
        database.execute("PRAGMA journal_mode = WAL")
    except sqlite3.Error:
        database.close()
        raise
    return database


class Accounts:
    """The accounts of one cloud.  An object belongs to the thread that made it, which closes it."""

    def __init__(self, data: Path | None) -> None:
        """Raises OSError or sqlite3.Error when the file cannot be used."""
        self.path = None if data is None else data / _FILE
        self._db = open_private(self.path)
        if data is None:  # there is nothing to lose: it may end with the object, unclosed
            weakref.finalize(self, self._db.close)
        try:
            self._db.execute(_SCHEMA)
            self._db.execute(_CHANGES)
            self._add_columns()
        except sqlite3.Error:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def never_wait(self) -> None:
        """Whoever would have to wait for another process gets an error instead: who writes often
        would, and who only reads hardly ever (SQLite, "Write-Ahead Logging", has when).
        """
        self._db.execute("PRAGMA busy_timeout = 0")

    def _add_columns(self) -> None:
        if self._missing():
            self._db.execute("BEGIN IMMEDIATE")  # another process may be about to do the same
            for name in self._missing():
                self._db.execute(f"ALTER TABLE accounts ADD COLUMN {name} {_LATER[name]}")
            self._db.execute("COMMIT")

    def _missing(self) -> list[str]:
        there = {row[1] for row in self._db.execute("PRAGMA table_info(accounts)")}
        return [name for name in _LATER if name not in there]

    def get(self, peer_id: str) -> Account | None:
        row = self._db.execute(f"{_SELECT} WHERE peer_id = ?", (peer_id,)).fetchone()
        return None if row is None else _account_of(row)

    def put(self, account: Account, record: str) -> bool:
        """False: there is one already.  ``record``: for ``changes``; empty: nothing."""
        row = {"peer_id": account.peer_id, **changes_to(account)}
        try:
            self._db.execute(_INSERT, [row[name] for name in _COLUMNS])
        except sqlite3.IntegrityError:
            return False
        self.note(record)
        return True

    def change(
        self, peer_id: str, changes: Mapping[str, Any], record: str, stored_key: bytes = b""
    ) -> bool:
        """False: there is none, or none that has this key, if one is given."""
        columns = ", ".join(f"{name} = ?" for name in changes)
        update = f"UPDATE accounts SET {columns} WHERE peer_id = ? AND ? IN (stored_key, x'')"
        return self._do(update, (*changes.values(), peer_id, stored_key), record)

    def remove(self, peer_id: str, record: str) -> bool:
        return self._do("DELETE FROM accounts WHERE peer_id = ?", (peer_id,), record)

    def _do(self, statement: str, arguments: tuple[Any, ...], record: str) -> bool:
        if not record:  # it may be a part of something that is done at once
            return self._db.execute(statement, arguments).rowcount > 0
        with self.at_once():
            is_there = self._db.execute(statement, arguments).rowcount > 0
            if is_there:
                self.note(record)
        return is_there

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done meanwhile is done as a whole, or not at all."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def note(self, record: str) -> None:
        if record:
            insert = "INSERT INTO changes (record) VALUES (?)"
            number = self._db.execute(insert, (record,)).lastrowid or 0
            self._db.execute("DELETE FROM changes WHERE number <= ?", (number - MAX_CHANGES,))

    def changes(self, count: int) -> list[str]:
        query = "SELECT record FROM changes ORDER BY number DESC LIMIT ?"
        return [record for (record,) in self._db.execute(query, (count,))][::-1]

    def page(self, after: str, count: int) -> list[Account]:
        """Up to ``count`` of those behind this id, sorted."""
        query = f"{_SELECT} WHERE peer_id > ? ORDER BY peer_id LIMIT ?"
        return [_account_of(row) for row in self._db.execute(query, (after, count))]

    def __len__(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM accounts").fetchone()
        return int(count)

    def version(self) -> int:
        """Another number whenever another process has changed something (SQLite data_version)."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)


def _account_of(row: Any) -> Account:
    peer_id, salt, stored_key, server_key, iterations, changed, disabled, allow, *rest = row
    *limits, once_until = rest
    verifier = Verifier(salt, stored_key, server_key, iterations)
    return Account(
        peer_id, verifier, changed, bool(disabled), allow, AccountLimits.of(*limits), once_until
    )
