"""Channels of one connection: many, half-closed, reset, stopped, refused, slow; and messages."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from helpers.sim.drive import Body, Incoming, Peer
from helpers.sim.pair import Pair, Transfer, mbit_per_s
from helpers.sim.simnet import Conditions
from helpers.udp_streams import held_bytes
from kkp2p_compat._codes import KKP2P_TCP_CHANNEL, KKP2P_UDP_CHANNEL
from kkp2p_compat.transport.udp import flow_control, packing, stream_table
from kkp2p_compat.transport.udp.duplex_stream import INITIAL_STREAM_WINDOW_BYTES
from kkp2p_compat.transport.udp.events import (
    ChannelOffered,
    ChannelOpened,
    ChannelRefused,
    Event,
    ResetReceived,
    Stopped,
)
from kkp2p_compat.transport.udp.flow_control import GROWTH_BYTES, SLOW_S
from kkp2p_compat.transport.udp.frames import DATAGRAM_HEADER
from kkp2p_compat.transport.udp.header import OVERHEAD_BYTES
from kkp2p_compat.transport.udp.messages import COST_BYTES, MAX_QUEUED_S, MIN_QUEUE_BYTES
from kkp2p_compat.transport.udp.packing import INITIAL_DATA_WINDOW_BYTES
from kkp2p_compat.transport.udp.stream_table import CLOGGED_S, EARLY_BYTES

FAST = Conditions(rate_bytes_per_s=mbit_per_s(100), delay_s=0.005)
LOSSY = Conditions(
    rate_bytes_per_s=mbit_per_s(100), delay_s=0.005, loss=0.05, reorder=0.05, reorder_s=0.01
)
LONG = Conditions(rate_bytes_per_s=mbit_per_s(1000), delay_s=0.025)
BOTH = pytest.mark.parametrize("path", [FAST, LOSSY], ids=["clean", "lossy"])
MIB = 1024 * 1024


def _events(peer: Peer, kind: type[Event]) -> list[Event]:
    return [event for event in peer.events if isinstance(event, kind)]


def _nothing_left(pair: Pair) -> None:
    pair.run(
        lambda: (
            not pair.caller.connection.streams.by_id and not pair.callee.connection.streams.by_id
        )
    )
    pair.finish()


@BOTH
def test_bytes_that_go_along_with_open(path: Conditions) -> None:
    """Sent, lost and repeated as one: none comes before the channel that it is of."""
    pair = Pair("early", path)
    sizes = (1, EARLY_BYTES, EARLY_BYTES + 1, 20_000) * 25
    transfers = [pair.start(size, 500, early=min(size, EARLY_BYTES)) for size in sizes]
    pair.run(lambda: all(transfer.done for transfer in transfers), 120)
    _nothing_left(pair)


def test_that_a_request_has_arrived_is_known_before_its_answer() -> None:
    pair = Pair("asked", LONG)
    offers: list[int] = []
    pair.callee.on_offer = lambda offer: offers.append(offer.stream_id)
    stream_id = pair.caller.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    pair.caller.drive()
    stream = pair.caller.connection.streams.by_id[stream_id]
    pair.run(lambda: bool(offers), 10)
    assert not stream.has_arrived
    pair.run(lambda: stream.has_arrived, 10)
    assert not stream.opened


def test_they_save_a_round_trip() -> None:
    pair = Pair("early", LONG)
    pair.transfer(100_000)
    took_s = []
    for early in (0, 100):
        transfer = pair.start(100, early=early)
        took_s.append(pair.run(lambda arriving=transfer.at_callee: arriving.received == 100, 10))
        pair.run(lambda made=transfer: made.done, 10)
    assert took_s[0] - took_s[1] == pytest.approx(2 * LONG.delay_s, abs=0.005)
    _nothing_left(pair)


def test_they_need_credit_as_all_bytes_do() -> None:
    pair = Pair()
    streams, packer = pair.caller.connection.streams, pair.caller.connection.packer
    packer.max_data = 99
    opened = [streams.open(KKP2P_TCP_CHANNEL, 0, 0, bytes(count)) for count in (100, 60, 40)]
    assert [streams.sent_bytes(stream_id) for stream_id in opened] == [0, 60, 0]


def test_a_refused_channel_takes_them_with_it() -> None:
    pair = Pair()
    callee = pair.callee.connection.streams
    pair.callee.on_offer = lambda offer: callee.refuse(offer.stream_id, 1)
    pair.caller.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0, b"x" * EARLY_BYTES)
    pair.caller.drive()
    pair.run(lambda: _events(pair.caller, ChannelRefused), 10)
    _nothing_left(pair)


@pytest.mark.parametrize("too_many", [False, True])
def test_refused_channels_use_up_no_credit(monkeypatch: pytest.MonkeyPatch, too_many: bool) -> None:
    window = 40 * EARLY_BYTES
    for module in packing, stream_table:
        monkeypatch.setattr(module, "INITIAL_DATA_WINDOW_BYTES", window)
    monkeypatch.setattr(flow_control, "MAX_UNTAKEN_BYTES", window)
    pair = Pair(max_data_window_bytes=window)
    callee = pair.callee
    callee.on_offer = lambda offer: callee.connection.streams.refuse(offer.stream_id, 1)
    with monkeypatch.context() as patch:
        if too_many:
            patch.setattr(stream_table, "MAX_CHANNELS", 0)
        streams = pair.caller.connection.streams
        for count in range(1, 101):
            stream_id = streams.open(KKP2P_TCP_CHANNEL, 0, 0, b"x" * EARLY_BYTES)
            assert streams.sent_bytes(stream_id) == EARLY_BYTES
            pair.caller.drive()
            pair.run(lambda count=count: len(_events(pair.caller, ChannelRefused)) == count, 10)
    assert pair.caller.connection.packer.data_credit >= window // 2
    _nothing_left(pair)


@BOTH
def test_many_channels_at_once(path: Conditions) -> None:
    pair = Pair("many", path)
    transfers = [pair.start(3000 * number, 50_000 - 1000 * number) for number in range(50)]
    pair.run(lambda: all(transfer.done for transfer in transfers), 120)
    assert len(_events(pair.caller, ChannelOpened)) == 50
    _nothing_left(pair)


@BOTH
def test_both_sides_open_channels(path: Conditions) -> None:
    pair = Pair("both", path)
    body = Body(200_000, 5)
    readers: list[Incoming] = []

    def take(offer: ChannelOffered) -> None:
        assert (offer.channel_type, offer.encrypt_data, offer.desc) == (KKP2P_TCP_CHANNEL, 1, -7)
        pair.caller.connection.streams.accept(offer.stream_id)
        readers.append(pair.caller.expect(offer.stream_id, body))
        pair.caller.send(offer.stream_id, Body(0))

    pair.caller.on_offer = take
    forth = pair.start(200_000)
    back = pair.callee.connection.streams.open(KKP2P_TCP_CHANNEL, 1, -7)
    pair.callee.send(back, body)
    pair.callee.expect(back, Body(0))
    pair.callee.drive()
    pair.run(lambda: forth.done and readers and readers[0].done)
    assert {forth.stream_id % 2, back % 2} == {0, 1}
    _nothing_left(pair)


@BOTH
def test_an_answer_after_the_end_of_the_question(path: Conditions) -> None:
    pair = Pair("half-close", path)
    question, answer = Body(30_000, 1), Body(700_000, 2)

    def take(offer: ChannelOffered) -> None:
        pair.callee.connection.streams.accept(offer.stream_id)
        pair.callee.expect(offer.stream_id, question)

    pair.callee.on_offer = take
    stream_id = pair.caller.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    pair.caller.send(stream_id, question)
    reader = pair.caller.expect(stream_id, answer)
    pair.caller.drive()
    pair.run(lambda: stream_id in pair.callee.incoming and pair.callee.incoming[stream_id].done)
    pair.run(None, 1.0)
    assert reader.received == 0
    pair.callee.send(stream_id, answer)
    pair.callee.drive()
    pair.run(lambda: reader.done)
    _nothing_left(pair)


def _midway(pair: Pair, size: int) -> Transfer:
    """A transfer of which about half has arrived."""
    transfer = pair.start(size, 1000)
    pair.run(lambda: transfer.at_callee.received >= size // 2)
    return transfer


@BOTH
def test_a_reset_is_told_with_its_reason_and_costs_no_credit(path: Conditions) -> None:
    pair = Pair("reset", path)
    for _ in range(8):
        transfer = _midway(pair, 4_000_000)  # more than can be on its way
        pair.caller.outgoing.clear()
        pair.caller.connection.streams.reset(transfer.stream_id, 9)
        pair.caller.drive()
        pair.run(lambda transfer=transfer: transfer.at_callee.reset_reason == 9)
        assert not transfer.at_callee.ended
    pair.transfer(2 * MIB)
    assert len(_events(pair.callee, ResetReceived)) == 8
    _nothing_left(pair)


@BOTH
def test_a_reset_after_all_that_was_written_has_arrived_is_no_clean_end(path: Conditions) -> None:
    pair = Pair("late reset", path)
    pair.callee.on_offer = lambda offer: pair.callee.connection.streams.accept(offer.stream_id)
    stream_id = pair.caller.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    reader = pair.callee.expect(stream_id, Body(10_000))
    pair.caller.send(stream_id, Body(5_000), finish=False)
    pair.caller.drive()
    pair.run(lambda: reader.received == 5_000)
    pair.caller.connection.streams.reset(stream_id, 3)
    pair.caller.drive()
    pair.run(lambda: reader.reset_reason == 3)


@BOTH
def test_a_stop_ends_the_writer_and_costs_no_credit(path: Conditions) -> None:
    pair = Pair("stop", path)
    for count in range(1, 9):
        transfer = _midway(pair, 4_000_000)  # more than can be on its way when it stops
        pair.callee.connection.streams.stop(transfer.stream_id)
        pair.callee.incoming.pop(transfer.stream_id)
        pair.callee.drive()
        pair.run(lambda count=count: len(_events(pair.caller, Stopped)) == count)
        pair.run(lambda transfer=transfer: transfer.at_caller.done)  # the other half lives on
    pair.transfer(2 * MIB)
    _nothing_left(pair)


@BOTH
def test_refused_channels_cost_no_credit(path: Conditions) -> None:
    pair = Pair("refuse", path)
    accept = pair.callee.on_offer
    for count in range(1, 9):
        pair.callee.on_offer = lambda offer: pair.callee.connection.streams.refuse(
            offer.stream_id, 2
        )
        pair.start(600_000)
        pair.run(lambda count=count: len(_events(pair.caller, ChannelRefused)) == count)
        pair.caller.outgoing.clear()
    assert _events(pair.caller, ChannelRefused)[0].reason == 2  # type: ignore[union-attr]
    pair.callee.on_offer = accept
    pair.transfer(2 * MIB)
    _nothing_left(pair)


@pytest.mark.parametrize("lost", [{0}, {1}, {0, 1, 2}, {2, 4, 6}, {0, 1, 2, 3, 4, 5, 6, 7}])
@pytest.mark.parametrize("size", [10, 3000, 100_000])
def test_the_first_packets_may_be_lost(size: int, lost: set[int]) -> None:
    pair = Pair("first", FAST)
    seen: list[bytes] = []

    def some(packet: bytes) -> list[bytes]:
        seen.append(packet)
        return [] if len(seen) - 1 in lost else [packet]

    pair.there.filter = some
    pair.transfer(size, size)
    _nothing_left(pair)


def test_a_reader_that_does_not_read_costs_its_window_and_no_more() -> None:
    window = 2 * MIB
    pair = Pair("paused", FAST, max_stream_window_bytes=window)
    pair.transfer(4 * MIB)  # so that the windows have grown
    pair.reading = {"paused": True}
    transfer = pair.start(3 * window)
    writer = pair.caller.outgoing[transfer.stream_id]
    pair.run(None, 60)  # longer than the idle time-out
    assert 0 < writer.written <= window + MIB
    pair.reading = {}
    pair.transfer(2 * MIB)  # another channel goes on
    pair.callee.resume(transfer.stream_id)
    pair.run(lambda: transfer.done)
    _nothing_left(pair)


def test_a_new_limit_is_told_although_the_peer_has_stopped_to_read() -> None:
    """Its STOP comes between the application's read and the packet that would tell."""
    pair = Pair("stop", FAST)
    pair.reading = {"paused": True}
    transfer = pair.start(*[4 * INITIAL_STREAM_WINDOW_BYTES] * 2)
    transfer.at_caller.paused = True
    pair.run(None, 5)
    number, callee, reader = transfer.stream_id, pair.callee.connection, transfer.at_callee
    data = b"".join(callee.streams.peek(number))
    callee.streams.consume(number, len(data))  # nothing is sent before the next datagram comes
    reader.received += len(data)
    reader.paused = False
    pair.caller.connection.streams.stop(number)
    pair.caller.drive()
    pair.run(lambda: reader.done, 60)
    _nothing_left(pair)


