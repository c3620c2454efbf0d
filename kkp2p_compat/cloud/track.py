"""The track: knows which peers are online; calls.py carries the calls between them.

State lives in memory: ``_online``, by peer id.  A newer login under an id ends the older one,
unless it only comes *again*: a program that was cut off and replaced meanwhile must not throw out
the one that replaced it.  The ``session`` of a login tells the two apart.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import defaultdict
from typing import Any

from .._address import HostPort
from .._errors import BadPacket
from .._peer_id import is_peer_id
from ..control.callers import MAX_TOLD_CHARS, Callers
from ..control.wire import PROTOCOL_VERSION, Message, encode
from .calls import Calls, peer_id_untrusted
from .control_connection import QUIET_BEATS, ControlConnection, Service
from .directory import Directory, Node
from .limits import Gatekeeper
from .login import Login, LoginFailed
from .login_limits import LoginLimits
from .members import Member
from .prober import Prober
from .relays import Relays
from .turn_credentials import TurnCredentials
from .usage import Usage

__all__ = ["Track"]

log = logging.getLogger(__name__)

# docs/protocol.rst
MAX_SESSION_CHARS = 64


class Track(Service):
    """``relays``: where calls may meet; empty: right here.  From ``start`` on it looks which of
    them are alive.  ``turn``: as in Calls.
    """

    def __init__(
        self,
        gate: Gatekeeper,
        directory: Directory,
        relays: list[HostPort],
        relay_key: bytes,
        usage: Usage,
        certificates: list[str],
        turn: TurnCredentials | None = None,
    ) -> None:
        self._callers: set[Member] = set()  # logged in to call only
        self._online: dict[str, Member] = {}
        self._prober = Prober("relay", relays)
        self._relays = Relays(relay_key, usage, self._living if relays else None)
        self._calls = Calls(gate, self._online, self._relays, relay_key, turn)
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
        self._logins = LoginLimits(gate.limits)
        self._directory = directory
        directory.on_account_changed = self._on_account_changed
        self._certificates = certificates  # SHA-256s of those of the cloud's other servers

    def start(self) -> None:
        self._prober.start()

    def stop(self) -> None:
        self._prober.stop()

    def _living(self) -> list[Node]:
        places = enumerate(self._prober.alive)
        return [Node(f"{n:016x}", relay_host=place[0], relay_port=place[1]) for n, place in places]

    @property
    def online(self) -> int:
        return len(self._online)

    @property
    def calls(self) -> int:
        return len(self._calls)

    def sweep(self, now: float) -> None:
        """To be called about once a second: late calls."""
        self._calls.sweep(now)
        self._calls.correspondents.sweep(now)

    def meet(self, connection: ControlConnection) -> Member:
        return Member(connection, self._limits)

    def gone(self, member: Member) -> None:
        self._callers.discard(member)
        peer_id = member.peer_id
        was_online = peer_id is not None and self._online.get(peer_id) is member
        if peer_id is not None and was_online:
            del self._online[peer_id]
            log.info("%s: offline", member)
        self._calls.correspondents.gone(member, was_online)
        self._calls.gone(member)

    # Where a peer is, and whether it lives.

    def _on_route(self, member: Member, message: Message) -> None:
        peer_id_untrusted(message, "peer")
        member.send(encode("track", tracks=[], relays=self._relays.told()))  # right here
        member.welcome(self._limits.idle_s)

    def _on_beat(self, member: Member, message: Message) -> None:
        member.send(encode("beat"))

    # Logging in.

    def _on_login(self, member: Member, message: Message) -> None:
        peer_id = message.get("peer")
        try:
            logged_in = member.peer_id is not None and member not in self._callers
            if member.login is not None or logged_in:
                raise LoginFailed("bad-message", "a second login on one connection")
            if message.get("v") != PROTOCOL_VERSION or not is_peer_id(peer_id):
                raise LoginFailed("bad-message", "not a login")
            session = message.get("session", "")
            if not isinstance(session, str) or len(session) > MAX_SESSION_CHARS:
                raise LoginFailed("bad-message", "not a session")
            member.session = session
            member.told_callers = Callers.parse_untrusted(message.get("callers"), MAX_TOLD_CHARS)
            member.comes_again = message.get("again") is True
            member.connection.must_finish(self._limits.handshake_s)
            call_only = message.get("call_only") is True
            account = self._directory.account(str(peer_id))
            login = member.login = Login(
                account, member.connection.binding, str(peer_id), call_only
            )
            wait_s = self._hold(login, member.host)
        except LoginFailed as error:
            self._refuse_login(member, peer_id, error)
        except BadPacket as error:
            self._refuse_login(member, peer_id, LoginFailed("bad-message", str(error)))
        else:
            go_on = functools.partial(self._challenge, member, login, message.get("scram"))
            if wait_s > 0:
                member.connection.pause(wait_s, go_on)
            else:
                go_on()

    def _hold(self, login: Login, host: str) -> float:
        """How long it has to wait because others have failed before it."""
        if self._logins.exempt(login.peer_id, host):
            return 0.0
        peer_id = None if login.verifier is None else login.peer_id
        wait_s = self._logins.begin(peer_id, host, time.monotonic())
        if wait_s is None:
            self._gate.over("login_failures", "")
            raise LoginFailed("limit", "too many failed logins from there")
        login.paid = True
        return wait_s

    def _challenge(self, member: Member, login: Login, scram: object) -> None:
        try:
            member.send(encode("challenge", scram=login.challenge_untrusted(scram)))
        except LoginFailed as error:
            self._refuse_login(member, login.peer_id, error)

    def _on_proof(self, member: Member, message: Message) -> None:
        login = member.login
        if login is None:
            raise BadPacket("no login is under way")
        peer_id = login.peer_id
        try:
            answer = login.welcome_untrusted(message.get("scram"))
            account = self._directory.account(peer_id)
            if account is None or account.verifier != login.verifier:
                raise LoginFailed("removed", "while it logged in")
            if account.disabled:
                raise LoginFailed("removed", "the account is disabled")
        except LoginFailed as error:
            self._refuse_login(member, peer_id, error)
            return
        self._logins.succeeded(peer_id, member.host, login.paid, time.monotonic())
        member.prove(account)
        beat_s, certificates = self._limits.beat_s, self._certificates or None
        relays = self._relays.told()
        member.send(
            encode("welcome", scram=answer, beat=beat_s, certificates=certificates, relays=relays)
        )
        self._gate.counts.login("ok")
        if login.call_only:
            member.connection.allow_quiet(QUIET_BEATS * beat_s)
            self._callers.add(member)
            return
        self._callers.discard(member)
        old = self._online.get(peer_id)
        if old is not None and member.comes_again and member.session != old.session:
            log.info("%s: was replaced by %s meanwhile", member, old.host)
            member.connection.finish(encode("bye", reason="duplicate"))
            return
        member.connection.allow_quiet(QUIET_BEATS * beat_s)
        self._online[peer_id] = member
        self._calls.correspondents.came(member, old)
        log.info("%s: online%s", member, ", in place of " + old.host if old else "")
        if old is not None:
            old.connection.finish(encode("bye", reason="duplicate"))

    def _refuse_login(self, member: Member, peer_id: Any, error: LoginFailed) -> None:
        login = member.login
        self._gate.counts.login(error.reason)
        if error.reason != "limit":
            known = login is not None and login.verifier is not None
            self._logins.failed(peer_id if known else None, member.host, time.monotonic())
        self._gate.refused(member.host, f"login as {str(peer_id)[:32]!r}: {error}")
        member.connection.finish(encode("refused", reason=error.reason))

    def _on_account_changed(self, peer_id: str | None) -> None:
        """Hold the logins of an account to what it is now; None: any may have changed."""
        members: defaultdict[str, list[Member]] = defaultdict(list)
        for member in (*self._online.values(), *self._callers):
            if member.peer_id is not None and peer_id in (None, member.peer_id):
                members[member.peer_id].append(member)
        for name, account in self._directory.accounts(members):
            for member in members[name]:
                if account is not None and member.is_still(account):
                    member.obey(account)
                else:
                    log.info("%s: its account was removed, disabled or changed", member)
                    member.connection.finish(encode("bye", reason="removed"))
