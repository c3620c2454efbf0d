"""What the two sides of a call tell each other after offer and answer (the idea of RFC 8838).

They tell more candidates as they learn them, and the ports that a NAT gave.  Such a text travels
through the track as the offer did, but no key depends on it; so it carries a MAC under a key of the
call, and a number that only grows: one that was changed, repeated or reflected is refused.

    <24 characters of base64url: HMAC-SHA256, cut to 18 bytes> <JSON object with "n">
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from typing import Any

from ... import _base64url
from ..._errors import BadPacket
from ...control.wire import MAX_TRICKLE_CHARS

__all__ = ["Trickle"]

MAC_BYTES = 18


class Trickle:
    """``key``: for this call's trickled texts.  ``send`` takes a text to the peer."""

    def __init__(self, key: bytes, is_caller: bool, send: Callable[[str], object]) -> None:
        self._key = key
        self._own_side = b"caller " if is_caller else b"callee "
        self._other_side = b"callee " if is_caller else b"caller "
        self._send = send
        self._sent = 0
        self._received = 0

    def send(self, fields: dict[str, Any]) -> None:
        self._sent += 1
        body = json.dumps({"n": self._sent, **fields}, separators=(",", ":"))
        self._send(f"{self._mac(self._own_side, body)} {body}")

    def open_untrusted(self, text: object) -> dict[str, Any]:
        """What the peer tells; BadPacket if the text is not the peer's, or not new."""
        if not isinstance(text, str) or len(text) > MAX_TRICKLE_CHARS or not text.isascii():
            raise BadPacket("a malformed trickled text")
        mac, _, body = text.partition(" ")
        if not hmac.compare_digest(mac, self._mac(self._other_side, body)):
            raise BadPacket("a trickled text with a wrong MAC")
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadPacket("a trickled text that is not JSON") from error
        number = fields.get("n") if isinstance(fields, dict) else None
        if type(number) is not int or number <= self._received:
            raise BadPacket("a trickled text that is not new")
        self._received = number
        return dict(fields)

    def _mac(self, side: bytes, body: str) -> str:
        digest = hmac.digest(self._key, side + body.encode(), "sha256")
        return _base64url.encode(digest[:MAC_BYTES])
