"""A ``Usage`` for tests, sessions, and a directory in memory that can be away."""

from __future__ import annotations

from collections.abc import Mapping

from kkp2p_compat.cloud.directory import DirectoryAway
from kkp2p_compat.cloud.directory_local import LocalDirectory
from kkp2p_compat.cloud.usage import Payer, Sessions, Usage, tag_of

__all__ = ["CountingDirectory", "make_usage", "new_session"]


class CountingDirectory(LocalDirectory):
    """``added``: what was added, in the order of time; ``away``: whether it answers nothing."""

    def __init__(self) -> None:
        super().__init__(None)
        self.added: list[dict[tuple[str, str], int]] = []
        self.away = False

    def add_usage(self, counts: Mapping[tuple[str, str], int]) -> None:
        self._answer()
        self.added.append(dict(counts))
        super().add_usage(counts)

    def usage(self, peer_id: str, day: str | None = None) -> dict[str, int]:
        self._answer()
        return super().usage(peer_id, day)

    def _answer(self) -> None:
        if self.away:
            raise DirectoryAway("no answer")


def make_usage(key: bytes, directory: LocalDirectory | None = None) -> Usage:
    return Usage(key, directory or LocalDirectory(None))


def new_session(key: bytes) -> bytes:
    """Of an account without a quota; random bytes may stand for one that has used up its own."""
    return Sessions(key).make(Payer(tag_of("somebody")))