def test_many_readers_that_do_not_read_leave_room_for_one_that_does() -> None:
    pair = Pair("many paused", FAST)
    pair.reading = {"paused": True}
    paused = [pair.start(3 * MIB) for _ in range(8)]
    pair.run(None, 5)
    pair.reading = {}
    pair.transfer(2 * MIB)
    for transfer in paused:
        pair.callee.resume(transfer.stream_id)
    pair.run(lambda: all(transfer.done for transfer in paused))
    _nothing_left(pair)


@pytest.mark.parametrize(("count", "read", "rest"), [(6, 12 * MIB, 20 * MIB), (40, MIB, 2 * MIB)])
def test_readers_that_stop_do_not_stop_the_others(count: int, read: int, rest: int) -> None:
    """They had read fast on a long path, so that their windows had grown; then they stop, one after
    the other, and their writers fill what the windows let through."""
    pair = Pair("stop", LONG)
    body, echo = Body(MIB, 3), []
    start = pair.callee.on_offer

    def take(offer: ChannelOffered) -> None:
        if offer.stream_id != number:
            start(offer)
            return
        pair.callee.connection.streams.accept(number)
        echo.append(pair.callee.expect(number, body))

    pair.callee.on_offer = take
    number = pair.caller.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    pair.caller.drive()
    paused = []
    for _ in range(count):
        paused.append(transfer := pair.start(read + rest))
        reader = transfer.at_callee
        pair.run(lambda reader=reader: reader.received >= read, 30)
        reader.paused = True
    pair.run(None, 10)
    streams = pair.callee.connection.streams.by_id.values()
    held = [held_bytes(stream.receive) for stream in streams]
    assert sum(held) <= GROWTH_BYTES + count * INITIAL_STREAM_WINDOW_BYTES
    assert max(held) >= MIB
    for offset in range(0, MIB, 1 << 16):
        pair.caller.connection.streams.write(number, body.piece(offset, 1 << 16))
        pair.caller.drive()
        pair.run(lambda stop=offset + (1 << 16): echo[0].received == stop, 2)
    for transfer in paused:
        pair.callee.resume(transfer.stream_id)
    pair.run(lambda: all(transfer.done for transfer in paused))


