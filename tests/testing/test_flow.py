"""Numbered flows: what was lost, repeated, reordered or damaged, and the longest pause."""

from __future__ import annotations

import pytest

from kkp2p_compat.testing.flow import Arrivals, records

SIZE = 24


def counts(arrivals: Arrivals, sent: int) -> tuple[int, int, int, int, int]:
    return (
        arrivals.received,
        arrivals.lost(sent),
        arrivals.repeated,
        arrivals.reordered,
        arrivals.wrong,
    )


@pytest.mark.parametrize("step", [1, 7, 24, 25, 1000])
def test_a_stream_however_it_is_cut(step: int) -> None:
    data = records(0, 20, SIZE)
    arrivals = Arrivals(SIZE, 0.0)
    for start in range(0, len(data), step):
        arrivals.take(data[start : start + step], 0.0)
    assert counts(arrivals, 20) == (20, 0, 0, 0, 0)
    assert arrivals.bytes == len(data)


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (records(0, 5, SIZE) + records(7, 3, SIZE), (8, 2, 0, 0, 0)),
        (records(0, 5, SIZE) + records(3, 7, SIZE), (10, 0, 2, 0, 0)),
        (records(0, 9, SIZE), (9, 1, 0, 0, 0)),
        (records(0, 5, SIZE) + b"x" + records(6, 4, SIZE)[1:] + bytes(SIZE), (8, 2, 1, 0, 1)),
    ],
    ids=["a piece is missing", "a piece comes twice", "the end is missing", "one byte is wrong"],
)
def test_a_stream_that_is_not_what_was_sent(
    data: bytes, expected: tuple[int, int, int, int, int], step: int
) -> None:
    arrivals = Arrivals(SIZE, 0.0)
    for start in range(0, len(data), step):
        arrivals.take(data[start : start + step], 0.0)
    assert counts(arrivals, 10) == expected


def test_messages() -> None:
    arrivals = Arrivals(SIZE, 0.0)
    for number in (0, 1, 4, 2, 2, 6):
        arrivals.take_message(records(number, 1, SIZE), 0.0)
    assert counts(arrivals, 8) == (5, 3, 1, 1, 0)  # 3, 5 and 7 have not come
    for wrong in (
        b"",
        records(3, 1, SIZE)[:-1],
        records(3, 2, SIZE),
        records(5, 1, SIZE)[:-1] + b"x",
    ):
        arrivals.take_message(wrong, 0.0)
    assert counts(arrivals, 8) == (5, 3, 1, 1, 4)


def test_the_longest_pause() -> None:
    arrivals = Arrivals(SIZE, 10.0)
    for at in (10.5, 10.6, 11.5, 11.7):
        arrivals.take(b"x", at)
    assert arrivals.pause(11.8) == (pytest.approx(0.9), 11.5)
    arrivals.take_message(b"x", 12.0)
    assert arrivals.pause(12.1) == (pytest.approx(0.3), 12.0)  # all of it, though asked meanwhile
    assert arrivals.pause(14.0) == (pytest.approx(2.0), 14.0)  # goes on
