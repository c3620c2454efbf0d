"""Sets of integers that come in runs: packet numbers, stream offsets, message ids.

A set is a sorted list of half-open ranges [start, stop) that neither overlap nor touch.  What
arrives in order costs O(1), anything else a binary search.  Memory grows with the number of
ranges: whoever adds a stranger's numbers bounds it (``len``, ``pop_first``, ``drop_below``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["RangeSet"]


class RangeSet:
    """Ranges go in and come out as (start, stop), stop not included; len() counts ranges.

    A range with start >= stop is empty: adding or subtracting it changes nothing.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []  # of the same length, both ascending
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        starts, stops = self._starts, self._stops
        if start >= stop:
            return
        if not stops or start > stops[-1]:
            starts.append(start)
            stops.append(stop)
        elif start >= starts[-1]:
            if stop > stops[-1]:
                stops[-1] = stop
        else:
            first = bisect_left(stops, start)  # the first that ends at or after our start
            after = bisect_right(starts, stop)  # the first that begins after our stop
            if first < after:
                start = min(start, starts[first])
                stop = max(stop, stops[after - 1])
            starts[first:after] = [start]
            stops[first:after] = [stop]

    def subtract(self, start: int, stop: int) -> None:
        starts, stops = self._starts, self._stops
        if start >= stop:
            return
        first = bisect_right(stops, start)  # the first that ends after our start
        after = bisect_left(starts, stop)  # the first that begins at or after our stop
        if first >= after:
            return
        # What is left of the outermost two that we meet, which may be one and the same.
        left = [(starts[first], start)] if starts[first] < start else []
        if stops[after - 1] > stop:
            left.append((stop, stops[after - 1]))
        starts[first:after] = [piece[0] for piece in left]
        stops[first:after] = [piece[1] for piece in left]

    def drop_below(self, number: int) -> None:
        """Forget every number under this one."""
        if self._starts and self._starts[0] < number:
            self.subtract(self._starts[0], number)

    def pop_first(self) -> tuple[int, int]:
        """Take the lowest range out; IndexError if there is none."""
        return self._starts.pop(0), self._stops.pop(0)

    def __contains__(self, number: int) -> bool:
        return self.covers(number, number + 1)

    def covers(self, start: int, stop: int) -> bool:
        """Whether all of [start, stop) is in the set."""
        if start >= stop:
            return True
        place = bisect_right(self._starts, start) - 1
        return place >= 0 and stop <= self._stops[place]

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that are not in the set, ascending."""
        starts, stops = self._starts, self._stops
        gaps = []
        for place in range(bisect_right(stops, start), bisect_left(starts, stop)):
            if start < starts[place]:
                gaps.append((start, starts[place]))
            start = stops[place]
        if start < stop:
            gaps.append((start, stop))
        return gaps

    @property
    def largest(self) -> int:
        """The highest number in the set; IndexError if it is empty."""
        return self._stops[-1] - 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._stops, strict=True)

    def __reversed__(self) -> Iterator[tuple[int, int]]:
        return zip(reversed(self._starts), reversed(self._stops), strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"
