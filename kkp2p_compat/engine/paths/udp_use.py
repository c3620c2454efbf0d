"""Whether packets go by UDP in the network that this host is in."""

from __future__ import annotations

import math
import time
from logging import Logger

__all__ = ["THROTTLED_S", "UdpUse"]

THROTTLED_S = 3600.0  # our choice: how long a network that throttles UDP is taken for one


class UdpUse:
    """``is_off``: by the application's wish.  ``is_throttled``: it was measured here."""

    def __init__(self, is_off: bool, log: Logger) -> None:
        self.is_off = is_off
        self._log = log
        self._throttled_until = -math.inf

    @property
    def is_throttled(self) -> bool:
        return time.monotonic() < self._throttled_until

    @property
    def is_good(self) -> bool:
        """Whether a path over UDP is the better one."""
        return not (self.is_off or self.is_throttled)

    def note_throttled(self) -> None:
        """TCP to a relay carries far more than UDP."""
        if not self.is_throttled:
            self._log.warning("this network throttles UDP: TCP comes first from now on")
        self._throttled_until = time.monotonic() + THROTTLED_S

    def forget(self) -> None:
        """The network is another one."""
        self._throttled_until = -math.inf
