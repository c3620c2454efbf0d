"""What the directory keeps: accounts, nodes, and who is online where."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from .. import _base64url
from .._address import is_ip
from .._codes import MAX_PEER_ID
from .._errors import BadPacket
from .._peer_id import is_peer_id
from ..control.callers import ANYBODY, MAX_CHARS, NOBODY, Callers
from ..control.scram import ITERATIONS, MAX_ITERATIONS, SALT_BYTES, verifier_of

__all__ = [
    "NO_LIMITS",
    "Account",
    "AccountLimits",
    "Node",
    "Presence",
    "Refused",
    "Verifier",
    "callers_of",
    "changes_to",
    "check_peer_id",
    "is_node_id",
    "new_account",
]

KEY_BYTES = 32  # of SHA-256

# Our choices.
MAX_KEY_BYTES = 64  # of a verifier: salt and keys have 32 at most
MAX_NODE_CHARS = 8192  # of a node's JSON

_NODE_ID = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"([0-9a-f]{64})?")
_WORD = re.compile(r"[!-~]{0,32}")
_HOST = re.compile(r"[0-9A-Za-z_.-]{1,253}")


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

    def check(self) -> None:
        """Raises ValueError."""
        rate, *counts = (self.calls_per_s, self.relay_bytes_per_day, self.channels)
        is_rate = type(rate) in (int, float) and math.isfinite(rate or 0) and (rate or 0) >= 0
        is_count = (
            type(count) is int and 0 <= count < 2**63 for count in counts if count is not None
        )
        if not (rate is None or is_rate) or not all(is_count):
            raise ValueError("a limit that is no number, 0 or more")

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

    def check(self) -> Account:
        """Itself; raises ValueError for what no account of ours has."""
        check_peer_id(self.peer_id)
        *keys, iterations = self.verifier
        if not all(isinstance(key, bytes) and 0 < len(key) <= MAX_KEY_BYTES for key in keys):
            raise ValueError("no verifier of a secret")
        if type(iterations) is not int or not 0 < iterations <= MAX_ITERATIONS:
            raise ValueError("an iteration count that no client takes")
        if not type(self.changed) is type(self.once_until) is int or not isinstance(
            self.disabled, bool
        ):
            raise ValueError("no account")
        callers_of(self.allow)
        self.limits.check()
        return self


def changes_to(account: Account) -> dict[str, Any]:
    """All that an account is, by name."""
    return {
        **account.verifier._asdict(),
        "changed": account.changed,
        "disabled": account.disabled,
        "allow": account.allow,
        **asdict(account.limits),
        "once_until": account.once_until,
    }


def new_account(peer_id: str, secret: str) -> Account:
    """Raises ValueError for a bad peer id or secret."""
    check_peer_id(peer_id)
    return Account(peer_id, Verifier.of(secret), int(time.time()))


def check_peer_id(peer_id: str) -> None:
    if not is_peer_id(peer_id):
        raise ValueError(
            f"a peer id is 1 to {MAX_PEER_ID} printable ASCII characters without spaces"
        )


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

    @property
    def serves_peers(self) -> bool:
        return bool(self.port) and self.role in ("all", "track")

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