def test_a_stream_that_does_nothing_gives_its_window_to_one_that_needs_it() -> None:
    pair = Pair("idle", LONG)
    body, readers = Body(100 * MIB, 3), {}

    def take(offer: ChannelOffered) -> None:
        pair.callee.connection.streams.accept(offer.stream_id)
        readers[offer.stream_id] = pair.callee.expect(offer.stream_id, body)

    pair.callee.on_offer = take
    windows = []
    for _ in range(6):
        number = pair.caller.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
        pair.caller.send(number, Body(12 * MIB, 3), finish=False)
        pair.caller.drive()
        pair.run(lambda number=number: number in readers and readers[number].received == 12 * MIB)
        pair.run(None, 2 * SLOW_S)
        windows.append(pair.callee.connection.streams.by_id[number].receive.window)
    assert windows[-1].bytes >= 4 * MIB


def test_more_writers_than_the_credit_of_all_together_is_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow_control, "MAX_UNTAKEN_BYTES", 0)
    pair = Pair("credit", FAST)
    pair.reading = {"paused": True}
    transfers = [pair.start(8000) for _ in range(sys.getrecursionlimit() + 1000)]
    pair.run(None, 5)
    assert not pair.caller.connection.packer.data_credit
    for transfer in transfers:
        pair.callee.resume(transfer.stream_id)
    pair.run(lambda: all(transfer.done for transfer in transfers))
    _nothing_left(pair)


