"""Our half of a login: SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677).  Sans-IO.

Call order: ``first``, ``proof_untrusted`` of the challenge, ``verify_untrusted`` of the welcome.
The cloud's half is in cloud/login.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator

from scramp import ScramClient, ScramException, ScramMechanism

from .._errors import BadPacket, LoginRefused
from .._sentence import said
from .binding import BINDING_NAME, MECHANISM, end_point_binding

__all__ = ["ITERATIONS", "MAX_ITERATIONS", "SALT_BYTES", "ScramLogin", "new_secret", "verifier_of"]

# scramp takes up to 10 million; a hostile server could keep the engine busy for seconds with that.
MAX_ITERATIONS = 100_000
# Of new secrets.  Our choices: four times what RFC 7677 asks for, and some 5 ms of a login's time.
ITERATIONS = 16_384
SALT_BYTES = 16
# Our choice: somebody who sees a login or the verifier can guess offline, in vain among 2^128.
SECRET_BYTES = 16
MIN_ITERATIONS = 4096  # RFC 7677 section 4
# RFC 5802 section 7, server-first-message, without extensions; its third field.
_CHALLENGE = re.compile(r"r=[!-+\--~]+,s=[A-Za-z0-9+/]+={0,2},i=([1-9][0-9]{0,8})")


def new_secret() -> str:
    """One that nobody can guess."""
    return secrets.token_hex(SECRET_BYTES)


def verifier_of(secret: str) -> tuple[bytes, bytes, bytes, int]:
    """Salt, StoredKey, ServerKey and iterations, with a new salt.

    Raises ValueError for a secret that cannot be used.
    """
    if not secret:
        raise ValueError("the secret is empty")
    try:
        salt, stored_key, server_key, count = ScramMechanism(MECHANISM).make_auth_info(
            secret, ITERATIONS, os.urandom(SALT_BYTES)
        )
    except ScramException as error:  # characters that SASLprep (RFC 4013) forbids
        raise ValueError(f"the secret cannot be used: {error}") from error
    return salt, stored_key, server_key, count


class ScramLogin:
    """A login under way; ``iterations`` is what the challenge wants."""

    def __init__(self, peer_id: str, secret: str, certificate: bytes, server: str) -> None:
        """``certificate``: that of the server, DER; ``server``: its name in errors.

        Raises BadPacket or LoginRefused.
        """
        try:
            binding = BINDING_NAME, end_point_binding(certificate)
        except ValueError as error:
            raise BadPacket(f"{server}: {error}") from error
        self._server = server
        self.iterations = 0
        try:
            self._client = ScramClient(
                [MECHANISM], peer_id, secret, channel_binding=binding, c_nonce=None
            )
            self.first = str(self._client.get_client_first())
        except ScramException as error:
            raise LoginRefused("no cloud takes such a secret: {why}", why=said(error)) from error

    def proof_untrusted(self, challenge: object, least_iterations: int) -> str:
        """The answer to a challenge for at least so many iterations; raises BadPacket."""
        least = max(least_iterations, MIN_ITERATIONS)
        text, self.iterations = _challenge_untrusted(challenge, least)
        with self._the_servers_fault():
            self._client.set_server_first(text)
            return str(self._client.get_client_final())

    def verify_untrusted(self, final: object) -> None:
        """Raise LoginRefused unless the server has shown that it knows our secret's verifier."""
        with self._the_servers_fault():
            self._client.set_server_final(final if isinstance(final, str) else "")

    @contextlib.contextmanager
    def _the_servers_fault(self) -> Iterator[None]:
        try:
            yield
        except (ScramException, ValueError) as error:  # ValueError: what should be base64
            raise LoginRefused(
                "{cloud} does not know the secret itself, or somebody is in the middle: {why}",
                cloud=self._server,
                why=said(error),
            ) from error


def _challenge_untrusted(server_first: object, least: int) -> tuple[str, int]:
    """The challenge and its iterations.

    It must be right before scramp sees it: the 1.4 of Python 3.10 takes anything.
    """
    match = _CHALLENGE.fullmatch(server_first) if isinstance(server_first, str) else None
    if match is None:
        raise BadPacket("not a SCRAM challenge")
    iterations = int(match[1])
    if not least <= iterations <= MAX_ITERATIONS:
        raise BadPacket(
            f"a SCRAM challenge that wants under {least} iterations, or over {MAX_ITERATIONS}"
        )
    return match[0], iterations
