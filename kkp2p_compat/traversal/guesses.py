"""Probes beside the checks of an address: to ports that were guessed, or from many sockets.

They are sent once or twice, in order and paced, and are not repeated until they are answered.
Whatever a peer tells of its NAT, one call costs a third party no more than the bounds here:

- Ports are guessed only at an IPv4 address that the peer's own list names as its outside address,
  never at a private one, and never below 1024, where services are.
- Our many sockets send only to an address and port of that list.
- The cloud must vouch that the peer is at that ip, where it can tell: a list that names a victim
  gets ordinary checks only.
- MAX_PROBES in all, MAX_PREDICTED of them to predicted ports.

After the first answer nothing is guessed any more.
"""

from __future__ import annotations

import heapq
import math
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from .._address import Address, text_of
from .candidates import Candidate, family_of, is_private
from .notes import NoteKind

__all__ = ["LOWEST_PORT", "LOW_TTL", "MAX_PREDICTED", "MAX_PROBES", "PACE_S", "Guesses", "Wave"]

LOWEST_PORT = 1024  # that a NAT gives to a socket (RFC 4787 REQ-3)

# Our choices.
LOW_TTL = 3  # hops: beyond our own NATs, a home router and perhaps a carrier's, not to the peer
PACE_S = 1 / 400  # from probe to probe; of 124 bytes, so 0.4 Mbit/s
BURST = 8  # that may leave at once, after a pause or a late timer
MAX_PROBES = 2500  # of one call and side: a birthday punch needs 2,000 for 99.96 %
MAX_PREDICTED = 2048  # ten rounds of a prediction

OUTSIDE = ("mapped", "srflx")  # kinds of candidates
Wave = tuple[float, "int | None"]  # seconds after the start, hops (None: as usual)


class Guesses:
    """``predict``, ``sweep`` or ``spread``; then at ``next_at`` send all that ``poll`` gives.

    Each returns how many probes it leads to.  Every wave goes to all the addresses.
    """

    def __init__(
        self,
        listed: Mapping[Address, Candidate],
        note: Callable[..., object],
        vouched: Collection[str] | None = None,
    ) -> None:
        """``listed``: the peer's candidates that are tried; may grow.  ``note`` takes what makes
        a Note.  ``vouched``: the IP addresses at which the cloud has seen the peer; None: it
        cannot tell.
        """
        self._listed = listed
        self._vouched = vouched
        self._note = note
        self._waiting: list[tuple[float, int, Address, int | None]] = []
        self._added = 0
        self._predicted = 0
        self._pace_at = -math.inf
        self.stopped = False

    def predict(
        self, ip: str, ports: Iterable[int], waves: Sequence[Wave], now: float, number: int = 0
    ) -> int:
        """Probe these ports in their order, from our extra socket ``number`` (0: the main one)."""
        addresses = self._at(ip, ports, number)
        addresses = addresses[: (MAX_PREDICTED - self._predicted) // len(waves)]
        count = self._add("{count} probes of predicted ports of {ip}", (ip,), addresses, waves, now)
        self._predicted += count
        return count

    def sweep(self, ip: str, ports: Iterable[int], now: float) -> int:
        """Probe each of these ports once, where the NATs of both sides call for it."""
        waves: list[Wave] = [(0.0, None)]
        addresses = self._at(ip, ports, 0)
        return self._add("{count} probes of random ports of {ip}", (ip,), addresses, waves, now)

    def spread(
        self, address: tuple[str, int], numbers: Iterable[int], waves: Sequence[Wave], now: float
    ) -> int:
        """Probe a listed address from each of our extra sockets ``numbers``."""
        known = address in self._listed and self.may_be_at(address[0])
        addresses: list[Address] = [(*address, number) for number in numbers if known]
        what = text_of(address), len(addresses)
        return self._add(
            "{count} probes of {address} from {sockets} socket(s)", what, addresses, waves, now
        )

    def may_be_at(self, ip: str) -> bool:
        """Whether the cloud vouches that the peer is at this ip, or cannot tell."""
        return self._vouched is None or ip in self._vouched

    def _at(self, ip: str, ports: Iterable[int], number: int) -> list[Address]:
        named = any(each.address == ip and each.kind in OUTSIDE for each in self._listed.values())
        if not named or family_of(ip) != socket.AF_INET or is_private(ip):
            return []
        if not self.may_be_at(ip):
            self._note("the cloud has not seen the peer at {ip}: no guesses", ip)
            return []
        good = [port for port in ports if LOWEST_PORT <= port <= 65535]
        return [(ip, port, number) if number else (ip, port) for port in good]

    def _add(
        self,
        template: str,
        values: tuple[object, ...],
        addresses: Sequence[Address],
        waves: Iterable[Wave],
        now: float,
    ) -> int:
        """The note of them has their count before the other values."""
        before = self._added
        for after_s, ttl in waves:
            for address in addresses:
                if self._added == MAX_PROBES or self.stopped:
                    break
                heapq.heappush(self._waiting, (now + after_s, self._added, address, ttl))
                self._added += 1
        count = self._added - before
        if count:
            self._note(template, count, *values, kind=NoteKind.GUESS, amount=count)
        return count

    def poll(self, now: float) -> tuple[Address, int | None] | None:
        if self.next_at() > now:
            return None
        self._pace_at = max(self._pace_at, now - BURST * PACE_S) + PACE_S
        _, _, address, ttl = heapq.heappop(self._waiting)
        return address, ttl

    def next_at(self) -> float:
        return max(self._waiting[0][0], self._pace_at) if self._waiting else math.inf

    def stop(self) -> None:
        """There is an answer."""
        self._waiting.clear()
        self.stopped = True
