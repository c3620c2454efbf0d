"""What comes one by one is joined, and cut exactly where another receiver's begins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._address import Address
from kkp2p_compat.transport.udp.demultiplex import Datagrams, connection_id, joined, runs
from kkp2p_compat.transport.udp.header import OVERHEAD_BYTES

SIZE = 40
# Ids that differ in the last two bytes, as random ones do; see _all_alike.
ids = st.sampled_from([bytes(8), b"\1" * 8, bytes(7) + b"\1", bytes(6) + b"\1\0"])
heads = st.tuples(st.sampled_from([b"\x40", b"\x00", b"\x41"]), ids)


@given(st.lists(heads, min_size=1, max_size=12), st.integers(1, SIZE), st.integers(1, 2))
def test_runs(kinds: list[tuple[bytes, bytes]], last: int, repeat: int) -> None:
    kinds = [kind for kind in kinds for _ in range(repeat)]
    datagrams = [first + b"\0" * 7 + its_id + b"." * (SIZE - 16) for first, its_id in kinds]
    datagrams[-1] = datagrams[-1][:last]
    data = b"".join(datagrams)
    expected: list[list[bytes]] = []
    before = None
    for datagram in datagrams:
        kind = datagram[:1], connection_id(datagram), len(datagram) < OVERHEAD_BYTES
        if kind != before:
            expected.append([])
        expected[-1].append(datagram)
        before = kind
    assert list(runs(data, SIZE)) == [b"".join(run) for run in expected]


@given(st.binary(max_size=300), st.integers(1, 301))
def test_nothing_is_lost(data: bytes, segment_bytes: int) -> None:
    assert b"".join(runs(data, segment_bytes)) == data


def test_an_empty_datagram() -> None:
    assert list(runs(b"", 0)) == [b""]


# What can be joined.

A, B = ("192.0.2.1", 1), ("192.0.2.1", 2)


def join(received: list[Datagrams], calls: int = 99, most_bytes: int = 99) -> list[Datagrams]:
    """All turns together; a turn that ends early leaves the rest to the next."""
    left = iter([*received, None])
    done: list[Datagrams] = []
    while (first := next(left, None)) is not None:
        done += joined(lambda: next(left), first, calls, most_bytes)
    return done


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        ([(b"aa", 2, A), (b"bb", 2, A), (b"c", 1, A)], [(b"aabbc", 2, A)]),
        ([(b"aa", 2, A), (b"b", 1, A), (b"cc", 2, A)], [(b"aab", 2, A), (b"cc", 2, A)]),
        ([(b"aa", 2, A), (b"b", 1, A), (b"c", 1, A)], [(b"aab", 2, A), (b"c", 1, A)]),
        ([(b"a", 1, A), (b"bb", 2, A)], [(b"a", 1, A), (b"bb", 2, A)]),
        ([(b"aa", 2, A), (b"bb", 2, B)], [(b"aa", 2, A), (b"bb", 2, B)]),
        ([(b"aabb", 2, A), (b"ccddee", 2, A), (b"f", 1, A)], [(b"aabbccddeef", 2, A)]),
        ([(b"aab", 2, A), (b"cc", 2, A)], [(b"aab", 2, A), (b"cc", 2, A)]),
        ([(b"aaaa", 4, A), (b"bbc", 2, A)], [(b"aaaa", 4, A), (b"bbc", 2, A)]),
        ([(b"aaaa", 4, A), (b"bc", 1, A)], [(b"aaaa", 4, A), (b"bc", 1, A)]),
        ([(b"", 0, A), (b"", 0, A), (b"a", 1, A)], [(b"", 0, A), (b"", 0, A), (b"a", 1, A)]),
        ([(b"a", 1, A), (b"", 0, A), (b"b", 1, A)], [(b"a", 1, A), (b"", 0, A), (b"b", 1, A)]),
    ],
)
def test_what_is_joined(received: list[Datagrams], expected: list[Datagrams]) -> None:
    assert join(received) == expected


def test_joining_has_bounds() -> None:
    received: list[Datagrams] = [(b"aa", 2, A)] * 9
    assert join(received, calls=3) == [(b"aa" * 4, 2, A)] * 2 + [(b"aa", 2, A)]
    assert join(received, most_bytes=5) == [(b"aa" * 3, 2, A)] * 3


sizes = st.integers(0, 4)


@given(st.lists(st.tuples(sizes, st.sampled_from([A, B])), max_size=20), st.integers(0, 9))
def test_joining_keeps_order_and_counts(sent: list[tuple[int, Address]], calls: int) -> None:
    received = [(bytes([at]) * size, size, source) for at, (size, source) in enumerate(sent)]
    cut = [
        (data[start : start + size], source)
        for data, size, source in join(received, calls, 12)
        for start in range(0, max(len(data), 1), max(size, 1))
    ]
    assert cut == [(data, source) for data, _, source in received]
