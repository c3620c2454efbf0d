"""One channel of a proxy on its way: on a live link by callbacks, else dialed by a greenlet."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gevent

from ..._errors import EngineClosed, KKP2PError
from ..._structs import connect_ctx_t
from ..calls.dialer import Dialer
from ..links.background import Background
from ..links.streams import OpenStream
from .proxied import STOPPED

__all__ = ["Dialing", "OnDialed"]

OnDialed = Callable[[OpenStream | Exception], object]


class Dialing:
    """Call ``begin`` once.  ``done`` gets the stream, or why there is none; also after ``stop``.

    ``gave_early``: what went along with the request has been taken.
    """

    __slots__ = ("_background", "_ctx", "_dialer", "_done", "_stop", "gave_early")

    def __init__(
        self, dialer: Dialer, background: Background, ctx: connect_ctx_t, done: OnDialed
    ) -> None:
        self._dialer = dialer
        self._background = background
        self._ctx = ctx
        self._done = done
        self._stop: Callable[[], object] | None = None  # ends what it does at the moment
        self.gave_early = False

    def begin(self, early: bytes = b"") -> None:
        """``early``: see Dialer.ask."""
        self.gave_early = bool(early)
        call_off = self._dialer.ask(self._ctx, self._handle_answer, early)
        if call_off is None:
            self._dial()
        else:
            self._stop = functools.partial(self._call_off, call_off)

    def stop(self) -> None:
        if self._stop is not None:
            self._stop()

    def _call_off(self, call_off: Callable[[], object]) -> None:
        call_off()
        self._end(EngineClosed(STOPPED))

    def _handle_answer(self, answer: OpenStream | KKP2PError | None) -> None:
        """What came of it on the live link."""
        if answer is None:
            self._dial()
        else:
            self._end(answer)

    def _dial(self) -> None:
        self.gave_early = False
        dialing = self._background.thread.spawn(self._connect)
        dialing.rawlink(self._handle_connected)
        self._stop = functools.partial(dialing.kill, block=False)

    def _connect(self) -> OpenStream | KKP2PError:
        try:
            return self._dialer.connect(self._ctx)
        except KKP2PError as error:
            return error

    def _handle_connected(self, dialing: gevent.Greenlet[..., Any]) -> None:
        result = dialing.value
        if isinstance(result, OpenStream | KKP2PError):
            self._end(result)
        else:  # it was killed, or there is a bug, which is logged
            self._end(dialing.exception or EngineClosed(STOPPED))

    def _end(self, result: OpenStream | Exception) -> None:
        self._stop = None  # which leads back here: a circle is the collector's
        self._done(result)
