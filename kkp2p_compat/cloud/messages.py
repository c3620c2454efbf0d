"""What the messages of peers must hold, and a call as it is asked for."""

from __future__ import annotations

import json
from typing import NamedTuple

from .._errors import BadPacket
from .._peer_id import is_peer_id
from ..control.wire import MAX_BUDGET_MS, MAX_NAT_CHARS, MAX_OFFER_CHARS, Message, number_untrusted

__all__ = ["MAX_CALL_NUMBER", "Asked", "nat_text_untrusted", "peer_id_untrusted", "text_untrusted"]

MAX_CALL_NUMBER = 2**53  # our choice: what every JSON library carries exactly


def text_untrusted(message: Message, name: str, most: int) -> str:
    value = message.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise BadPacket(f"{name} is not a text of at most {most} characters")
    return value


def peer_id_untrusted(message: Message, name: str) -> str:
    value = message.get(name)
    if not is_peer_id(value):
        raise BadPacket(f"{name} is not a peer id")
    return str(value)


def nat_text_untrusted(nat: object) -> str:
    """What a peer tells of its NAT, as JSON."""
    try:
        text = json.dumps(nat, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise BadPacket("nat is too deep, or has an infinite number") from error
    if not isinstance(nat, dict) or len(text) > MAX_NAT_CHARS:
        raise BadPacket(f"nat is not an object of at most {MAX_NAT_CHARS} characters")
    return text


class Asked(NamedTuple):
    """What ``call`` asks for.  ``number`` is the caller's name for it, ``to`` the callee."""

    number: int
    to: str
    budget_ms: int
    offer: str
    may_show: bool

    @classmethod
    def parse_untrusted(cls, message: Message) -> Asked:
        return cls(
            number_untrusted(message, "call", 0, MAX_CALL_NUMBER),
            peer_id_untrusted(message, "to"),
            number_untrusted(message, "ms", 1, MAX_BUDGET_MS),
            text_untrusted(message, "offer", MAX_OFFER_CHARS),
            message.get("shows") is True,
        )
