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
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from .. import _base64url
from .._address import is_ip
from .._codes import MAX_PEER_ID
from .._errors import BadPacket
from .._peer_id import is_peer_id
from ..control.callers import ANYBODY, MAX_CHARS, NOBODY, Callers
from ..control.scram import ITERATIONS, MAX_ITERATIONS, SALT_BYTES, verifier_of
from .counts import Spread

__all__ = [
    "LEASE_EVERY_S",
    "LEASE_S",
    "Account",
    "AccountLimits",
    "Directory",
    "DirectoryAway",
    "Node",
    "Presence",
    "Refused",
    "UnknownAccount",
    "Verifier",
]

KEY_BYTES = 32  # of SHA-256

# Our choices.
LEASE_EVERY_S = 2.0  # how often a node says that it lives
LEASE_S = 10.0  # how long that holds
PAGE = 500  # accounts read at once
MAX_NODE_CHARS = 8192  # of a node's JSON
MAX_REGION_CHARS = 32
_NODE_ID = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"([0-9a-f]{64})?")
_WORD = re.compile(r"[!-~]{0,32}")


class UnknownAccount(LookupError):
    """there is no such account"""


class DirectoryAway(OSError):
    """the directory does not answer"""


class Verifier(NamedTuple):
    """What is kept of a secret (RFC 5802 section 3), in the order that scramp wants."""

    salt: bytes
    stored_key: bytes
    server_key: bytes
    iterations: int

    @classmethod
    def of(cls, secret: str) -> Verifier:
        """With a new salt; raises ValueError for a secret that cannot be used."""
        return cls(*verifier_of(secret))

    @classmethod
    def parse_untrusted(cls, told: object) -> Verifier:
        """As a client tells it: three texts in base64url, and a number; raises BadPacket."""
        if not isinstance(told, list) or len(told) != 4:
            raise BadPacket("not a verifier")
        salt, stored_key, server_key = (
            _base64url.decode_untrusted(text, size, "part of a verifier")
            for text, size in zip(told, (SALT_BYTES, KEY_BYTES, KEY_BYTES), strict=False)
        )
        if type(told[3]) is not int or not ITERATIONS <= told[3] <= MAX_ITERATIONS:
            raise BadPacket("not an iteration count for a new secret")
        return cls(salt, stored_key, server_key, told[3])


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What an account may use; None: what everybody may."""

    calls_per_s: float | None = None
    relay_bytes_per_day: int | None = None
    channels: int | None = None  # calls at once that it has made, and that need the cloud yet

    @classmethod
    def of(
        cls, calls_per_s: float | None, relay_bytes_per_day: int | None, channels: int | None
    ) -> AccountLimits:
        """One object for all accounts that have none."""
        limits = cls(calls_per_s, relay_bytes_per_day, channels)
        return NO_LIMITS if limits == NO_LIMITS else limits


NO_LIMITS = AccountLimits()


@dataclass(frozen=True, slots=True)
class Account:
    """A peer that may log in.  ``allow``: who may call it, see ``callers_of``."""

    peer_id: str
    verifier: Verifier
    changed: int  # Unix seconds
    disabled: bool = False
    allow: str = "anybody"
    limits: AccountLimits = NO_LIMITS
    once_until: int = 0  # its secret is only there to be replaced, until then (Unix s); 0: for good

    @property
    def callers(self) -> Callers:
        return callers_of(self.allow)


def callers_of(allow: str) -> Callers:
    """ "anybody", "accounts", "nobody", or ids joined with commas; raises ValueError."""
    if allow == "anybody":
        return ANYBODY
    if allow == "nobody":
        return NOBODY
    try:
        return Callers.parse_untrusted(allow, MAX_CHARS)
    except BadPacket as error:
        raise ValueError(f"who may call: {error}") from error


@dataclass(frozen=True)
class Node:
    """A process of the cloud; ``load`` is the busy share of its event loop, 0 to 1."""

    id: str  # 16 digits in hex, others at every start
    role: str = "all"
    host: str = ""  # where peers reach its control plane
    port: int = 0  # 0: they do not
    relay_host: str = ""
    relay_port: int = 0  # 0: it is no relay
    region: str = ""
    version: str = ""
    protocol: int = 1  # of the messages between nodes
    fingerprint: str = ""  # SHA-256 of its certificate, in hex
    draining: bool = False
    load: float = 0.0
    stats: Mapping[str, Any] = field(default_factory=dict)  # for people: the status page

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def parse_untrusted(cls, text: bytes | str) -> Node:
        """Fields that it does not know are another version's, and left out."""
        try:
            found = json.loads(text) if len(text) <= MAX_NODE_CHARS else None
        except (ValueError, RecursionError) as error:
            raise BadPacket("a node that is not JSON") from error
        if not isinstance(found, dict):
            raise BadPacket("not a node")
        known = {entry.name: found[entry.name] for entry in fields(cls) if entry.name in found}
        try:
            node = cls(**known)
            plausible = node._is_plausible()
        except (TypeError, ValueError) as error:
            raise BadPacket("a node that lacks something") from error
        if not plausible:
            raise BadPacket("a node with fields that cannot be right")
        return node

    def _is_plausible(self) -> bool:
        texts = (self.role, self.region, self.version)
        ports = (self.port, self.relay_port)
        return (
            all(isinstance(text, str) and _WORD.fullmatch(text) for text in texts)
            and all(type(port) is int and 0 <= port < 65536 for port in ports)
            and _is_host(self.host, self.port)
            and _is_host(self.relay_host, self.relay_port)
            and is_node_id(self.id)
            and _SHA256.fullmatch(self.fingerprint) is not None
            and type(self.protocol) is int
            and isinstance(self.draining, bool)
            and isinstance(self.load, (int, float))
            and math.isfinite(self.load)
            and isinstance(self.stats, dict)
        )


