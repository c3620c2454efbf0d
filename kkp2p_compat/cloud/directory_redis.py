"""The directory of a fleet, in Redis: docs/protocol.rst has it key by key.

Everything that decides something is one script, which Redis runs as one step.  What is read here
may be anything: whoever shares the Redis can write to it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from itertools import chain, islice
from typing import Any

import gevent

from .._peer_id import is_peer_id
from . import redis_records, redis_scripts
from .counts import Spread
from .directory import (
    LEASE_S,
    MAX_CHANGES,
    Account,
    Directory,
    DirectoryAway,
    Imported,
    Node,
    Presence,
    Refused,
    changes_to,
    is_node_id,
    today,
)
from .redis_link import DEPOSED, RedisLink, Reply, Script, good
from .redis_place import RedisPlace

__all__ = ["RedisDirectory"]

log = logging.getLogger(__name__)

# Our choices.
FRESH_S = 5.0  # an account is not read again so soon; that it was changed is announced besides
EMPTIED = (
    "Redis has lost all accounts: give it its data back, or import them (kkp2p account import)"
)
KEPT_ACCOUNTS = 100_000  # of logins, for the time when Redis is away; some 700 bytes each
AT_ONCE = 200  # of many that are read or written in a row, so that others come in between
USAGE_S = 32 * 86_400  # how long usage is kept


class RedisDirectory(Directory):
    is_local = False

    def __init__(self, url: str, throw_away: Mapping[str, str] | None = None) -> None:
        """Raises ValueError for a URL or a secret, OSError for a file that the URL names."""
        super().__init__(throw_away)
        self._place = RedisPlace.parse(url)
        self._link = RedisLink(self._place)
        self._node_id: str | None = None
        self._was_leased = False
        self._problem: tuple[float, str] | None = None  # it answers, but: since when, and what
        self._has_had_accounts = False
        self._secret: bytes | None = None
        self._kept: OrderedDict[str, tuple[Account, float]] = OrderedDict()  # and when it was read
        self._changes = 0  # heard of: what is being read meanwhile may be the older state
        self._changed: dict[str | None, None] = {}
        self._telling: gevent.Greenlet[..., None] | None = None
        self._clearing: gevent.Greenlet[..., None] | None = None

    def _key(self, *words: str) -> str:
        return self._place.prefix + ":".join(words)

    @property
    def where_text(self) -> str:
        return str(self._place)

    @property
    def latency(self) -> Spread:
        return self._link.latency

    @property
    def away_since(self) -> float | None:
        return self._link.away_since or (self._problem[0] if self._problem else None)

    @property
    def away_reason(self) -> str:
        return self._link.away_reason or (self._problem[1] if self._problem else "")

    def _note_problem(self, reason: str) -> None:
        """Until a lease finds that it is over."""
        if self._problem is None or self._problem[1] != reason:
            log.error("%s: %s", self._place, reason)
        self._problem = (self.away_since or time.monotonic(), reason)

    def _taken(self, reply: Reply) -> Reply:
        """The answer to something that was to be written; it is away if it takes nothing.

        Of a Redis that is no master any more the link takes care: it leaves it.
        """
        if isinstance(reply, Exception) and not isinstance(reply, DEPOSED):
            refusal = str(reply).partition(" script:")[0]  # in which script says nothing
            self._note_problem(f"Redis refuses to be written to: {refusal}")
        return good(reply)

    @property
    def link(self) -> RedisLink:
        """For what it has measured."""
        return self._link

    def start(self, node_id: str | None = None) -> None:
        self._node_id = node_id
        if node_id is not None:
            channels = [self._key("to", node_id), self._key("changed"), self._key("failed")]
            self._link = RedisLink(self._place, channels, self._on_message, self._on_link_back)
        self._link.start()

    def close(self) -> None:
        for greenlet in (self._telling, self._clearing):
            if greenlet is not None:
                greenlet.kill()
        self._link.close()

    def sweep(self, now: float) -> None:
        pass  # what changes is announced

    def secret_key(self) -> bytes:
        key = self._key("key")
        _, reply = self._link.ask(("SET", key, secrets.token_hex(32), "NX"), ("GET", key))
        self._secret = redis_records.secret_key_untrusted(good(reply))
        return self._secret

    # Accounts.

    def _account(self, peer_id: str) -> Account | None:
        kept, read_at = self._kept.get(peer_id, (None, 0.0))
        if kept is not None and time.monotonic() - read_at < FRESH_S and not self._link.away_since:
            return kept
        changes = self._changes
        try:
            (reply,) = self._link.ask(self._get(peer_id))
        except DirectoryAway:
            if kept is None:
                raise
            return kept
        account = redis_records.account_untrusted(peer_id, reply)
        if account is None:
            if self._is_emptied():
                if kept is None:
                    raise DirectoryAway(EMPTIED)
                return kept
            self._kept.pop(peer_id, None)
        else:
            self._has_had_accounts = True
            self._keep(account, time.monotonic() if changes == self._changes else 0.0)
        return account

    def _get(self, peer_id: str) -> tuple[str, ...]:
        return ("HMGET", self._key("account", peer_id), *redis_records.FIELDS)

    def _keep(self, account: Account, read_at: float) -> None:
        self._kept[account.peer_id] = (account, read_at)
        self._kept.move_to_end(account.peer_id)
        if len(self._kept) > KEPT_ACCOUNTS:
            self._kept.popitem(last=False)

    def accounts(self, peer_ids: Iterable[str]) -> Iterator[tuple[str, Account | None]]:
        for ids in _portions(peer_ids):
            replies = iter(self._link.ask(*map(self._get, ids)))
            for peer_id in ids:
                account = redis_records.account_untrusted(peer_id, next(replies))
                if account is None and self._is_emptied():
                    raise DirectoryAway(EMPTIED)
                yield peer_id, self._throw_away.get(peer_id) or account

    def _is_emptied(self) -> bool:
        """Whether there were accounts, and now there is not even a record that one was removed.

        It says nothing of an account then: whoever is logged in stays, whoever comes waits.
        """
        if not self._has_had_accounts:
            return False
        names = "accounts", "changes"
        there = self._link.ask(*(("EXISTS", self._key(name)) for name in names))
        is_emptied = not any(map(good, there))
        if is_emptied:
            self._note_problem(EMPTIED)
        return is_emptied

    def _put(self, account: Account, record: str) -> bool:
        script = redis_scripts.ADD_ACCOUNT
        fields = redis_records.fields_of(changes_to(account))
        return self._write(script, account.peer_id, record, fields)

    def _put_each(self, accounts: Iterable[Account], replace: bool, imported: Imported) -> None:
        """Many at once, as each answer takes its time."""
        for portion in _portions(accounts):
            jobs = [gevent.spawn(self._put_one, one, replace, imported) for one in portion]
            gevent.joinall(jobs, raise_error=True)

    def _change(
        self, peer_id: str, changes: Mapping[str, Any], record: str, stored_key: bytes = b""
    ) -> bool:
        arguments = (stored_key, *redis_records.fields_of(changes))
        return self._write(redis_scripts.CHANGE_ACCOUNT, peer_id, record, arguments)

    def _remove(self, peer_id: str, record: str) -> bool:
        return self._write(redis_scripts.REMOVE_ACCOUNT, peer_id, record)

    def _write(
        self, script: Script, peer_id: str, record: str, arguments: Sequence[Any] = ()
    ) -> bool:
        names = ("accounts", "changed", "changes")
        keys = [self._key("account", peer_id), *map(self._key, names)]
        try:
            return bool(self._link.one(script(keys, peer_id, record, MAX_CHANGES, *arguments)))
        finally:
            self._forget_read(peer_id)

    def _note(self, record: str) -> None:
        key = self._key("changes")
        self._link.one(("XADD", key, "MAXLEN", "~", MAX_CHANGES, "*", "record", record))

    def changes(self, count: int) -> list[str]:
        found = self._link.one(("XREVRANGE", self._key("changes"), "+", "-", "COUNT", count))
        return redis_records.changes_untrusted(found)[::-1]

    def page(self, after: str, count: int) -> list[Account]:
        found: list[Account] = []
        lowest = f"({after}".encode() if after else b"-"
        while len(found) < count:
            most = str(count - len(found))
            command = ("ZRANGEBYLEX", self._key("accounts"), lowest, "+", "LIMIT", "0", most)
            ids = self._link.one(command)
            if not ids:
                break
            lowest = b"(" + ids[-1]
            known = self.accounts(redis_records.peer_ids_untrusted(ids))
            found += [account for _, account in known if account is not None]
        return found

    def count_accounts(self) -> int:
        return int(self._link.one(("ZCARD", self._key("accounts"))))

    # Who is online where.

    def came(
        self, presence: Presence, *, again: bool = False, restored: bool = False
    ) -> Presence | Refused | None:
        (reply,) = self._link.ask(self._came(presence, again=again, restored=restored))
        return redis_records.came_untrusted(presence.peer_id, self._taken(reply))

    def _came(self, presence: Presence, *, again: bool = False, restored: bool = False) -> Any:
        mode = "again" if again else "restored" if restored else "new"
        return redis_scripts.CAME(
            [self._key("peer", presence.peer_id), self._key("peers", presence.node)],
            self._place.prefix,
            presence.peer_id,
            redis_records.presence_text(presence),
            mode,
        )

    def left(self, presence: Presence) -> None:
        self._link.tell(self._left(presence.peer_id, presence.node, str(presence.connection)))

    def _left(self, peer_id: str, node_id: str, connection: str = "") -> Any:
        """``connection``: empty for any."""
        keys = [self._key("peer", peer_id), self._key("peers", node_id)]
        return redis_scripts.LEFT(keys, peer_id, f"{node_id} {connection}".rstrip())

    def where(self, peer_id: str) -> Presence | None:
        keys = [self._key("peer", peer_id)]
        return redis_records.presence_untrusted(
            peer_id, self._link.one(redis_scripts.WHERE(keys, self._place.prefix))
        )

    def restore(
        self, node_id: str, peer_ids: Iterable[str], presence_of: Callable[[str], Presence | None]
    ) -> list[tuple[Presence, Presence | Refused]]:
        outcomes: list[tuple[Presence, Presence | Refused]] = []
        for ids in _portions(peer_ids):
            there = [found for peer_id in ids if (found := presence_of(peer_id)) is not None]
            replies = self._link.ask(*(self._came(found, restored=True) for found in there))
            for presence, reply in zip(there, replies, strict=True):
                outcome = redis_records.came_untrusted(presence.peer_id, self._taken(reply))
                if outcome is not None and outcome != presence:
                    outcomes.append((presence, outcome))
        for peer_id in self._entered(node_id):
            if presence_of(peer_id) is None:
                self._link.tell(self._left(peer_id, node_id))
        return outcomes

    def _entered(self, node_id: str) -> Iterator[str]:
        """Whom the directory has at that node."""
        cursor = b"0"
        while True:
            command = ("SSCAN", self._key("peers", node_id), cursor, "COUNT", str(AT_ONCE))
            cursor, ids = self._link.one(command)
            yield from redis_records.peer_ids_untrusted(ids)
            if cursor == b"0":
                return

    # The nodes.

    def lease(self, node: Node) -> None:
        key = self._key("node", node.id)
        lease_ms = int(1000 * LEASE_S)
        # The last one works when Redis is full, but not when it refuses all that is written.
        before, entered, kept = self._link.ask(
            ("SET", key, node.to_json(), "PX", lease_ms, "GET"),
            ("SADD", self._key("nodes"), node.id),
            ("PEXPIRE", key, lease_ms),
        )
        try:
            self._taken(before), self._taken(entered)
        except DirectoryAway:
            if kept != 1:
                raise
            return
        was_lost = before is None and self._was_leased
        self._was_leased = True
        if was_lost:
            log.warning("Redis has lost what this node had told it, or it came too late")
        is_well_again = self._problem is not None and not self._is_emptied()
        if is_well_again:
            self._problem = None
            log.warning("%s does all that it is asked again", self._place)
        if was_lost or is_well_again:
            self._on_link_back()

    def release(self, node_id: str) -> None:
        if node_id == self._node_id:
            self._was_leased = False
        self._link.one(("DEL", self._key("node", node_id)))
        self._clear(node_id)

    def nodes(self) -> list[Node]:
        keys = [self._key("nodes")]
        living, gone = self._link.one(redis_scripts.NODES(keys, self._place.prefix))
        if gone and (self._clearing is None or self._clearing.ready()):
            self._clearing = gevent.spawn(self._clear_all, gone)
        return redis_records.nodes_untrusted(living)

    def _clear_all(self, node_ids: Sequence[bytes]) -> None:
        """What nodes that are gone have left behind; several nodes may do so at once."""
        try:
            for node_id in node_ids:
                if is_node_id(node_id.decode("latin-1")):
                    self._clear(node_id.decode())
                else:
                    self._link.one(("SREM", self._key("nodes"), node_id))
        except DirectoryAway as error:
            log.warning("the entries of nodes that are gone stay for now: %s", error)

    def _clear(self, node_id: str) -> None:
        keys = [self._key("node", node_id), self._key("nodes"), self._key("peers", node_id)]
        while self._link.one(redis_scripts.CLEAR(keys, self._place.prefix, node_id, AT_ONCE)):
            pass

    def send(self, node_id: str, line: bytes) -> None:
        self._link.tell(("PUBLISH", self._key("to", node_id), line))

    # Counts.

    def add_usage(self, counts: MutableMapping[tuple[str, str], int]) -> None:
        day = today()
        used: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for (who, what), count in counts.items():
            used[who][what] = count
        commands, portions = [], list(_portions(used))
        for portion in portions:
            keys = [self._key("usage", day, who) for who in portion]
            told = [
                word for who in portion for word in (len(used[who]), *chain(*used[who].items()))
            ]
            commands.append(redis_scripts.ADD_USAGE(keys, USAGE_S, *told))
        replies = self._link.ask(*commands) if commands else []
        for portion, reply in zip(portions, replies, strict=True):
            for who in () if isinstance(reply, Exception) else portion:
                for what in used[who]:
                    del counts[who, what]
        for reply in replies:
            self._taken(reply)

    def usage(self, peer_id: str, day: str | None = None) -> dict[str, int]:
        key = self._key("usage", day or today(), peer_id)
        return redis_records.usage_untrusted(self._link.one(("HGETALL", key)))

    def usages(self, peer_ids: Iterable[str]) -> Iterator[tuple[str, dict[str, int]]]:
        for ids in _portions(peer_ids):
            keys = [self._key("usage", today(), peer_id) for peer_id in ids]
            replies = map(good, self._link.ask(*(("HGETALL", key) for key in keys)))
            yield from zip(ids, map(redis_records.usage_untrusted, replies), strict=True)

    def tell_failed_login(self, peer_id: str | None, host: str) -> None:
        text = f"{self._node_id} {host} {peer_id or ''}".rstrip()
        self._link.tell(("PUBLISH", self._key("failed"), text))

    # What is heard.

    def _on_message(self, channel: str, payload: bytes) -> None:
        if channel == self._key("changed"):
            peer_id = payload.decode("latin-1")
            if is_peer_id(peer_id):
                self._note_change(peer_id)
        elif channel == self._key("failed"):
            failure = redis_records.failure_untrusted(payload)
            if failure is not None and failure[0] != self._node_id:
                self.on_failed_login(failure[2], failure[1])
        else:
            self.on_line(payload)

    def _note_change(self, peer_id: str | None) -> None:
        for known in [*self._kept] if peer_id is None else [peer_id]:
            self._forget_read(known)
        self._changed[peer_id] = None
        if self._telling is None or self._telling.ready():
            self._telling = gevent.spawn(self._tell_changes)

    def _forget_read(self, peer_id: str) -> None:
        """It is to be read again; until then it is good for the time when Redis is away."""
        self._changes += 1
        if peer_id in self._kept:
            self._kept[peer_id] = (self._kept[peer_id][0], 0.0)

    def _tell_changes(self) -> None:
        while self._changed:
            peer_id = next(iter(self._changed))
            del self._changed[peer_id]
            try:
                self.on_account_changed(peer_id)
            except DirectoryAway as error:  # when it is back, all are looked at
                log.warning("a changed account is not looked at for now: %s", error)
            except Exception:
                log.exception("a change of the account %s", peer_id)

    def _on_link_back(self) -> None:
        if self._secret is not None:  # else nodes that start from now on would have another one
            self._link.tell(("SET", self._key("key"), self._secret.hex(), "NX"))
        self._note_change(None)
        self.on_back()


def _portions(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while portion := list(islice(rest, AT_ONCE)):
        yield portion
