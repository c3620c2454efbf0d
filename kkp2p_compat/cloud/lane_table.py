"""Which packets go where: the sessions whose sides have shown themselves to the relay by UDP.

Sans-IO.  ``handle_untrusted`` takes a lane's datagram and gives the answers; ``route`` is asked for
each packet, or for as many as came in a row.  The rules:

- A packet goes on by where it comes from and which connection id it carries, and nothing else of
  it is read: each side said which id packets to it carry.  So sessions cannot mix.
- Nobody is a target who has not asked for it: an address is bound only with a cookie that was sent
  to it (``make_cookie``), and a token of our track's.
- A token that has expired still moves the side that it has bound to another address, so a NAT may
  forget its mappings in the middle of a session.
- Another call of the same two, for the same connection, takes the place of the one before.
- A side counts for its address as it does by TCP: a session for its caller's, a callee's while it
  waits.  A binding of which nothing was heard for BINDING_S is over.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter

from .._address import Address
from .._bucket import Bucket
from .._errors import BadPacket
from ..transport import lane_wire, relay_wire
from ..traversal.candidates import may_be_peer
from .counting import Networks, Tally, address_key, address_keys
from .limits import Gatekeeper
from .usage import USED_UP, Payer, Usage

__all__ = ["BINDING_S", "LaneTable"]

# Our choices.
BINDING_S = 60.0  # four SHOWs
COOKIE_EPOCH_S = 600.0  # a cookie is good for one to two of them
WHO_PER_S, WHO_BURST, WHO_TOTAL_PER_S = 5.0, 10.0, 1000.0  # of an address, and in all
SWEEPS = 5  # each looks at one in so many sessions
MAX_SPENT = 500_000  # sessions remembered for their bytes until their tokens expire

Answers = list[tuple[bytes, Address]]
_Refusal = tuple[int, str]  # status, reason for the log


class _Side:
    """Where one side of a session is."""

    __slots__ = ("address", "bytes", "connection_id", "counted_in", "seen", "session")

    def __init__(self, session: _Session, address: Address, connection_id: bytes) -> None:
        self.session = session
        self.address = address
        self.connection_id = connection_id
        self.seen = 0.0
        self.bytes = 0
        self.counted_in: Tally | None = None


class _Session:
    """Lives while a side is bound."""

    __slots__ = (
        "bytes",
        "charged",
        "expiry",
        "hosts",
        "id",
        "paired_at",
        "payer",
        "receipt",
        "sides",
        "turn",
    )

    def __init__(
        self, token: relay_wire.Token, payer: Payer, receipt: bytes, carried: int, turn: int
    ) -> None:
        self.id = token.session
        self.payer = payer
        self.charged = carried  # bytes
        self.expiry = token.expiry
        self.receipt = receipt
        self.turn = turn  # in which sweep it is looked at
        self.sides: list[_Side | None] = [None, None]  # caller, callee
        self.bytes = [carried, 0]  # of each, while it was bound elsewhere
        self.hosts = ["-", "-"]  # of each, at last
        self.paired_at: float | None = None

    def is_of(self, source: Address, connection_id: bytes, other: _Side) -> bool:
        """Whether it joins the same connection, one side of which is where it was: the two have
        called each other again, to find new paths.
        """
        ends = {(source, connection_id), (other.address, other.connection_id)}
        own = {(side.address, side.connection_id) for side in self.sides if side is not None}
        return {end[1] for end in own} == {end[1] for end in ends} and not own.isdisjoint(ends)

    def carried(self, side: int) -> int:
        bound = self.sides[side]
        return self.bytes[side] + (0 if bound is None else bound.bytes)

    @property
    def all_bytes(self) -> int:
        return self.carried(relay_wire.CALLER) + self.carried(relay_wire.CALLEE)


class LaneTable:
    """Send the answers of each call.

    ``counts`` tells by reason what was not answered, or not as it had hoped.
    """

    def __init__(self, gate: Gatekeeper, key: bytes, usage: Usage, now: float) -> None:
        self.counts: Counter[str] = Counter()
        self._closing = False
        self._gate = gate
        self._limits = gate.limits
        self._key = key
        self._usage = usage
        self._cookie_key = secrets.token_bytes(32)
        self._sessions: dict[bytes, _Session] = {}
        self._routes: dict[tuple[Address, bytes], tuple[_Side, Address]] = {}
        self._spent: dict[bytes, tuple[int, int]] = {}  # of sessions that are over: bytes, expiry
        self._made = 0
        self._turn = 0
        gate.when_limits_change(lambda: self._set_rates(now))
        self._who_of_address = Networks(WHO_PER_S, WHO_BURST)
        self._who_in_all = Bucket(WHO_TOTAL_PER_S, WHO_TOTAL_PER_S, now)

    def _set_rates(self, now: float) -> None:
        limits = self._limits
        self._of_address = Networks(limits.lane_per_s, limits.lane_per_s * limits.burst_s)
        self._in_all = Bucket(limits.lane_total_per_s, limits.lane_total_per_s, now)

    @property
    def sessions(self) -> int:
        """Those that wait for a side included."""
        return len(self._sessions)

    @property
    def paired(self) -> int:
        return len(self._routes) // 2

    def close(self) -> Answers:
        """Bind no new side from now on; what tells every side that the relay is about to close."""
        self._closing = True
        return [
            (lane_wire.make_state(side.connection_id, relay_wire.CLOSING), side.address)
            for session in self._sessions.values()
            for side in session.sides
            if side is not None
        ]

    # Packets.

    def route(self, source: Address, connection_id: bytes, size: int, now: float) -> Address | None:
        """Where packets of ``size`` bytes together go; None: nowhere."""
        found = self._routes.get((source, connection_id))
        if found is None:
            return None
        side, target = found
        side.seen = now
        side.bytes += size
        most = self._limits.relay_session_bytes
        if most and side.session.all_bytes > most:
            self._end(side.session, now, f"over {most} bytes")
            return None
        return target

    def _end(self, session: _Session, now: float, why: str) -> None:
        """The sides are told why when they show themselves again."""
        self._gate.refused(session.hosts[relay_wire.CALLER], f"relay: a lane is ended: {why}")
        self._drop(session, relay_wire.CALLER)
        self._drop(session, relay_wire.CALLEE)
        self._forget_if_over(session, now, f", ended: {why}")

    def who_untrusted(self, source: Address, connection_id: bytes, now: float) -> bytes | None:
        """What to answer to a packet without a route; as a rule, nothing."""
        keys = address_keys(source[0])
        if self._limits.hold_for(keys) and not self._who_of_address.take(keys, now):
            return None
        if not may_be_peer(source[0], source[1]) or not self._who_in_all.take(now):
            return None
        return lane_wire.make_who(connection_id)

    # SHOW and LEAVE.

    def make_cookie(self, source: Address, now: float, before: int = 0) -> bytes:
        """What only somebody at ``source`` knows; ``before``: what it was so many epochs ago."""
        about = repr((source, int(now // COOKIE_EPOCH_S) - before)).encode()
        size = lane_wire.COOKIE_BYTES
        return hashlib.blake2b(about, key=self._cookie_key, digest_size=size).digest()

    def handle_untrusted(
        self, data: bytes, source: Address, now: float, unix_now: float
    ) -> Answers:
        """A datagram that begins as a lane's; what to answer, and whom."""
        keys = address_keys(source[0])
        if self._limits.hold_for(keys) and not self._of_address.take(keys, now):
            self.counts["over the limit of an address"] += 1
            return []
        try:
            show = lane_wire.parse_show_untrusted(data)
            if not may_be_peer(source[0], source[1]):
                raise BadPacket("a SHOW from an address that no peer can have")
            if show.cookie not in (self.make_cookie(source, now, ago) for ago in (0, 1)):
                if not self._in_all.take(now):
                    raise BadPacket("over the limit of all")
                self.counts["without a cookie"] += 1
                cookie = self.make_cookie(source, now)
                return [(lane_wire.make_cookie(show.connection_id, cookie), source)]
        except BadPacket as error:
            self.counts[str(error)] += 1
            return []
        try:
            token = lane_wire.verify_show_untrusted(self._key, show)
        except relay_wire.TokenRefused as error:
            return self._refuse(source, show.connection_id, error.status, str(error))
        if show.kind == lane_wire.LEAVE:
            return self._leave(token, now)
        refusal = self._refusal(token, source, show.connection_id, unix_now)
        if refusal is not None:
            return self._refuse(source, show.connection_id, *refusal)
        return self._show(token, source, show.connection_id, now)

    def _refuse(self, source: Address, connection_id: bytes, status: int, reason: str) -> Answers:
        self.counts[reason] += 1
        self._gate.refused(source[0], f"relay: lane: {reason}")
        return [(lane_wire.make_state(connection_id, status), source)]

    def _refusal(
        self, token: relay_wire.Token, source: Address, connection_id: bytes, unix_now: float
    ) -> _Refusal | None:
        """Why this side cannot be bound there; None: it can."""
        session = self._sessions.get(token.session)
        bound = None if session is None else session.sides[token.side]
        for applies, status in (
            (unix_now > token.expiry, relay_wire.EXPIRED),
            (self._closing, relay_wire.CLOSING),
        ):
            if applies and bound is None:
                return status, relay_wire.status_text(status)
        limit = self._limit_reached(token, session, bound, source)
        if limit:
            return relay_wire.LIMIT, limit
        other = None if session is None else session.sides[1 - token.side]
        if other is not None:
            keys = {(source, other.connection_id), (other.address, connection_id)}
            taken = [found.session for found in self._conflicts(other, source, connection_id)]
            if len(keys) < 2 or any(not each.is_of(source, connection_id, other) for each in taken):
                return relay_wire.BAD, "a connection id that another session has"
        return None

    def _conflicts(self, other: _Side, source: Address, connection_id: bytes) -> list[_Side]:
        """Sides of other sessions by which packets between these two are routed now."""
        keys = (source, other.connection_id), (other.address, connection_id)
        sides = [self._routes[key][0] for key in keys if key in self._routes]
        return [side for side in sides if side.session is not other.session]

    def _limit_reached(
        self,
        token: relay_wire.Token,
        session: _Session | None,
        bound: _Side | None,
        source: Address,
    ) -> str:
        limits = self._limits
        if session is None and len(self._sessions) >= limits.relay_sessions:
            return self._gate.over(
                "relay_sessions", f"over {limits.relay_sessions} sessions in all"
            )
        if session is None and len(self._spent) >= MAX_SPENT:
            return f"over {MAX_SPENT} sessions in the time that tokens live"
        carried = self._carried_before(token) if session is None else session.all_bytes
        if limits.relay_session_bytes and carried > limits.relay_session_bytes:
            return f"the session is over {limits.relay_session_bytes} bytes"
        if self._usage.is_over(self._usage.payer(token.session)):
            return self._gate.over("relay_bytes_per_day", USED_UP)
        if bound is not None and address_key(bound.address[0]) == address_key(source[0]):
            return ""
        most = limits.relay_sessions_per_address
        of_it = self._gate.full(self._tally(token.side), source[0], most)
        if not of_it:
            return ""
        return self._gate.over("relay_sessions_per_address", f"over {of_it}: lanes at once")

    def _carried_before(self, token: relay_wire.Token) -> int:
        return self._spent.get(token.session, (0, 0))[0]

    def _tally(self, side: int) -> Tally:
        is_caller = side == relay_wire.CALLER
        return self._gate.lane_sessions if is_caller else self._gate.lane_callees

    def _show(
        self, token: relay_wire.Token, source: Address, connection_id: bytes, now: float
    ) -> Answers:
        session = self._sessions.get(token.session)
        if session is None:
            payer = self._usage.payer(token.session)
            receipt = relay_wire.make_receipt(self._key, token.session)
            turn = self._made = (self._made + 1) % SWEEPS
            session = _Session(token, payer, receipt, self._carried_before(token), turn)
            self._sessions[session.id] = session
        side, other = session.sides[token.side], session.sides[1 - token.side]
        is_new = side is None or (side.address, side.connection_id) != (source, connection_id)
        if side is None or is_new:
            side = self._bind(session, token.side, source, connection_id, now)
        side.seen = now
        status = relay_wire.HERE if other is None else relay_wire.PAIRED
        answers = [(lane_wire.make_state(connection_id, status, session.receipt), source)]
        if is_new and other is not None:
            answers.append((lane_wire.make_state(other.connection_id, status), other.address))
        return answers

    def _bind(
        self, session: _Session, place: int, source: Address, connection_id: bytes, now: float
    ) -> _Side:
        self._drop(session, place)
        side = session.sides[place] = _Side(session, source, connection_id)
        session.hosts[place] = source[0]
        other = session.sides[1 - place]
        if other is not None:
            for before in self._conflicts(other, source, connection_id):
                for each in (relay_wire.CALLER, relay_wire.CALLEE):
                    self._drop(before.session, each)
                self._forget_if_over(before.session, now, ", which goes on in another call")
            self._routes[source, other.connection_id] = side, other.address
            self._routes[other.address, connection_id] = other, source
            if session.paired_at is None:
                session.paired_at = now
                key = address_key(session.hosts[relay_wire.CALLER])
                self._gate.paired.tell(key, "relay: lane of %s and %s: paired", *session.hosts)
        self._recount(session)
        return side

    def _recount(self, session: _Session) -> None:
        """A callee counts while there is no caller: else others could fill its address's limit."""
        alone = session.sides[relay_wire.CALLER] is None
        for place, side in enumerate(session.sides):
            if side is None:
                continue
            tally = self._tally(place) if alone or place == relay_wire.CALLER else None
            if tally is not side.counted_in:
                self._uncount(side)
                side.counted_in = tally
                if tally is not None:
                    tally.add(side.address[0])

    @staticmethod
    def _uncount(side: _Side) -> None:
        if side.counted_in is not None:
            side.counted_in.remove(side.address[0])
            side.counted_in = None

    # The end of a binding, and of a session.

    def _leave(self, token: relay_wire.Token, now: float) -> Answers:
        session = self._sessions.get(token.session)
        if session is None:
            return []
        answers = self._unbind(session, token.side)
        self._forget_if_over(session, now)
        return answers

    def _unbind(self, session: _Session, place: int) -> Answers:
        """Whom to tell that this side has gone."""
        if session.sides[place] is None:
            return []
        self._drop(session, place)
        self._recount(session)
        other = session.sides[1 - place]
        if other is None:
            return []
        return [(lane_wire.make_state(other.connection_id, relay_wire.HERE), other.address)]

    def _drop(self, session: _Session, place: int) -> None:
        side, other = session.sides[place], session.sides[1 - place]
        if side is None:
            return
        session.sides[place] = None
        session.bytes[place] += side.bytes
        self._uncount(side)
        if other is not None:
            del self._routes[side.address, other.connection_id]
            del self._routes[other.address, side.connection_id]

    def _forget_if_over(self, session: _Session, now: float, why: str = "") -> None:
        if session.sides != [None, None] or session.id not in self._sessions:
            return
        del self._sessions[session.id]
        self._charge(session)
        if self._limits.relay_session_bytes:
            self._spent[session.id] = session.all_bytes, session.expiry
        if session.paired_at is not None:
            self._gate.ended.tell(
                address_key(session.hosts[relay_wire.CALLER]),
                "relay: lane of %s and %s: %d and %d bytes in %.1f s%s",
                *session.hosts,
                *session.bytes,
                now - session.paired_at,
                why,
            )

    def _charge(self, session: _Session) -> None:
        carried = session.all_bytes
        self._usage.charge(session.payer, carried - session.charged)
        session.charged = carried

    def sweep(self, now: float, unix_now: float) -> Answers:
        """To be called about once a second."""
        self._turn = (self._turn + 1) % SWEEPS
        for over in [key for key, (_, expiry) in self._spent.items() if expiry < unix_now]:
            del self._spent[over]
        answers: Answers = []
        for session in list(self._sessions.values()):
            if session.turn != self._turn:
                continue
            for place, side in enumerate(session.sides):
                if side is not None and now - side.seen > BINDING_S:
                    answers += self._unbind(session, place)
            self._charge(session)
            if self._usage.is_over(session.payer):
                self._end(session, now, self._gate.over("relay_bytes_per_day", USED_UP))
            self._forget_if_over(session, now)
        return answers
