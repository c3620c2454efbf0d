"""One side's part of a plan beyond plain checks: predicted ports, and birthday punches.  Sans-IO.

Prediction takes several rounds.  The side whose ports are predicted opens a few sockets, asks a
server from each where it is seen (a sample), opens one socket more for this round, and tells the
peer the last port and the step.  So the NAT gives that socket the next port, or one soon after it
if other hosts were quicker.  Where the peer has a steady port, our one socket sends to it at once,
and the peer aims at the predicted ports in their order.

Two symmetric sides each send from the one socket of the round to the predicted ports of the other,
so each datagram gets a port of its own.  Say that other hosts have taken k ports of the caller's
NAT since its sample, and j of the callee's.  The caller's i-th datagram goes from port A+k+i to
B+2i-1, as it leaves out every second one (``stride``), and the callee's m-th goes from B+j+m to
A+m.  They fit together when 2i-1 = j+m and m = k+i: that is i = j+k+1, m = j+2k+1.  So there is
always exactly one pair of mappings that lets both in, whatever j and k are.  If both went by single
steps, j+k would have to be 0.  A NAT whose mapping depends on the address only has one mapping for
all of them, so none of its ports may be left out.

A birthday punch runs once: the side with random ports opens many sockets and tells the peer when
they have sent; then the other side sends to random ports.  Guesses bound all that is sent.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from .._errors import BadPacket
from .candidates import Candidate, family_of, is_private
from .checks import Checks
from .guesses import LOW_TTL, LOWEST_PORT, PACE_S, Wave
from .nat import MAX_STEP, NatBehaviour, judge_allocation
from .plan import Plan

__all__ = ["Action", "Close", "Open", "Punch", "Sample", "Tell", "Turn"]

# Our choices.
SAMPLES = 3  # sockets: the last one counts, the others show the step
ROUND_S = 1.2  # after the last event of a round and its volleys, until the next one begins
MAX_ROUNDS = 10
# Ports, in the first rounds and in all later ones.  Other hosts may take a third as many of each
# side; a NAT where the first few are not enough must be a busy one.
AIMED = (32, 32, 64, 128)
AGAIN_S = 0.15  # from the end of a volley to its repetition
LOW_ONLY_S = 0.5  # for a socket whose port the peer aims at: the peer has aimed at it by then
SPREAD_SOCKETS = 256
SWEPT_PORTS = 2000
# When the sweep is over: through what it has opened, packets that a far NAT has stopped at first
# come in as probably as the sweep would have hit them.  Earlier they could only disturb it.
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
    """Close these extra sockets: they are of no more use."""

    numbers: tuple[int, ...]


class Turn(NamedTuple):
    """Answer by ``handle_turn`` when this engine makes no other birthday punch."""

    sweeps: str  # the IP address whose ports will be probed; "" if the peer probes ours


class Tell(NamedTuple):
    """Tell the peer, in order: its Punch gets it by ``handle_fields_untrusted``."""

    fields: dict[str, Any]


Action = Sample | Open | Close | Turn | Tell


class Punch:
    """Do what ``poll_action`` gives, answer it as its class says, and come back at ``next_timer``.

    After each call poll the ``checks``, which are told what to probe.
    """

    def __init__(
        self,
        checks: Checks,
        plan: Plan,
        is_caller: bool,
        nat: NatBehaviour,
        random: Random,
        now: float,
    ) -> None:
        """``nat``: ours.  ``random``: a SystemRandom outside tests."""
        self._checks = checks
        self._plan = plan
        self._is_caller = is_caller
        self._mine = plan.caller_does if is_caller else plan.callee_does
        self._theirs = plan.callee_does if is_caller else plan.caller_does
        self._nat = nat
        self._random = random
        self._now = now
        self._actions: deque[Action] = deque()
        begins = "predict" in self._mine or self._mine == "spread"
        self._begin_at = now + plan.patience_s if begins else math.inf
        self._round = 0
        self._round_ends_at = math.inf
        self._told: tuple[int, int] | None = None  # the last port and the step, of this round
        self._heard: dict[int, tuple[int, int]] = {}  # the peer's, by round
        self._number = 0  # the extra socket of this round
        self._old: deque[int] = deque()  # those of earlier rounds
        self._swept = False
        checks.stay_low(plan.low_ttl_s)
        self.handle_timer(now)

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
        """What the peer told.  BadPacket if it is malformed, or has no place in the plan."""
        self._now = max(self._now, now)
        if "predict" in fields:
            number, port, step = _prediction_untrusted(fields["predict"])
            if "predict" not in self._theirs or number in self._heard:
                raise BadPacket("a prediction that is not expected")
            self._heard[number] = port, step
            if self._mine == "aim":
                self._aim(number)
            elif number > self._round:
                self._start_round(number)
            elif number == self._round:
                self._aim_if_both_told()
        if "spread" in fields:
            if self._mine != "sweep" or self._swept:
                raise BadPacket("opened sockets that are not expected")
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
        # Where the NAT keeps the port of a fresh socket, no sample is needed.
        preserved = self._nat.allocation == "preserved"
        self._actions.append(Open(1, number) if preserved else Sample(SAMPLES, number))

    def handle_sampled(self, number: int, ports: Sequence[int], now: float) -> None:
        """Outside ports, in the order in which the sockets asked; empty: no answer."""
        self._now = max(self._now, now)
        if ports and number == self._round:
            # Where the step of the NAT is not known, the sample itself tells it.
            step = self._nat.step or judge_allocation([(0, port) for port in ports])[1]
            if step:
                self._told = _furthest(ports, step), step
                self._actions.append(Open(1, number))

    def handle_opened(self, number: int, sockets: Sequence[tuple[int, int]], now: float) -> None:
        """(number, local port) of each; empty: none could be opened."""
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
        # Where both sides aim, the callee's first volley only opens its own filter.
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
        # Few hops at first: a packet that arrives before the peer has sent there may spoil it.
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
    """The port given last, even if the questions overtook each other on the way to the NAT."""
    if max(ports) - min(ports) > 65536 // 2:  # the NAT has gone on at the other end of its range
        return ports[-1]
    return max(ports) if step > 0 else min(ports)


def _wrap(port: int) -> int:
    """Within the range that nearly all NATs use: at its end they go on at its beginning."""
    return LOWEST_PORT + (port - LOWEST_PORT) % (65536 - LOWEST_PORT)


def _outside_ip(listed: Sequence[Candidate]) -> str | None:
    """The IP address at which a server sees a symmetric peer; for us its ports are others."""
    found = [each.address for each in listed if each.kind == "srflx" and _is_public_v4(each)]
    return found[0] if found else None


def _steady_address(listed: Sequence[Candidate]) -> tuple[str, int] | None:
    """The address at which a peer with a steady port is seen."""
    for kind in ("srflx", "mapped", "host"):
        for each in listed:
            if each.kind == kind and _is_public_v4(each):
                return each.address, each.port
    return None


def _is_public_v4(candidate: Candidate) -> bool:
    ip = candidate.address
    return family_of(ip) == socket.AF_INET and not is_private(ip)
