"""Questions to STUN servers: which are under way, whose answer a datagram is, what to send again.

Sans-IO: time is passed in, in seconds of a monotonic clock.  The rules:

- A question is a binding request.  It leaves at once, and again after 100, 200 and 400 ms; 800 ms
  later it has failed.  (RFC 8489 section 6.2.1 starts with 500 ms, but lets those who know better
  lower it.)
- An answer has the question's random transaction id, comes from where it was asked to come from,
  and arrives at the socket that is to hear it.  All else is left to others.
- Every request is at least REQUEST_BYTES long, because a good server's answer is never longer than
  its request.  It is padded with SOFTWARE: servers without RFC 5780 would refuse PADDING.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

from .._address import Address, HostPort
from .._errors import BadPacket
from .stun import Kind, Message, parse_untrusted

__all__ = ["Ask", "Asks", "at", "over"]

INTERVALS_S = (0.1, 0.2, 0.4, 0.8)  # our choice: after each transmission; 1.5 s in all
REQUEST_BYTES = 100  # the longest full answer: IPv6 with three addresses and FINGERPRINT
_BARE_BYTES = 20 + 8 + 4  # header, FINGERPRINT, and the header of SOFTWARE
MAX_ANSWER_BYTES = 1472  # our choice: what old servers may send, in one datagram of Ethernet
_ID = slice(8, 20)  # where the transaction id is (RFC 8489 section 5)


def at(address: HostPort, number: int) -> Address:
    """An address as reached by the endpoint's extra socket of that number; 0: the main one."""
    return (address[0], address[1], number) if number else (address[0], address[1])


@dataclass(eq=False)
class Ask:
    """One question.  It is over when it is answered, refused or has failed."""

    to: Address  # whom it is sent to, by which socket
    answer_from: Address | None  # None: the question itself is to come back, to ``number``
    number: int  # the socket that hears the answer
    transaction_id: bytes
    wire: bytes
    started_at: float
    next_at: float
    sent: int = 0  # transmissions
    answer: Message | None = None
    answered_at: float = 0.0
    refused: bool = False  # the server answered that it cannot
    failed: bool = False  # no answer

    @property
    def over(self) -> bool:
        return self.answer is not None or self.refused or self.failed

    @property
    def mapped(self) -> HostPort | None:
        """Where the server saw us, as it says; None without an answer."""
        return None if self.answer is None else self.answer.mapped

    @property
    def round_trip_s(self) -> float | None:
        """None without an answer, or when it is not known which transmission it answers."""
        clear = self.answer is not None and self.sent == 1
        return self.answered_at - self.started_at if clear else None


def over(*asks: Ask | None) -> bool:
    """Whether each is over, or was never asked."""
    return all(ask is None or ask.over for ask in asks)


class Asks:
    """``ask``, then send all that ``poll_transmit`` gives; feed ``handle_datagram_untrusted`` and
    ``handle_timer``, which is due at ``next_timer``.  ``random``: a SystemRandom outside tests.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._asks: dict[bytes, Ask] = {}
        self._outbox: deque[Ask] = deque()

    def __len__(self) -> int:
        return len(self._asks)

    def ask(
        self,
        to: Address,
        now: float,
        *,
        answer_from: HostPort | None = None,
        change_ip: bool = False,
        change_port: bool = False,
        response_port: int | None = None,
        heard_by: int | None = None,
    ) -> Ask:
        """Ask the server ``to``; it leaves with the next ``poll_transmit``.

        ``answer_from``: where the answer is to come from, if not from there.
        ``heard_by``: the socket that hears it, if not the one that asks (``response_port``).
        """
        number = _number(to) if heard_by is None else heard_by
        expected = at((to[0], to[1]) if answer_from is None else answer_from, number)
        message = Message(
            Kind.REQUEST,
            self._random.randbytes(12),
            change_ip=change_ip,
            change_port=change_port,
            response_port=response_port,
            software="kkp2p".ljust(REQUEST_BYTES - _BARE_BYTES),
        )
        return self._start(message, to, expected, number, now)

    def ask_ourselves(self, to: Address, number: int, now: float) -> Ask:
        """Send a request to an outside address of our own, whose socket is ``number``."""
        return self._start(Message(Kind.REQUEST, self._random.randbytes(12)), to, None, number, now)

    def _start(
        self, message: Message, to: Address, expected: Address | None, number: int, now: float
    ) -> Ask:
        wire = message.encode(None)
        ask = Ask(to, expected, number, message.transaction_id, wire, now, now)
        self._asks[ask.transaction_id] = ask
        self._send(ask, now)
        return ask

    def forget(self, ask: Ask) -> None:
        """Do not send it again, and do not wait for its answer."""
        self._asks.pop(ask.transaction_id, None)

    def handle_datagram_untrusted(self, data: bytes, source: Address, now: float) -> Ask | None:
        """The question that is now over; None: the datagram is not for us.  Never raises."""
        ask = self._asks.get(data[_ID])
        if ask is None:
            return None
        try:
            message = parse_untrusted(data, MAX_ANSWER_BYTES)
        except BadPacket:
            return None
        # A server that cannot answer from elsewhere, or to another port, says so the usual way.
        refused = message.kind is Kind.ERROR and source == ask.to
        if not (refused or _is_expected(ask, source)):
            return None
        if (message.kind is Kind.REQUEST) != (ask.answer_from is None):
            return None
        if message.kind is Kind.ERROR:
            ask.refused = True
        elif message.kind is Kind.INDICATION:
            return None
        else:
            ask.answer = message
            ask.answered_at = now
        self.forget(ask)
        return ask

    def handle_timer(self, now: float) -> None:
        for ask in [ask for ask in self._asks.values() if ask.next_at <= now]:
            if ask.sent == len(INTERVALS_S):
                ask.failed = True
                self.forget(ask)
            else:
                self._send(ask, now)

    def _send(self, ask: Ask, now: float) -> None:
        ask.next_at = now + INTERVALS_S[ask.sent]
        ask.sent += 1
        self._outbox.append(ask)

    def poll_transmit(self) -> tuple[bytes, Address] | None:
        if not self._outbox:
            return None
        ask = self._outbox.popleft()
        return ask.wire, ask.to

    def next_timer(self) -> float | None:
        return min((ask.next_at for ask in self._asks.values()), default=None)


def _number(address: Address) -> int:
    return address[2] if len(address) == 3 else 0


def _is_expected(ask: Ask, source: Address) -> bool:
    if ask.answer_from is None:
        return _number(source) == ask.number
    return source == ask.answer_from