def test_too_much_that_nobody_reads_clogs_the_connection_of_the_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_table, "MAX_UNTAKEN_BYTES", 2 * INITIAL_STREAM_WINDOW_BYTES)
    pair = Pair("clogged", FAST)
    caller, callee = pair.caller.connection, pair.callee.connection
    pair.reading = {"paused": True}
    transfers = [pair.start(INITIAL_STREAM_WINDOW_BYTES)]
    pair.run(None, 5)
    assert not callee.streams.clogged(pair.network.now)  # exactly half of what it may hold
    transfers.append(pair.start(1))
    pair.run(None, 5)
    assert callee.streams.clogged(pair.network.now)
    assert not caller.streams.clogged(pair.network.now)
    for transfer in transfers:
        pair.callee.resume(transfer.stream_id)
    pair.run(lambda: all(transfer.done for transfer in transfers))
    assert not callee.streams.clogged(pair.network.now)


def test_no_credit_for_long_clogs_the_connection_of_the_writer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow_control, "MAX_UNTAKEN_BYTES", 0)
    pair = Pair("starved", FAST)
    caller = pair.caller.connection
    pair.reading = {"paused": True}
    count = INITIAL_DATA_WINDOW_BYTES // INITIAL_STREAM_WINDOW_BYTES + 1
    made_at = pair.network.now  # and since then no credit has come
    transfers = [pair.start(INITIAL_STREAM_WINDOW_BYTES) for _ in range(count)]
    pair.run(lambda: not caller.packer.data_credit)
    assert not caller.streams.clogged(made_at + CLOGGED_S)
    assert caller.streams.clogged(made_at + CLOGGED_S + 0.001)
    for transfer in transfers:
        pair.callee.resume(transfer.stream_id)
    pair.run(lambda: all(transfer.done for transfer in transfers))
    assert not caller.streams.clogged(pair.network.now)


