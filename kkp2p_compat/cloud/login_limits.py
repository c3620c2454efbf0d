"""How often secrets may be tried.

A right proof is taken whatever was tried elsewhere, and the client can tell a wrong secret from a
limit.  What many failures cost is time.  They count by account *and* address, so guesses at one
account, or one device with an old secret, delay nobody else behind that address; and they count by
address, with a far larger bound, for all accounts together.  The networks around the address count,
too.  The nodes of a fleet tell each other of failures, and each counts all of them: so who guesses
at many nodes has no more guesses than at one, but for the moment that telling takes.

Over a bound a login is held until there is a token for it.  An address from which the account has
logged in before is exempt until FORGIVEN failures came from there without a right proof: so the
owner notices nothing of guesses from elsewhere.  Only a first login from an address where somebody
guesses at that very account has to wait with the guesses: nothing tells the two apart before the
proof, and to look at each proof at once would let guesses be made as fast as they come.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from typing import TypeVar

from .counting import TABLE_SIZE, Networks, address_keys
from .settings import Limits

__all__ = ["LoginLimits"]

K = TypeVar("K")
N = TypeVar("N", int, float)

log = logging.getLogger(__name__)

# Our choices.
RETRY_S = 2.0  # between the guesses of one address over the bound: join_net waits 3 s for a verdict
HOLD_S = 4.0  # a login is held at most; what would have to wait for longer is refused
WIDER = (1, 2, 4)  # times what an address may guess: for it, and for the networks around it
FORGIVEN = 1000  # failures of an account from where it has logged in before
DAY_S = 86_400


class LoginLimits:
    """Call order for a login: ``begin``, then ``succeeded`` or ``failed``."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.set_rates()
        # By account and address: how many more failures are forgiven.
        self._familiar: OrderedDict[tuple[str, str], int] = OrderedDict()
        # Failures of each account, of which the operator has not been told.
        self._today: OrderedDict[str, float] = OrderedDict()
        self._day = 0

    def set_rates(self) -> None:
        """To be called when the limits have changed."""
        of_all = self._limits.login_failures_per_address
        self._of_account = Networks(1 / RETRY_S, self._limits.login_failures, WIDER)
        self._of_all = Networks(of_all / 60, of_all, WIDER)

    def exempt(self, peer_id: str, host: str) -> bool:
        """Whether a login from there is not limited."""
        keys = address_keys(host)
        return not self._limits.hold_for(keys) or self._familiar.get((peer_id, keys[0]), 0) > 0

    def begin(self, peer_id: str | None, host: str, now: float) -> float | None:
        """How long a login that is not exempt has to wait; None if that is too long.

        It pays as if it failed, or many at once would be more guesses than one after the other.
        ``peer_id``: None if there is no such account.
        """
        keys = address_keys(host)
        wait_s = self._of_all.wait_s(keys, now, 1)
        if peer_id is not None:
            wait_s = max(wait_s, self._of_account.wait_s(_with(peer_id, keys), now, 1))
        if wait_s > HOLD_S:
            return None
        if peer_id is not None:
            self._of_account.spend(_with(peer_id, keys), now, 1)
        return wait_s

    def succeeded(self, peer_id: str, host: str, paid: bool, now: float) -> None:
        """``paid``: ``begin`` had it pay."""
        keys = address_keys(host)
        if paid:
            self._of_account.spend(_with(peer_id, keys), now, -1)
        _count(self._familiar, (peer_id, keys[0]), FORGIVEN)

    def failed(self, peer_id: str | None, host: str, now: float) -> None:
        """``peer_id``: None if there is no such account."""
        keys = address_keys(host)
        if self._limits.hold_for(keys):
            self._of_all.spend(keys, now, 1)
        if peer_id is None:
            return
        self._forgive(peer_id, keys)
        self._tell_operator(peer_id, host)

    def failed_elsewhere(self, peer_id: str | None, host: str, now: float) -> None:
        """At another node, where it was not exempt; ``peer_id``: as for ``failed``."""
        keys = address_keys(host)
        if not self._limits.hold_for(keys):
            return
        self._of_all.spend(keys, now, 1)
        if peer_id is not None:
            self._of_account.spend(_with(peer_id, keys), now, 1)
            self._forgive(peer_id, keys)
            self._count_today(peer_id)

    def _forgive(self, peer_id: str, keys: tuple[str, ...]) -> None:
        forgiven = self._familiar.get((peer_id, keys[0]))
        if forgiven is not None:
            self._familiar[peer_id, keys[0]] = forgiven - 1

    def _count_today(self, peer_id: str) -> float:
        day = int(time.time() // DAY_S)
        if day != self._day:
            self._day = day
            self._today.clear()
        failures = self._today.get(peer_id, 0) + 1
        _count(self._today, peer_id, failures)
        return failures

    def _tell_operator(self, peer_id: str, host: str) -> None:
        """Once a day for each account at which many guess; each node that is tried does so."""
        if self._count_today(peer_id) > self._limits.login_alarm:
            self._today[peer_id] = -math.inf
            log.warning(
                "account %s: over %d failed logins today, the last from %s",
                peer_id,
                self._limits.login_alarm,
                host,
            )


def _with(peer_id: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{peer_id} {key}" for key in keys)  # a peer id has no space


def _count(table: OrderedDict[K, N], key: K, count: N) -> None:
    table[key] = count
    table.move_to_end(key)
    if len(table) > TABLE_SIZE:
        table.popitem(last=False)
