"""A stream arrives whole whatever order, overlap, repetition and loss its pieces meet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.udp_streams import held_bytes
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.transport.udp.flow_control import (
    GROWTH_BYTES,
    SLOW_S,
    ReceiveBudget,
    ReceiveWindow,
)
from kkp2p_compat.transport.udp.streams import MAX_PIECES, ReceiveStream, SendStream

BODY = bytes(range(256)) * 2  # any two offsets less than 256 apart differ
SIZE = 200


def _piece(pair: tuple[int, int]) -> tuple[int, int]:
    return min(pair), max(pair)


pieces = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(_piece)
# A piece, whether it says that it ends the stream when it reaches the end, and how much the
# application takes after it.
arrivals = st.lists(st.tuples(pieces, st.booleans(), st.integers(0, 50)), max_size=40)


class Known:
    """The slow and obvious version: a flag for each byte."""

    def __init__(self) -> None:
        self.here = [False] * SIZE
        self.taken = 0

    def add(self, start: int, stop: int) -> None:
        self.here[start:stop] = [True] * (stop - start)

    @property
    def in_order(self) -> int:
        return next((n for n, here in enumerate(self.here) if not here), SIZE)


def _receiver(window: int) -> ReceiveStream:
    return ReceiveStream(ReceiveWindow(window, window), ReceiveBudget())


def _readable(stream: ReceiveStream) -> bytes:
    return b"".join(bytes(view) for view in stream.peek())


@given(arrivals)
def test_pieces_in_any_order_overlap_and_repetition(
    steps: list[tuple[tuple[int, int], bool, int]],
) -> None:
    stream, known, ended = _receiver(SIZE), Known(), False
    for (start, stop), fin, take in steps:
        fin = fin and stop == SIZE
        before = known.in_order
        told = stream.handle_data(start, [BODY[start:stop]], fin)
        known.add(start, stop)
        ended = ended or fin
        assert stream.next_offset == known.in_order
        assert told or known.in_order == before
        assert _readable(stream) == BODY[known.taken : known.in_order]
        count = min(take, known.in_order - known.taken)
        stream.consume(count)
        known.taken += count
        assert stream.consumed == known.taken
        assert _readable(stream) == BODY[known.taken : known.in_order]
        assert held_bytes(stream) == sum(known.here[known.taken :])
        assert stream.at_end == (ended and known.taken == SIZE)
        assert not stream.done
    stream.end_seen = True
    assert stream.done == ended


def test_the_window_of_a_slow_reader_shrinks() -> None:
    """It is told no new limit before it has read what an ever smaller window lets through."""
    budget, rtt_s = ReceiveBudget(), 0.1
    window = ReceiveWindow(1000, 16_000, budget)
    assert window.renew(500, 0.0, rtt_s, waiting=True)
    assert window.renew(1500, rtt_s, rtt_s, waiting=True)
    assert (window.bytes, window.limit, budget.growth_bytes) == (4000, 5500, GROWTH_BYTES - 3000)
    assert not window.renew(3500, 1 + SLOW_S, rtt_s, waiting=True)
    assert not window.renew(4500, 2 + 2 * SLOW_S, rtt_s, waiting=True)
    assert window.renew(5000, 3 + 3 * SLOW_S, rtt_s, waiting=True)
    assert (window.bytes, window.limit, budget.growth_bytes) == (1000, 6000, GROWTH_BYTES)
    # A sender that has nothing to send is not a slow reader.
    assert window.renew(5500, 3.5 + 3 * SLOW_S, 1.0, waiting=True)
    assert window.renew(6500, 4 + 9 * SLOW_S, rtt_s, waiting=False)
    assert window.bytes == 2000


def test_single_bytes_out_of_order_are_put_together() -> None:
    """Or a peer's 64 MiB of them would cost us many times that."""
    stream, size = _receiver(1 << 20), 30_000
    for start in range(2, size, 2):
        stream.handle_data(start, [BODY[:2]], False)
    assert len(stream._pieces) == size // 2 - 1
    assert stream.handle_data(0, [BODY[:2]], False)
    assert len(stream.peek()) <= 2
    assert _readable(stream) == BODY[:2] * (size // 2)


def test_all_streams_together_hold_so_many_pieces() -> None:
    budget = ReceiveBudget()
    streams = [ReceiveStream(ReceiveWindow(1 << 20, 1 << 20), budget) for _ in range(3)]

    def fill(stream: ReceiveStream, count: int) -> None:
        for _ in range(count):
            stream.handle_data(stream.highest + 1, [b"x"], False)

    fill(streams[0], MAX_PIECES // 2)
    fill(streams[1], MAX_PIECES // 2)
    with pytest.raises(BadPacket):
        fill(streams[2], 1)
    for over in (streams[0].stop, lambda: streams[1].handle_reset(streams[1].highest)):
        over()
        fill(streams[2], MAX_PIECES // 2)
    streams[2].forget()
    assert budget.pieces == 0


@given(st.permutations(range(20)), st.integers(1, 9))
def test_every_order_of_all_pieces_gives_the_whole(order: list[int], size: int) -> None:
    stream = _receiver(20 * size)
    for index in order:
        start = index * size
        stream.handle_data(start, [BODY[start : start + size]], index == 19)
    assert _readable(stream) == BODY[: 20 * size]
    stream.consume(20 * size)
    assert stream.at_end


@given(arrivals, pieces)
def test_a_breach_of_limit_or_end_is_an_error_and_changes_nothing_that_is_here(
    steps: list[tuple[tuple[int, int], bool, int]], last: tuple[int, int]
) -> None:
    stream = _receiver(SIZE)
    for (start, stop), _, _ in steps:
        stream.handle_data(start, [BODY[start:stop]], False)
    before = _readable(stream)
    with pytest.raises(BadPacket):
        stream.handle_data(SIZE, [b"x"], False)
    if last[1] < stream.highest:
        with pytest.raises(BadPacket):
            stream.handle_data(last[0], [BODY[slice(*last)]], True)
    stream.handle_data(stream.highest, [b""], True)
    with pytest.raises(BadPacket):
        stream.handle_data(stream.highest + 1, [b""], True)
    if stream.highest < SIZE:
        with pytest.raises(BadPacket):
            stream.handle_data(stream.highest, [b"x"], False)
    assert _readable(stream) == before


@given(arrivals, st.integers(0, SIZE))
def test_a_reset_discards_what_is_not_read(
    steps: list[tuple[tuple[int, int], bool, int]], extra: int
) -> None:
    stream = _receiver(2 * SIZE)
    for (start, stop), _, _ in steps:
        stream.handle_data(start, [BODY[start:stop]], False)
    assert stream.handle_reset(stream.highest + extra)
    assert _readable(stream) == b""
    assert not stream.at_end  # what was given up is not whole, even if all of it came
    assert stream.done
    assert held_bytes(stream) == 0
    assert not stream.handle_data(0, [BODY[: stream.highest]], False)
    assert not stream.handle_reset(stream.highest)  # told once
    with pytest.raises(BadPacket):
        stream.handle_reset(stream.highest + 1)


def test_a_reset_behind_a_whole_stream_and_its_end_takes_nothing_away() -> None:
    stream = _receiver(SIZE)
    stream.handle_data(0, [BODY[:SIZE]], True)
    assert not stream.handle_reset(SIZE)
    assert _readable(stream) == BODY[:SIZE]
    stream.consume(SIZE)
    assert stream.at_end


@given(arrivals, arrivals)
def test_a_stream_that_nobody_wants_holds_nothing(
    before: list[tuple[tuple[int, int], bool, int]], after: list[tuple[tuple[int, int], bool, int]]
) -> None:
    stream = _receiver(SIZE)
    for (start, stop), _, _ in before:
        stream.handle_data(start, [BODY[start:stop]], False)
    stream.stop()
    for (start, stop), _, _ in after:
        assert not stream.handle_data(start, [BODY[start:stop]], False)
    assert held_bytes(stream) == 0
    assert stream.peek() == []
    assert stream.consumed == stream.highest  # so that the sender is not kept waiting
    stream.handle_data(stream.highest, [b""], True)
    assert stream.done


class Flight:
    """Ranges under way from a SendStream to a ReceiveStream."""

    def __init__(self, limit: int) -> None:
        self.sender, self.receiver = SendStream(0, limit), _receiver(SIZE)
        self.flying: list[tuple[int, int, bool, bytes]] = []
        self.read = b""

    def send(self, most: int, credit: int) -> bool:
        sender = self.sender
        if not sender.sendable(credit):
            return False
        start, stop = sender.next_range(credit)
        stop = min(stop, start + most)
        again = bool(sender.lost)
        assert sender.mark_sent(start, stop) == (0 if again else stop - start)
        fin = sender.ends_at(stop)
        data = bytes(sender.view(start, stop)) if stop > start else b""
        assert stop > start or fin, "an empty frame"
        assert stop - start <= most
        assert stop <= sender.limit
        self.flying.append((start, stop, fin, data))
        return True

    def arrive(self, index: int, acknowledge: bool) -> None:
        start, stop, fin, data = self.flying.pop(index)
        self.receiver.handle_data(start, [bytes(data)], fin)
        fresh = _readable(self.receiver)
        self.read += fresh
        self.receiver.consume(len(fresh))
        if acknowledge:
            self.sender.handle_acked(start, stop, fin)
        else:
            self.sender.handle_lost(start, stop, fin)

    def lose(self, index: int) -> None:
        self.sender.handle_lost(*self.flying.pop(index)[:3])


steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "send", "arrive", "arrive, its ACK is lost", "lose", "finish"]),
        st.integers(0, 60),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 40))
