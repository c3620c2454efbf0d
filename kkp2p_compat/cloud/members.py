"""Who is connected to a track, and the calls between them.

A call is known from ``call`` until it is declined, over, cancelled, late, or one of the two is
gone.  It is always in all of its places or in none: its caller's ``outgoing`` or ``kept``, its
callee's ``incoming``, the second in which it is late, and a count by address.  ``CallTable.enter``
is the only way in and ``CallTable.take_out`` the only way out.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

from .._bucket import Bucket
from ..control.callers import ANYBODY
from .account_limits import AccountUse
from .control_connection import ControlConnection
from .directory import NO_LIMITS, Account, Presence
from .limits import Gatekeeper
from .login import Login
from .messages import Asked
from .outside import plain_ip
from .settings import Limits

__all__ = ["Call", "CallTable", "Member"]


class Member:
    """A peer that can be called, or whoever calls one: one Member for each control connection."""

    __slots__ = (
        "call_tokens",
        "callers",
        "comes_again",
        "connection",
        "hears_relays",
        "host",
        "incoming",
        "is_invited",
        "is_online_elsewhere",
        "kept",
        "limits",
        "login",
        "login_id",
        "moves",
        "nat",
        "number",
        "outgoing",
        "peer_id",
        "presence",
        "round_trips",
        "seen",
        "session",
        "stored_key",
        "told_callers",
        "waiting",
    )

    def __init__(self, connection: ControlConnection, limits: Limits) -> None:
        self.connection = connection
        self.host = connection.host
        self.number = 0  # of its connection, at this node
        # Its login.
        self.peer_id: str | None = None  # once it has logged in
        self.login_id: str | None = None  # as whom it logs in
        self.login: Login | None = None  # under way
        self.stored_key = b""  # of its account, when it logged in
        self.is_invited = False  # it has yet to give the account a secret for good
        self.session = ""  # which program's login it is
        self.comes_again = False  # it was logged in before, and lost its connection
        self.moves = False  # it knows ``move``
        self.hears_relays = False  # it knows ``relays``
        self.presence: Presence | None = None  # as the directory knows it, if it can be called
        self.told_callers = ANYBODY  # who may call it, as it has said
        self.callers = ANYBODY  # who of those may do so by its account, too
        self.limits = NO_LIMITS  # of its account
        self.is_online_elsewhere = False  # a caller of another node, where it can be called, too
        # Where it is.
        self.seen = [plain_ip(self.host)]  # where the cloud sees it
        # JSON, what it has told of its NAT: 500 characters of brackets would be fifteen times that
        # as objects.
        self.nat: str | None = None
        self.round_trips: Mapping[str, int] = {}  # to relays, as it has measured them
        # Its calls.
        self.waiting: dict[int, Asked] = {}  # made, while their callees' logins are not complete
        self.outgoing: dict[int, Call] = {}  # made, and not answered yet
        self.kept: dict[int, Call] = {}  # made, and answered; the oldest first
        self.incoming: dict[str, Call] = {}
        self.call_tokens = Bucket(limits.calls_per_s, limits.calls_per_s, time.monotonic())

    def __str__(self) -> str:
        return str(self.connection)

    def prove(self, account: Account) -> None:
        """It has logged in."""
        self.peer_id, self.login, self.login_id = account.peer_id, None, None
        self.stored_key = account.verifier.stored_key
        self.is_invited = account.once_until > 0
        self.obey(account)
        self.connection.prove(account.peer_id)

    def is_still(self, account: Account) -> bool:
        """Whether its login is still good."""
        return account.verifier.stored_key == self.stored_key and not account.disabled

    def obey(self, account: Account) -> None:
        """What its account is allowed has changed."""
        self.callers = self.told_callers & account.callers
        self.limits = account.limits

    def locate(self, nat: str, seen_by_stun: list[str], round_trips: Mapping[str, int]) -> None:
        self.nat, self.round_trips = nat, round_trips
        self.seen = [self.seen[0], *seen_by_stun]

    def send(self, line: bytes) -> None:
        self.connection.send(line)

    def has_room(self, line: bytes) -> bool:
        return self.connection.has_room(line)

    def made(self, number: int) -> Call | None:
        """The call that it made under this number."""
        return self.outgoing.get(number) or self.kept.get(number)

    @property
    def is_calling(self) -> bool:
        """Whether it has calls that are not over."""
        return bool(self.outgoing or self.incoming or self.kept)

    def welcome(self, idle_s: float) -> None:
        """It has said what it wants, without a login: it may be quiet for so long."""
        if self.connection.is_new and self.login_id is None:
            self.connection.allow_quiet(idle_s)


class Call:
    """``number`` is the caller's name for it, ``id`` the callee's."""

    __slots__ = (
        "answered",
        "budget_ms",
        "callee",
        "caller",
        "due",
        "id",
        "is_carried",
        "is_stranger",
        "made_at",
        "number",
        "offer",
        "session",
        "share",
        "shown",
        "to",
        "to_callee",
        "to_caller",
    )

    def __init__(
        self,
        session: bytes,
        caller: Member,
        number: int,
        callee: Member,
        budget_ms: int,
        share: str,
        now: float,
    ) -> None:
        """``session``: its id on the relay."""
        self.session = session
        self.id = session.hex()
        self.caller = caller
        self.number = number
        self.callee = callee
        self.to = str(callee.peer_id)
        self.made_at = now
        self.budget_ms = budget_ms
        self.due = int(now + budget_ms / 1000) + 1  # the second of the clock after which it is late
        self.is_carried = False  # by another node, where the callee is
        self.is_stranger = caller.peer_id is None
        self.share = share  # whose call it is, see Turns
        self.shown = False  # the caller was at the relay
        self.offer: bytes | None = None  # the line for the callee, until it is handed over
        self.answered = False
        self.to_callee = self.to_caller = 0  # trickles carried


class CallTable:
    """All calls of a track."""

    def __init__(self, gate: Gatekeeper, now: float) -> None:
        self._gate = gate
        self.use = AccountUse()
        self._due: defaultdict[int, set[Call]] = defaultdict(set)  # by second
        self._swept_s = int(now)

    def __len__(self) -> int:
        return sum(map(len, self._due.values()))

    def late(self, now: float) -> list[Call]:
        """Those whose time is up since this was asked last."""
        seconds = range(self._swept_s, int(now))
        self._swept_s = max(self._swept_s, int(now))
        return [call for second in seconds for call in self._due.get(second, ())]

    def enter(self, call: Call) -> None:
        self._due[call.due].add(call)
        call.callee.incoming[call.id] = call
        caller = call.caller
        (caller.kept if call.answered else caller.outgoing)[call.number] = call
        (self._gate.kept_calls if call.answered else self._gate.open_calls).add(caller.host)
        self.use.enter(call.share)

    def take_out(self, call: Call) -> None:
        """May be called again."""
        if call.callee.incoming.pop(call.id, None) is None:
            return
        due = self._due[call.due]
        due.discard(call)
        if not due:
            del self._due[call.due]
        caller = call.caller
        del (caller.kept if call.answered else caller.outgoing)[call.number]
        (self._gate.kept_calls if call.answered else self._gate.open_calls).remove(caller.host)
        self.use.leave(call.share)
