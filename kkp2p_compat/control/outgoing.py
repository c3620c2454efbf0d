"""A call that we make, as the link that carries it sees it; and what a refusal of one means.

The trickle of a call is told to ``on_trickle``.  The other side may be quicker than whoever sets
that: what came before is kept, and given then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.event import AsyncResult

from .._errors import (
    BadPacket,
    CallRefused,
    KKP2PError,
    LinkLost,
    NotSupported,
    PeerOffline,
    TimedOut,
)
from .wire import Message

__all__ = [
    "MAX_TRICKLES",
    "MAX_TRICKLE_CHARS",
    "OutgoingCall",
    "refusal",
    "show",
    "trickle_untrusted",
]

# docs/protocol.rst
MAX_TRICKLE_CHARS = 4096
MAX_TRICKLES = 64  # of a call and direction

_REFUSALS: dict[str, tuple[type[KKP2PError], str]] = {
    "offline": (PeerOffline, "the peer is not online"),
    "busy": (CallRefused, "the peer's accept queue is full"),
    "left": (CallRefused, "the peer went offline during the call"),
    "not-allowed": (CallRefused, "the peer does not take calls from us: only certain callers may"),
    "relay": (CallRefused, "the peer could not reach the relay"),
    "timeout": (TimedOut, "the peer did not answer in time"),
    "limit": (LinkLost, "a limit of the cloud was met"),
    "unsupported": (NotSupported, "the peer cannot do this channel type or mode"),
    "fault": (LinkLost, "a fault in the peer's program"),
}


def show(value: object) -> str:
    """What a server sent as a text, for the log.  Nested lists and such can make repr fail."""
    return repr(value[:80]) if isinstance(value, str) else f"<{type(value).__name__}>"


def refusal(reason: object) -> KKP2PError:
    """The error for a reason that the cloud or the callee gave for refusing a call."""
    known = reason if isinstance(reason, str) else ""
    kind, text = _REFUSALS.get(known, (CallRefused, f"refused: {show(reason)}"))
    return kind(text)


class OutgoingCall:
    """A call that we make: ``relay`` is the track's message that has our place on the relay,
    ``answer`` the callee's text.

    ``peer_nat`` and ``peer_seen`` are there with ``answer``: what the callee has told the track of
    its NAT, as it came (from a stranger; None if it has told nothing), and where the track has seen
    it.  Set ``settled`` when the callee has heard by
    another way that we are connected: then it hears of no end of the call.
    ``must_show``, there with ``relay``: the track wants to hear by ``Link.show`` that we were at
    the relay.  ``at_relay``: the visit there that shows it, for whoever needs one.
    """

    __slots__ = (
        "_early", "_on_trickle", "answer", "at_relay", "must_show", "number", "peer_nat",
        "peer_seen", "relay", "settled",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.peer_nat: object = None
        self.peer_seen: object = None
        self.settled = False
        self.must_show = False
        self.at_relay: Any = None
        self._early: list[str] = []
        self._on_trickle: Callable[[str], object] | None = None
        self.relay: AsyncResult[Any] = AsyncResult()
        self.answer: AsyncResult[str] = AsyncResult()

    def fail(self, error: KKP2PError) -> None:
        for result in (self.relay, self.answer):
            if not result.ready():
                result.set_exception(error)

    @property
    def on_trickle(self) -> Callable[[str], object] | None:
        """Called with each text that the callee trickles; it must not wait."""
        return self._on_trickle

    @on_trickle.setter
    def on_trickle(self, handler: Callable[[str], object] | None) -> None:
        self._on_trickle = handler
        while handler is not None and self._early:
            handler(self._early.pop(0))

    def take_trickle(self, text: str) -> None:
        """For the link: a text has come.  No more are kept than a track lets through."""
        if self._on_trickle is not None:
            self._on_trickle(text)
        elif len(self._early) < MAX_TRICKLES:
            self._early.append(text)


def trickle_untrusted(message: Message) -> str:
    """The text of a trickle message; raises BadPacket."""
    text = message.get("text")
    if not isinstance(text, str) or len(text) > MAX_TRICKLE_CHARS:
        raise BadPacket(f"a trickle that is not a text of at most {MAX_TRICKLE_CHARS} characters")
    return text
