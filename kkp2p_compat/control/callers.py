"""Who may call a peer: anybody, those who have logged in, or the ids of a list.

The peer tells its track with its login, and the track refuses a call before anything of it reaches
the peer.  The peer's engine judges by the same rule, as an old track knows nothing of it.
"""

from __future__ import annotations

from typing import NamedTuple

from .._errors import BadPacket
from .._peer_id import is_peer_id

__all__ = ["ANYBODY", "MAX_CHARS", "MAX_TOLD_CHARS", "NOBODY", "Callers", "told"]

MAX_CHARS = 65_536  # our choice: 2,000 ids of full length
# docs/protocol.rst: of a login, which is a stranger's line until it is proved.
MAX_TOLD_CHARS = 2048


class Callers(NamedTuple):
    """``listed``: the ids that may call; None: every caller that has logged in."""

    strangers: bool
    listed: frozenset[str] | None = None

    @classmethod
    def parse_untrusted(cls, text: str | None, longest: int = MAX_CHARS) -> Callers:
        """ "anybody" or None, "accounts", or ids joined with commas; BadPacket if it is neither."""
        if text is None or text == "anybody":
            return ANYBODY
        if text == "accounts":
            return cls(strangers=False)
        if not isinstance(text, str) or len(text) > longest:
            raise BadPacket(f"callers is not a text of at most {longest} characters")
        ids = text.split(",")
        if not all(map(is_peer_id, ids)):
            raise BadPacket('callers is neither "anybody" nor "accounts", nor peer ids and commas')
        return cls(strangers=False, listed=frozenset(ids))

    def allow(self, peer_id: str | None) -> bool:
        """Whether this caller may call; None or "": it has not logged in."""
        if not peer_id:
            return self.strangers
        return self.listed is None or peer_id in self.listed

    def __and__(self, other: Callers) -> Callers:
        """Those whom both allow."""
        lists = [listed for listed in (self.listed, other.listed) if listed is not None]
        return Callers(
            self.strangers and other.strangers, frozenset.intersection(*lists) if lists else None
        )


ANYBODY = Callers(strangers=True)
NOBODY = Callers(strangers=False, listed=frozenset())


def told(text: str | None) -> str | None:
    """What a login tells the track.  By a list that is too long for that only the engine judges."""
    return "accounts" if text is not None and len(text) > MAX_TOLD_CHARS else text
