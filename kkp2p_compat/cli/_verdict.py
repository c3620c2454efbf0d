"""What a NAT means for its owner: which peers can connect directly, and how.

The planner itself is asked, with this host as the callee and the usual kinds of NAT as callers, so
the answer is what an engine would do.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..traversal.candidates import Candidate, outer_candidate
from ..traversal.nat import ADDRESS_AND_PORT_DEPENDENT, ENDPOINT_INDEPENDENT, NatBehaviour
from ..traversal.plan import Side, make_plan
from ._words import N_, _

__all__ = ["HOW", "meaning", "who_reaches_us"]

_APD, _EI = ADDRESS_AND_PORT_DEPENDENT, ENDPOINT_INDEPENDENT
# Kinds of peers, by what is in front of them.
PEERS = {
    N_("no NAT"): NatBehaviour("none", _EI, "preserved"),
    N_("an open NAT (full cone)"): NatBehaviour(_EI, _EI, "preserved"),
    N_("an ordinary NAT (port-restricted cone)"): NatBehaviour(_EI, _APD, "preserved"),
    N_("a symmetric NAT with ports in order"): NatBehaviour(_APD, _APD, "sequential", 1),
    N_("a symmetric NAT with random ports"): NatBehaviour(_APD, _APD, "random"),
}
HOW = {
    "direct": N_("directly"),
    "punch": N_("directly"),
    "predict": N_("directly, as a rule: ports are predicted"),
    "birthday": N_("directly, perhaps after some seconds: ports are guessed"),
    "relay": N_("through the relay"),
}
PEER_ADDRESS = ("192.0.2.1", 40_000)  # RFC 5737: nobody has it


def who_reaches_us(nat: NatBehaviour, candidates: Sequence[Candidate]) -> dict[str, str]:
    """The kind of plan for each of PEERS."""
    theirs = [outer_candidate("srflx", PEER_ADDRESS, [])]
    us = Side(nat, [each for each in candidates if ":" not in each.address])
    return {_(name): make_plan(Side(peer, theirs), us).kind for name, peer in PEERS.items()}


def meaning(nat: NatBehaviour, reach: dict[str, str]) -> str:
    """One or two sentences."""
    if nat.mapping == "blocked":
        return _(
            "No UDP gets through from here: every connection uses the relay, over TCP.  "
            "A firewall that lets UDP out would change that."
        )
    if nat.mapping == "unknown":
        return _(
            "What is in front of this host is not known, so everything is tried with each peer."
        )
    relayed = [name for name, kind in reach.items() if kind == "relay"]
    slow = [name for name, kind in reach.items() if kind == "birthday"]
    if not relayed and not slow:
        return _("Peers behind any kind of NAT reach you directly.")
    if relayed:
        text = _("Peers reach you directly, except those behind {nats}: they use the relay.")
        text = text.format(nats=_join(relayed))
    else:
        text = _("Peers reach you directly.")
    if slow:
        text += _("  Behind {nats} it may take some seconds.").format(nats=_join(slow))
    return text + _remedy(nat)


def _join(names: Sequence[str]) -> str:
    return _(" or ").join(names)


def _remedy(nat: NatBehaviour) -> str:
    if not nat.symmetric:
        return ""
    return _("  A port mapping in your router (UPnP, PCP, or by hand) would let all of them in.")
