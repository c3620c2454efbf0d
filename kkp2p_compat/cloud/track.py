"""The track: lets peers log in; presences.py knows who is online, calls.py carries the calls.

What the directory is asked for may take a while: then the connection waits, and nobody else does.
"""

from __future__ import annotations

import functools
import itertools
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import gevent

from .._errors import BadPacket
from .._peer_id import is_peer_id
from ..control.callers import MAX_TOLD_CHARS, Callers
from ..control.wire import PROTOCOL_VERSION, Message, encode
from .abroad import Abroad
from .calls import Calls
from .control_connection import QUIET_BEATS, ControlConnection, Service
from .directory import LEASE_S, Account, Directory, DirectoryAway, UnknownAccount, Verifier
from .limits import Gatekeeper
from .login import Login, LoginFailed
from .login_limits import LoginLimits
from .members import Member
from .messages import peer_id_untrusted
from .nodes import Nodes, fingerprints
from .presences import MAX_SESSION_CHARS, Found, Presences
from .relay_news import RelayNews
from .relays import Relays
from .turn_credentials import TurnCredentials
from .usage import CALLS, LOGINS, Usage

__all__ = ["Track"]

log = logging.getLogger(__name__)

T = TypeVar("T")

# docs/protocol.rst
MAX_CERTIFICATES = 256  # of other servers, that a client is told

# Our choices.
MOVING_SHARE = 0.5  # of the time to drain; the rest is for those that need longer, and for calls
MOVE_TURN_S = 0.02