def test_what_is_written_arrives_whatever_is_lost(plan: list[tuple[str, int]], limit: int) -> None:
    flight = Flight(limit)
    sender = flight.sender
    for action, number in plan:
        if action == "write" and not sender.finished:
            sender.write(BODY[sender.end : min(sender.end + number, SIZE)])
        elif action == "send":
            flight.send(number + 1, number)
        elif action == "finish":
            sender.finish()
        elif flight.flying and action == "lose":
            flight.lose(number % len(flight.flying))
        elif flight.flying:
            flight.arrive(number % len(flight.flying), action == "arrive")
        assert held_bytes(sender) <= sender.end
    sender.finish()
    sender.limit = SIZE
    while not sender.done:
        if not flight.flying:
            assert flight.send(25, SIZE), "nothing to send, and yet not done"
        flight.arrive(0, True)
    assert flight.read == BODY[: sender.end]
    assert flight.receiver.at_end
    assert held_bytes(sender) == 0
    assert not sender.sendable(SIZE)


def test_a_stream_that_is_given_up_is_done_when_its_reset_arrives() -> None:
    flight = Flight(SIZE)
    flight.sender.write(BODY[:SIZE])
    flight.send(50, SIZE)
    assert flight.sender.give_up()
    assert not flight.sender.give_up()
    assert held_bytes(flight.sender) == 0
    flight.lose(0)
    assert not flight.sender.sendable(SIZE)
    assert not flight.sender.done
    flight.sender.handle_reset_acked()
    assert flight.sender.done


def test_nothing_is_written_behind_the_end() -> None:
    sender = SendStream(0, SIZE)
    sender.write(b"x")
    sender.finish()
    with pytest.raises(ValueError, match="after the end"):
        sender.write(b"y")
