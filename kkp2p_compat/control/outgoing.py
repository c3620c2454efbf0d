"""The calls that we make, as the link that carries them sees them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gevent.event import AsyncResult

from .._errors import BadPacket, KKP2PError, LinkLost, NoRoomYet
from .._sentence import said
from ..transport.relay_wire import receipt_to_text
from .refusals import refusal
from .wire import MAX_TRICKLE_CHARS, MAX_TRICKLES, Message, encode

__all__ = ["OutgoingCall", "OutgoingCalls", "trickle_untrusted"]


class OutgoingCall:
    """A call that we make: ``relay`` is the track's message that has our place on the relay,
    ``answer`` the callee's text.

    ``peer_nat`` and ``peer_seen`` are there with ``answer``: what the callee has told the track of
    its NAT, as it came (from a stranger; None if it has told nothing), and where the track has seen
    it.  ``must_show``, there with ``relay``: the track wants to hear that we were at the relay, see
    ``OutgoingCalls.show``.  ``at_relay``: the visit there that shows it, for whoever needs one.
    ``way``: what the track is told of how we met.
    """

    __slots__ = (
        "_early",
        "_made_at",
        "_take_trickle",
        "answer",
        "at_relay",
        "is_settled",
        "must_show",
        "number",
        "peer_nat",
        "peer_seen",
        "relay",
        "way",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.peer_nat: object = None
        self.peer_seen: object = None
        self.is_settled = False
        self.must_show = False
        self.at_relay: Any = None
        self.way: Message = {}
        self._made_at = time.monotonic()
        self._early: list[str] = []  # what the callee trickled before anybody took it
        self._take_trickle: Callable[[str], object] = self._keep
        self.relay: AsyncResult[Message] = AsyncResult()
        self.answer: AsyncResult[str] = AsyncResult()

    def hear(self, take: Callable[[str], object]) -> None:
        """From now on ``take`` gets what the callee trickles, first what came before.

        It must not wait.
        """
        self._take_trickle = take
        while self._early:
            take(self._early.pop(0))

    @property
    def is_put_off(self) -> bool:
        """Whether the track cannot carry it at this moment, and wants it called again.

        It may say so after it has named the relay, too, when others need the room.
        """
        return isinstance(self.answer.exception, NoRoomYet)

    def settle(self) -> None:
        """The callee has heard by another way that we are connected: it hears of no end."""
        self.is_settled = True

    def met(self, path: str) -> None:
        """We are connected by one of CALL_PATHS; may be told again, when there is a better one."""
        took_ms = int(1000 * (time.monotonic() - self._made_at))
        self.way = {"path": path, "ms": self.way.get("ms", took_ms)}

    # For OutgoingCalls.

    def handle_untrusted(self, message: Message) -> None:
        """What the track says of this call; raises BadPacket."""
        op = message["op"]
        if op == "trickle":
            self._take_trickle(trickle_untrusted(message))
        elif op == "calling" and not self.relay.ready():
            self.peer_nat = message.get("nat")  # an older track tells it here
            self.must_show = message.get("show") is True
            self.relay.set(message)
        elif op == "answer" and not self.answer.ready():
            answer = message.get("answer")
            if not isinstance(answer, str):
                raise BadPacket("an answer that is not text")
            self.peer_nat = message.get("nat", self.peer_nat)
            self.peer_seen = message.get("seen")
            self.answer.set(answer)
            if not self.relay.ready():
                self.relay.set_exception(LinkLost("the track has named no relay for the call"))
        elif op == "declined":
            again = message.get("again") is True
            error = refusal(message.get("reason"))
            self.fail(NoRoomYet("{why}, for a moment", why=said(error)) if again else error)

    def fail(self, error: KKP2PError) -> None:
        for result in (self.relay, self.answer):
            if not result.ready():
                result.set_exception(error)

    def _keep(self, text: str) -> None:
        if len(self._early) < MAX_TRICKLES:  # no more than a track lets through
            self._early.append(text)


class OutgoingCalls:
    """The calls that we make on one link; ``made``: how many there have been."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        """``send`` takes one line, and raises when the link is closed."""
        self.made = 0
        self._send = send
        self._calls: dict[int, OutgoingCall] = {}  # those that are not over for us

    def make(self, to: str, offer: str, timeout_ms: int) -> OutgoingCall:
        self.made += 1
        call = self._calls[self.made] = OutgoingCall(self.made)
        line = encode("call", call=call.number, to=to, ms=timeout_ms, offer=offer, shows=True)
        self._send(line)
        return call

    def show(self, call: OutgoingCall, receipt: bytes) -> None:
        """The relay's receipt that we were there, for a call that ``must_show`` it."""
        self._send(encode("here", call=call.number, receipt=receipt_to_text(receipt)))

    def forget(self, call: OutgoingCall, cancel: bool) -> None:
        """The call is over for us.  ``cancel`` tells the other side; else the track alone hears."""
        if self._calls.pop(call.number, None) is None:  # also: the link is closed
            return
        if call.answer.ready() and not call.answer.successful():
            return  # it was declined: nobody else knows of it any more
        cancel = cancel and not call.is_settled
        if cancel:
            self._send(encode("cancel", call=call.number))
        elif call.answer.ready():
            self._send(encode("over", call=call.number, **call.way))

    def handle_untrusted(self, message: Message) -> None:
        """What the track says of a call; raises BadPacket."""
        number = message.get("call")
        call = self._calls.get(number) if type(number) is int else None
        if call is not None:  # else we gave up before the answer came
            call.handle_untrusted(message)

    def fail(self, error: KKP2PError) -> None:
        """The link is closed: all that are under way end with ``error``."""
        for call in self._calls.values():
            call.fail(error)
        self._calls.clear()


def trickle_untrusted(message: Message) -> str:
    """The text of a trickle message; raises BadPacket."""
    text = message.get("text")
    if not isinstance(text, str) or len(text) > MAX_TRICKLE_CHARS:
        raise BadPacket(f"a trickle that is not a text of at most {MAX_TRICKLE_CHARS} characters")
    return text