def is_node_id(text: str) -> bool:
    return _NODE_ID.fullmatch(text) is not None


_HOST = re.compile(r"[0-9A-Za-z_.-]{1,253}")


def _is_host(host: object, port: int) -> bool:
    if not isinstance(host, str):
        return False
    return (not host and not port) or _HOST.fullmatch(host) is not None or is_ip(host)


@dataclass(frozen=True, slots=True)
class Presence:
    """A login: at which node, and which of its connections it is there."""

    peer_id: str
    node: str
    connection: int
    session: str  # which program's login it is
    since_us: int  # Unix microseconds: which of two logins is the newer one


@dataclass(frozen=True, slots=True)
class Refused:
    """The place is another's, and stays so."""

    by: Presence


class Directory(ABC):
    """Call order: ``start``, then the rest, ``close`` at the end.

    ``on_account_changed`` is called with the peer id of an account that was changed or removed;
    with None: some may have been.  ``on_line``: a line that a node has sent to this one.
    ``on_failed_login``: at another node, with the peer id (None: there is no such account) and the
    address.  ``on_back``: what was told may have been lost, so tell all again.
    """

    is_local: bool

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

    @abstractmethod
    def put(self, account: Account) -> None:
        """A new one; raises ValueError if the id is taken."""

    @abstractmethod
    def update(
        self,
        peer_id: str,
        *,
        verifier: Verifier | None = None,
        disabled: bool | None = None,
        allow: str | None = None,
        limits: AccountLimits | None = None,
        once_until: int = 0,
    ) -> None:
        """Change what is not None; raises UnknownAccount.

        ``once_until``: of the secret, and so only with ``verifier``.
        """

    @abstractmethod
    def remove(self, peer_id: str) -> None:
        """Raises UnknownAccount."""

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
    def add_usage(self, counts: Mapping[tuple[str, str], int]) -> None:
        """``counts``, by account (or another short text) and what was used: of today."""

    @abstractmethod
    def usage(self, peer_id: str, day: str | None = None) -> dict[str, int]:
        """What an account has used on a day (YYYY-MM-DD, UTC); None: today."""

    @abstractmethod
    def tell_failed_login(self, peer_id: str | None, host: str) -> None:
        """Let the other nodes count it, too, against this account there; never waits."""


def new_account(peer_id: str, secret: str) -> Account:
    """Raises ValueError for a bad peer id or secret."""
    check_peer_id(peer_id)
    return Account(peer_id, Verifier.of(secret), int(time.time()))


def check_peer_id(peer_id: str) -> None:
    if not is_peer_id(peer_id):
        raise ValueError(
            f"a peer id is 1 to {MAX_PEER_ID} printable ASCII characters without spaces"
        )


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
