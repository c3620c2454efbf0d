"""Who is online at this node, and that the directory knows it.

A newer login under an id ends the older one, whichever nodes the two are at, unless it only comes
*again*: a program that was cut off and replaced meanwhile must not throw out the one that replaced
it.  The ``session`` of a login tells the two apart.  The directory decides which login came first.

A peer that was told to move logs in elsewhere before it leaves: its old connection stays until the
calls on it are over, and takes those that were on their way to it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import gevent

from ..control.wire import Message, encode, number_untrusted
from .correspondents import Correspondents
from .directory import Directory, DirectoryAway, Presence, Refused
from .members import Member
from .messages import MAX_CALL_NUMBER, peer_id_untrusted, text_untrusted
from .nodes import Nodes

__all__ = ["MAX_SESSION_CHARS", "Found", "Presences"]

log = logging.getLogger(__name__)

# docs/protocol.rst
MAX_SESSION_CHARS = 64

# Our choices.
LINGER_LEAST_S = 3.0  # for calls that were on their way when the peer moved
LINGER_MOST_S = 70.0  # no call takes longer to be answered
MAX_WAITING = 64  # calls to a peer whose login is not complete yet

Found = Presence | Refused | None  # the login that had the place of one that has come


class _Arriving(NamedTuple):
    presence: Presence
    waiting: list[Callable[[Member | None], None]]  # calls to it


class _Leaving(NamedTuple):
    member: Member
    since: float


class Presences:
    """``claim`` and ``settle`` a login, ``gone`` at its end.  ``hand_over`` is called with a peer
    of ours that is at another node now, and with that node.
    """

    def __init__(
        self,
        directory: Directory,
        nodes: Nodes,
        online: dict[str, Member],
        correspondents: Correspondents,
    ) -> None:
        self._directory = directory
        self._nodes = nodes
        self._online = online
        self._correspondents = correspondents
        self.hand_over: Callable[[str, str], None] = lambda peer_id, node_id: None
        self._arriving: dict[str, _Arriving] = {}
        self._leaving: dict[str, _Leaving] = {}
        self._to_move: set[Member] = set()  # those that were told to
        nodes.handlers["replaced"] = self._on_replaced
        directory.on_back = self.restore

    # A login.

    def claim(self, member: Member, peer_id: str) -> Found:
        """Take the place of that peer in the directory; the login that had it.  May wait."""
        since_us = time.time_ns() // 1000
        presence = Presence(peer_id, self._nodes.id, member.number, member.session, since_us)
        member.presence = presence
        self._arriving.setdefault(peer_id, _Arriving(presence, []))
        try:
            found = self._directory.came(presence, again=member.comes_again)
        except DirectoryAway:
            found = None  # it is told when it is back
        if not member.connection.is_open:
            self._directory.left(presence)
        return found

    def settle(self, member: Member, found: Found) -> bool:
        """The end of a login, or False: its place was another's, and it has been told so."""
        peer_id = str(member.peer_id)
        old = self._online.get(peer_id)
        replaced_by = old if old is not None and _is_outdated(member, old) else None
        if isinstance(found, Refused) or replaced_by is not None:
            where = replaced_by.host if replaced_by is not None else "a login at another node"
            log.info("%s: was replaced by %s meanwhile", member, where)
            member.connection.finish(encode("bye", reason="duplicate"))
            self._tell_waiting(peer_id, old)
            return False
        self._online[peer_id] = member
        self._correspondents.came(member, old)
        log.info("%s: online%s", member, ", in place of " + old.host if old else "")
        self._tell_replaced(member, found)
        if old is not None:
            self._end(old, member.session)
        self._tell_waiting(peer_id, member)
        return True

    def _tell_replaced(self, member: Member, found: Found) -> None:
        """The node that had this peer until now."""
        if isinstance(found, Presence) and found.node != self._nodes.id:
            number, session = found.connection, member.session
            self._nodes.send(
                found.node, "replaced", peer=found.peer_id, connection=number, session=session
            )

    def gone(self, member: Member) -> bool:
        """Its connection is over; whether its peer is offline now."""
        self._to_move.discard(member)
        peer_id, presence = member.peer_id, member.presence
        if presence is not None:
            self._directory.left(presence)
            self._tell_waiting(presence.peer_id, self._online.get(presence.peer_id))
        if peer_id is None:
            return False
        leaving = self._leaving.get(peer_id)
        if leaving is not None and leaving.member is member:
            del self._leaving[peer_id]
        if self._online.get(peer_id) is not member:
            return False
        del self._online[peer_id]
        log.info("%s: offline", member)
        return True

    # Who can be called.

    def find(self, peer_id: str, then: Callable[[Member | None], None]) -> None:
        """Call ``then`` with who can be called by this id, at once or when its login is complete.

        Another node may know of a login before we do.
        """
        member = self._online.get(peer_id)
        if member is None and peer_id in self._leaving:
            member = self._leaving[peer_id].member
        arriving = self._arriving.get(peer_id)
        if member is None and arriving is not None and len(arriving.waiting) < MAX_WAITING:
            arriving.waiting.append(then)
        else:
            then(member)

    def _tell_waiting(self, peer_id: str, member: Member | None) -> None:
        arriving = self._arriving.pop(peer_id, None)
        for then in arriving.waiting if arriving is not None else ():
            then(member)

    # A login whose peer is elsewhere now.

    @property
    def lingering(self) -> int:
        """Peers that have moved, and have calls here."""
        return len(self._leaving)

    def tell_to_move(self, member: Member) -> None:
        if member.moves:
            self._to_move.add(member)
            member.send(encode("move"))
        else:
            member.connection.finish(encode("bye", reason="shutdown"))

    def _on_replaced(self, node_id: str, message: Message) -> None:
        peer_id = peer_id_untrusted(message, "peer")
        session = text_untrusted(message, "session", MAX_SESSION_CHARS)
        member = self._online.get(peer_id)
        if member is None or member.number != number_untrusted(
            message, "connection", 0, MAX_CALL_NUMBER
        ):
            return
        log.info("%s: is at node %s now", member, node_id)
        self._lose(member, session, node_id)

    def _lose(self, member: Member, session: str, node_id: str) -> None:
        """To a login at another node."""
        peer_id = str(member.peer_id)
        del self._online[peer_id]
        if session and session == member.session:
            self.hand_over(peer_id, node_id)
        else:
            self._correspondents.replaced(peer_id)
        self._end(member, session)

    def _end(self, old: Member, session: str) -> None:
        """``session``: of the login that has its place."""
        is_same = session == old.session
        if not is_same or old not in self._to_move:
            # Where the clocks of two nodes differ, the older of two connections of one program may
            # be the one that it has: it may come again.
            reason = "moved" if is_same and session else "duplicate"
            old.connection.finish(encode("bye", reason=reason))
            return
        peer_id = str(old.peer_id)
        before = self._leaving.pop(peer_id, None)
        self._leaving[peer_id] = _Leaving(old, time.monotonic())
        if before is not None:
            self._dismiss(before.member)

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        for leaving in list(self._leaving.values()):
            stays_s = now - leaving.since
            done = stays_s >= LINGER_LEAST_S and not leaving.member.is_calling
            if done or stays_s >= LINGER_MOST_S:
                self._dismiss(leaving.member)

    def _dismiss(self, member: Member) -> None:
        member.connection.finish(encode("bye", reason="moved"))

    # The directory has lost what it was told, or took us for gone.

    def restore(self) -> None:
        """Tell it again who is online here, and learn who is elsewhere by now.  Does not wait."""
        gevent.spawn(self._restore)

    def _restore(self) -> None:
        log.info("the directory is told again of %d peers", len(self._online))
        try:
            outcomes = self._directory.restore(
                self._nodes.id, list(self._online), self._presence_of
            )
        except DirectoryAway:
            return  # it says when it is back
        for presence, found in outcomes:
            member = self._online.get(presence.peer_id)
            if member is None or member.presence is not presence:
                continue  # it has gone meanwhile, and has said so
            if isinstance(found, Presence):
                self._tell_replaced(member, found)
            else:
                log.info("%s: is at node %s by now", member, found.by.node)
                self._lose(member, found.by.session, found.by.node)

    def _presence_of(self, peer_id: str) -> Presence | None:
        """Also of a login that is not complete yet: the directory may know of it."""
        known = self._online.get(peer_id) or self._arriving.get(peer_id)
        return None if known is None else known.presence


def _is_outdated(member: Member, old: Member) -> bool:
    return member.comes_again and member.session != old.session
