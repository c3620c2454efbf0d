"""The relay: pairs two TCP connections that show the tokens of one call, and splices them.

It needs the key and nothing else: no state survives it, and it talks to no other service.  A guest
is a connection from its hello until it is paired or refused; a session is two that are paired.
Each guest and session costs watchers and small objects, no greenlet, until it ends.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections import defaultdict
from typing import Any

from gevent import get_hub
from gevent.event import Event
from gevent.pool import Group

from .._io import READ
from ..transport import relay_wire, tcp
from ..transport.splice import MOST_PIPES, BudgetSpent, Carriers, Outcome, Splice, close_both
from .counting import Tally, address_key
from .limits import Gatekeeper
from .usage import USED_UP, Payer, Usage

__all__ = ["Relay"]

log = logging.getLogger(__name__)

# Our choices.
REFUSE_S = 5.0  # for the refusal to reach the peer
CHECK_TURNS = 5  # a sweep looks at one in so many sessions for peers that are gone
MAX_SEEN = 500_000  # tokens remembered until they expire; about 200 bytes each

_Seen = tuple[bytes, int]  # session, side


class _Guest:
    """A connection that is to show its token, or has and waits for the other side."""

    __slots__ = (
        "_readable",
        "_received",
        "_relay",
        "counted_in",
        "deadline",
        "host",
        "sock",
        "token",
    )

    def __init__(self, sock: Any, host: str, relay: Relay, deadline: float) -> None:
        self.sock = sock
        self.host = host
        self.deadline = deadline
        self.token: relay_wire.Token | None = None
        self.counted_in: Tally | None = None  # as a session's side, for its address
        self._relay = relay
        self._received = b""
        self._readable = get_hub().loop.io(sock.fileno(), READ)
        self._readable.start(self.read)

    def read(self) -> None:
        """Take what has arrived."""
        try:
            if self.token is not None:
                early = self.sock.recv(1, socket.MSG_PEEK)
                reason = "data before the pairing" if early else "left before the pairing"
                self._relay.refuse(self, relay_wire.BAD, reason)
                return
            data = self.sock.recv(relay_wire.HELLO_BYTES - len(self._received))
            if not data:
                self._relay.refuse(self, relay_wire.BAD, "left in the middle of its hello")
                return
            self._received += data
            if relay_wire.is_whole_hello(self._received):
                self._relay.take_hello_untrusted(self, self._received)
                self._received = b""
        except BlockingIOError:
            return
        except OSError as error:
            self._relay.refuse(self, relay_wire.BAD, str(error))
        except Exception:
            log.exception("relay: %s: a fault of ours", self.host)
            self._relay.refuse(self, relay_wire.BAD, "a fault of ours")

    def expire(self) -> None:
        if self.token is None:
            self._relay.refuse(self, relay_wire.BAD, "too slow with its hello")
        else:
            self._relay.refuse(self, relay_wire.NO_PARTNER, "")

    def shut_down(self) -> None:
        self._relay.refuse(self, relay_wire.NO_PARTNER, "")

    def stop_reading(self) -> None:
        self._readable.close()


class _Session:
    """Two guests that are joined; ``a`` is the caller."""

    __slots__ = ("a", "b", "charged", "payer", "splice", "started", "turn")

    def __init__(self, a: _Guest, b: _Guest, payer: Payer, turn: int) -> None:
        self.a = a
        self.b = b
        self.payer = payer
        self.charged = 0  # bytes
        self.started = time.monotonic()
        self.turn = turn  # in which sweep it is looked at, of CHECK_TURNS
        self.splice: Splice | None = None


class Relay:
    """``welcome`` takes a connection whose first byte looks like a relay hello."""

    def __init__(
        self, gate: Gatekeeper, key: bytes, usage: Usage, closing: Group, pipes: int = MOST_PIPES
    ) -> None:
        self._gate = gate
        self._limits = gate.limits
        self._key = key
        self._usage = usage
        self._closing = closing  # the greenlets that close sockets without loss
        self._carriers = Carriers(most_pipes=pipes)
        self._waiting: dict[bytes, _Guest] = {}  # by session
        self._seen: set[_Seen] = set()
        self._expiring: defaultdict[int, list[_Seen]] = defaultdict(list)  # by Unix second
        self._sessions: set[_Session] = set()
        self._turn = 0
        self._paired = 0
        self._bytes_ended = 0  # of sessions that are over
        self._empty = Event()
        self._empty.set()

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    @property
    def bytes_forwarded(self) -> int:
        """In all, of both directions."""
        live = (session.splice for session in self._sessions)
        return self._bytes_ended + sum(splice.count for splice in live if splice is not None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def seen(self) -> int:
        """How many tokens it remembers."""
        return len(self._seen)

    def welcome(self, sock: Any, host: str) -> None:
        """The relay owns the socket from here on, and its place at the gate."""
        guest = _Guest(sock, host, self, time.monotonic() + self._limits.handshake_s)
        self._gate.deadlines.add(guest)
        guest.read()  # its hello is there, as a rule

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        unix_now = time.time()
        for expiry in [expiry for expiry in self._expiring if expiry < unix_now]:
            self._seen.difference_update(self._expiring.pop(expiry))
        self._turn = (self._turn + 1) % CHECK_TURNS
        for session in list(self._sessions):
            if session.turn == self._turn and session.splice is not None:
                session.splice.check()
                self._charge(session, session.splice.count)
                if self._usage.is_over(session.payer):
                    self._gate.over("relay_bytes_per_day", USED_UP)
                    session.splice.stop(BudgetSpent(USED_UP))

    def stop(self, drain_s: float) -> None:
        """End the sessions, after they had time to end by themselves."""
        if self._sessions and drain_s > 0:
            log.info("relay: %d sessions have %g s to end", len(self._sessions), drain_s)
            self._empty.wait(drain_s)
        for session in list(self._sessions):
            if session.splice is not None:
                error = ConnectionAbortedError(errno.ECONNABORTED, "the relay shuts down")
                session.splice.stop(error)
        self._carriers.close()

    # What guests report.

    def take_hello_untrusted(self, guest: _Guest, data: bytes) -> None:
        now = time.time()
        try:
            raw, wants_receipt = relay_wire.parse_hello_untrusted(data)
            token = relay_wire.verify_token_untrusted(self._key, raw, now)
        except relay_wire.TokenRefused as error:
            self.refuse(guest, error.status, str(error))
            return
        seen = (token.session, token.side)
        if seen in self._seen:
            self.refuse(guest, relay_wire.USED, relay_wire.status_text(relay_wire.USED))
            return
        limit = self._limit_reached(guest, token)
        if limit:
            self.refuse(guest, relay_wire.LIMIT, limit)
            return
        self._seen.add(seen)
        self._expiring[token.expiry].append(seen)
        guest.token = token
        if wants_receipt:
            self._send_receipt(guest, token.session)
        self._count(guest, token)
        partner = self._waiting.pop(token.session, None)
        if partner is None:
            self._waiting[token.session] = guest
            guest.deadline = time.monotonic() + self._limits.relay_wait_s
        else:
            is_caller = token.side == relay_wire.CALLER
            self._pair(*((guest, partner) if is_caller else (partner, guest)))

    def _send_receipt(self, guest: _Guest, session: bytes) -> None:
        receipt = relay_wire.make_receipt(self._key, session)
        try:
            guest.sock.send(bytes([relay_wire.HERE]) + receipt)  # there is room: nothing was sent
        except OSError as error:
            log.debug("relay: %s: receipt not sent: %s", guest.host, error)

    def refuse(self, guest: _Guest, status: int, reason: str) -> None:
        """Answer with the status and close."""
        self._forget(guest)
        if reason:
            self._gate.refused(guest.host, f"relay: {reason}")
        try:
            guest.sock.send(bytes([status]))  # the first byte ever: there is room for it
        except OSError as error:
            log.debug("relay: %s: refusal not sent: %s", guest.host, error)
        self._closing.spawn(self._close_guest, guest)

    def _limit_reached(self, guest: _Guest, token: relay_wire.Token) -> str:
        """Why this guest cannot be served; empty if it can."""
        limits = self._limits
        full = len(self._sessions) + len(self._waiting) >= limits.relay_sessions
        if full and token.session not in self._waiting:  # else its partner is counted already
            return self._gate.over(
                "relay_sessions", f"over {limits.relay_sessions} sessions in all"
            )
        most = limits.relay_sessions_per_address
        of_it = self._gate.full(self._counter(token), guest.host, most)
        if of_it:
            return self._gate.over("relay_sessions_per_address", f"over {of_it}: sessions at once")
        if len(self._seen) >= MAX_SEEN:
            return f"over {MAX_SEEN} tokens in the time that they live"
        if self._usage.is_over(self._usage.payer(token.session)):
            return self._gate.over("relay_bytes_per_day", USED_UP)
        return ""

    def _counter(self, token: relay_wire.Token) -> Tally:
        """A session counts for its caller's address.

        A callee must not find its own address full because others call it: its side is counted
        apart, and only while it waits for the caller.
        """
        is_caller = token.side == relay_wire.CALLER
        return self._gate.relay_sessions if is_caller else self._gate.relay_callees

    def _count(self, guest: _Guest, token: relay_wire.Token) -> None:
        guest.counted_in = self._counter(token)
        guest.counted_in.add(guest.host)
        if token.side == relay_wire.CALLEE:
            self._gate.leave_address(guest.host)

    def _uncount(self, guest: _Guest) -> None:
        if guest.counted_in is not None:
            guest.counted_in.remove(guest.host)
            guest.counted_in = None

    # Sessions.

    def _pair(self, a: _Guest, b: _Guest) -> None:
        assert a.token is not None
        payer = self._usage.payer(a.token.session)
        session = _Session(a, b, payer, self._paired % CHECK_TURNS)
        self._paired += 1
        for guest in (a, b):
            guest.stop_reading()
            self._gate.deadlines.discard(guest)
        self._uncount(b)
        try:
            for guest in (a, b):
                guest.sock.send(bytes([relay_wire.PAIRED]))
        except OSError as error:
            log.debug("relay: a side left as it was paired: %s", error)  # the splice sees it, too
        self._sessions.add(session)
        self._empty.clear()
        session.splice = Splice(
            a.sock,
            b.sock,
            self._carriers,
            lambda outcome: self._ended(session, outcome),
            self._limits.relay_session_bytes,
        )
        session.splice.start()
        key = address_key(a.host)
        self._gate.paired.tell(key, "relay: %s and %s: paired", a.host, b.host)

    def _charge(self, session: _Session, carried: int) -> None:
        self._usage.charge(session.payer, carried - session.charged)
        session.charged = carried

    def _ended(self, session: _Session, outcome: Outcome) -> None:
        self._closing.spawn(self._close_session, session, outcome)
        self._charge(session, outcome.bytes_ab + outcome.bytes_ba)
        error = outcome.error_a or outcome.error_b
        if isinstance(error, BudgetSpent):
            who = session.a.host
            self._gate.refused(who, f"relay: a session with {session.b.host} is ended: {error}")
        self._gate.ended.tell(
            address_key(session.a.host),
            "relay: %s and %s: %d and %d bytes in %.1f s%s",
            session.a.host,
            session.b.host,
            outcome.bytes_ab,
            outcome.bytes_ba,
            time.monotonic() - session.started,
            f", ended by {error}" if error else "",
        )

    def _close_session(self, session: _Session, outcome: Outcome) -> None:
        try:
            close_both(session.a.sock, session.b.sock, outcome)
        finally:
            self._sessions.discard(session)
            self._bytes_ended += outcome.bytes_ab + outcome.bytes_ba
            for guest in (session.a, session.b):
                self._leave(guest)
            if not self._sessions:
                self._empty.set()

    # Guests that leave.

    def _forget(self, guest: _Guest) -> None:
        guest.stop_reading()
        self._gate.deadlines.discard(guest)
        if guest.token is not None and self._waiting.get(guest.token.session) is guest:
            del self._waiting[guest.token.session]

    def _close_guest(self, guest: _Guest) -> None:
        try:
            tcp.linger(guest.sock, REFUSE_S)
        finally:
            self._leave(guest)

    def _leave(self, guest: _Guest) -> None:
        self._uncount(guest)
        is_callee = guest.token is not None and guest.token.side == relay_wire.CALLEE
        self._gate.leave(guest.host, of_address=not is_callee)
