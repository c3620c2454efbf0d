"""Bytes of a fixed size as they stand in JSON: base64url without padding (RFC 4648 section 5)."""

from __future__ import annotations

import base64
import binascii

from ._errors import BadPacket

__all__ = ["decode_untrusted", "encode"]


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_untrusted(text: object, size: int, what: str) -> bytes:
    """The ``size`` bytes in a JSON value; raises BadPacket, which names ``what`` it should be."""
    if not isinstance(text, str) or len(text) != -(-size * 4 // 3):
        raise BadPacket(f"{what} that is not {size} bytes in base64url")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadPacket(f"{what} that is not base64url") from error
    if len(data) != size:
        raise BadPacket(f"{what} of {len(data)} bytes, not {size}")
    return data
