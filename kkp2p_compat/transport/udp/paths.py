"""Where the peer is reached: the path in use, the addresses that are asked, the paths left.

The rules of a move:

- Who decides to move (``move``) does so to an address that has proved that the peer is there.
- The other side follows: a genuine packet, newer than all others and no mere question or answer
  about a path, has come from another address, so that one is asked, and used when it answers,
  unless a newer one has come by the path in use meanwhile.
- Both may move at once, and each is heard on the old path until it has heard of the other's move.
  So who has decided *settles*: until the peer is heard on the new path, and not for too long, the
  caller follows to no address, the callee to none that it has just left.  The caller's time is the
  longer one, so two sides that still disagree end on the path of the caller.
- A caller settles for a round trip whatever it hears, also when it has followed: a callee that has
  followed to the caller's old path at the same moment comes back, and they do not swap for ever.
- What is learnt of a path is kept for a while after it is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ..._address import Address
from .events import EventQueue, PathChanged, PathProved, PathUnproved
from .left_paths import LeftPaths
from .packing import Packer
from .path_state import PathState
from .path_validation import PathValidation
from .recovery import Flight, Recovery, RoundTrip
from .transport_settings import TransportSettings

if TYPE_CHECKING:
    from random import Random

__all__ = ["Paths"]

# Our choices.
REMEMBERED_S = 60.0  # how long what was learnt of a path holds
REMEMBERED_PATHS = 8  # that were left
KNOWN_ADDRESSES = 64  # that were asked, or used
PROOF_S = 10.0  # after which an address has to prove itself again
CALLER_SETTLES_S, CALLEE_SETTLES_S = 1.5, 0.75  # how long who has moved does not follow


class _Proof(NamedTuple):
    """When an address has last shown that the peer is there, and its round trip."""

    at: float = -math.inf
    rtt_s: float | None = None


class Paths:
    """Told of what comes from where; ``current`` is the path in use."""

    def __init__(
        self,
        address: Address,
        *,
        is_caller: bool,
        recovery: Recovery,
        packer: Packer,
        events: EventQueue,
        settings: TransportSettings,
        now: float,
        random: Random,
    ) -> None:
        self.validation = PathValidation(random)
        self.left = LeftPaths()
        self.settling = False  # we have moved, and the peer was not heard on the new path yet
        self._settles_s = CALLER_SETTLES_S if is_caller else CALLEE_SETTLES_S
        self._settled_at = 0.0  # at the latest
        self._heard_counts_from = 0.0  # before, what is heard may have been sent before the move
        self._is_caller = is_caller
        self._recovery = recovery
        self._packer = packer
        self._events = events
        self._settings = settings
        self._random = random
        self._before: Address = address  # the one that was left last
        self._newest_from: Address = address  # genuine packets came last
        # When the peer moved to the path in use: for how long the one before had not been heard.
        self.unheard_s = math.inf
        self._proofs: dict[Address, _Proof] = {address: _Proof(now)}
        self._states: dict[Address, PathState] = {}  # of paths that were left
        self.current = self._new_state(address, recovery.rtt, now)
        packer.start_path(self.current)

    def _new_state(self, address: Address, rtt: RoundTrip, now: float) -> PathState:
        limit = self._settings.datagram_limit
        largest = self._settings.max_datagram_bytes if limit is None else limit(address)
        return PathState(address, rtt, largest, self._settings.congestion, now, self._random)

    # Questions.

    def probe(self, address: Address, now: float) -> None:
        self.know(address)
        self.validation.ask(address, now, self._answer_s(address))

    def search(self, address: Address, now: float) -> None:
        self.validation.search(address, now, self._answer_s(address))

    def _answer_s(self, address: Address) -> float:
        state = self._states.get(address)
        rtt = self._recovery.rtt if state is None else state.rtt
        return rtt.pto_s

    def know(self, address: Address, proof: _Proof | None = None) -> None:
        """It is an address of its own, and not what a NAT makes of another."""
        proofs = self._proofs
        proofs[address] = proof or proofs.pop(address, _Proof())
        if len(proofs) > KNOWN_ADDRESSES:
            del proofs[next(iter(proofs))]

    def handle_response(self, token: bytes, address: Address, now: float) -> None:
        validation = self.validation
        is_searched, is_followed = address == validation.searched, address == validation.followed
        check = validation.handle_response(token, address, now)
        if check is None:
            return
        is_new_port = self._is_new_port(address)
        self.know(address, _Proof(now, check.rtt_s))
        if is_searched:
            self._states.clear()
            self._enter(address, now, lossless=False)
        elif is_followed and is_new_port:
            self._rename(address)
        elif is_followed:
            self._follow(address, now)
        self._events.put(PathProved(address, check.rtt_s))

    def expire(self, now: float) -> None:
        for check in self.validation.expire(now):
            self._events.put(PathUnproved(check.address))

    # Moves.

    def move(self, address: Address, now: float, *, lossless: bool) -> bool:
        """Decide to use this address; False: it has never proved that the peer is there."""
        if self._proofs.get(address, _Proof()).at == -math.inf:
            return False
        self._before = self.current.address
        self._enter(address, now, lossless=lossless)
        self._settle(now)
        return True

    def _settle(self, now: float) -> None:
        self.settling = True
        self._heard_counts_from = now + (self._recovery.rtt.pto_s if self._is_caller else 0.0)
        self._settled_at = now + max(self._settles_s, 2 * self._recovery.rtt.pto_s)

    def handle_newer(self, address: Address, now: float) -> None:
        """What came from there is newer than all before, and not only about a path."""
        current = self.current
        if address == current.address:
            self.settling = now < self._heard_counts_from
            self._newest_from = address
            self.validation.followed = None  # the peer is not where it seemed to be
            return
        if address != self._newest_from:
            self._newest_from, self.unheard_s = address, now - current.heard_at
        is_left = self._is_caller or address == self._before
        if is_left and self.settling and now < self._settled_at:
            return  # the peer has not heard of our move yet
        if now - self._proofs.get(address, _Proof()).at <= PROOF_S:
            self._follow(address, now)
        else:
            self.validation.follow(address, now, self._answer_s(address))

    def _is_new_port(self, address: Address) -> bool:
        """Whether it is most likely the same path (RFC 9000 section 9.4), by a NAT that rebinds."""
        before = self.current.address
        is_like = (before[0], before[2:]) == (address[0], address[2:])
        return is_like and address not in self._proofs

    def _rename(self, address: Address) -> None:
        self._proofs.pop(self.current.address, None)
        self.current.address = address
        self._recovery.pto_count = 0
        self._events.put(PathChanged(address))

    def _follow(self, address: Address, now: float) -> None:
        self.settling = False
        if address != self.current.address:
            # Of an old path on which something is overdue, nothing more is hoped for.
            self._enter(address, now, lossless=not self._recovery.pto_count)
            if self._is_caller:
                self._settle(now)

    def _enter(self, address: Address, now: float, *, lossless: bool) -> None:
        before, recovery, packer = self.current, self._recovery, self._packer
        state = self._states.pop(address, None)
        if state is None or now - state.left_at > REMEMBERED_S:
            state = self._new_state(address, RoundTrip(), now)
        else:
            state.resume(now)
        proof = self._proofs.get(address, _Proof())
        if proof.rtt_s is not None:
            state.rtt.update(proof.rtt_s, 0.0)
        packer.received.report_again()
        left = recovery.leave_path(state.rtt)
        if not lossless:
            if address != before.address:
                self._proofs[before.address] = _Proof()
            self.repeat(left.flights)
            for flight in left.flights:
                flight.frames = ()  # they are in a flight to come
        pto_s = max(before.rtt.pto_s, state.rtt.pto_s)
        self.left.add(left, packer.next_number, now, pto_s, repeated=not lossless)
        self.current = state
        self._newest_from = address
        packer.start_path(state)
        if address != before.address:
            before.left_at = now
            self._states[before.address] = before
            if len(self._states) > REMEMBERED_PATHS:
                del self._states[next(iter(self._states))]
            self._events.put(PathChanged(address))

    def forget(self) -> None:
        """Our own network is another one: what was learnt of paths that were left is void."""
        self._states.clear()

    def give_up(self, now: float) -> None:
        """What was on its way over a path that was left, and was not acknowledged in time."""
        self.repeat(self.left.give_up(now))

    def repeat(self, flights: Iterable[Flight]) -> None:
        for flight in flights:
            self._packer.repeat(flight)
