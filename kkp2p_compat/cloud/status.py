"""How a cloud is, for its status page and for those who decide whether it is ready.

Nothing here is a secret: no verifier, no key, no token.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

from .._version import __version__
from .directory import Account, Node
from .members import Member
from .server import Cloud
from .stats import stats_untrusted

__all__ = ["living", "peer", "status", "why_not_ready"]

# Our choice: logins that the page shows.
NEWEST = 30


def why_not_ready(cloud: Cloud) -> str:
    """Why a balancer should send nobody here; empty: it should."""
    directory = cloud.directory
    if cloud.is_draining:
        return "draining: this node is about to end"
    if directory is not None and directory.away_since is not None:
        away_s = time.monotonic() - directory.away_since
        return f"the directory has been away for {away_s:.0f} s: {directory.away_reason}"
    return ""


def status(cloud: Cloud) -> dict[str, Any]:
    """All that the page shows."""
    nodes = living(cloud)
    return {
        "version": __version__,
        "node": nodes[0].id,
        "time": time.time(),
        "not_ready": why_not_ready(cloud),
        "nodes": [_node(node) for node in nodes],
        "troubles": [trouble._asdict() for trouble in reversed(cloud.gate.counts.troubles)],
        "newest": [] if cloud.track is None else _newest(cloud.track.newest(NEWEST)),
    }


def living(cloud: Cloud) -> list[Node]:
    """This node, with the numbers of now, and the others as they were lately."""
    others = [] if cloud.nodes is None else cloud.nodes.others
    return [cloud.own_node(), *others]


def _node(node: Node) -> dict[str, Any]:
    about = dataclasses.asdict(node)
    del about["fingerprint"]  # long, and of no use here
    return {**about, "stats": stats_untrusted(node.stats)}


def _newest(members: Iterable[Member]) -> list[dict[str, str]]:
    return [{"peer": str(member.peer_id), "host": member.host} for member in members]


def peer(cloud: Cloud, peer_id: str) -> dict[str, Any]:
    """One peer's page.  May wait for the directory, and raises DirectoryAway."""
    found: dict[str, Any] = {"peer": peer_id, "online": False, "account": None, "here": None}
    directory = cloud.directory
    member = None if cloud.track is None else cloud.track.member(peer_id)
    if directory is not None:
        account = directory.account(peer_id)
        if account is not None:
            found["account"] = _account(account)
            found["today"] = directory.usage(peer_id)
        where = directory.where(peer_id)
        if where is not None:
            found |= {"online": True, "node": where.node, "since": where.since_us / 1e6}
    if member is not None:
        found["online"] = True
        found["here"] = {
            "host": member.host,
            "seen": member.seen,
            "nat": member.nat,
            "open_calls": len(member.outgoing),
            "answered_calls": len(member.kept),
            "incoming_calls": len(member.incoming),
        }
    return found


def _account(account: Account) -> dict[str, Any]:
    """Without its verifier."""
    return {
        "changed": account.changed,
        "disabled": account.disabled,
        "allow": account.allow,
        "limits": dataclasses.asdict(account.limits),
    }
