"""The callers of other nodes whose calls this node carries, and how many there may be.

Their own nodes hold them to the limits of a connection.  But whoever can write to the directory can
make up callers, and nodes, without end: so there are bounds for each node and for all of them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from .limits import Gatekeeper, SparingLog
from .members import Member
from .nodes import Nodes
from .remote_member import RemoteConnection, remote_caller

__all__ = ["Guests", "Key"]

log = logging.getLogger(__name__)

# Our choices.  A node that makes 500 calls a second, none of which is answered within 15 s, has
# 7,500 of them; a caller and its call take about 4 KB, and an offer that waits up to 8 KB more.
MAX_OF_A_NODE = 10_000  # callers, and unanswered calls
MAX_IN_ALL = 3 * MAX_OF_A_NODE
QUIET_S = 5.0  # since its last call: that call may still wait for a login of its callee

LIMIT = "other_nodes"  # as the metrics call it

Key = tuple[str, int]  # the node, and the number of the caller's connection there


class Guests:
    """``find_room`` for a call of another node, then ``get_or_make`` its caller; ``pop`` it."""

    def __init__(self, nodes: Nodes, gate: Gatekeeper) -> None:
        self._nodes = nodes
        self._gate = gate
        self._members: dict[Key, Member] = {}
        self._called_at: dict[Key, float] = {}  # when each has called last
        self._of_node: Counter[str] = Counter()  # callers
        self._calls: Counter[str] = Counter()  # unanswered a second ago, and what came since
        self._all_calls = 0  # of all nodes
        self._refusals = SparingLog(logging.WARNING, "calls of other nodes that were refused")

    def __len__(self) -> int:
        return len(self._members)

    def find_room(self, key: Key) -> bool:
        """Whether one call more of this caller is carried; a refusal is counted and logged."""
        node_id, is_new = key[0], key not in self._members
        callers, calls = self._of_node[node_id], self._calls[node_id]
        if is_new and callers >= MAX_OF_A_NODE:
            reason = f"over {MAX_OF_A_NODE} callers of node {node_id}"
        elif is_new and len(self._members) >= MAX_IN_ALL:
            reason = f"over {MAX_IN_ALL} callers of other nodes"
        elif calls >= MAX_OF_A_NODE:
            reason = f"over {MAX_OF_A_NODE} unanswered calls of node {node_id}"
        elif self._all_calls >= MAX_IN_ALL:
            reason = f"over {MAX_IN_ALL} unanswered calls of other nodes"
        else:
            self._calls[node_id] += 1
            self._all_calls += 1
            return True
        self._refusals.tell("nodes", "a call is refused: %s", self._gate.over(LIMIT, reason))
        return False

    def get(self, key: Key) -> Member | None:
        return self._members.get(key)

    def get_or_make(self, key: Key, host: str) -> Member:
        """Who calls now."""
        guest = self._members.get(key)
        if guest is None:
            guest = remote_caller(RemoteConnection(self._nodes, *key, host), self._gate.limits)
            self._members[key] = guest
            self._of_node[key[0]] += 1
        self._called_at[key] = time.monotonic()
        return guest

    def pop(self, key: Key) -> Member | None:
        guest = self._members.pop(key, None)
        if guest is not None:
            del self._called_at[key]
            self._of_node[key[0]] -= 1
            if not self._of_node[key[0]]:
                del self._of_node[key[0]]
        return guest

    def of(self, node_id: str) -> list[Key]:
        return [key for key in self._members if key[0] == node_id]

    def sweep(self, now: float, is_kept: Callable[[Member], bool]) -> list[Key]:
        """Those that nothing is left of.  To be called about once a second.

        ``is_kept``: somebody is to hear when it is gone, which only a node that lives will tell.
        """
        self._refusals.sweep(now)
        self._calls.clear()
        idle = []
        for key, guest in self._members.items():
            if guest.outgoing:
                self._calls[key[0]] += len(guest.outgoing)
            elif guest.kept or now - self._called_at[key] < QUIET_S:
                continue
            elif key[0] not in self._nodes.living or not is_kept(guest):
                idle.append(key)
        self._all_calls = self._calls.total()
        return idle