class Track(Service):
    """``turn``: as in Calls."""

    def __init__(
        self,
        gate: Gatekeeper,
        directory: Directory,
        nodes: Nodes,
        relay_key: bytes,
        usage: Usage,
        turn: TurnCredentials | None = None,
    ) -> None:
        self._callers: set[Member] = set()  # logged in to call only
        self._online: dict[str, Member] = {}
        living = None if directory.is_local else lambda: nodes.living.values()
        self._relays = Relays(relay_key, usage, living)
        self._calls = Calls(gate, self._online, self._relays, relay_key, turn)
        self._calls.on_made = self._count_call
        self._usage = usage
        super().__init__(
            {
                "beat": self._on_beat,
                "login": self._on_login,
                "proof": self._on_proof,
                "route": self._on_route,
                "secret": self._on_secret,
                **self._calls.handlers,
            }
        )
        self._gate = gate
        self._limits = gate.limits
        self._logins = LoginLimits(gate.limits)
        gate.when_limits_change(self._logins.set_rates)
        self._directory = directory
        directory.on_account_changed = self._on_account_changed
        directory.on_failed_login = self._on_failed_login_elsewhere
        self._nodes = nodes
        correspondents = self._calls.correspondents
        self._presences = Presences(directory, nodes, self._online, correspondents)
        self._abroad: Abroad | None = None
        if not directory.is_local:
            self._abroad = Abroad(nodes, directory, self._calls, self._presences, gate)
        self._news = RelayNews(self._relays, self._online)
        self._numbers = itertools.count(1)
        self.is_draining = False

    @property
    def online(self) -> int:
        return len(self._online)

    def member(self, peer_id: str) -> Member | None:
        return self._online.get(peer_id)

    def newest(self, count: int) -> list[Member]:
        """Who has come last, the newest first."""
        return [*itertools.islice(reversed(self._online.values()), count)]

    @property
    def calls(self) -> int:
        """Those that this node carries: of all nodes together, each call once."""
        elsewhere = 0 if self._abroad is None else self._abroad.carried_elsewhere
        return len(self._calls) - elsewhere

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        for part in (
            self._calls,
            self._calls.correspondents,
            self._presences,
            self._abroad,
            self._news,
        ):
            if part is not None:
                part.sweep(now)

    def meet(self, connection: ControlConnection) -> Member:
        member = Member(connection, self._limits)
        member.number = next(self._numbers)
        return member

    def gone(self, member: Member) -> None:
        self._callers.discard(member)
        was_online = self._presences.gone(member)
        self._calls.correspondents.gone(member, was_online)
        self._calls.gone(member)
        if self._abroad is not None:
            self._abroad.gone(member)

    def move_all(self, drain_s: float) -> None:
        """Send the peers to other nodes, one after the other; until they are there.  Waits.

        Callers, which have nothing there, are told at once.
        """
        members = list(self._online.values())
        known = set(members)
        for item in self._gate.deadlines.items():
            if isinstance(item, ControlConnection) and item.known_as not in known:
                item.send(encode("move"))
        random.shuffle(members)
        began = time.monotonic()
        for index, member in enumerate(members):
            due = began + MOVING_SHARE * drain_s * index / len(members)
            if (wait_s := due - time.monotonic()) >= MOVE_TURN_S:
                gevent.sleep(wait_s)
            self._presences.tell_to_move(member)
        while self._online or self._presences.lingering:
            gevent.sleep(MOVE_TURN_S)

    # Where a peer is, and whether it lives.

    def _on_route(self, member: Member, message: Message) -> None:
        peer_id_untrusted(message, "peer")
        member.send(encode("track", tracks=[], relays=self._relays.told()))  # right here
        member.welcome(self._limits.idle_s)

    def _count_call(self, caller: Member) -> None:
        if caller.peer_id is not None:
            self._usage.count(caller.peer_id, CALLS)

    def _on_beat(self, member: Member, message: Message) -> None:
        away_since = self._directory.away_since
        cut_off = away_since is not None and time.monotonic() - away_since > LEASE_S
        member.send(encode("beat", cut_off=cut_off or None))

    # Logging in.

    def _on_login(self, member: Member, message: Message) -> None:
        peer_id = message.get("peer")
        try:
            logged_in = member.peer_id is not None and member not in self._callers
            if member.login_id is not None or logged_in:
                raise LoginFailed("bad-message", "a second login on one connection")
            if message.get("v") != PROTOCOL_VERSION or not is_peer_id(peer_id):
                raise LoginFailed("bad-message", "not a login")
            session = message.get("session", "")
            if not isinstance(session, str) or len(session) > MAX_SESSION_CHARS:
                raise LoginFailed("bad-message", "not a session")
            member.session = session
            member.told_callers = Callers.parse_untrusted(message.get("callers"), MAX_TOLD_CHARS)
            member.comes_again = message.get("again") is True
            member.moves = message.get("moves") is True
            member.hears_relays = message.get("relays") is True
        except LoginFailed as error:
            self._refuse_login(member, peer_id, error)
        except BadPacket as error:
            self._refuse_login(member, peer_id, LoginFailed("bad-message", str(error)))
        else:
            if self.is_draining:
                self._turn_away(member, "shutdown")
                return
            if message.get("leaves_cut_off") is True and self._directory.away_since is not None:
                self._turn_away(member, "unavailable")  # here it would be no better off
                return
            member.connection.must_finish(self._limits.handshake_s)
            member.login_id = peer_id = str(peer_id)
            self._ask(
                member,
                functools.partial(self._directory.account, peer_id),
                functools.partial(self._begin_login, member, message),
            )

    def _begin_login(self, member: Member, message: Message, account: Account | None) -> None:
        peer_id, call_only = str(member.login_id), message.get("call_only") is True
        login = member.login = Login(account, member.connection.binding, peer_id, call_only)
        try:
            wait_s = self._hold(login, member.host)
        except LoginFailed as error:
            self._refuse_login(member, peer_id, error)
            return
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
        except LoginFailed as error:
            self._refuse_login(member, peer_id, error)
            return
        self._ask(
            member,
            functools.partial(self._claim, member, login),
            functools.partial(self._welcome, member, login, answer),
        )

    def _claim(self, member: Member, login: Login) -> tuple[Account | None, Found]:
        """The account as it is now, and who had its place.  May wait."""
        account = self._directory.account(login.peer_id)
        if login.call_only or self._directory.is_local or login.problem_with(account):
            return account, None
        return account, self._presences.claim(member, login.peer_id)

    def _welcome(
        self, member: Member, login: Login, answer: str, claimed: tuple[Account | None, Found]
    ) -> None:
        account, found = claimed
        peer_id = login.peer_id
        problem = login.problem_with(account)
        if account is None or problem is not None:
            self._refuse_login(member, peer_id, problem or LoginFailed("removed"))
            return
        self._logins.succeeded(peer_id, member.host, login.paid, time.monotonic())
        member.prove(account)
        beat_s, certificates = self._limits.beat_s, self._vouched_for() or None
        relays = self._relays.told()
        once = account.once_until > 0 or None
        member.send(
            encode(
                "welcome",
                scram=answer,
                beat=beat_s,
                certificates=certificates,
                relays=relays,
                once=once,
            )
        )
        self._gate.counts.login("ok")
        self._usage.count(peer_id, LOGINS)
        if self._gate.audit is not None:
            self._gate.audit.write("login", account=peer_id, address=member.host)
        if login.call_only:
            member.connection.allow_quiet(QUIET_BEATS * beat_s)
            self._callers.add(member)
            return
        self._callers.discard(member)
        if self._presences.settle(member, found):
            member.connection.allow_quiet(QUIET_BEATS * beat_s)

    def _on_secret(self, member: Member, message: Message) -> None:
        """Another secret, in place of one that is there to be replaced."""
        if not member.is_invited:
            raise BadPacket("no such op here")
        verifier = Verifier.parse_untrusted(message.get("verifier"))
        member.is_invited = False
        self._ask(
            member,
            functools.partial(self._replace_secret, member, verifier),
            functools.partial(self._confirm_secret, member),
        )

    def _replace_secret(self, member: Member, verifier: Verifier) -> bool:
        """Whether it was the secret still that is to be replaced.  May wait."""
        before, member.stored_key = member.stored_key, verifier.stored_key
        try:
            self._directory.update(str(member.peer_id), verifier=verifier, stored_key=before)
        except UnknownAccount:
            return False
        return True

    def _confirm_secret(self, member: Member, was_replaced: bool) -> None:
        if not was_replaced:
            self._end_login(member)
            return
        member.send(encode("secret"))
        if self._directory.is_local:  # one that nodes share announces the change
            self._hold_to_accounts(member.peer_id)

    def _vouched_for(self) -> list[str]:
        """SHA-256s of the certificates of the cloud's other servers."""
        return fingerprints(self._nodes.others)[:MAX_CERTIFICATES]

    def _ask(self, member: Member, question: Callable[[], T], then: Callable[[T], object]) -> None:
        """Call ``then`` with the answer of the directory, which may take a while."""
        ask, go_on = (
            functools.partial(_answer_or_away, question),
            functools.partial(self._go_on, member, then),
        )
        if self._directory.is_local:
            go_on(ask())
        else:
            member.connection.wait_for(ask, go_on)

    def _go_on(
        self, member: Member, then: Callable[[T], object], answer: T | DirectoryAway
    ) -> None:
        if isinstance(answer, DirectoryAway):
            self._turn_away(member, "unavailable", f"unavailable: {answer}")
        else:
            then(answer)

    def _turn_away(self, member: Member, reason: str, why: str = "") -> None:
        """It may try again, best elsewhere: that is no verdict on who it is."""
        self._gate.refused(member.host, f"no login for now: {why or reason}")
        member.connection.finish(encode("bye", reason=reason))

    def _refuse_login(self, member: Member, peer_id: Any, error: LoginFailed) -> None:
        login = member.login
        self._gate.counts.login(error.reason)
        if self._gate.audit is not None:
            self._gate.audit.refuse(
                "login-refused", account=str(peer_id)[:32], address=member.host, reason=error.reason
            )
        if error.reason != "limit":
            known = login is not None and login.verifier is not None
            self._logins.failed(peer_id if known else None, member.host, time.monotonic())
            if login is not None and login.paid:
                self._directory.tell_failed_login(peer_id if known else None, member.host)
        self._gate.refused(member.host, f"login as {str(peer_id)[:32]!r}: {error}")
        member.connection.finish(encode("refused", reason=error.reason))

    def _on_failed_login_elsewhere(self, peer_id: str | None, host: str) -> None:
        self._logins.failed_elsewhere(peer_id, host, time.monotonic())

    def _on_account_changed(self, peer_id: str | None) -> None:
        if self._directory.is_local:
            self._hold_to_accounts(peer_id)
        else:
            gevent.spawn(self._hold_to_accounts, peer_id)

    def _hold_to_accounts(self, peer_id: str | None) -> None:
        """Hold the logins of an account to what it is now; None: any may have changed."""
        members: defaultdict[str, list[Member]] = defaultdict(list)
        for member in (*self._online.values(), *self._callers):
            if member.peer_id is not None and peer_id in (None, member.peer_id):
                members[member.peer_id].append(member)
        try:
            for name, account in self._directory.accounts(members):
                for member in members[name]:
                    self._hold_to_account(member, account)
        except DirectoryAway as error:
            log.warning("accounts have changed, and cannot be read: %s", error)

    def _hold_to_account(self, member: Member, account: Account | None) -> None:
        if account is not None and member.is_still(account):
            member.obey(account)
        else:
            self._end_login(member)

    def _end_login(self, member: Member) -> None:
        log.info("%s: its account was removed, disabled or changed", member)
        if self._gate.audit is not None:
            self._gate.audit.write(
                "login-ended", account=member.peer_id, address=member.host, reason="removed"
            )
        member.connection.finish(encode("bye", reason="removed"))


def _answer_or_away(question: Callable[[], T]) -> T | DirectoryAway:
    try:
        return question()
    except DirectoryAway as error:
        return error
