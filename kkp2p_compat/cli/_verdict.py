"""What a NAT means for its owner: which peers can connect directly, and how.

The planner itself is asked, with this host as the callee and the usual kinds of NAT as callers, so
the answer is what an engine would do.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..traversal.candidates import Candidate, outer_candidate
from ..traversal.nat import (
    ADDRESS_AND_PORT_DEPENDENT,
    ENDPOINT_INDEPENDENT,
    NatBehaviour,
)
from ..traversal.plan import Side, make_plan

__all__ = ["HOW", "meaning", "who_reaches_us"]

_APD, _EI = ADDRESS_AND_PORT_DEPENDENT, ENDPOINT_INDEPENDENT
# Kinds of peers, by what is in front of them.
PEERS = {
    "no NAT": NatBehaviour("none", _EI, "preserved"),
    "an open NAT (full cone)": NatBehaviour(_EI, _EI, "preserved"),
    "an ordinary NAT (port-restricted cone)": NatBehaviour(_EI, _APD, "preserved"),
    "a symmetric NAT with ports in order": NatBehaviour(_APD, _APD, "sequential", 1),
    "a symmetric NAT with random ports": NatBehaviour(_APD, _APD, "random"),
}
HOW = {
    "direct": "directly",
    "punch": "directly",
    "predict": "directly, as a rule: ports are predicted",
    "birthday": "directly, perhaps after some seconds: ports are guessed",
    "relay": "through the relay",
}
PEER_ADDRESS = ("192.0.2.1", 40_000)  # RFC 5737: nobody has it


def who_reaches_us(nat: NatBehaviour, candidates: Sequence[Candidate]) -> dict[str, str]:
    """The kind of plan for each of PEERS."""
    theirs = [outer_candidate("srflx", PEER_ADDRESS, [])]
    us = Side(nat, [each for each in candidates if ":" not in each.address])
    return {name: make_plan(Side(peer, theirs), us).kind for name, peer in PEERS.items()}


def meaning(nat: NatBehaviour, reach: dict[str, str]) -> str:
    """One or two sentences."""
    if nat.mapping == "blocked":
        return (
            "No UDP gets through from here: every connection uses the relay, over TCP.  "
            "A firewall that lets UDP out would change that."
        )
    if nat.mapping == "unknown":
        return "What is in front of this host is not known, so everything is tried with each peer."
    relayed = [name for name, kind in reach.items() if kind == "relay"]
    slow = [name for name, kind in reach.items() if kind == "birthday"]
    if not relayed and not slow:
        return "Peers behind any kind of NAT reach you directly."
    text = "Peers reach you directly"
    if relayed:
        text += f", except those behind {_join(relayed)}: they use the relay"
    text += "."
    if slow:
        text += f"  Behind {_join(slow)} it may take some seconds."
    return text + _remedy(nat)


def _join(names: Sequence[str]) -> str:
    return " or ".join(names)


def _remedy(nat: NatBehaviour) -> str:
    if not nat.symmetric:
        return ""
    return "  A port mapping in your router (UPnP, PCP, or by hand) would let all of them in."
