"""The directory of a cloud that is one process: memory, and SQLite in its data folder.

In a cloud it never waits: what another process holds is away for now.  Who is online it is not
told: the one track there has that in its own tables.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .accounts import Accounts, open_private
from .directory import Account, Directory, DirectoryAway, Imported, Node, Presence, Refused, today

__all__ = ["LocalDirectory"]

log = logging.getLogger(__name__)

# Our choices.
CHANGES_EVERY_S = 2.0  # how often the accounts are asked whether they have changed
USAGE_DAYS = 32  # how long usage is kept
_USAGE_FILE = "usage.db"  # apart from the accounts, so that no tool that writes them holds us up
_USAGE_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    day TEXT, peer_id TEXT, what TEXT, count INTEGER NOT NULL,
    PRIMARY KEY (day, peer_id, what)
) WITHOUT ROWID
"""


class LocalDirectory(Directory):
    is_local = True

    def __init__(self, data: Path | None, throw_away: Mapping[str, str] | None = None) -> None:
        """Raises OSError or sqlite3.Error when a file cannot be used, ValueError for a secret."""
        super().__init__(throw_away)
        self._kept = Accounts(data)
        self._version: int | None = self._kept.version()  # None: look at all that is there
        self._asked = 0.0
        self._nodes: dict[str, Node] = {}
        self._key = secrets.token_bytes(32)
        self._usage = _Usage(data)

    def start(self, node_id: str | None = None) -> None:
        if node_id is not None:
            self._kept.never_wait()

    def close(self) -> None:
        self._kept.close()
        self._usage.close()

    @property
    def where_text(self) -> str:
        return str(self._kept.path)

    def sweep(self, now: float) -> None:
        if now - self._asked < CHANGES_EVERY_S:
            return
        self._asked = now
        try:
            with self._or_away():
                version = self._kept.version()
        except DirectoryAway as error:
            log.warning("whether accounts have changed is not known for now: %s", error)
            return
        if version != self._version:
            self._version = version
            self.on_account_changed(None)

    def secret_key(self) -> bytes:
        return self._key

    # Accounts.

    def _account(self, peer_id: str) -> Account | None:
        try:
            with self._or_away():
                return self._kept.get(peer_id)
        except DirectoryAway:
            self._version = None  # it may have changed, which nobody would see otherwise
            raise

    def _put(self, account: Account, record: str) -> bool:
        return self._kept.put(account, record)

    def _put_each(self, accounts: Iterable[Account], replace: bool, imported: Imported) -> None:
        with self._kept.at_once():
            super()._put_each(accounts, replace, imported)

    def _change(
        self, peer_id: str, changes: Mapping[str, Any], record: str, stored_key: bytes = b""
    ) -> bool:
        with self._or_away():
            return self._kept.change(peer_id, changes, record, stored_key)

    @contextmanager
    def _or_away(self) -> Iterator[None]:
        """For what a cloud does with accounts."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise DirectoryAway(f"{self.where_text}: {error}") from error

    def _remove(self, peer_id: str, record: str) -> bool:
        return self._kept.remove(peer_id, record)

    def _note(self, record: str) -> None:
        self._kept.note(record)

    def changes(self, count: int) -> list[str]:
        return self._kept.changes(count)

    def page(self, after: str, count: int) -> list[Account]:
        return self._kept.page(after, count)

    def count_accounts(self) -> int:
        with self._or_away():
            return len(self._kept)

    # Who is online, and the nodes: there is one.

    def came(
        self, presence: Presence, *, again: bool = False, restored: bool = False
    ) -> Presence | Refused | None:
        return None

    def restore(
        self, node_id: str, peer_ids: Iterable[str], presence_of: Callable[[str], Presence | None]
    ) -> list[tuple[Presence, Presence | Refused]]:
        return []

    def left(self, presence: Presence) -> None:
        pass

    def where(self, peer_id: str) -> Presence | None:
        return None

    def lease(self, node: Node) -> None:
        self._nodes[node.id] = node

    def release(self, node_id: str) -> None:
        self._nodes.pop(node_id, None)

    def nodes(self) -> list[Node]:
        return [*self._nodes.values()]

    def send(self, node_id: str, line: bytes) -> None:
        if node_id in self._nodes:
            self.on_line(line)

    def tell_failed_login(self, peer_id: str | None, host: str) -> None:
        pass

    # Counts.

    def add_usage(self, counts: MutableMapping[tuple[str, str], int]) -> None:
        self._usage.add(counts)
        counts.clear()

    def usage(self, peer_id: str, day: str | None = None) -> dict[str, int]:
        return self._usage.of(peer_id, day or today())


class _Usage:
    """DATA/usage.db.  What cannot be written now, as the disk is full, is written with the next."""

    def __init__(self, data: Path | None) -> None:
        self._db = open_private(None if data is None else data / _USAGE_FILE)
        try:
            self._db.execute(_USAGE_SCHEMA)
            # A power failure may cost the last counts; no fsync may hold up the cloud.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA busy_timeout = 0")
        except sqlite3.Error:
            self._db.close()
            raise
        self._unwritten: Counter[tuple[str, str, str]] = Counter()

    def close(self) -> None:
        self._db.close()

    def add(self, counts: Mapping[tuple[str, str], int]) -> None:
        day = today()
        for (peer_id, what), count in counts.items():
            self._unwritten[day, peer_id, what] += count
        rows = [(*key, count) for key, count in self._unwritten.items()]
        if not rows:
            return
        try:
            with self._db:
                self._db.execute("BEGIN")
                self._db.executemany(
                    "INSERT INTO usage VALUES (?1, ?2, ?3, ?4)"
                    " ON CONFLICT DO UPDATE SET count = count + ?4",
                    rows,
                )
                self._db.execute(
                    "DELETE FROM usage WHERE day < date(?, ?)", (day, f"-{USAGE_DAYS} days")
                )
        except sqlite3.Error as error:
            log.warning("what accounts have used cannot be written for now: %s", error)
        else:
            self._unwritten.clear()

    def of(self, peer_id: str, day: str) -> dict[str, int]:
        query = "SELECT what, count FROM usage WHERE day = ? AND peer_id = ?"
        found = Counter(dict(self._db.execute(query, (day, peer_id))))
        for (of_day, of_peer, what), count in self._unwritten.items():
            if (of_day, of_peer) == (day, peer_id):
                found[what] += count
        return dict(found)
