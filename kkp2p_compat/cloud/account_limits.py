"""What accounts with limits of their own may use at one node.

``kkp2p account limit`` sets them.  They are counted by account, however many connections it has;
the relay bytes of a day are in usage.py, as the relays count them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from .._bucket import Bucket
from .counting import TABLE_SIZE
from .directory import AccountLimits

__all__ = ["AccountUse"]


class AccountUse:
    """``refusal`` before each call, then ``enter`` and ``leave`` for as long as it is known.

    ``share``: whose call it is, as Turns has it: an account, or an address of strangers.
    """

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()  # calls, by share
        # By share, with the rate that they are for; the one used least recently goes.
        self._buckets: OrderedDict[str, tuple[float, Bucket]] = OrderedDict()

    def refusal(self, share: str, limits: AccountLimits, now: float) -> str:
        """Why this account may not make a call now; empty if it may."""
        if limits.channels is not None and self._open[share] >= limits.channels:
            return f"over {limits.channels} calls at once, which is the account's limit"
        rate = limits.calls_per_s
        if rate is not None and not self._bucket(share, rate, now).take(now):
            return f"over {rate:g} calls a second, which is the account's limit"
        return ""

    def _bucket(self, share: str, rate: float, now: float) -> Bucket:
        of_rate, bucket = self._buckets.get(share, (None, None))
        if bucket is None or of_rate != rate:
            # Less than one at once would be none at all.
            bucket = Bucket(rate, max(rate, 1.0) if rate else 0.0, now)
        self._buckets[share] = (rate, bucket)
        self._buckets.move_to_end(share)
        if len(self._buckets) > TABLE_SIZE:
            self._buckets.popitem(last=False)
        return bucket

    def enter(self, share: str) -> None:
        self._open[share] += 1

    def leave(self, share: str) -> None:
        self._open[share] -= 1
        if not self._open[share]:
            del self._open[share]

    def __len__(self) -> int:
        return len(self._open)
