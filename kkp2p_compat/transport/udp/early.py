"""What a peer sends on a connection that we do not have yet.

Of two peers that look for a path the caller has it first.  What it then sends, the frame OPEN above
all, may overtake the check that tells us, or come while our own check is still to be answered.  If
it were dropped, it would come again only after a probe time-out: longer than all the rest of a call
over a LAN takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..._address import Address
from .demultiplex import Datagrams, key_of

__all__ = ["EarlyDatagrams"]

# Our choices, for each connection: until its channel is open, a peer sends a few small packets.
MAX_RUNS = 8
MAX_BYTES = 8192


class EarlyDatagrams:
    """Keeps what comes for the connections that are ``expected``, until their owner ``take``s it.

    ``dropped`` counts the rest.
    """

    def __init__(self, dropped: Counter[str]) -> None:
        self._dropped = dropped
        self._kept: dict[bytes, list[Datagrams]] = {}
        self._on_come: dict[bytes, Callable[[], object]] = {}

    @contextmanager
    def expected(self, local_id: int, on_come: Callable[[], object] = dict) -> Iterator[None]:
        """Inside the body a connection of this id is about to be made.

        ``on_come`` is called when something has come for it; it must not wait.
        """
        key = key_of(local_id)
        self._kept[key] = []
        self._on_come[key] = on_come
        try:
            yield
        finally:
            self._kept.pop(key, None)
            self._on_come.pop(key, None)

    def sources(self, local_id: int) -> set[Address]:
        """Where what has come is from."""
        return {address for _, _, address in self._kept.get(key_of(local_id), ())}

    def keep(self, key: bytes, data: bytes, segment_bytes: int, address: Address) -> None:
        """``key``: the id, as ``connection_id`` finds it in a packet."""
        kept = self._kept.get(key)
        if kept is None:
            self._dropped["unknown connection"] += 1
        elif len(kept) == MAX_RUNS or sum(len(run[0]) for run in kept) + len(data) > MAX_BYTES:
            self._dropped["too early"] += 1
        else:
            kept.append((data, segment_bytes, address))
            self._on_come[key]()

    def take(self, local_id: int) -> list[Datagrams]:
        """The connection is there now."""
        return self._kept.pop(key_of(local_id), [])
