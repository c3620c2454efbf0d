"""What two peers do to meet, judged by their NATs.

A plan is made by both sides from what offer and answer say, so it depends on nothing else and both
make the same.  The ordinary checks of every address always run; a plan is what is done beside them.

A side is called *steady* when the peer sees the outside port that a STUN server saw (no NAT, or
endpoint-independent mapping), and *symmetric* when the peer sees another one.  Why a plan works:

- Two steady sides: each opens its own filter by its checks of the other's address.
- One symmetric side: the other cannot know where its packets will come from.  To a filter that
  looks at the IP address only this does not matter.  Where it matters, the symmetric side's next
  port is predicted from a few samples ("predict"), and the steady side sends to that and the
  following ones ("aim").  Where ports are random, many sockets of the symmetric side ("spread")
  make it likely that the steady side hits one of their ports by sending to random ones ("sweep"):
  with 256 of each 64 %, with 256 sockets and 2,000 probes 99.96 %.  (Ford, Srisuresh, Kegel 2005;
  RFC 5128 section 3.)
- Two symmetric sides: when both can be predicted, each aims at the other's ports from one socket.
  With random ports on one side there is nothing to aim at, and 2^32 pairs of ports to choose from.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

from .._sentence import Sentence
from .candidates import Candidate, family_of, is_private
from .nat import ADDRESS_AND_PORT_DEPENDENT, ADDRESS_DEPENDENT, ENDPOINT_INDEPENDENT, NatBehaviour

__all__ = ["KINDS", "Plan", "Side", "make_plan"]

KINDS = ("direct", "punch", "predict", "birthday", "relay")

# Words of reasons.
CALLER, CALLEE = Sentence("caller"), Sentence("callee")
STEADY = Sentence("both have outside ports that do not change")
NO_NAT = Sentence("neither has a NAT")

# Our choices.
PATIENCE_S = 0.3  # for ordinary checks that may suffice, before the costly part begins
REMEMBERED_S = 0.6  # the same, where they sufficed the last time
# With two steady ports nothing is lost if the callee opens only its own filter until the caller has
# sent, whom our answer reaches by a cloud that may be far away, and who may be a busy machine.
LOW_TTL_S = 0.5


class Side(NamedTuple):
    nat: NatBehaviour
    candidates: Sequence[Candidate]  # as told to the other side


class Plan(NamedTuple):
    """Each side's part is one of "check" (no more than the checks), "predict", "aim",
    "predict+aim", "spread" and "sweep".  A "direct" plan may have them too, if the checks fail.
    """

    kind: str  # of KINDS
    reason: Sentence  # for people, one line
    caller_does: str
    callee_does: str
    patience_s: float = 0.0  # before anything beside the checks begins
    stride: int = 1  # of the caller's aim, in steps of the callee's ports; the callee's is 1
    low_ttl_s: float = 0.0  # for how long the callee's checks need not get further than its NAT


def make_plan(caller: Side, callee: Side, remembered: str = "") -> Plan:
    """``remembered``: the kind of plan that last led from this caller to this callee, or "".

    The kind is "relay" only where nothing else can work; what is not known counts as possible.
    """
    families = _families(caller), _families(callee)
    if all(families) and not families[0] & families[1]:
        return _alone("relay", Sentence("one side has IPv4 only, the other IPv6 only"))
    easy = _easy_way(caller, callee)
    for side, name in ((caller, CALLER), (callee, CALLEE)):
        if side.nat.mapping == "blocked":
            if _same_network(caller, callee):
                return _alone("direct", Sentence("both may be in the same network"))
            return _alone("relay", Sentence("UDP is blocked at the {side}", side=name))
    plan = _by_mapping(caller.nat, callee.nat)
    if easy:
        if plan.caller_does == "check":
            return _alone("direct", easy)
        reason = Sentence("{easy}; otherwise {reason}", easy=easy, reason=plan.reason)
        return plan._replace(kind="direct", reason=reason, patience_s=PATIENCE_S)
    if plan.caller_does != "check" and remembered in ("direct", "punch"):
        reason = Sentence("{reason}; ordinary checks sufficed the last time", reason=plan.reason)
        return plan._replace(reason=reason, patience_s=REMEMBERED_S)
    return plan


def _alone(kind: str, reason: Sentence) -> Plan:
    return Plan(kind, reason, "check", "check")


def _by_mapping(caller: NatBehaviour, callee: NatBehaviour) -> Plan:
    if "unknown" in (caller.mapping, callee.mapping):
        return _alone("punch", Sentence("a NAT is not known"))
    if caller.symmetric and callee.symmetric:
        return _both_symmetric(caller, callee)
    if not (caller.symmetric or callee.symmetric):
        natted = {caller.mapping, callee.mapping} - {"none"}
        plan = _alone("punch", STEADY if natted else NO_NAT)
        if caller.filtering != ENDPOINT_INDEPENDENT:
            plan = plan._replace(low_ttl_s=LOW_TTL_S)
        return plan
    symmetric, steady = (caller, callee) if caller.symmetric else (callee, caller)
    who = (CALLER, CALLEE) if caller.symmetric else (CALLEE, CALLER)
    if steady.filtering in (ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT):
        return _alone(
            "punch",
            Sentence(
                "the {host}'s NAT lets the {guest} in from any port", host=who[1], guest=who[0]
            ),
        )
    if _predictable(symmetric):
        kind, parts = "predict", ("predict", "aim")
        reason = Sentence("the {side}'s next outside port can be predicted", side=who[0])
    else:
        kind, parts = "birthday", ("spread", "sweep")
        how = Sentence("random") if symmetric.allocation == "random" else Sentence("unknown")
        reason = Sentence("the {side}'s outside ports are {how}", side=who[0], how=how)
    if not caller.symmetric:
        parts = parts[::-1]
    patience_s = PATIENCE_S if steady.filtering == "unknown" else 0.0
    return Plan(kind, reason, *parts, patience_s)


def _both_symmetric(caller: NatBehaviour, callee: NatBehaviour) -> Plan:
    for nat, name in ((caller, CALLER), (callee, CALLEE)):
        if nat.allocation == "random":
            return _alone(
                "relay",
                Sentence("both are symmetric, and the {side}'s ports are random", side=name),
            )
    if _predictable(caller) and _predictable(callee):
        reason = Sentence("both sides' next outside ports can be predicted")
    else:
        reason = Sentence("both are symmetric, and may be found to be predictable")
    by_port = caller.mapping == callee.mapping == ADDRESS_AND_PORT_DEPENDENT
    stride = 2 if by_port else 1  # see punch.py
    return Plan("predict", reason, "predict+aim", "predict+aim", stride=stride)


def _predictable(nat: NatBehaviour) -> bool:
    """With "preserved" a fresh socket gets its own port towards its first destination."""
    return nat.allocation in ("sequential", "preserved")


def _easy_way(caller: Side, callee: Side) -> Sentence | None:
    """Why ordinary checks may get through whatever ports the NATs give."""
    for side, name in ((caller, CALLER), (callee, CALLEE)):
        if any(candidate.kind == "mapped" for candidate in side.candidates):
            return Sentence("the {side}'s router forwards a port", side=name)
        if side.nat.mapping == "none" and side.nat.filtering == ENDPOINT_INDEPENDENT:
            return Sentence("the {side} is open to everybody", side=name)
    if _outside(caller) & _outside(callee):
        return Sentence("both are behind the same address")
    if all(map(_has_ipv6, (caller, callee))):
        return Sentence("both have IPv6")
    return None


def _families(side: Side) -> set[int]:
    return {family_of(candidate.address) for candidate in side.candidates}


def _outside(side: Side) -> set[str]:
    return {each.address for each in side.candidates if each.kind != "host"}


def _has_ipv6(side: Side) -> bool:
    return any(":" in each.address and not is_private(each.address) for each in side.candidates)


def _same_network(caller: Side, callee: Side) -> bool:
    """Judged by the usual sizes of networks; two networks may have the same private addresses."""
    return bool(_networks(caller) & _networks(callee))


def _networks(side: Side) -> set[object]:
    return {
        ipaddress.ip_network((each.address, 64 if ":" in each.address else 24), strict=False)
        for each in side.candidates
        if each.kind == "host"
    }
