"""The track: keeps every online peer's connection; calls.py carries the calls between them.

State lives in memory: ``_online`` (peer id to connection).  A newer login under an id ends the
older one, unless it only comes *again*: a program that was cut off and replaced meanwhile must not
throw out the one that replaced it.  The ``session`` of a login tells who is who.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

from .._errors import BadPacket
from ..control.callers import MAX_TOLD_CHARS, Callers
from ..control.wire import PROTOCOL_VERSION, Message, encode
from .accounts import Accounts, valid_peer_id
from .calls import Calls, peer_id_untrusted
from .connection import QUIET_BEATS, Connection, Service
from .limits import Gatekeeper
from .login import Login, LoginRefused
from .login_limits import LoginLimits
from .prober import Address, Prober

__all__ = ["Track"]

log = logging.getLogger(__name__)

# docs/protocol.rst
MAX_SESSION_CHARS = 64

# Our choice.
ACCOUNTS_EVERY_S = 2.0  # how often the accounts are asked whether they have changed


class Track(Service):
    """``relays``: where calls may meet; none: right here.  ``start`` looks which are alive."""

    def __init__(
        self,
        gate: Gatekeeper,
        accounts: Accounts,
        relays: list[Address],
        relay_key: bytes,
        certificates: list[str],
    ) -> None:
        self._callers: set[Connection] = set()  # logged in to call only
        self._online: dict[str, Connection] = {}
        self._relays = Prober("relay", relays)
        self._calls = Calls(gate, self._online, self._relays if relays else None, relay_key)
        super().__init__(
            {
                "beat": self._on_beat,
                "login": self._on_login,
                "proof": self._on_proof,
                "route": self._on_route,
                **self._calls.handlers,
            }
        )
        self._gate = gate
        self._limits = gate.limits
        self._logins = LoginLimits(gate.limits, gate.limited)
        self._accounts = accounts
        self._certificates = certificates  # SHA-256s of those of the cloud's other servers
        self._accounts_version = accounts.version()
        self._accounts_asked = 0.0

    def start(self) -> None:
        self._relays.start()

    def stop(self) -> None:
        self._relays.stop()

    @property
    def online(self) -> int:
        return len(self._online)

    @property
    def calls(self) -> int:
        return len(self._calls)

    def sweep(self, now: float) -> None:
        """To be called about once a second: late calls, and accounts that have changed."""
        self._calls.sweep(now)
        self._calls.correspondents.sweep(now)
        if now - self._accounts_asked >= ACCOUNTS_EVERY_S:
            self._accounts_asked = now
            version = self._accounts.version()
            if version != self._accounts_version:
                self._accounts_version = version
                self._end_removed()

    def gone(self, connection: Connection) -> None:
        self._callers.discard(connection)
        peer_id = connection.peer_id
        was_online = peer_id is not None and self._online.get(peer_id) is connection
        if peer_id is not None and was_online:
            del self._online[peer_id]
            log.info("%s: offline", connection)
        self._calls.correspondents.gone(connection, was_online)
        self._calls.gone(connection)

    # Where a peer is, and whether it lives.

    def _on_route(self, connection: Connection, message: Message) -> None:
        peer_id_untrusted(message, "peer")
        connection.send(encode("track", tracks=[]))  # right here
        connection.welcome_caller(self._limits.idle_s)

    def _on_beat(self, connection: Connection, message: Message) -> None:
        connection.send(encode("beat"))

    # Logging in.

    def _on_login(self, connection: Connection, message: Message) -> None:
        peer_id = message.get("peer")
        try:
            logged_in = connection.peer_id is not None and connection not in self._callers
            if connection.login is not None or logged_in:
                raise LoginRefused("bad-message", "a second login on one connection")
            if message.get("v") != PROTOCOL_VERSION or not valid_peer_id(peer_id):
                raise LoginRefused("bad-message", "not a login")
            session = message.get("session", "")
            if not isinstance(session, str) or len(session) > MAX_SESSION_CHARS:
                raise LoginRefused("bad-message", "not a session")
            connection.session = session
            connection.callers = Callers.parse_untrusted(message.get("callers"), MAX_TOLD_CHARS)
            connection.comes_again = message.get("again") is True
            connection.must_finish(self._limits.handshake_s)
            call_only = message.get("call_only") is True
            login = connection.login = Login(
                self._accounts, connection.binding, str(peer_id), call_only
            )
            wait_s = self._hold(login, connection.host)
        except LoginRefused as error:
            self._refuse_login(connection, peer_id, error)
        except BadPacket as error:
            self._refuse_login(connection, peer_id, LoginRefused("bad-message", str(error)))
        else:
            go_on = functools.partial(self._challenge, connection, login, message.get("scram"))
            if wait_s > 0:
                connection.pause(wait_s, go_on)
            else:
                go_on()

    def _hold(self, login: Login, host: str) -> float:
        """How long it has to wait, for the failures before it."""
        if self._logins.exempt(login.peer_id, host):
            return 0.0
        peer_id = None if login.verifier is None else login.peer_id
        wait_s = self._logins.begin(peer_id, host, time.monotonic())
        if wait_s is None:
            raise LoginRefused("limit", "too many failed logins from there")
        login.paid = True
        return wait_s

    def _challenge(self, connection: Connection, login: Login, scram: object) -> None:
        try:
            connection.send(encode("challenge", scram=login.challenge_untrusted(scram)))
        except LoginRefused as error:
            self._refuse_login(connection, login.peer_id, error)

    def _on_proof(self, connection: Connection, message: Message) -> None:
        login = connection.login
        if login is None:
            raise BadPacket("no login is under way")
        peer_id = login.peer_id
        try:
            answer = login.welcome_untrusted(message.get("scram"))
            if self._accounts.get(peer_id) != login.verifier:
                raise LoginRefused("removed", "while it logged in")
        except LoginRefused as error:
            self._refuse_login(connection, peer_id, error)
            return
        self._logins.succeeded(peer_id, connection.host, login.paid, time.monotonic())
        connection.login = None
        connection.peer_id = peer_id
        connection.allow_long_lines()
        connection.verifier = login.verifier.stored_key
        beat_s, certificates = self._limits.beat_s, self._certificates or None
        connection.send(encode("welcome", scram=answer, beat=beat_s, certificates=certificates))
        if login.call_only:
            connection.allow_quiet(QUIET_BEATS * beat_s)
            self._callers.add(connection)
            return
        self._callers.discard(connection)
        old = self._online.get(peer_id)
        if old is not None and connection.comes_again and connection.session != old.session:
            log.info("%s: was replaced by %s meanwhile", connection, old.host)
            connection.finish(encode("bye", reason="duplicate"))
            return
        connection.allow_quiet(QUIET_BEATS * beat_s)
        self._online[peer_id] = connection
        self._calls.correspondents.came(connection, old)
        log.info("%s: online%s", connection, ", in place of " + old.host if old else "")
        if old is not None:
            old.finish(encode("bye", reason="duplicate"))

    def _refuse_login(self, connection: Connection, peer_id: Any, error: LoginRefused) -> None:
        login = connection.login
        if error.reason != "limit":
            known = login is not None and login.verifier is not None
            self._logins.failed(peer_id if known else None, connection.host, time.monotonic())
        self._gate.refused(connection.host, f"login as {str(peer_id)[:32]!r}: {error}")
        connection.finish(encode("refused", reason=error.reason))

    def _end_removed(self) -> None:
        for connection in [*self._online.values(), *self._callers]:
            verifier = self._accounts.get(str(connection.peer_id))
            if verifier is None or verifier.stored_key != connection.verifier:
                log.info("%s: its account was removed or changed", connection)
                connection.finish(encode("bye", reason="removed"))
