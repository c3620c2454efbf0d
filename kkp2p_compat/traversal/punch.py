"""One side's part of a plan beyond plain checks: predicted ports, and birthdays.  Sans-IO.

Prediction goes in rounds.  A side that predicts opens a few sockets, asks a server from each where
it is seen (a sample), opens one socket more for this round, and tells the peer the last port and
the step.  So what the NAT gives that socket is the next port, or one soon after if other hosts were
quicker.  Where the peer has a steady port, our one socket sends to it at once, and the peer aims at
the predicted ports in their order.

Two symmetric sides each send from the one socket of the round to the predicted ports of the other,
so each datagram gets a port of its own.  Say that other hosts have taken k ports of the caller's
NAT since its sample, and j of the callee's.  The caller's i-th datagram goes from port A+k+i to
B+2i-1, as it leaves out every second one (``stride``), and the callee's m-th goes from B+j+m to
A+m.  They fit together when 2i-1 = j+m and m = k+i: that is i = j+k+1, m = j+2k+1.  So there is
always exactly one pair of mappings that lets both in, whatever j and k are.  Were both to go by
single steps, j+k would have to be 0.  A NAT that looks at the address only has one mapping for all
of them, and must be aimed at without leaving any out.

A birthday is had once: the side with random ports opens many sockets, and says when they have sent;
then the other sends to random ports.  All that is sent is bounded by Guesses.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._errors import BadPacket
from .candidates import Candidate, family_of, is_private
from .guesses import LOW_TTL, LOWEST_PORT, PACE_S, Wave
from .nat import MAX_STEP, NatBehaviour, judge_allocation
from .plan import Plan

if TYPE_CHECKING:
    from random import Random

    from .checks import Checks

__all__ = ["Action", "Close", "Open", "Punch", "Sample", "Tell", "Turn"]

# Our choices.
SAMPLES = 3  # sockets: the last one counts, the others show the step
ROUND_S = 1.2  # without success after the last thing that happened in the round, and its volleys
MAX_ROUNDS = 10
# Ports, in the first rounds and in all others.  Other hosts may take a third as many of each side;
# where a few are not enough, the NAT must be a busy one.
AIMED = (32, 32, 64, 128)
AGAIN_S = 0.15  # from the end of a volley to its repetition
LOW_ONLY_S = 0.5  # of one socket whose port the peer aims at: it has come that far by then
SPREAD_SOCKETS = 256
SWEPT_PORTS = 2000
# When the sweep is over: by what it has opened, packets that did not get over a far NAT at first
# come in as likely as it would have hit them.  Earlier they could only be in its way.
SPREAD_AGAIN_S = 5.5


class Sample(NamedTuple):
    """Answer by ``handle_sampled`` with the round."""

    sockets: int
    round: int


class Open(NamedTuple):
    """Open IPv4 sockets, fewer if there must be; answer by ``handle_opened`` with the round."""

    sockets: int
    round: int


class Close(NamedTuple):
    """These extra sockets are of no use any more."""

    numbers: tuple[int, ...]


class Turn(NamedTuple):
    """Answer by ``handle_turn`` when no other birthday of this engine is going on."""

    sweeps: str
    """The ip whose ports will be probed; "" if it is our ports that are looked for."""


class Tell(NamedTuple):
    """Tell the peer, in order; its side gets it by ``handle_fields_untrusted``."""

    fields: dict[str, Any]


Action = Sample | Open | Close | Turn | Tell


class Punch:
    """Do what ``poll_action`` gives, answer as it says, and come back at ``next_timer``.

    After each call look after ``checks``, which are told what to probe.
    """

    def __init__(
        self, checks: Checks, plan: Plan, is_caller: bool, nat: NatBehaviour, random: Random,
        now: float,
    ) -> None:  # fmt: skip
        """``nat``: ours.  ``random``: a SystemRandom outside tests."""
        self._checks = checks
        self._plan = plan
        self._is_caller = is_caller
        parts = (plan.caller_does, plan.callee_does)[:: 1 if is_caller else -1]
        self._mine, self._theirs = parts
        self._nat = nat
        self._random = random
        self._now = now
        self._actions: deque[Action] = deque()
        self._begin_at = now + plan.patience_s if self._i("predict", "spread") else math.inf
        self._round = 0
        self._round_ends_at = math.inf
        self._told: tuple[int, int] | None = None  # the last port and the step, of this round
        self._heard: dict[int, tuple[int, int]] = {}  # the peer's, by round
        self._number = 0  # the extra socket of this round
        self._old: deque[int] = deque()  # those of earlier rounds
        self._swept = False
        checks.stay_low(plan.low_ttl_s)
        self.handle_timer(now)

    def _i(self, *parts: str) -> bool:
        return any(part in self._mine for part in parts)

    # Input and output.

    def handle_timer(self, now: float) -> None:
        self._now = max(self._now, now)
        if self._over():
            return
        if self._begin_at <= self._now:
            self._begin_at = math.inf
            if self._mine == "spread":
                if _steady_address(self._checks.guessable()) is not None:
                    self._actions.append(Turn(""))
            else:
                self._start_round(1)
        if self._round_ends_at <= self._now:
            self._start_round(self._round + 1)

    def next_timer(self) -> float | None:
        due_at = min(self._begin_at, self._round_ends_at)
        return due_at if due_at < math.inf and not self._over() else None

    def poll_action(self) -> Action | None:
        return self._actions.popleft() if self._actions and not self._over() else None

    def _over(self) -> bool:
        return self._checks.guesses.stopped

    def handle_fields_untrusted(self, fields: Mapping[str, object], now: float) -> None:
        """What the peer told.  BadPacket if it is malformed, or nothing that the plan has."""
        self._now = max(self._now, now)
        if "predict" in fields:
            number, port, step = _prediction_untrusted(fields["predict"])
            if "predict" not in self._theirs or number in self._heard:
                raise BadPacket("a prediction that was not to come")
            self._heard[number] = port, step
            if self._mine == "aim":
                self._aim(number)
            elif number > self._round:
                self._start_round(number)
            elif number == self._round:
                self._aim_if_both_told()
        if "spread" in fields:
            if self._mine != "sweep" or self._swept:
                raise BadPacket("sockets that were not to be opened")
            self._swept = True
            ip = _outside_ip(self._checks.guessable())
            if ip is not None:
                self._actions.append(Turn(ip))

    # Rounds of prediction.

    def _start_round(self, number: int) -> None:
        self._begin_at = math.inf
        if number > MAX_ROUNDS:
            self._round_ends_at = math.inf
            return
        self._round = number
        self._round_ends_at = self._now + ROUND_S
        self._told = None
        if self._number:  # late answers to one round are still welcome in the next
            self._old.append(self._number)
            self._number = 0
            if len(self._old) > 1:
                self._actions.append(Close((self._old.popleft(),)))
        # A NAT that gives a fresh socket its own port needs no sample.
        preserved = self._nat.allocation == "preserved"
        self._actions.append(Open(1, number) if preserved else Sample(SAMPLES, number))

    def handle_sampled(self, number: int, ports: Sequence[int], now: float) -> None:
        """Outside ports, in the order in which the sockets asked; empty: no answer."""
        self._now = max(self._now, now)
        if ports and number == self._round:
            # Of a NAT that is not known better, the sample itself tells.
            step = self._nat.step or judge_allocation([(0, port) for port in ports])[1]
            if step:
                self._told = _furthest(ports, step), step
                self._actions.append(Open(1, number))

    def handle_opened(self, number: int, sockets: Sequence[tuple[int, int]], now: float) -> None:
        """(number, local port) of each; empty: there are none to be had."""
        self._now = max(self._now, now)
        if not sockets:
            return
        if number != self._round:  # the peer has gone on to the next one
            self._actions.append(Close(tuple(each for each, _ in sockets)))
            return
        if self._mine == "spread":
            self._spread([each for each, _ in sockets])
            return
        self._number, port = sockets[0]
        if self._nat.allocation == "preserved":
            self._told = port - 1, 1
        if self._told is None:
            return
        self._extend_round()
        address = _steady_address(self._checks.guessable())
        if self._mine == "predict" and address is not None:
            waves: list[Wave] = [(0.0, LOW_TTL), (LOW_ONLY_S, None)]
            self._checks.guesses.spread(address, [self._number], waves, self._now)
        self._actions.append(Tell({"predict": [self._round, *self._told]}))
        self._aim_if_both_told()

    def _aim_if_both_told(self) -> None:
        if self._mine == "predict+aim" and self._number and self._round in self._heard:
            self._extend_round()
            self._aim(self._round)

    def _extend_round(self) -> None:
        self._round_ends_at = self._now + ROUND_S + 2 * PACE_S * _aimed(self._round)

    def _aim(self, number: int) -> None:
        ip = _outside_ip(self._checks.guessable())
        if ip is None:
            return
        last, step = self._heard[number]
        stride = self._plan.stride if self._is_caller else 1
        count = _aimed(number)
        ports = [_wrap(last + step * (stride * i + 1)) for i in range(count)]
        # Where both aim, the callee's first volley only opens its own filter.
        first = LOW_TTL if self._mine == "predict+aim" and not self._is_caller else None
        waves: list[Wave] = [(0.0, first), (count * PACE_S + AGAIN_S, None)]
        self._checks.guesses.predict(ip, ports, waves, self._now, self._number)

    # Birthdays.

    def handle_turn(self, now: float) -> None:
        self._now = max(self._now, now)
        if self._mine == "spread":
            self._actions.append(Open(SPREAD_SOCKETS, 0))
            return
        ip = _outside_ip(self._checks.guessable())
        if ip is not None and self._swept:
            ports = self._random.sample(range(LOWEST_PORT, 65536), SWEPT_PORTS)
            self._checks.guesses.sweep(ip, ports, self._now)

    def _spread(self, numbers: Sequence[int]) -> None:
        address = _steady_address(self._checks.guessable())
        if address is None:
            return
        # Low at first: a packet that arrives before the peer has sent to its port may spoil it.
        waves: list[Wave] = [(0.0, LOW_TTL), (SPREAD_AGAIN_S, None)]
        self._checks.guesses.spread(address, numbers, waves, self._now)
        self._actions.append(Tell({"spread": len(numbers)}))


def _aimed(number: int) -> int:
    return AIMED[min(number, len(AIMED)) - 1]


def _prediction_untrusted(value: object) -> tuple[int, int, int]:
    """Round, last port, step."""
    if not isinstance(value, list) or [type(each) for each in value] != [int] * 3:
        raise BadPacket("a prediction that is not three numbers")
    number, port, step = value
    if not (0 < number <= MAX_ROUNDS and 0 < port < 65536 and 0 < abs(step) <= MAX_STEP):
        raise BadPacket("a prediction with a number out of range")
    return number, port, step


def _furthest(ports: Sequence[int], step: int) -> int:
    """The last to be given, even if the questions overtook each other on the way to the NAT."""
    if max(ports) - min(ports) > 65536 // 2:  # it began anew at the other end of its range
        return ports[-1]
    return max(ports) if step > 0 else min(ports)


def _wrap(port: int) -> int:
    """At the end of the range that nearly all NATs use, they begin anew."""
    return LOWEST_PORT + (port - LOWEST_PORT) % (65536 - LOWEST_PORT)


def _outside_ip(listed: Sequence[Candidate]) -> str | None:
    """Where a symmetric peer is seen, by a server; its ports are others for us."""
    found = [each.address for each in listed if each.kind == "srflx" and _is_public_v4(each)]
    return found[0] if found else None


def _steady_address(listed: Sequence[Candidate]) -> tuple[str, int] | None:
    """Where a peer with a steady port is seen."""
    for kind in ("srflx", "mapped", "host"):
        for each in listed:
            if each.kind == kind and _is_public_v4(each):
                return each.address, each.port
    return None


def _is_public_v4(candidate: Candidate) -> bool:
    ip = candidate.address
    return family_of(ip) == socket.AF_INET and not is_private(ip)
