"""What stands in Redis, and what it is read as.

Whoever shares the Redis can write to it: what cannot be right is as good as not there.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from .._address import is_ip
from .._errors import BadPacket
from .._peer_id import is_peer_id
from .directory import Account, AccountLimits, Node, Presence, Refused, Verifier

__all__ = [
    "FIELDS",
    "account_untrusted",
    "came_untrusted",
    "changes_untrusted",
    "failure_untrusted",
    "fields_of",
    "nodes_untrusted",
    "peer_ids_untrusted",
    "presence_text",
    "presence_untrusted",
    "secret_key_untrusted",
    "usage_untrusted",
]

log = logging.getLogger(__name__)

LIMITS = tuple(entry.name for entry in fields(AccountLimits))
FIELDS = (*Verifier._fields, "changed", "disabled", "allow", *LIMITS, "once_until")  # of an account

MAX_FAILURE_BYTES = 128  # our choice

_NUMBER = re.compile(rb"-?[0-9]{1,19}")
_PRESENCE = re.compile(r"([0-9a-f]{16}) ([0-9]{1,19}) ([0-9]{1,19}) (.{0,256})", re.DOTALL)


def fields_of(changes: Mapping[str, Any]) -> list[Any]:
    """``changes``, as of ``changes_to``: names and values in turns; an empty text: none."""
    return [
        part
        for name, value in changes.items()
        for part in (
            name,
            "" if value is None else int(value) if isinstance(value, bool) else value,
        )
    ]


def account_untrusted(peer_id: str, values: object) -> Account | None:
    """``values``: those of FIELDS, or None where one is missing."""
    if isinstance(values, list) and values[0] is None:
        return None
    try:
        return _account(peer_id, values)
    except (BadPacket, ValueError) as error:
        log.warning("the account %s cannot be read, and counts as missing: %s", peer_id, error)
        return None


def _account(peer_id: str, values: Any) -> Account:
    if not isinstance(values, list):  # an error: the key is of another type
        raise BadPacket(str(values))
    found = dict(zip(FIELDS, values, strict=True))
    rate, *counts = (found[name] or None for name in LIMITS)
    return Account(
        peer_id,
        Verifier(values[0], values[1], values[2], _number(found["iterations"])),
        _number(found["changed"] or b"0"),
        found["disabled"] not in (None, b"0"),
        (found["allow"] or b"anybody").decode(),
        AccountLimits.of(
            None if rate is None else float(rate),
            *(None if count is None else _number(count) for count in counts),
        ),
        _number(found["once_until"] or b"0"),
    ).check()


def _number(value: object) -> int:
    if not isinstance(value, bytes) or _NUMBER.fullmatch(value) is None:
        raise BadPacket("no number")
    return int(value)


def presence_text(presence: Presence) -> str:
    return f"{presence.node} {presence.connection} {presence.since_us} {presence.session}"


def presence_untrusted(peer_id: str, text: object) -> Presence | None:
    if not isinstance(text, bytes):
        return None
    found = _PRESENCE.fullmatch(text.decode(errors="replace"))
    if found is None:
        return None
    return Presence(peer_id, found[1], int(found[2]), found[4], int(found[3]))


def came_untrusted(peer_id: str, reply: Any) -> Presence | Refused | None:
    """What the script CAME says."""
    taken, text = reply
    other = presence_untrusted(peer_id, text)
    return other if taken or other is None else Refused(other)


def peer_ids_untrusted(ids: Iterable[bytes]) -> Iterator[str]:
    return filter(is_peer_id, (peer_id.decode("latin-1") for peer_id in ids))


def nodes_untrusted(texts: Sequence[bytes]) -> list[Node]:
    nodes = []
    for text in texts:
        try:
            nodes.append(Node.parse_untrusted(text))
        except BadPacket as error:
            log.warning("a node is left out: %s", error)
    return nodes


def usage_untrusted(pairs: Sequence[bytes]) -> dict[str, int]:
    """Names and counts in turns."""
    return {
        name.decode(errors="replace"): int(count)
        for name, count in zip(pairs[::2], pairs[1::2], strict=True)
        if _NUMBER.fullmatch(count)
    }


def changes_untrusted(entries: Sequence[Any]) -> list[str]:
    """JSON, as it may be shown: of entries of a stream."""
    found = []
    for _, parts in entries:
        try:
            record = json.loads(dict(zip(parts[::2], parts[1::2], strict=True))[b"record"])
        except (ValueError, KeyError, RecursionError) as error:
            log.warning("a change that was not written by us is left out: %s", error)
        else:
            found.append(json.dumps(record))
    return found


def failure_untrusted(payload: bytes) -> tuple[str, str, str | None] | None:
    """The node that has seen a failed login, the address, and the peer id if there is one."""
    node, *rest = payload[:MAX_FAILURE_BYTES].decode("latin-1").split(" ")
    if not rest or not is_ip(rest[0]) or not all(map(is_peer_id, rest[1:])) or len(rest) > 2:
        return None
    return node, rest[0], rest[1] if len(rest) == 2 else None


def secret_key_untrusted(text: object) -> bytes:
    """Raises OSError: no cloud can do without."""
    try:
        if isinstance(text, bytes) and len(text) == 64:
            return bytes.fromhex(text.decode())
    except ValueError:
        pass
    raise OSError("the key in the directory is not one of ours")
