"""A channel that is asked for on a live link, until the peer answers or is not waited for any more.

Runs in the engine's hub, by callbacks.  Now and then it looks whether the peer has acknowledged the
request.  A peer that has, and does not answer yet, has to reach a target first: it is waited for
until the caller's time is over.  A link that is silent is of no more use to others.
Whoever asked is told, too, and may find another way; but bytes that have gone along with the
request may have arrived, and must not be sent by two ways.  So then the only thing to do is to
wait: the link may find another path.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import gevent

from ..._codes import KKP2P_TCP_CHANNEL
from ..._errors import CallRefused, KKP2PError, PeerMoved, TimedOut
from ..._structs import connect_ctx_t
from ..links.peer_link import PeerLink
from ..links.streams import LinkStream

__all__ = ["Asking", "OnAnswer", "stream_on"]

# The channel, or why there is none; and whether another way may be tried.
OnAnswer = Callable[[LinkStream | KKP2PError, bool], object]


class Asking:
    """Call ``begin`` once.  ``done`` is not called after ``call_off``.

    ``drop`` gets the reason when the link turns out to be of no use to others.
    """

    __slots__ = (
        "_ctx",
        "_done",
        "_drop",
        "_ends_at",
        "_every_s",
        "_is_sent",
        "_late",
        "_link",
        "_stream_id",
    )

    def __init__(
        self,
        link: PeerLink,
        ctx: connect_ctx_t,
        every_s: float,
        drop: Callable[[KKP2PError], object],
        done: OnAnswer,
    ) -> None:
        self._link = link
        self._ctx = ctx
        self._every_s = every_s
        self._drop = drop
        self._done = done

    def begin(self, first_s: float, early: bytes = b"", ends_at: float = math.inf) -> None:
        """``first_s``: until it looks first, then it does ``every_s``.  ``early``: see Dialer.ask.
        ``ends_at``: the caller's deadline, if nobody else ends the wait.

        Raises LinkLost.
        """
        link, ctx = self._link, self._ctx
        self._ends_at = ends_at
        self._is_sent = bool(early) and ctx.channel_type == KKP2P_TCP_CHANNEL
        self._stream_id = link.channels.ask(
            ctx.channel_type, ctx.encrypt_data, ctx.connect_desc, self._handle_answer, early
        )
        self._wait(first_s)

    def call_off(self) -> None:
        self._late.close()
        self._link.channels.give_up(self._stream_id)

    def _wait(self, seconds: float) -> None:
        self._late = gevent.get_hub().loop.timer(seconds)
        self._late.start(self._look)

    def _look(self) -> None:
        self._late.close()
        left_s = self._ends_at - time.monotonic()
        is_silent = not self._link.has_heard(self._stream_id)
        error = TimedOut("the peer did not answer in time")
        if is_silent:
            error = TimedOut("the link does not answer")
            self._drop(error)
        if left_s > 0 and (self._is_sent or not is_silent):
            self._wait(min(left_s, self._every_s))
        else:
            self.call_off()
            self._done(error, left_s > 0)

    def _handle_answer(self, error: KKP2PError | None) -> None:
        self._late.close()
        if error is None:
            self._done(stream_on(self._link, self._stream_id, self._ctx), False)
        elif isinstance(error, CallRefused):
            self._done(error, False)
        else:
            self._drop(error)
            self._done(error, not self._is_sent or isinstance(error, PeerMoved))


def stream_on(link: PeerLink, stream_id: int, ctx: connect_ctx_t) -> LinkStream:
    return LinkStream(link, stream_id, ctx.channel_type, ctx.encrypt_data, ctx.connect_desc)