@BOTH
def test_a_slow_reader_slows_the_writer_down(path: Conditions) -> None:
    pair = Pair("slow", path)
    pair.reading = {"take_bytes": 100_000, "every_s": 0.2}
    transfer = pair.start(3 * MIB)
    writer, ahead = pair.caller.outgoing[transfer.stream_id], 0
    while not transfer.done:
        pair.run(None, 0.05)
        ahead = max(ahead, writer.written - transfer.at_callee.received)
        assert pair.network.now < 1000 + 30
    # The first window (1 MiB), and what waits to be sent (1 MiB): nothing made them grow.
    assert ahead <= 2 * MIB
    assert pair.network.now >= 1000 + 5
    _nothing_left(pair)


def _message_channel(pair: Pair) -> int:
    pair.callee.on_offer = lambda offer: pair.callee.connection.streams.accept(offer.stream_id)
    stream_id = pair.caller.connection.streams.open(KKP2P_UDP_CHANNEL, 0, 0)
    pair.caller.drive()
    pair.run(lambda: _events(pair.caller, ChannelOpened))
    return stream_id


MESSAGE_SIZES = [0, 1, 1000, 1127, 1128, 1500, 3000, 20_000, 65_535, 65_536]


def test_messages_arrive_whole_and_with_their_boundaries() -> None:
    pair = Pair("messages", FAST)
    stream_id = _message_channel(pair)
    sent = [Body(size, size).piece(0, size) for size in MESSAGE_SIZES]
    for message in sent:
        pair.caller.connection.streams.send_message(stream_id, message)
        pair.caller.drive()
    pair.run(lambda: len(pair.callee.messages) == len(sent))
    assert pair.callee.messages == sent


