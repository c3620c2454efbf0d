"""When each of many connections wants to be woken, so that one timer is enough for all.

A connection's deadline moves with nearly every packet, mostly to later.  So an entry of the heap
stays where it is, and moves on only when its time has come.  An entry that an earlier one has
replaced is dropped then, too, or when there are too many of them.
"""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

__all__ = ["DeadlineQueue"]

T = TypeVar("T")

SPARE_ENTRIES = 64  # our choice: replaced ones that the heap may hold before it is rebuilt


class DeadlineQueue(Generic[T]):
    """Times are seconds of any clock; ``math.inf`` is never.  Items must be hashable."""

    __slots__ = ("_due", "_heap", "_pushed", "_queued")

    def __init__(self) -> None:
        self._due: dict[T, float] = {}
        self._queued: dict[T, float] = {}  # the one of an item's entries in the heap that counts
        self._heap: list[tuple[float, int, T]] = []
        self._pushed = 0

    def set(self, item: T, due: float) -> None:
        self._due[item] = due
        if due < self._queued.get(item, math.inf):
            self._push(item, due)

    def _push(self, item: T, due: float) -> None:
        if len(self._heap) > 2 * len(self._due) + SPARE_ENTRIES:
            queued = self._queued
            self._keep([entry for entry in self._heap if queued.get(entry[2]) == entry[0]])
        self._queued[item] = due
        self._pushed += 1  # makes every entry differ, so that items need no order
        heapq.heappush(self._heap, (due, self._pushed, item))

    def _keep(self, entries: list[tuple[float, int, T]]) -> None:
        heapq.heapify(entries)
        self._heap = entries

    def remove(self, item: T) -> None:
        """Nothing keeps a reference to it afterwards."""
        if self._due.pop(item, None) is not None:
            self._queued.pop(item, None)
            self._keep([entry for entry in self._heap if entry[2] is not item])

    def earliest(self) -> float:
        """No item is due before; the item itself may have moved on."""
        return self._heap[0][0] if self._heap else math.inf

    def pop_due(self, now: float) -> T | None:
        """An item that is due, the earliest first; it has no deadline until the next ``set``."""
        while self._heap and self._heap[0][0] <= now:
            at, _, item = heapq.heappop(self._heap)
            if at != self._queued.get(item):
                continue  # replaced
            del self._queued[item]
            due = self._due[item]
            if due <= now:
                self._due[item] = math.inf
                return item
            if due < math.inf:
                self._push(item, due)
        return None
