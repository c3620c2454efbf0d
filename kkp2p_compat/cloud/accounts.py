"""Who may log in: SCRAM verifiers in SQLite, never a secret.

DATA/accounts.db is written by ``kkp2p account`` and read by a running track, in different
processes; ``version`` tells the track cheaply that something has changed.  Without a data folder
the accounts live in memory and end with the process.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

from scramp import ScramException, ScramMechanism

from .._codes import MAX_PEER_ID
from .._peer_id import is_peer_id
from ..control.binding import MECHANISM

__all__ = ["Accounts", "UnknownAccount", "Verifier", "default_data"]

# Our choice: four times what RFC 7677 asks for, and some 5 ms of the client's time.
ITERATIONS = 16_384

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


class UnknownAccount(LookupError):
    """there is no such account"""


class Verifier(NamedTuple):
    """What is kept of a secret (RFC 5802 section 3), in the order that scramp wants."""

    salt: bytes
    stored_key: bytes
    server_key: bytes
    iterations: int


def default_data() -> Path:
    """Where a cloud keeps its files when nobody says otherwise (XDG base directories)."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "kkp2p" / "cloud"


class Accounts:
    """The accounts of one cloud.  An object belongs to the thread that made it, which closes it.

    ``throw_away`` (peer id to secret): accounts of this object only; they come before the file's.
    """

    def __init__(self, data: Path | None, throw_away: dict[str, str] | None = None) -> None:
        """Raises OSError or sqlite3.Error when the file cannot be used, ValueError for a secret."""
        self._throw_away = {
            peer_id: Verifier(*self._row(peer_id, secret)[1:5])
            for peer_id, secret in (throw_away or {}).items()
        }
        if data is None:
            self.path, name = None, ":memory:"
        else:
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path = data / _FILE
            name = str(self.path)
            # SQLite gives its -wal and -shm files the mode of this one.
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(name, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(_SCHEMA)
        except sqlite3.Error:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def check_new(self, peer_id: str) -> None:
        """Raise ValueError, as ``add`` would, before anybody is asked for a secret."""
        _check_peer_id(peer_id)
        if self.get(peer_id) is not None:
            raise ValueError(f"there is an account {peer_id} already")

    def check_known(self, peer_id: str) -> None:
        """Raise UnknownAccount if there is none."""
        if self.get(peer_id) is None:
            raise UnknownAccount(f"there is no account {peer_id}")

    def add(self, peer_id: str, secret: str) -> None:
        """Raises ValueError for a bad peer id or secret, or an id that is taken."""
        row = self._row(peer_id, secret)
        try:
            self._db.execute("INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError as error:
            raise ValueError(f"there is an account {peer_id} already") from error

    def change_secret(self, peer_id: str, secret: str) -> None:
        """Raises UnknownAccount, or ValueError for a bad secret."""
        row = self._row(peer_id, secret)
        cursor = self._db.execute(
            "UPDATE accounts SET salt = ?2, stored_key = ?3, server_key = ?4, iterations = ?5,"
            " changed = ?6 WHERE peer_id = ?1",
            row,
        )
        if cursor.rowcount == 0:
            raise UnknownAccount(f"there is no account {peer_id}")

    def remove(self, peer_id: str) -> None:
        """Raises UnknownAccount."""
        if self._db.execute("DELETE FROM accounts WHERE peer_id = ?", (peer_id,)).rowcount == 0:
            raise UnknownAccount(f"there is no account {peer_id}")

    def get(self, peer_id: str) -> Verifier | None:
        if peer_id in self._throw_away:
            return self._throw_away[peer_id]
        row = self._db.execute(
            "SELECT salt, stored_key, server_key, iterations FROM accounts WHERE peer_id = ?",
            (peer_id,),
        ).fetchone()
        return None if row is None else Verifier(*row)

    def list(self) -> list[tuple[str, int]]:
        """Every peer id, sorted, and when its account was last changed (Unix seconds)."""
        return self._db.execute("SELECT peer_id, changed FROM accounts ORDER BY peer_id").fetchall()

    def version(self) -> int:
        """Another number whenever another process has changed something (SQLite data_version)."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    def _row(self, peer_id: str, secret: str) -> tuple[str, bytes, bytes, bytes, int, int]:
        _check_peer_id(peer_id)
        if not secret:
            raise ValueError("the secret is empty")
        try:
            salt, stored_key, server_key, iterations = ScramMechanism(MECHANISM).make_auth_info(
                secret, iteration_count=ITERATIONS
            )
        except ScramException as error:  # characters that SASLprep (RFC 4013) forbids
            raise ValueError(f"the secret cannot be used: {error}") from error
        return peer_id, salt, stored_key, server_key, iterations, int(time.time())


def _check_peer_id(peer_id: str) -> None:
    if not is_peer_id(peer_id):
        raise ValueError(
            f"a peer id is 1 to {MAX_PEER_ID} printable ASCII characters without spaces"
        )
