"""A direct path against the relay, which is prepared meanwhile: for both sides of a call.

The path has a head start.  The caller takes the relay when that is over, and its one byte on the
relay's connection tells the callee so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from ...transport.relay import Visit
from ..links.prepared_relay import PreparedRelay
from ..paths.meeting import Meeting

__all__ = ["Race"]


class Race:
    """Runs inside ``with``.  ``is_hopeless``: by the plan there can be no path."""

    def __init__(
        self, meeting: Meeting, spawn: Callable[..., gevent.Greenlet[..., Any]],
        go_to_relay: Callable[[], Visit], is_caller: bool,
    ) -> None:  # fmt: skip
        self.is_hopeless = meeting.plan.kind == "relay"
        self.relay = PreparedRelay(spawn, go_to_relay, is_caller=is_caller)
        self._meeting = meeting

    def __enter__(self) -> Race:
        if self.is_hopeless:
            self.relay.hurry()
        return self

    def __exit__(self, *error: object) -> None:
        self.relay.close()

    def wait_as_caller(self, head_start_s: float) -> bool:
        """Until there is a path, or it is the relay's turn; True: there is a path.

        ``head_start_s``: how long the relay waits for its turn.
        """
        if not self.is_hopeless:
            self._meeting.found.wait(head_start_s)
        self.relay.hurry()
        return self.wait()

    def wait(self) -> bool:
        """Until either is there; True: there is a path."""
        gevent.wait([self._meeting.found, self.relay.ready], count=1)
        return self._meeting.found.ready()
