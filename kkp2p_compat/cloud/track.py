"""The track: keeps every online peer's connection, and carries the offers and answers of calls.

State lives in memory: ``_online`` (peer id to connection) and ``_calls``.  A call is known from
``call`` until it is answered, declined, cancelled, late, or one of the two connections is gone; it
is always in three places (``_calls``, its caller's ``outgoing``, its callee's ``incoming``) or in
none, and ``_forget`` is the only way out.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import defaultdict
from typing import Any

from .._errors import BadPacket
from ..control.wire import PROTOCOL_VERSION, Message, encode
from ..transport import relay_wire
from .accounts import Accounts, valid_peer_id
from .connection import QUIET_BEATS, Connection, Service
from .limits import Gatekeeper, address_key, uncount
from .login import Login, LoginRefused

__all__ = ["RelayPlace", "Track"]

log = logging.getLogger(__name__)

RelayPlace = tuple[str | None, int | None]  # None: where the control connection goes to

# docs/protocol.rst
MAX_CALL_MS = 60_000
MAX_OFFER_CHARS = 32_768

# Our choices.
MAX_CALL_NUMBER = 2**53  # what every JSON library carries exactly
MAX_REASON_CHARS = 64
TOKEN_MARGIN_S = 10  # a token outlives its call by this: the clocks of track and relay differ
ACCOUNTS_EVERY_S = 2.0  # how often the accounts are asked whether they have changed


class _Call:
    __slots__ = ("callee", "caller", "caller_key", "due", "id", "number")

    def __init__(
        self, call_id: str, caller: Connection, number: int, callee: Connection, due: int
    ) -> None:
        self.id = call_id
        self.caller = caller
        self.caller_key = address_key(caller.host)
        self.number = number
        self.callee = callee
        self.due = due  # the second of the monotonic clock after which it is late


class Track(Service):
    """``relays``: where calls may meet; one is chosen at random for each."""

    def __init__(
        self,
        gate: Gatekeeper,
        accounts: Accounts,
        binding: bytes,
        relays: list[RelayPlace],
        relay_key: bytes,
    ) -> None:
        super().__init__(
            {
                "answer": self._on_answer,
                "beat": self._on_beat,
                "call": self._on_call,
                "cancel": self._on_cancel,
                "decline": self._on_decline,
                "login": self._on_login,
                "proof": self._on_proof,
                "route": self._on_route,
            }
        )
        self._gate = gate
        self._limits = gate.limits
        self._accounts = accounts
        self._binding = binding
        self._relays = relays
        self._relay_key = relay_key
        self._online: dict[str, Connection] = {}
        self._calls: dict[str, _Call] = {}
        self._due: defaultdict[int, set[_Call]] = defaultdict(set)  # by second
        self._swept_s = int(time.monotonic())
        self._accounts_version = accounts.version()
        self._accounts_asked = 0.0

    @property
    def online(self) -> int:
        return len(self._online)

    @property
    def calls(self) -> int:
        return len(self._calls)

    def sweep(self, now: float) -> None:
        """To be called about once a second: late calls, and accounts that have changed."""
        while self._swept_s < int(now):
            for call in list(self._due.pop(self._swept_s, ())):
                self._cancel(call)
            self._swept_s += 1
        if now - self._accounts_asked >= ACCOUNTS_EVERY_S:
            self._accounts_asked = now
            version = self._accounts.version()
            if version != self._accounts_version:
                self._accounts_version = version
                self._end_removed()

    def gone(self, connection: Connection) -> None:
        peer_id = connection.peer_id
        if peer_id is not None and self._online.get(peer_id) is connection:
            del self._online[peer_id]
            log.info("%s: offline", connection)
        for call in list((connection.outgoing or {}).values()):
            self._cancel(call)
        for call in list(connection.incoming or ()):
            self._forget(call)
            call.caller.send(encode("declined", call=call.number, reason="left"))

    # Where a peer is, and whether it lives.

    def _on_route(self, connection: Connection, message: Message) -> None:
        _peer_id_untrusted(message, "peer")
        connection.send(encode("track", tracks=[]))  # right here
        self._welcome_caller(connection)

    def _on_beat(self, connection: Connection, message: Message) -> None:
        connection.send(encode("beat"))

    def _welcome_caller(self, connection: Connection) -> None:
        if connection.is_new and connection.login is None:
            connection.allow_quiet(self._limits.idle_s)

    # Logging in.

    def _on_login(self, connection: Connection, message: Message) -> None:
        peer_id = message.get("peer")
        try:
            if connection.login is not None or connection.peer_id is not None:
                raise LoginRefused("bad-message", "a second login on one connection")
            if message.get("v") != PROTOCOL_VERSION or not valid_peer_id(peer_id):
                raise LoginRefused("bad-message", "not a login")
            self._check_failures(connection)
            connection.must_finish(self._limits.handshake_s)
            connection.login = Login(self._accounts, self._binding, str(peer_id))
            answer = connection.login.challenge_untrusted(message.get("scram"))
            connection.send(encode("challenge", scram=answer))
        except LoginRefused as error:
            self._refuse_login(connection, peer_id, error)

    def _on_proof(self, connection: Connection, message: Message) -> None:
        login = connection.login
        if login is None or connection.peer_id is not None:
            raise BadPacket("no login is under way")
        peer_id = login.peer_id
        try:
            self._check_failures(connection)
            answer = login.welcome_untrusted(message.get("scram"))
            if self._accounts.get(peer_id) != login.verifier:
                raise LoginRefused("removed", "while it logged in")
        except LoginRefused as error:
            self._refuse_login(connection, peer_id, error)
            return
        connection.login = None
        connection.peer_id = peer_id
        connection.verifier = login.verifier.stored_key
        connection.send(encode("welcome", scram=answer, beat=self._limits.beat_s))
        connection.allow_quiet(QUIET_BEATS * self._limits.beat_s)
        old, self._online[peer_id] = self._online.get(peer_id), connection
        log.info("%s: online%s", connection, ", in place of " + old.host if old else "")
        if old is not None:
            old.finish(encode("bye", reason="duplicate"))

    def _check_failures(self, connection: Connection) -> None:
        if not self._gate.may_log_in(connection.host):
            raise LoginRefused("limit", "too many failed logins from there")

    def _refuse_login(self, connection: Connection, peer_id: Any, error: LoginRefused) -> None:
        if error.reason != "limit":
            self._gate.login_failed(connection.host)
        self._gate.refused(connection.host, f"login as {str(peer_id)[:32]!r}: {error}")
        connection.finish(encode("refused", reason=error.reason))

    def _end_removed(self) -> None:
        for peer_id, connection in list(self._online.items()):
            verifier = self._accounts.get(peer_id)
            if verifier is None or verifier.stored_key != connection.verifier:
                log.info("%s: its account was removed or changed", connection)
                connection.finish(encode("bye", reason="removed"))

    # Calls.

    def _on_call(self, caller: Connection, message: Message) -> None:
        number = _number_untrusted(message, "call", 0, MAX_CALL_NUMBER)
        callee_id = _peer_id_untrusted(message, "to")
        budget_ms = _number_untrusted(message, "ms", 1, MAX_CALL_MS)
        offer = _text_untrusted(message, "offer", MAX_OFFER_CHARS)
        self._welcome_caller(caller)
        if caller.outgoing is not None and number in caller.outgoing:
            raise BadPacket("a call number that is in use")
        refusal = self._limit_reached(caller)
        if refusal:
            self._gate.refused(caller.host, f"call of {caller.peer_id or 'a caller'}: {refusal}")
            caller.send(encode("declined", call=number, reason="limit"))
            return
        callee = self._online.get(callee_id)
        if callee is None:
            caller.send(encode("declined", call=number, reason="offline"))
            return
        self._open(caller, number, callee, budget_ms, offer)

    def _open(
        self, caller: Connection, number: int, callee: Connection, budget_ms: int, offer: str
    ) -> None:
        session = secrets.token_bytes(relay_wire.SESSION_BYTES)
        call_id = session.hex()
        host, port = secrets.choice(self._relays)
        expiry = math.ceil(time.time() + budget_ms / 1000) + TOKEN_MARGIN_S
        places = []
        for side in (relay_wire.CALLER, relay_wire.CALLEE):
            token = relay_wire.make_token(self._relay_key, session, side, expiry)
            places.append([host, port, relay_wire.token_to_text(token)])
        try:
            line = encode(
                "offer",
                call=call_id,
                ms=budget_ms,
                offer=offer,
                relay=places[1],
                **({"from": caller.peer_id} if caller.peer_id else {}),
            )
        except ValueError as error:  # characters that JSON writes as six
            raise BadPacket("an offer that is too long") from error
        if not callee.has_room(line):
            caller.send(encode("declined", call=number, reason="busy"))
            return
        due = int(time.monotonic() + budget_ms / 1000) + 1
        call = _Call(call_id, caller, number, callee, due)
        self._calls[call_id] = call
        self._due[due].add(call)
        if caller.outgoing is None:
            caller.outgoing = {}
        caller.outgoing[number] = call
        if callee.incoming is None:
            callee.incoming = set()
        callee.incoming.add(call)
        self._gate.open_calls[call.caller_key] += 1
        caller.send(encode("calling", call=number, relay=places[0]))
        callee.send(line)

    def _limit_reached(self, caller: Connection) -> str:
        """Why this caller may not call now; empty if it may."""
        limits = self._limits
        now = time.monotonic()
        earned = (now - caller.call_tokens_at) * limits.calls_per_s
        caller.call_tokens = min(limits.calls_per_s, caller.call_tokens + earned)
        caller.call_tokens_at = now
        if caller.call_tokens < 1:
            return f"over {limits.calls_per_s:g} calls a second"
        caller.call_tokens -= 1
        if caller.outgoing is not None and len(caller.outgoing) >= limits.open_calls:
            return f"over {limits.open_calls} open calls"
        key = address_key(caller.host)
        most = limits.open_calls_per_address
        if self._gate.limited(key) and self._gate.open_calls[key] >= most:
            return f"over {most} open calls from there"
        return ""

    def _on_answer(self, callee: Connection, message: Message) -> None:
        answer = _text_untrusted(message, "answer", MAX_OFFER_CHARS)
        call = self._incoming_untrusted(callee, message)
        if call is None:
            return
        try:
            line = encode("answer", call=call.number, answer=answer)
        except ValueError as error:
            raise BadPacket("an answer that is too long") from error
        self._forget(call)
        if not call.caller.has_room(line):
            line = encode("declined", call=call.number, reason="limit")
        call.caller.send(line)

    def _on_decline(self, callee: Connection, message: Message) -> None:
        reason = _text_untrusted(message, "reason", MAX_REASON_CHARS)
        call = self._incoming_untrusted(callee, message)
        if call is not None:
            self._forget(call)
            call.caller.send(encode("declined", call=call.number, reason=reason))

    def _on_cancel(self, caller: Connection, message: Message) -> None:
        number = _number_untrusted(message, "call", 0, MAX_CALL_NUMBER)
        call = (caller.outgoing or {}).get(number)
        if call is not None:
            self._cancel(call)

    def _incoming_untrusted(self, callee: Connection, message: Message) -> _Call | None:
        """The call that the callee speaks of; None if it is over: the two messages crossed."""
        call = self._calls.get(_text_untrusted(message, "call", MAX_REASON_CHARS))
        return call if call is not None and call.callee is callee else None

    def _cancel(self, call: _Call) -> None:
        """The caller has given up; a callee that reads too slowly to be told finds out itself."""
        self._forget(call)
        line = encode("cancel", call=call.id)
        if call.callee.has_room(line):
            call.callee.send(line)

    def _forget(self, call: _Call) -> None:
        if self._calls.pop(call.id, None) is None:
            return
        due = self._due.get(call.due)
        if due is not None:
            due.discard(call)
            if not due:
                del self._due[call.due]
        outgoing, incoming = call.caller.outgoing, call.callee.incoming
        if outgoing is not None:
            outgoing.pop(call.number, None)
            call.caller.outgoing = outgoing or None
        if incoming is not None:
            incoming.discard(call)
            call.callee.incoming = incoming or None
        uncount(self._gate.open_calls, call.caller_key)


def _text_untrusted(message: Message, name: str, most: int) -> str:
    value = message.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise BadPacket(f"{name} is not a text of at most {most} characters")
    return value


def _number_untrusted(message: Message, name: str, least: int, most: int) -> int:
    value = message.get(name)
    if type(value) is not int or not least <= value <= most:
        raise BadPacket(f"{name} is not a number from {least} to {most}")
    return value


def _peer_id_untrusted(message: Message, name: str) -> str:
    value = message.get(name)
    if not valid_peer_id(value):
        raise BadPacket(f"{name} is not a peer id")
    return str(value)
