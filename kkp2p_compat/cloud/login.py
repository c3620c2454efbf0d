"""One login: the server's half of SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677).  Sans-IO.

Call order: ``challenge_untrusted``, then ``welcome_untrusted``.  What a stranger can cause is a
LoginFailed, whose ``reason`` is one of docs/protocol.rst.
"""

from __future__ import annotations

import time
from typing import Any

from scramp import ScramException, ScramMechanism

from .._errors import BadPacket
from ..control.binding import BINDING_NAME, MECHANISM
from .directory import Account, Verifier

__all__ = ["Login", "LoginFailed"]

# Longest SCRAM message.  Our choice: ours are under 300 characters.
MAX_SCRAM_CHARS = 2048

# By the server-error-value of RFC 5802 section 7, which every release of scramp knows.
_REASONS = {
    "unknown-user": "unknown-peer",
    "invalid-proof": "bad-secret",
    "channel-bindings-dont-match": "bad-binding",
    # The client says that it has no binding, or that it thinks we have none: a downgrade.
    "server-does-support-channel-binding": "bad-binding",
}


class LoginFailed(BadPacket):
    """the login is refused"""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Login:
    """A login under way.  ``account``: of that peer id; None: there is none."""

    __slots__ = ("_is_unknown", "_server", "call_only", "paid", "peer_id", "verifier")

    def __init__(
        self, account: Account | None, binding: bytes, peer_id: str, call_only: bool = False
    ) -> None:
        self.peer_id = peer_id
        self.call_only = call_only  # it proves who calls; nobody can call this peer here
        self.paid = False  # for a failure, in advance: see LoginLimits
        self.verifier = None if account is None else account.verifier
        self._is_unknown = False  # the peer that the SCRAM message names
        self._server = ScramMechanism(MECHANISM).make_server(
            self._look_up, channel_binding=(BINDING_NAME, binding)
        )

    def problem_with(self, account: Account | None) -> LoginFailed | None:
        """Why it is not good for this account, as that is now."""
        if account is None or account.verifier != self.verifier:
            return LoginFailed("removed", "while it logged in")
        if account.disabled:
            return LoginFailed("removed", "the account is disabled")
        if account.once_until and not self.call_only:
            return LoginFailed("one-time", "the secret of an invitation, which is to be joined")
        if account.once_until and account.once_until < time.time():
            return LoginFailed("one-time", "the invitation is over")
        return None

    def challenge_untrusted(self, client_first: object) -> str:
        try:
            self._server.set_client_first(_check_untrusted(client_first))
            return str(self._server.get_server_first())
        except (ScramException, ValueError, TypeError) as error:
            if self._is_unknown:  # scramp 1.4 says that by a TypeError
                raise LoginFailed("unknown-peer", str(error)) from error
            raise _refusal(error) from error

    def welcome_untrusted(self, client_final: object) -> str:
        """The server-final-message; the client has proved that it has the secret."""
        try:
            self._server.set_client_final(_check_untrusted(client_final))
            return str(self._server.get_server_final())
        except (ScramException, ValueError) as error:
            raise _refusal(error) from error

    def _look_up(self, name: str) -> Verifier | None:
        known = self.verifier if name == self.peer_id else None
        self._is_unknown = known is None
        return known


def _check_untrusted(message: object) -> str:
    if not isinstance(message, str) or len(message) > MAX_SCRAM_CHARS or not message.isascii():
        raise LoginFailed("bad-message", "not a SCRAM message")
    return message


def _refusal(error: Exception) -> LoginFailed:
    value: Any = getattr(error, "server_error", None)
    # A text up to scramp 1.4, the last release for Python 3.10; then an enumeration.
    reason = _REASONS.get(getattr(value, "value", value), "bad-message")
    return LoginFailed(reason, str(error))
