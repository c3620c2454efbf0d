"""What one caller may have of the room that an engine has for all.

A *share* is an account, or the address of a caller without one.  Nobody may have more than is then
left for others: one alone gets half of all, and who comes new finds room.  A part is kept for
callers with an account, whatever strangers do.
"""

from __future__ import annotations

from collections import Counter

from ..._address import is_ip, network_of

__all__ = ["KEPT_PART", "Shares", "share_of", "stranger_at"]

KEPT_PART = 4  # our choice: one in so many places


def stranger_at(ip: object) -> str:
    """The share of a caller without an account; ``ip``: where it is, if that is known."""
    if isinstance(ip, str) and is_ip(ip):
        return f"a stranger at {network_of(ip)}"
    return "a stranger"


def share_of(most: int, has_account: bool) -> int:
    """How many places may be taken when this caller comes."""
    return most if has_account else most - most // KEPT_PART


class Shares:
    """Who has how many of one kind of thing."""

    __slots__ = ("_of", "_total")

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def has_room(self, most: int, share: str, has_account: bool) -> bool:
        """Whether this caller may have one more, where all together may have ``most``."""
        return self._of[share] < share_of(most, has_account) - self._total

    def enter(self, share: str) -> None:
        self._of[share] += 1
        self._total += 1

    def leave(self, share: str) -> None:
        """One that has entered is over."""
        self._total -= 1
        self._of[share] -= 1
        if not self._of[share]:
            del self._of[share]
