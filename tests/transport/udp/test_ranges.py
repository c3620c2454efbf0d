"""RangeSet against a set of integers, on random operations and at the edges."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kkp2p_compat.transport.udp.ranges import RangeSet

NUMBERS = st.integers(0, 20)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), NUMBERS, NUMBERS),
        st.tuples(st.just("add"), NUMBERS, NUMBERS),  # twice as often as what takes away
        st.tuples(st.just("subtract"), NUMBERS, NUMBERS),
        st.tuples(st.just("drop_below"), NUMBERS, st.just(0)),
        st.tuples(st.just("pop_first"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


def numbers_in(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {number for start, stop in ranges for number in range(start, stop)}


def runs(numbers: set[int]) -> list[tuple[int, int]]:
    """The slow obvious version: walk over every number."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def apply(ranges: RangeSet, numbers: set[int], operation: tuple[str, int, int]) -> set[int]:
    name, first, second = operation
    if name == "add":
        ranges.add(first, second)
        return numbers | set(range(first, second))
    if name == "subtract":
        ranges.subtract(first, second)
        return numbers - set(range(first, second))
    if name == "drop_below":
        ranges.drop_below(first)
        return {number for number in numbers if number >= first}
    if not numbers:
        with pytest.raises(IndexError):
            ranges.pop_first()
        return numbers
    start, stop = ranges.pop_first()
    assert (start, stop) == runs(numbers)[0]
    return numbers - set(range(start, stop))


@settings(max_examples=250)
@given(OPERATIONS, NUMBERS, NUMBERS)
def test_it_does_what_a_set_does(
    operations: list[tuple[str, int, int]], start: int, stop: int
) -> None:
    ranges, numbers = RangeSet(), set[int]()
    for operation in operations:
        numbers = apply(ranges, numbers, operation)
        assert list(ranges) == runs(numbers)
    assert list(reversed(ranges)) == runs(numbers)[::-1]
    assert len(ranges) == len(runs(numbers))
    assert bool(ranges) == bool(numbers)
    assert [number for number in range(-1, 22) if number in ranges] == sorted(numbers)
    asked = set(range(start, stop))
    assert ranges.covers(start, stop) == (asked <= numbers)
    assert ranges.missing(start, stop) == runs(asked - numbers)
    if numbers:
        assert ranges.largest == max(numbers)
    else:
        with pytest.raises(IndexError):
            _ = ranges.largest


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20))
def test_the_order_of_adding_does_not_matter(pieces: list[tuple[int, int]]) -> None:
    assert list(RangeSet(pieces)) == list(RangeSet(reversed(pieces)))
    assert numbers_in(RangeSet(pieces)) == numbers_in(pieces)


@pytest.mark.parametrize("order", list(itertools.permutations([(0, 3), (3, 5), (5, 9)])))
def test_ranges_that_touch_become_one(order: tuple[tuple[int, int], ...]) -> None:
    assert list(RangeSet(order)) == [(0, 9)]


def test_ranges_with_one_number_between_them_stay_apart() -> None:
    ranges = RangeSet([(0, 3), (4, 5)])
    assert list(ranges) == [(0, 3), (4, 5)]
    ranges.add(3, 4)
    assert list(ranges) == [(0, 5)]


@pytest.mark.parametrize(
    ("number", "left"),
    [
        (3, [(4, 6), (8, 9)]),
        (4, [(4, 6), (8, 9)]),
        (5, [(5, 6), (8, 9)]),
        (6, [(8, 9)]),
        (8, [(8, 9)]),
        (9, []),
    ],
)
def test_drop_below_keeps_the_number_itself(number: int, left: list[tuple[int, int]]) -> None:
    ranges = RangeSet([(4, 6), (8, 9)])
    ranges.drop_below(number)
    assert list(ranges) == left


def test_subtracting_out_of_the_middle_leaves_both_sides() -> None:
    ranges = RangeSet([(0, 10), (20, 30)])
    ranges.subtract(3, 4)
    assert list(ranges) == [(0, 3), (4, 10), (20, 30)]
    ranges.subtract(5, 25)
    assert list(ranges) == [(0, 3), (4, 5), (25, 30)]


def test_numbers_as_large_as_the_wire_has_them() -> None:
    top = 2**64 - 1
    ranges = RangeSet([(0, top)])
    assert top - 1 in ranges
    assert top not in ranges
    assert ranges.missing(top - 1, top + 1) == [(top, top + 1)]


def test_what_it_looks_like_in_a_failing_test() -> None:
    assert repr(RangeSet([(5, 6), (1, 3)])) == "RangeSet([(1, 3), (5, 6)])"
