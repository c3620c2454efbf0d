"""What a track hands out for a TURN server that is not ours: where it is, and credentials.

The server must have the same secret (coturn: ``use-auth-secret`` and ``static-auth-secret``).  Who
uses it gets a name that tells the server nothing but that it is the same account, or the same
address of callers without one: so its quotas (coturn: ``user-quota``) hold for each of them.
"""

from __future__ import annotations

import hmac

from .. import _base64url
from .._address import HostPort
from ..traversal.turn_server import time_limited

__all__ = ["TurnCredentials"]

WHO_BYTES = 9  # our choice: 12 characters; two accounts in 2^36 share a quota by chance


class TurnCredentials:
    def __init__(self, server: HostPort, secret: bytes, lasts_s: float) -> None:
        self._server = server
        self._secret = secret
        self._lasts_s = lasts_s

    def field(self, share: str, now: float) -> list[str | int]:
        """The ``turn`` field of a message.  ``share``: whose quota it is; ``now``: Unix time."""
        digest = hmac.digest(self._secret, b"kkp2p turn " + share.encode(), "sha256")
        who = _base64url.encode(digest[:WHO_BYTES])
        return [*self._server, *time_limited(self._secret, who, int(now + self._lasts_s))]
