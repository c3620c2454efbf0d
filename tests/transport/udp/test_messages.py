"""Messages of UDP channels: whole or not at all, once, and in bounded memory."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.transport.udp import messages
from kkp2p_compat.transport.udp.frames import Datagram, parse_untrusted
from kkp2p_compat.transport.udp.messages import (
    COST_BYTES,
    MAX_MESSAGE_BYTES,
    Assembler,
    MessageQueue,
    Splitter,
)

STREAM = 6
DATAGRAM_HEADER_BYTES = 15


def frames_of(splitter: Splitter, message: bytes, room: int) -> list[Datagram]:
    found = []
    for encoded in splitter.split(message, room):
        assert len(encoded) <= room
        (frame,) = parse_untrusted(encoded)
        assert isinstance(frame, Datagram)
        found.append(frame)
    return found


def put(assembler: Assembler, frame: Datagram, now: float = 0.0) -> bytes | None:
    return assembler.add_untrusted(frame.message, frame.part, frame.parts, frame.data, now)


@given(st.lists(st.binary(max_size=600), max_size=12), st.integers(17, 400), st.randoms())
def test_parts_in_any_order_and_many_times_make_each_message_once(
    sent: list[bytes], room: int, random: Random
) -> None:
    splitter, assembler = Splitter(STREAM), Assembler()
    by_number = {}
    for message in sent:
        frames = frames_of(splitter, message, room)
        by_number[frames[0].message] = (message, frames)
    assert list(by_number) == list(range(len(sent)))
    flood = [frame for _, frames in by_number.values() for frame in frames] * 2
    random.shuffle(flood)
    received = {}
    for frame in flood:
        message = put(assembler, frame)
        if message is not None:
            assert frame.message not in received
            received[frame.message] = message
    assert received == {number: message for number, (message, _) in by_number.items()}
    assert assembler.dropped == 0


@pytest.mark.parametrize("size", [0, 1, 984, 985, 986, 1970, MAX_MESSAGE_BYTES])
def test_a_message_is_cut_into_full_parts_and_a_rest(size: int) -> None:
    frames = frames_of(Splitter(STREAM), bytes(size), 1000)
    full, rest = divmod(size, 1000 - DATAGRAM_HEADER_BYTES)
    lengths = [985] * full + [rest] * (rest > 0 or size == 0)
    assert [len(frame.data) for frame in frames] == lengths
    assert [frame.part for frame in frames] == list(range(len(lengths)))
    assert {(frame.stream, frame.message, frame.parts) for frame in frames} == {
        (STREAM, 0, len(lengths))
    }


def test_a_message_in_the_largest_packet_there_is() -> None:
    frames = frames_of(Splitter(STREAM), bytes(MAX_MESSAGE_BYTES), 70000)
    assert [len(frame.data) for frame in frames] == [65535, 1]


@pytest.mark.parametrize(("size", "room"), [(MAX_MESSAGE_BYTES + 1, 1200), (1, 16), (1, 0)])
def test_what_cannot_be_split_takes_no_number(size: int, room: int) -> None:
    splitter = Splitter(STREAM)
    with pytest.raises(ValueError, match="a message of"):
        splitter.split(bytes(size), room)
    assert frames_of(splitter, b"x", 100)[0].message == 0


def test_numbers_go_round_and_messages_still_arrive_once() -> None:
    assembler = Assembler()
    number = 0
    for _ in range(5):  # twice round, in the longest steps that are still forward
        assert assembler.add_untrusted(number, 0, 1, b"x", 0) == b"x"
        assert assembler.add_untrusted(number, 0, 1, b"x", 0) is None
        number = (number + 0x7FFFFFFF) % 2**32
    for number in (0xFFFFFFFE, 0xFFFFFFFF, 0, 1):
        fresh = Assembler()
        fresh.add_untrusted(0x7FFFFFFE, 0, 1, b"", 0)
        fresh.add_untrusted(0xFFFFFFFD, 0, 1, b"", 0)
        assert fresh.add_untrusted(number, 0, 1, b"y", 0) == b"y"
        assert fresh.add_untrusted(0xFFFFFFFD, 0, 1, b"", 0) is None


def test_numbers_are_counted_on_from_what_was_dropped_too() -> None:
    assembler = Assembler()
    assembler.add_untrusted(1, 0, 1, b"x", 0)
    assembler.add_untrusted(2**31, 0, 2, b"never whole", 0)
    assert assembler.add_untrusted(2**31 + 1, 0, 1, b"y", 5.0) == b"y"


@pytest.mark.parametrize("number", [2**32 - 1, 2**32 - 2, 2**31])
def test_a_number_before_the_first_is_ignored(number: int) -> None:
    assembler = Assembler()
    assert assembler.add_untrusted(number, 0, 1, b"x", 0) is None
    assert assembler.add_untrusted(0, 0, 1, b"x", 0) == b"x"


@pytest.mark.parametrize(
    ("part", "parts", "data"),
    [(0, 0, b"x"), (1, 1, b"x"), (4, 4, b"x"), (65535, 65535, b"x"), (0, 2, b""), (1, 2, b"")],
)
def test_a_part_that_cannot_be(part: int, parts: int, data: bytes) -> None:
    assembler = Assembler()
    with pytest.raises(BadPacket, match="of a message"):
        assembler.add_untrusted(0, part, parts, data, 0)
    assert assembler.add_untrusted(0, 0, 1, b"good", 0) == b"good"


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_another_number_of_parts_than_before(parts: int) -> None:
    assembler = Assembler()
    assembler.add_untrusted(0, 0, 4, b"a", 0)
    with pytest.raises(BadPacket, match=f"of 4 parts and of {parts}"):
        assembler.add_untrusted(0, 0, parts, b"b", 0)
    assert [assembler.add_untrusted(0, part, 4, b"a", 0) for part in (1, 2, 3)] == [
        None,
        None,
        b"aaaa",
    ]


def test_a_message_over_the_limit() -> None:
    with pytest.raises(BadPacket, match="over 65536 bytes"):
        Assembler().add_untrusted(0, 0, 1, bytes(MAX_MESSAGE_BYTES + 1), 0)
    assembler = Assembler()
    assembler.add_untrusted(0, 0, 2, bytes(MAX_MESSAGE_BYTES - 1), 0)
    with pytest.raises(BadPacket, match="over 65536 bytes"):
        assembler.add_untrusted(0, 1, 2, b"ab", 0)
    assert assembler.add_untrusted(0, 1, 2, b"a", 0) == bytes(MAX_MESSAGE_BYTES - 1) + b"a"


def test_a_repeated_part_changes_nothing_even_with_other_bytes() -> None:
    assembler = Assembler()
    assembler.add_untrusted(0, 1, 2, b"b", 0)
    assert assembler.add_untrusted(0, 1, 2, b"X", 0) is None
    assert assembler.add_untrusted(0, 0, 2, b"a", 0) == b"ab"


def test_what_waits_for_five_seconds_is_dropped_and_its_late_part_ignored() -> None:
    assembler = Assembler()
    assembler.add_untrusted(0, 0, 2, b"a", 10.0)
    assembler.add_untrusted(1, 0, 2, b"c", 12.0)
    assembler.expire(14.999)
    assert assembler.dropped == 0
    assembler.expire(15.0)
    assert assembler.dropped == 1
    assert assembler.add_untrusted(0, 1, 2, b"b", 15.0) is None
    assert assembler.add_untrusted(1, 1, 2, b"d", 16.999) == b"cd"
    assert assembler.dropped == 1


def test_adding_a_part_drops_what_is_too_old() -> None:
    assembler = Assembler()
    assembler.add_untrusted(0, 0, 2, b"a", 0)
    assert assembler.add_untrusted(0, 1, 2, b"b", 5.0) is None
    assert assembler.dropped == 1


def test_the_oldest_of_too_many_unfinished_messages_goes() -> None:
    assembler = Assembler()
    for number in range(messages.MAX_UNFINISHED + 1):
        assembler.add_untrusted(number, 0, 2, b"a", 0)
    assert assembler.dropped == 1
    assert assembler.add_untrusted(0, 1, 2, b"b", 0) is None
    for number in range(1, messages.MAX_UNFINISHED + 1):
        assert assembler.add_untrusted(number, 1, 2, b"b", 0) == b"ab"


@pytest.mark.parametrize("size", [1, 1000, 30000])
def test_what_is_held_is_bounded_by_what_it_costs(size: int) -> None:
    assembler = Assembler()
    kept: list[tuple[int, int]] = []
    cost = size + messages.COST_BYTES
    parts = MAX_MESSAGE_BYTES // size
    for number in range(3 * messages.MAX_HELD_BYTES // cost // (parts - 1) + 1):
        for part in range(parts - 1):
            assembler.add_untrusted(number, part, parts, bytes(size), 0)
            kept.append((number, part))
    assert assembler.dropped > 0
    held = [
        number
        for number in {number for number, _ in kept}
        if assembler.add_untrusted(number, parts - 1, parts, bytes(size), 0) is not None
    ]
    assert len(held) * (parts - 1) * cost <= messages.MAX_HELD_BYTES
    if size > 1:  # 65,535 parts of one byte are over the limit by themselves
        assert held == sorted(held)[-len(held) :]
        assert len(held) > 1


def test_the_memory_of_numbers_is_bounded_and_nothing_is_delivered_twice() -> None:
    assembler = Assembler()
    numbers = range(0, 4 * messages.MAX_GAPS, 2)  # each leaves a gap behind it
    for number in numbers:
        assert assembler.add_untrusted(number, 0, 1, b"x", 0) == b"x"
    for number in numbers:
        assert assembler.add_untrusted(number, 0, 1, b"x", 0) is None
    late = [assembler.add_untrusted(number + 1, 0, 1, b"y", 0) for number in numbers[:-1]]
    forgotten = late.index(b"y")
    assert late == [None] * forgotten + [b"y"] * (len(late) - forgotten)
    assert len(late) - forgotten == messages.MAX_GAPS - 1


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 3), st.integers(0, 2**31 - 1)),  # never round
            st.integers(0, 3),
            st.integers(0, 4),
            st.binary(max_size=5),
            st.floats(0, 3),
        ),
        max_size=60,
    )
)
def test_anything_gives_a_message_or_nothing_or_bad_packet(
    flood: list[tuple[int, int, int, bytes, float]],
) -> None:
    assembler, now = Assembler(), 0.0
    parts_seen: dict[int, set[bytes]] = {}
    delivered = []
    for message, part, parts, data, wait_s in flood:
        now += wait_s
        parts_seen.setdefault(message, set()).add(data)
        try:
            whole = assembler.add_untrusted(message, part, parts, data, now)
        except BadPacket:
            continue
        if whole is not None:
            delivered.append(message)
            assert len(whole) <= sum(map(len, parts_seen[message])) * parts
    assert len(delivered) == len(set(delivered))


def data_of(frames: list[bytes]) -> list[bytes]:
    parsed = [parse_untrusted(frame)[0] for frame in frames]
    return [bytes(frame.data) for frame in parsed if isinstance(frame, Datagram)]


def cost(size: int) -> int:
    """Of a message in one frame."""
    return size + DATAGRAM_HEADER_BYTES + COST_BYTES


def counts(queue: MessageQueue) -> dict[int, int]:
    return {stream_id: len(waiting) for stream_id, waiting in queue.waiting.items()}


def fill(queue: MessageQueue, stream_id: int, data: str, size: int, most: int = 1 << 20) -> None:
    """A message for each letter."""
    splitter = Splitter(stream_id)
    for byte in data.encode():
        queue.put(stream_id, splitter.split(bytes([byte]) * size, 1200), most)


def test_a_queue_that_is_too_long_loses_its_oldest_messages() -> None:
    queue = MessageQueue()
    fill(queue, STREAM, "abc", 100, 2 * cost(100))
    assert (queue.waiting_bytes, counts(queue)) == (2 * cost(100), {STREAM: 2})
    assert [data[:1] for data in data_of(queue.take(1200, 1200))] == [b"b", b"c"]
    assert (queue.waiting_bytes, queue.waiting, queue.dropped) == (0, {}, 1)


def test_the_newest_message_is_kept_however_long_it_is() -> None:
    queue = MessageQueue()
    fill(queue, STREAM, "ab", 1000, 10)
    assert data_of(queue.take(1200, 1200)) == [b"b" * 1000]


def test_messages_without_data_fill_a_queue_too() -> None:
    queue = MessageQueue()
    fill(queue, STREAM, "x" * 1000, 0, 100 * cost(0))
    assert counts(queue) == {STREAM: 100}


def test_channels_take_turns_by_the_packet() -> None:
    """A channel with little waits for one packet of each other one, not for their queues."""
    queue = MessageQueue()
    fill(queue, 0, "abcd", 1100)
    fill(queue, 2, "efgh", 500)
    fill(queue, 4, "i", 10)
    packets = []
    while frames := queue.take(1200, 1200):
        packets.append("".join(data[:1].decode() for data in data_of(frames)))
    assert packets == ["a", "ef", "ib", "gh", "c", "d"]
    assert (queue.waiting_bytes, queue.waiting) == (0, {})


def test_who_fills_the_queue_loses_messages() -> None:
    """Not who sends little, whoever comes last."""
    queue = MessageQueue()
    fill(queue, 2, "ab", 100, 50 * cost(100))
    fill(queue, 0, "x" * 200, 100, 50 * cost(100))
    fill(queue, 2, "c", 100, 50 * cost(100))
    assert counts(queue) == {2: 3, 0: 47}
    assert queue.dropped == 153


@given(
    puts=st.lists(st.tuples(st.sampled_from([0, 2, 4]), st.integers(0, 3000)), max_size=60),
    most=st.integers(0, 20_000),
)
def test_whatever_is_put_the_queue_is_bounded_and_in_order(
    puts: list[tuple[int, int]], most: int
) -> None:
    queue = MessageQueue()
    splitters = {stream_id: Splitter(stream_id) for stream_id in (0, 2, 4)}
    for stream_id, size in puts:
        queue.put(stream_id, splitters[stream_id].split(bytes(size), 1200), most)
        assert queue.waiting_bytes <= most or sum(counts(queue).values()) == 1
    left = sum(counts(queue).values())
    assert left + queue.dropped == len(puts)
    seen: dict[int, list[tuple[int, int]]] = {0: [], 2: [], 4: []}
    while frames := queue.take(1200, 1200):
        assert sum(map(len, frames)) <= 1200
        for frame in frames:
            (parsed,) = parse_untrusted(frame)
            assert isinstance(parsed, Datagram)
            seen[parsed.stream].append((parsed.message, parsed.part))
    assert all(numbers == sorted(set(numbers)) for numbers in seen.values())
    assert sum(len({message for message, _ in numbers}) for numbers in seen.values()) == left
    assert (queue.waiting_bytes, queue.waiting) == (0, {})


def test_a_message_that_no_packet_can_carry_any_more_is_dropped() -> None:
    queue = MessageQueue()
    fill(queue, STREAM, "a", 1000)
    fill(queue, STREAM, "b", 100)
    assert queue.take(50, 500) == []
    assert (queue.waiting_bytes, counts(queue)) == (cost(100), {STREAM: 1})
    assert data_of(queue.take(500, 500)) == [b"b" * 100]


def test_messages_that_are_missing() -> None:
    """Those that have not come, though a newer one has; not what is still on its way."""
    splitter, assembler = Splitter(STREAM), Assembler()
    first, second, third, fourth = (frames_of(splitter, bytes(50), 40) for _ in range(4))
    assert assembler.missing == 0
    for frame in (*third, fourth[0]):
        put(assembler, frame)
    assert assembler.missing == 2
    for frame in (*first, *third):
        put(assembler, frame)
    assert assembler.missing == 1
    for frame in (*second, *fourth):
        put(assembler, frame)
    assert assembler.missing == 0


def test_what_is_given_up_is_counted_for_its_channel() -> None:
    queue = MessageQueue()
    for stream_id in (1, 2):
        for _ in range(2):
            queue.put(stream_id, [bytes(100)], 3 * (100 + COST_BYTES))
    assert queue.dropped == 1
    assert sum(queue.dropped_of.values()) == 1
    queue.take(50, 50)
    assert queue.dropped == sum(queue.dropped_of.values()) == 4
    assert set(queue.dropped_of) == {1, 2}