@pytest.mark.parametrize("size", [1, 1000, 1500, 9000])
def test_a_first_message_goes_along_with_open(size: int) -> None:
    """It is there half a round trip after it was sent, not one and a half."""
    pair = Pair("first message", LONG)
    pair.transfer(100_000)
    callee = pair.callee.connection.streams
    pair.callee.on_offer = lambda offer: callee.accept(offer.stream_id)
    message = Body(size, size).piece(0, size)
    stream_id = pair.caller.connection.streams.open(KKP2P_UDP_CHANNEL, 0, 0, message)
    pair.caller.drive()
    assert pair.run(lambda: pair.callee.messages, 10) < 1.5 * LONG.delay_s
    assert pair.callee.messages == [message]
    pair.run(lambda: _events(pair.caller, ChannelOpened), 10)
    _nothing_left_of_messages(pair, stream_id)


def test_a_first_message_of_a_refused_channel_leaves_nothing() -> None:
    pair = Pair()
    callee = pair.callee.connection.streams
    pair.callee.on_offer = lambda offer: callee.refuse(offer.stream_id, 1)
    pair.caller.connection.streams.open(KKP2P_UDP_CHANNEL, 0, 0, b"hello")
    pair.caller.drive()
    pair.run(lambda: _events(pair.caller, ChannelRefused), 10)
    _nothing_left(pair)


def test_messages_on_a_bad_path_arrive_whole_or_not_at_all_and_once() -> None:
    path = Conditions(loss=0.1, duplicate=0.2, reorder=0.2, reorder_s=0.02, corrupt=0.02)
    pair = Pair("bad messages", path)
    stream_id = _message_channel(pair)
    sent = []
    for number in range(300):
        size = MESSAGE_SIZES[number % 8]
        message = number.to_bytes(2, "big") + Body(size, number).piece(0, size)
        sent.append(message)
        pair.caller.connection.streams.send_message(stream_id, message)
        pair.caller.drive()
        pair.run(None, 0.01)
    pair.run(None, 2.0)
    received = pair.callee.messages
    assert len(received) == len(set(received))
    assert set(received) <= set(sent)
    assert 100 < len(received) < 300  # nothing is repeated, so some are missing


def test_messages_that_the_path_cannot_carry_make_room_for_newer_ones() -> None:
    pair = Pair("too many", Conditions(rate_bytes_per_s=mbit_per_s(10), delay_s=0.01))
    stream_id = _message_channel(pair)
    timely = pair.caller.connection.packer.pacing_bytes_per_s * MAX_QUEUED_S
    for number in range(5000):
        pair.caller.connection.streams.send_message(stream_id, number.to_bytes(1000, "big"))
    pair.caller.drive()
    pair.run(None, 10.0)
    numbers = [int.from_bytes(message, "big") for message in pair.callee.messages]
    assert numbers[-1] == 4999
    limit = max(timely, MIN_QUEUE_BYTES) // (1000 + DATAGRAM_HEADER.size + COST_BYTES)
    assert limit * 0.8 < len(numbers) <= limit + 100
    _nothing_left_of_messages(pair, stream_id)


