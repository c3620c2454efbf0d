"""Joined datagrams are cut exactly where another receiver's begins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat.transport.udp.demultiplex import connection_id, runs
from kkp2p_compat.transport.udp.protection import OVERHEAD_BYTES

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
