"""What the NAT in front of us does, in the words of RFC 4787.

Which outside port a socket gets (mapping) and who may answer to it (filtering) depend on nothing
(endpoint-independent), on the other side's address, or on its address and port.  A NAT with
address-and-port-dependent mapping is called symmetric.  ``nat_discovery.py`` finds it out.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from .._errors import BadPacket
from .._sentence import Sentence, listed

__all__ = [
    "ADDRESS_AND_PORT_DEPENDENT",
    "ADDRESS_DEPENDENT",
    "BLOCKED",
    "ENDPOINT_INDEPENDENT",
    "UNKNOWN",
    "NatBehaviour",
    "judge_allocation",
]

ENDPOINT_INDEPENDENT = "endpoint-independent"
ADDRESS_DEPENDENT = "address-dependent"
ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
_BEHAVIOURS = (ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT, "unknown")
_MAPPINGS = ("none", *_BEHAVIOURS, "blocked")
_ALLOCATIONS = ("preserved", "sequential", "random", "unknown")

# Our choices.
MAX_STEP = 64  # ports between two allocations that still count as sequential


@dataclass(frozen=True)
class NatBehaviour:
    """How the NATs and firewalls between us and the servers behave, all of them together."""

    # "none": no NAT.  "blocked": UDP does not get through.  Otherwise a behaviour, or "unknown".
    mapping: str = "unknown"
    # A behaviour, also of a firewall without a NAT; "endpoint-independent" is open to everybody.
    filtering: str = "unknown"
    # The outside port: "preserved" (the socket's own), "sequential" or "random".
    allocation: str = "unknown"
    # Of "sequential": from one new outside port to the next, -64 to 64, never 0.
    step: int = 0
    # Whether hosts behind it reach each other by their outside addresses; None: not known.
    hairpin: bool | None = None

    @property
    def symmetric(self) -> bool:
        """The peer gets to see another outside port than the server did."""
        return self.mapping in (ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT)

    @property
    def text(self) -> str:
        """In words, for people."""
        return _in_words(self)

    def fields(self) -> dict[str, str | int]:
        """As told in JSON; what is not known is left out."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    @classmethod
    def parse_untrusted(cls, told: object) -> NatBehaviour:
        """What another side told as its ``fields``; None tells nothing.  Raises BadPacket.

        A word of a later version counts as "unknown".
        """
        if told is None:
            return UNKNOWN
        if not isinstance(told, dict):
            raise BadPacket("a NAT behaviour that is not an object")
        allocation = _word_untrusted(told, "allocation", _ALLOCATIONS)
        step, hairpin = told.get("step", 0), told.get("hairpin")
        if allocation == "unknown" and told.get("allocation", "unknown") != "unknown":
            step = 0  # it belongs to an allocation that we do not know
        if type(step) is not int or (step != 0) != (allocation == "sequential"):
            raise BadPacket("a NAT behaviour with a wrong step")
        if abs(step) > MAX_STEP or type(hairpin) not in (bool, type(None)):
            raise BadPacket("a NAT behaviour with a value out of range")
        return cls(
            _word_untrusted(told, "mapping", _MAPPINGS),
            _word_untrusted(told, "filtering", _BEHAVIOURS),
            allocation,
            step,
            hairpin,
        )


def _word_untrusted(told: dict[object, object], name: str, words: Sequence[str]) -> str:
    word = told.get(name, "unknown")
    if not isinstance(word, str):
        raise BadPacket("a NAT behaviour with a value that is not a word")
    return word if word in words else "unknown"


@functools.lru_cache(64)  # the words of a NAT are told several times a call
def _in_words(nat: NatBehaviour) -> str:
    if nat.mapping == "blocked":
        return Sentence("UDP is blocked")
    parts = [_MAPPING_WORDS[nat.mapping]]
    if nat.mapping != "none" and nat.allocation == "sequential":
        parts.append(Sentence("sequential ports ({step:+d})", step=nat.step))
    elif nat.mapping != "none" and nat.allocation != "unknown":
        parts.append(_ALLOCATION_WORDS[nat.allocation])
    parts.append(_FILTERING_WORDS[nat.filtering])
    if nat.hairpin is not None:
        parts.append(Sentence("hairpin") if nat.hairpin else Sentence("no hairpin"))
    return listed(parts)


_MAPPING_WORDS = {
    "none": Sentence("no NAT"),
    "unknown": Sentence("unknown mapping"),
    ENDPOINT_INDEPENDENT: Sentence("endpoint-independent mapping"),
    ADDRESS_DEPENDENT: Sentence("address-dependent mapping"),
    ADDRESS_AND_PORT_DEPENDENT: Sentence("symmetric"),
}
_ALLOCATION_WORDS = {"preserved": Sentence("preserved ports"), "random": Sentence("random ports")}
_FILTERING_WORDS = {
    "unknown": Sentence("unknown filtering"),
    ENDPOINT_INDEPENDENT: Sentence("endpoint-independent filtering"),
    ADDRESS_DEPENDENT: Sentence("address-dependent filtering"),
    ADDRESS_AND_PORT_DEPENDENT: Sentence("address-and-port-dependent filtering"),
}

UNKNOWN = NatBehaviour()
BLOCKED = NatBehaviour("blocked")


def judge_allocation(samples: Sequence[tuple[int, int]]) -> tuple[str, int]:
    """Allocation and step, by (our port, outside port) of fresh sockets in the order of asking.

    One odd difference among three is another host's doing, or the end of the NAT's range.
    """
    if len(samples) < 2:
        return "unknown", 0
    if 2 * sum(ours == outside for ours, outside in samples) >= len(samples):
        return "preserved", 0
    if len(samples) < 3:
        return "unknown", 0
    outside = [port for _, port in samples]
    steps = [after - before for before, after in itertools.pairwise(outside)]
    small = [step for step in steps if 0 < abs(step) <= MAX_STEP]
    if len(small) < max(2, len(steps) - 1):
        return "random", 0
    # Datagrams that overtake each other reverse a step or two, but never most of them.
    sign = 1 if sum(small) > 0 else -1
    return "sequential", sign * math.gcd(*small)