def test_messages_do_not_wait_for_long_where_there_are_too_many() -> None:
    """Three times what the path carries: the rest is lost at once, not after a second."""
    rate = mbit_per_s(10)
    pair = Pair("late", Conditions(rate_bytes_per_s=rate, delay_s=0.01, queue_bytes=32 << 10))
    pair.transfer(2_000_000)  # by now the rate is known
    stream_id = _message_channel(pair)
    sent_at, late_s = [], []
    size, pause_s = 1000, 1000 / (3 * rate)
    for number in range(3000):
        pair.caller.connection.streams.send_message(stream_id, number.to_bytes(size, "big"))
        sent_at.append(number * pause_s)
        pair.caller.drive()
        pair.run(None, pause_s)
        for message in pair.callee.messages:
            late_s.append((number + 1) * pause_s - sent_at[int.from_bytes(message, "big")])
        pair.callee.messages.clear()
    assert len(late_s) > 800
    assert max(late_s) < 2 * MAX_QUEUED_S
    _nothing_left_of_messages(pair, stream_id)


def test_a_flood_of_messages_leaves_another_channel_alone() -> None:
    """A game beside four times what the path carries: its 60 messages a second arrive, and soon."""
    pair = Pair("flood", Conditions(rate_bytes_per_s=mbit_per_s(10), delay_s=0.01))
    pair.transfer(2_000_000)
    flood, game = _message_channel(pair), _message_channel(pair)
    streams = pair.caller.connection.streams
    late = []  # by how many of them
    for number in range(240):
        for _ in range(80):
            streams.send_message(flood, bytes(1100))
        streams.send_message(game, number.to_bytes(60, "big"))
        pair.caller.drive()
        pair.run(None, 1 / 60)
        mine = [message for message in pair.callee.messages if len(message) == 60]
        late += [number - int.from_bytes(message, "big") for message in mine]
        pair.callee.messages.clear()
    assert len(late) >= 230
    assert sorted(late)[len(late) // 2] <= 2
    assert max(late) <= 10
    pair.run(None, 1.0)
    for stream_id in (flood, game):
        for peer in (pair.caller, pair.callee):
            peer.connection.streams.finish(stream_id)
            peer.expect(stream_id, Body(0))
            peer.drive()
    _nothing_left(pair)


def test_messages_that_fill_every_packet_leave_room_for_a_stream() -> None:
    pair = Pair("flood", replace(FAST, rate_bytes_per_s=mbit_per_s(20)))
    stream_id = _message_channel(pair)
    pair.run(None, 3)
    connection = pair.caller.connection
    message = bytes(connection.path.mtu.size - OVERHEAD_BYTES - DATAGRAM_HEADER.size)
    other = connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    reader = pair.callee.expect(other, Body(10 * 300))
    for number in range(10):
        connection.streams.write(other, reader.body.piece(300 * number, 300))
        for _ in range(50):
            while connection.packer.messages.waiting_bytes < MIN_QUEUE_BYTES - 10_000:
                connection.streams.send_message(stream_id, message)
            pair.caller.drive()
            pair.run(None, 0.005)
        assert reader.received == 300 * (number + 1)


def _nothing_left_of_messages(pair: Pair, stream_id: int) -> None:
    for peer in (pair.caller, pair.callee):
        peer.connection.streams.finish(stream_id)
        peer.expect(stream_id, Body(0))
        peer.drive()
    _nothing_left(pair)


def test_a_message_that_is_too_large_or_on_the_wrong_channel_is_the_callers_fault() -> None:
    pair = Pair("wrong", FAST)
    stream_id = _message_channel(pair)
    with pytest.raises(ValueError, match="65"):
        pair.caller.connection.streams.send_message(stream_id, bytes(65_537))
    stream = pair.caller.connection.streams.open(KKP2P_TCP_CHANNEL, 0, 0)
    with pytest.raises(ValueError, match="not a UDP channel"):
        pair.caller.connection.streams.send_message(stream, b"x")
