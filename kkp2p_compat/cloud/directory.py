"""The directory: what the nodes of a cloud know together.

Accounts, who is online where, the nodes themselves, and what is counted over all of them.  There
are two makers: directory_local.py keeps it in this process and in SQLite, directory_redis.py in
Redis; open_directory.py chooses.  A method of the first never waits; one of the second may, and
raises DirectoryAway when Redis does not answer in time.  All belong to one thread and its hub.

What is read may have been written by somebody else, as Redis may be shared, or stale: what cannot
be right counts as not there.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

from ..control.callers import MAX_TOLD_CHARS
from .counts import Spread
from .records import (
    NO_LIMITS,
    Account,
    AccountLimits,
    Node,
    Presence,
    Refused,
    Verifier,
    callers_of,
    changes_to,
    check_peer_id,
    is_node_id,
    new_account,
)

__all__ = [
    "LEASE_EVERY_S",
    "LEASE_S",
    "MAX_CHANGES",
    "NO_LIMITS",
    "Account",
    "AccountLimits",
    "Directory",
    "DirectoryAway",
    "Imported",
    "Node",
    "Presence",
    "Refused",
    "UnknownAccount",
    "Verifier",
    "audit_time",
    "callers_of",
    "changes_to",
    "is_node_id",
    "new_account",
    "today",
]

# Our choices.
LEASE_EVERY_S = 2.0  # how often a node says that it lives
LEASE_S = 10.0  # how long that holds
PAGE = 500  # accounts read at once
MAX_CHANGES = 10_000  # of accounts, that are remembered


class UnknownAccount(LookupError):
    """there is no such account"""


class DirectoryAway(OSError):
    """the directory does not answer"""


@dataclass
class Imported:
    """What has become of the accounts of a file."""

    added: int = 0
    replaced: int = 0
    kept: int = 0  # as they were


class Directory(ABC):
    """Call order: ``start``, then the rest, ``close`` at the end.

    ``on_account_changed`` is called with the peer id of an account that was changed or removed;
    with None: some may have been.  ``on_line``: a line that a node has sent to this one.
    ``on_failed_login``: at another node, with the peer id (None: there is no such account) and the
    address.  ``on_back``: what was told may have been lost, so tell all again.
    """

    is_local: bool
    by = "the cloud"  # who changes accounts here

    def __init__(self, throw_away: Mapping[str, str] | None = None) -> None:
        """``throw_away``: accounts of this object alone, peer id to secret; they come first."""
        self.on_account_changed: Callable[[str | None], None] = lambda peer_id: None
        self.on_line: Callable[[bytes], None] = lambda line: None
        self.on_failed_login: Callable[[str | None, str], None] = lambda peer_id, host: None
        self.on_back: Callable[[], None] = lambda: None
        self._throw_away = {
            peer_id: new_account(peer_id, secret) for peer_id, secret in (throw_away or {}).items()
        }

    @abstractmethod
    def start(self, node_id: str | None = None) -> None:
        """``node_id``: whose lines ``on_line`` gets; None: a tool, which hears nothing.

        Raises OSError, with a sentence for the user.
        """

    @abstractmethod
    def close(self) -> None: ...

    @property
    @abstractmethod
    def where_text(self) -> str:
        """Where it is, for people."""

    @property
    def latency(self) -> Spread | None:
        """How long its answers took, in seconds; None: it is here."""
        return None

    @property
    def away_since(self) -> float | None:
        """time.monotonic(); None: it does all that it is asked."""
        return None

    @property
    def away_reason(self) -> str:
        return ""

    @abstractmethod
    def sweep(self, now: float) -> None:
        """To be called about once a second."""

    @abstractmethod
    def secret_key(self) -> bytes:
        """The key that all tracks and relays of this cloud share."""

    # Accounts.

    def account(self, peer_id: str) -> Account | None:
        return self._throw_away.get(peer_id) or self._account(peer_id)

    def accounts(self, peer_ids: Iterable[str]) -> Iterator[tuple[str, Account | None]]:
        """Those of many at once."""
        return ((peer_id, self.account(peer_id)) for peer_id in peer_ids)

    def check_new(self, peer_id: str) -> None:
        """Raise ValueError, as ``add`` would, before anybody is asked for a secret."""
        check_peer_id(peer_id)
        if self.account(peer_id) is not None:
            raise ValueError(f"there is an account {peer_id} already")

    def check_known(self, peer_id: str) -> None:
        """Raise UnknownAccount if there is none."""
        if self.account(peer_id) is None:
            raise UnknownAccount(f"there is no account {peer_id}")

    def add(self, peer_id: str, secret: str) -> None:
        """Raises ValueError for a bad peer id or secret, or an id that is taken."""
        self.put(new_account(peer_id, secret))

    def change_secret(self, peer_id: str, secret: str) -> None:
        """Raises UnknownAccount, or ValueError for a bad secret."""
        self.update(peer_id, verifier=Verifier.of(secret))

    def put(self, account: Account) -> None:
        """A new one; raises ValueError if the id is taken."""
        if not self._put(account, self._record("account-added", account.peer_id)):
            raise ValueError(f"there is an account {account.peer_id} already")

    def put_all(self, accounts: Iterable[Account], replace: bool = False) -> Imported:
        """Those of a file.  ``replace``: what they are in the file, where there is one already."""
        imported = Imported()
        self._put_each(accounts, replace, imported)
        if imported.added or imported.replaced:
            self._note(self._record("accounts-imported", None, **asdict(imported)))
        return imported

    def _put_each(self, accounts: Iterable[Account], replace: bool, imported: Imported) -> None:
        for account in accounts:
            self._put_one(account, replace, imported)

    def _put_one(self, account: Account, replace: bool, imported: Imported) -> None:
        if self._put(account, ""):
            imported.added += 1
        elif replace and self._change(account.peer_id, changes_to(account), ""):
            imported.replaced += 1
        else:
            imported.kept += 1

    def update(
        self,
        peer_id: str,
        *,
        verifier: Verifier | None = None,
        disabled: bool | None = None,
        allow: str | None = None,
        limits: AccountLimits | None = None,
        once_until: int = 0,
        stored_key: bytes = b"",
    ) -> None:
        """Change what is not None; raises UnknownAccount.

        ``once_until``: of the secret, and so only with ``verifier``.  ``stored_key``: if it is
        given, an account that has another one is not the account that is meant.
        """
        changes: dict[str, Any] = {}
        if verifier is not None:
            changes = verifier._asdict() | {"once_until": once_until}
        told: dict[str, Any] = {"secret": "another"} if verifier is not None else {}
        if disabled is not None:
            told["disabled"] = changes["disabled"] = disabled
        if allow is not None:
            changes["allow"] = allow
            told["allow"] = allow[:MAX_TOLD_CHARS]
        if limits is not None:
            changes |= asdict(limits)
            told["limits"] = asdict(limits)
        changes["changed"] = int(time.time())
        record = self._record("account-changed", peer_id, **told)
        if not self._change(peer_id, changes, record, stored_key):
            raise UnknownAccount(f"there is no account {peer_id}")

    def remove(self, peer_id: str) -> None:
        """Raises UnknownAccount."""
        if not self._remove(peer_id, self._record("account-removed", peer_id)):
            raise UnknownAccount(f"there is no account {peer_id}")

    def _record(self, what: str, peer_id: str | None, **details: object) -> str:
        """What ``changes`` will tell of it."""
        fields = {"time": audit_time(), "what": what, "account": peer_id, "by": self.by, **details}
        return json.dumps({name: value for name, value in fields.items() if value is not None})

    @abstractmethod
    def _put(self, account: Account, record: str) -> bool:
        """False: there is one of this id.  ``record``: as of ``_note``, if there is any."""

    @abstractmethod
    def _change(
        self, peer_id: str, changes: Mapping[str, Any], record: str, stored_key: bytes = b""
    ) -> bool:
        """``changes``: by names as those of ``changes_to``; False: there is no such account.

        Of any number of changes at once from one ``stored_key`` to others, one is made.
        """

    @abstractmethod
    def _remove(self, peer_id: str, record: str) -> bool: ...

    @abstractmethod
    def _note(self, record: str) -> None:
        """Let ``changes`` tell it; the oldest of MAX_CHANGES goes."""

    @abstractmethod
    def changes(self, count: int) -> list[str]:
        """What was done to accounts last, JSON, the newest at the end."""

    @abstractmethod
    def page(self, after: str, count: int) -> list[Account]:
        """Up to ``count`` accounts whose ids are greater than ``after``, sorted by id."""

    def list_accounts(self) -> Iterator[Account]:
        """All that are kept, sorted by id."""
        after = ""
        while page := self.page(after, PAGE):
            yield from page
            after = page[-1].peer_id

    @abstractmethod
    def count_accounts(self) -> int: ...

    @abstractmethod
    def _account(self, peer_id: str) -> Account | None: ...

    # Who is online where.

    @abstractmethod
    def came(
        self, presence: Presence, *, again: bool = False, restored: bool = False
    ) -> Presence | Refused | None:
        """Take the place of this peer id, atomically; gives the login whose place it was.

        ``again``: another session's login stays.  ``restored``: this is not a new login, and stays
        away if there is a newer one.  Logins at nodes that are gone do not count.
        """

    @abstractmethod
    def restore(
        self, node_id: str, peer_ids: Iterable[str], presence_of: Callable[[str], Presence | None]
    ) -> list[tuple[Presence, Presence | Refused]]:
        """All logins at this node, again; of each, whose place it took, or whose that stays.

        ``presence_of``: the login that a peer has here at that moment, if any.
        """

    @abstractmethod
    def left(self, presence: Presence) -> None:
        """Give the place up, if it is still this login's; never waits."""

    @abstractmethod
    def where(self, peer_id: str) -> Presence | None:
        """At which living node the peer is."""

    # The nodes.

    @abstractmethod
    def lease(self, node: Node) -> None:
        """This node lives, for LEASE_S; to be called every LEASE_EVERY_S."""

    @abstractmethod
    def release(self, node_id: str) -> None:
        """It is gone, and with it who was online there."""

    @abstractmethod
    def nodes(self) -> list[Node]:
        """Those that live."""

    @abstractmethod
    def send(self, node_id: str, line: bytes) -> None:
        """To another node, at most once; never waits."""

    # Counts.

    @abstractmethod
    def add_usage(self, counts: MutableMapping[tuple[str, str], int]) -> None:
        """``counts``, by account (or another short text) and what was used: of today.

        What is taken over is deleted there, also if this raises DirectoryAway for the rest.
        """

    @abstractmethod
    def usage(self, peer_id: str, day: str | None = None) -> dict[str, int]:
        """What an account has used on a day (YYYY-MM-DD, UTC); None: today."""

    def usages(self, peer_ids: Iterable[str]) -> Iterator[tuple[str, dict[str, int]]]:
        """What each of many has used today; in few requests, where there are requests."""
        for peer_id in peer_ids:
            yield peer_id, self.usage(peer_id)

    @abstractmethod
    def tell_failed_login(self, peer_id: str | None, host: str) -> None:
        """Let the other nodes count it, too, against this account there; never waits."""


def audit_time(unix_s: float | None = None) -> str:
    """RFC 3339, in UTC, to the millisecond; None: now."""
    when = time.time() if unix_s is None else unix_s
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))
    return f"{text}.{int(when % 1 * 1000):03}Z"


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
