"""What a peer sends before we have the connection that it is for."""

from __future__ import annotations

from collections import Counter

import pytest

from helpers.endpoint_support import added, make, ours, packet, send, stranger
from kkp2p_compat.transport.udp import early
from kkp2p_compat.transport.udp.batch_socket import BatchSocket
from kkp2p_compat.transport.udp.demultiplex import key_of
from kkp2p_compat.transport.udp.early import EarlyDatagrams
from kkp2p_compat.transport.udp.endpoint import Endpoint

__all__ = ["make", "ours", "stranger"]

SOURCE = "192.0.2.1", 4000


@pytest.fixture
def dropped() -> Counter[str]:
    return Counter()


@pytest.fixture
def kept(dropped: Counter[str]) -> EarlyDatagrams:
    return EarlyDatagrams(dropped)


def test_it_is_kept_in_order_until_it_is_taken(kept: EarlyDatagrams, dropped: Counter[str]) -> None:
    with kept.expected(7):
        kept.keep(key_of(7), b"first", 5, SOURCE)
        kept.keep(key_of(8), b"of another", 10, SOURCE)
        kept.keep(key_of(7), b"second, joined", 7, SOURCE)
        assert kept.take(7) == [(b"first", 5, SOURCE), (b"second, joined", 7, SOURCE)]
        kept.keep(key_of(7), b"too late", 8, SOURCE)
        assert kept.take(7) == []
    assert dropped == {"unknown connection": 2}


def test_nothing_stays_when_there_is_no_connection_in_the_end(
    kept: EarlyDatagrams, dropped: Counter[str]
) -> None:
    with kept.expected(7):
        kept.keep(key_of(7), b"first", 5, SOURCE)
    kept.keep(key_of(7), b"second", 6, SOURCE)
    assert kept.take(7) == []
    assert dropped == {"unknown connection": 1}


def test_a_peer_makes_us_keep_little(kept: EarlyDatagrams, dropped: Counter[str]) -> None:
    with kept.expected(7), kept.expected(8):
        for _ in range(early.MAX_RUNS + 3):
            kept.keep(key_of(7), b"small", 5, SOURCE)
        kept.keep(key_of(8), bytes(early.MAX_BYTES), 1200, SOURCE)
        kept.keep(key_of(8), b"x", 1, SOURCE)
        assert len(kept.take(7)) == early.MAX_RUNS
        assert kept.take(8) == [(bytes(early.MAX_BYTES), 1200, SOURCE)]
    assert dropped == {"too early": 4}


def test_an_endpoint_keeps_what_is_expected(ours: Endpoint, stranger: BatchSocket) -> None:
    first, second, end = packet(1, b"first"), packet(1, b"second"), packet(2, b"end")
    other = added(ours, 2)
    with ours.early.expected(1):
        send(stranger, ours, first)
        send(stranger, ours, packet(3, b"nobody's"), second, end)
        other.connection.wait_for(lambda: other.connection.received)
        runs = ours.early.take(1)
    assert b"".join(data for data, _, _ in runs) == first + second
    assert {source for _, _, source in runs} == {("127.0.0.1", stranger.port)}
    assert ours.dropped == {"unknown connection": 1}
