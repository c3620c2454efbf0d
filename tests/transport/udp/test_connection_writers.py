"""Many writers of one connection: each has its turn, whatever the others do.

Compared are counts of bytes, never times.
"""

from __future__ import annotations

import statistics

import pytest

from helpers.sim.drive import Body, Incoming
from helpers.sim.pair import Pair, Transfer, mbit_per_s
from helpers.sim.simnet import Conditions
from kkp2p_compat._codes import KKP2P_TCP_CHANNEL
from kkp2p_compat.transport.udp.stream_table import (
    MIN_UNSENT_BYTES,
    TURN_BYTES,
    UNSENT_BYTES,
    StreamTable,
)

QUICK = Conditions(rate_bytes_per_s=mbit_per_s(2000), delay_s=0.001)
SLOW = Conditions(rate_bytes_per_s=mbit_per_s(20), delay_s=0.01)
AT_ONCE = UNSENT_BYTES // TURN_BYTES
MANY = 2 * AT_ONCE
ENDLESS = 1 << 40


def _received(transfers: list[Transfer]) -> list[int]:
    return [transfer.at_callee.received for transfer in transfers]


def _unsent(pair: Pair) -> list[int]:
    return [stream.send.unsent_bytes for stream in pair.caller.connection.streams.by_id.values()]


def _opened(pair: Pair, count: int, size: int = ENDLESS) -> list[Transfer]:
    """Channels on which nothing is written yet."""
    streams = pair.caller.connection.streams
    made = []
    for _ in range(count):
        number = streams.open(KKP2P_TCP_CHANNEL, 0, 0)
        up, down = Body(size, number), Body(0)
        transfer = Transfer(number, up, down, pair.caller.expect(number, down), Incoming(up))
        pair.transfers[number] = transfer
        made.append(transfer)
    pair.caller.drive()
    pair.run(lambda: all(streams.by_id[transfer.stream_id].opened for transfer in made))
    return made


def _write(pair: Pair, transfers: list[Transfer]) -> None:
    for transfer in transfers:
        pair.caller.send(transfer.stream_id, transfer.up, finish=False)
    pair.caller.drive()


def _all_in_line(pair: Pair) -> list[Transfer]:
    """So many that always have something to write, of which some wait for their turn by now."""
    transfers = _opened(pair, MANY)
    _write(pair, transfers)
    pair.run(lambda: len(pair.caller.connection.streams.line) >= MANY - AT_ONCE)
    pair.run(lambda: min(_received(transfers)) > 2 * TURN_BYTES)  # the first shares were unequal
    return transfers


def test_many_writers_have_long_turns_and_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair("turns", QUICK)
    transfers = _all_in_line(pair)
    written: list[int] = []
    write = StreamTable.write

    def counted(streams: StreamTable, stream_id: int, data: bytes) -> None:
        written.append(len(data))
        write(streams, stream_id, data)

    monkeypatch.setattr(StreamTable, "write", counted)
    before = _received(transfers)
    pair.run(lambda: sum(written) >= 2 * MANY * TURN_BYTES)
    assert statistics.mean(written) > 0.9 * TURN_BYTES
    assert sum(_unsent(pair)) <= UNSENT_BYTES
    got = [now - then for now, then in zip(_received(transfers), before, strict=True)]
    assert max(got) - min(got) <= 2 * TURN_BYTES


def test_few_writers_are_not_kept_waiting() -> None:
    """Each writes again before all that it wrote has left, so that the path never runs dry."""
    pair = Pair("few", QUICK)
    transfers = _opened(pair, AT_ONCE // 2)
    _write(pair, transfers)
    pair.run(lambda: min(_received(transfers)) > 4 * TURN_BYTES)
    for _ in range(100):
        pair.run(None, 0.001)
        assert min(_unsent(pair)) > 0
        assert not pair.caller.connection.streams.line


def test_a_few_bytes_do_not_wait_for_the_turns_of_many() -> None:
    pair = Pair("sparse", QUICK)
    sparse = _opened(pair, 1, 100)
    transfers = _all_in_line(pair)
    before = sum(_received(transfers))
    _write(pair, sparse)
    pair.run(lambda: _received(sparse) == [100])
    on_its_way = pair.caller.connection.path.controller.window_bytes
    assert sum(_received(transfers)) - before <= UNSENT_BYTES + on_its_way


def test_a_turn_that_is_not_used_goes_to_the_next() -> None:
    pair = Pair("unused", QUICK)
    transfers = _all_in_line(pair)
    *others, last = [
        transfer
        for transfer in transfers
        if transfer.stream_id in pair.caller.connection.streams.line
    ]
    assert len(others) >= AT_ONCE - 1  # as many as are called at once
    for transfer in transfers:  # all but one have nothing more to write
        if transfer is not last:
            del pair.caller.outgoing[transfer.stream_id]
    before = last.at_callee.received
    pair.run(lambda: last.at_callee.received >= before + 4 * TURN_BYTES)


def test_a_channel_that_ends_in_line_leaves_it() -> None:
    pair = Pair("ended", QUICK)
    transfers = _all_in_line(pair)
    streams = pair.caller.connection.streams
    waiting = [transfer for transfer in transfers if transfer.stream_id in streams.line]
    for transfer in waiting:
        del pair.caller.outgoing[transfer.stream_id]
        streams.reset(transfer.stream_id, 0)
        streams.stop(transfer.stream_id)
        pair.callee.connection.streams.reset(transfer.stream_id, 0)
    pair.caller.drive()
    pair.callee.drive()
    pair.run(lambda: not any(transfer.stream_id in streams.by_id for transfer in waiting))
    assert not any(transfer.stream_id in streams.line for transfer in waiting)


def test_on_a_slow_path_turns_are_short() -> None:
    """Or it would take long until they come round."""
    pair = Pair("slow", SLOW)
    transfers = _opened(pair, 4 * MANY)
    _write(pair, transfers)
    pair.run(lambda: min(_received(transfers)) > 2 * MIN_UNSENT_BYTES)
    assert statistics.median(_unsent(pair)) <= MIN_UNSENT_BYTES
