"""The checks of all calls of an engine: which call a datagram belongs to, and if it is genuine.

A request finds its call by the first half of USERNAME, an answer by the start of its transaction
id, so thousands of calls cost a datagram no more than one.  What is not authentic gets no answer
and changes nothing; drops are counted by reason.
"""

from __future__ import annotations

from collections import Counter

from .._address import Address
from .._errors import BadPacket
from .checks import Checks
from .credentials import UFRAG_BYTES
from .stun import Kind, Message, parse_untrusted

__all__ = ["CheckTable"]


class CheckTable:
    """``add`` the checks of a call before polling them, ``remove`` them when they are done."""

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        self._by_ufrag: dict[str, Checks] = {}
        self._by_tag: dict[bytes, Checks] = {}

    def __len__(self) -> int:
        return len(self._by_ufrag)

    def add(self, checks: Checks) -> None:
        if self._by_ufrag.setdefault(checks.local.ufrag, checks) is not checks:
            raise ValueError("the same credentials serve another call")
        self._by_tag[checks.local.tag] = checks

    def remove(self, checks: Checks) -> None:
        """Does nothing if they are not in the table."""
        if self._by_ufrag.get(checks.local.ufrag) is checks:
            del self._by_ufrag[checks.local.ufrag]
            del self._by_tag[checks.local.tag]

    def handle_datagram_untrusted(self, data: bytes, source: Address, now: float) -> Checks | None:
        """The checks that took the datagram: poll them, look at what they selected.

        None if it was dropped.  Raises nothing.
        """
        try:
            message = parse_untrusted(data)
        except BadPacket as error:
            self.drops[str(error)] += 1
            return None
        checks, reason = self._find(message)
        if checks is not None:
            reason = checks.handle_message(message, source, now) or ""
        if reason:
            self.drops[reason] += 1
            return None
        return checks

    def _find(self, message: Message) -> tuple[Checks | None, str]:
        """Whose it is, or why it is nobody's."""
        if not message.has_fingerprint:
            return None, "no fingerprint"
        if message.kind is Kind.REQUEST:
            checks = self._by_ufrag.get((message.username or "").partition(":")[0])
            if checks is None:
                return None, "a request to no call"
            if message.username != f"{checks.local.ufrag}:{checks.remote.ufrag}":
                return None, "a request from another peer"
            key = checks.local.key
        else:
            checks = self._by_tag.get(message.transaction_id[:UFRAG_BYTES])
            if checks is None:
                return None, "an answer to no call"
            key = checks.remote.key
        return (checks, "") if message.verify(key) else (None, "a wrong key")
