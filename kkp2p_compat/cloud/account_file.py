"""Accounts as lines of text, one JSON object each: to keep a copy, or to move them elsewhere.

They are no secrets of the peers, but as good to a server that wants to pass for the cloud.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from .directory import Account, AccountLimits, Verifier

__all__ = ["line_of", "parse_line"]

MAX_LINE_CHARS = 100_000  # our choice: a list of callers has 65,536 at most
_KEYS = ("salt", "stored_key", "server_key")


def line_of(account: Account) -> str:
    verifier, limits = account.verifier, account.limits
    keys = {name: base64.b64encode(getattr(verifier, name)).decode() for name in _KEYS}
    given = {
        "calls_per_s": limits.calls_per_s,
        "relay_bytes_per_day": limits.relay_bytes_per_day,
        "channels": limits.channels,
    }
    fields = {
        "peer": account.peer_id,
        **keys,
        "iterations": verifier.iterations,
        "changed": account.changed,
        "disabled": account.disabled,
        "allow": account.allow,
        "once_until": account.once_until,
        "limits": {name: value for name, value in given.items() if value is not None},
    }
    return json.dumps(fields)


def parse_line(text: str) -> Account:
    """Raises ValueError, with what is wrong; fields that it does not know are a newer release's."""
    if len(text) > MAX_LINE_CHARS:
        raise ValueError(f"over {MAX_LINE_CHARS} characters")
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is too deep") from error
    if not isinstance(found, dict) or not isinstance(limits := found.get("limits", {}), dict):
        raise ValueError("it is no account")
    salt, stored_key, server_key = (_key(found.get(name)) for name in _KEYS)
    account = Account(
        found.get("peer", ""),
        Verifier(salt, stored_key, server_key, found.get("iterations", 0)),
        found.get("changed", 0),
        found.get("disabled", False),
        found.get("allow", "anybody"),
        AccountLimits.of(
            limits.get("calls_per_s"), limits.get("relay_bytes_per_day"), limits.get("channels")
        ),
        found.get("once_until", 0),
    )
    return account.check()


def _key(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, binascii.Error) as error:
        raise ValueError("it has no verifier of a secret") from error
