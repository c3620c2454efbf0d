"""LAN datagrams: the layout, strangers' bytes, and when a search is answered, again or not."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal import lan_wire as wire
from kkp2p_compat.traversal.lan_wire import Message, SearchMemory, Verdict

ID = bytes(range(16))
HOME = ("192.0.2.1", 40000)

messages = st.builds(
    Message,
    st.sampled_from([wire.SEARCH, wire.ANSWER]),
    st.binary(min_size=16, max_size=16),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=32),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=250),
)


def test_the_layout_is_that_of_the_protocol_document() -> None:
    def head(kind: int) -> bytes:
        return b"KKLS" + bytes([1, kind]) + ID + b"peer".ljust(32, b"\0") + b"\0\3" + b"\xc3\xa9!"

    search = wire.encode(Message(wire.SEARCH, ID, "peer", "é!"))
    assert search == head(1) + bytes(1056 - 59)
    assert wire.encode(Message(wire.ANSWER, ID, "peer", "é!")) == head(2)
    assert wire.SEARCH_BYTES == 1056


@given(messages)
def test_messages_go_there_and_back(message: Message) -> None:
    assert wire.parse_untrusted(wire.encode(message)) == message


@pytest.mark.parametrize("text", ["", "x" * 1000, "é" * 500])
def test_no_answer_is_larger_than_its_search(text: str) -> None:
    answer = wire.encode(Message(wire.ANSWER, ID, "p" * 32, text))
    assert len(answer) <= len(wire.encode(Message(wire.SEARCH, ID, "p", ""))) == wire.SEARCH_BYTES


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (Message(wire.SEARCH, ID[:15], "peer", ""), "id of 15 bytes"),
        (Message(wire.SEARCH, ID, "", ""), "for ''"),
        (Message(wire.SEARCH, ID, "p" * 33, ""), "for 'ppp"),
        (Message(wire.SEARCH, ID, "a b", ""), "for 'a b'"),
        (Message(wire.SEARCH, ID, "pé", ""), "for 'pé'"),
        (Message(wire.SEARCH, ID, "peer", "é" * 501), "1002 bytes of text"),
    ],
)
def test_encode_refuses_nonsense(message: Message, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        wire.encode(message)


@given(st.binary(max_size=1100))
def test_strangers_bytes_raise_only_bad_packet(data: bytes) -> None:
    with pytest.raises(BadPacket):
        wire.parse_untrusted(data)


@given(messages, st.data())
def test_altered_bytes_are_refused_or_mean_something_else(
    message: Message, data: st.DataObject
) -> None:
    """Whatever gets through keeps the rules that the code behind it relies on."""
    altered = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = wire.parse_untrusted(bytes(altered))
    except BadPacket:
        return
    assert wire.parse_untrusted(wire.encode(parsed)) == parsed
    assert len(altered) == (
        wire.SEARCH_BYTES if parsed.kind == wire.SEARCH else len(wire.encode(parsed))
    )


@given(messages, st.data())
def test_cut_or_longer_datagrams_are_refused(message: Message, data: st.DataObject) -> None:
    whole = wire.encode(message)
    with pytest.raises(BadPacket):
        wire.parse_untrusted(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(BadPacket):
        wire.parse_untrusted(whole + data.draw(st.binary(min_size=1, max_size=100)))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, b"KKRL"),  # magic
        (4, b"\2"),  # version
        (5, b"\0"),  # kind
        (5, b"\3"),
        (22, bytes(32)),  # peer id
        (22, b"a\0b"),
        (22, b"\xff"),
        (54, b"\xff\xff"),  # more text than there is
        (54, b"\3\xe9"),  # one byte more than fits
        (56, b"\xff"),  # no UTF-8
    ],
)
def test_each_field_is_checked(place: int, value: bytes) -> None:
    datagram = bytearray(wire.encode(Message(wire.SEARCH, ID, "peer", "text")))
    datagram[place : place + len(value)] = value
    with pytest.raises(BadPacket):
        wire.parse_untrusted(bytes(datagram))


# What a responder remembers.


def test_a_search_is_new_once_and_repeated_to_its_first_source_only() -> None:
    memory = SearchMemory()
    verdict, heard = memory.hear(ID, HOME, 0)
    assert verdict is Verdict.NEW
    assert heard is not None
    assert memory.hear(ID, ("127.0.0.1", 40000), 0)[0] is Verdict.OTHER_WAY
    assert memory.hear(ID, HOME, 0.05) == (Verdict.PENDING, None)
    heard.answer = b"answer"
    heard.sent_at = 0.06
    assert memory.hear(ID, HOME, 0.061) == (Verdict.TOO_SOON, None)
    assert memory.hear(ID, HOME, 0.15) == (Verdict.REPEAT, heard)
    assert memory.hear(ID, HOME, 0.151) == (Verdict.TOO_SOON, None)
    assert memory.hear(ID, ("192.0.2.1", 40001), 0.2)[0] is Verdict.OTHER_WAY


def test_a_search_is_remembered_while_it_is_repeated_and_then_expires() -> None:
    memory = SearchMemory()
    assert memory.hear(ID, HOME, 0)[0] is Verdict.NEW
    for second in range(1, 100):
        assert memory.hear(ID, HOME, second)[0] is Verdict.PENDING
    memory.hear(b"o" * 16, HOME, 99 + wire.MEMORY_S)
    assert len(memory) == 1
    assert memory.hear(ID, HOME, 99 + wire.MEMORY_S)[0] is Verdict.NEW


def test_what_is_forgotten_is_new_again() -> None:
    memory = SearchMemory()
    for _ in range(2 * wire.MAX_SOURCE_SEARCHES):
        assert memory.hear(ID, HOME, 0)[0] is Verdict.NEW
        memory.forget(ID)
    assert len(memory) == 0


def test_one_address_has_its_share_and_no_more() -> None:
    memory, ids = SearchMemory(), count()
    for port in range(wire.MAX_SOURCE_SEARCHES):
        assert memory.hear(next(ids).to_bytes(16, "big"), ("192.0.2.9", port), 0)[0] is Verdict.NEW
    assert memory.hear(ID, ("192.0.2.9", 1), 0)[0] is Verdict.SOURCE_LIMIT
    assert memory.hear(ID, HOME, 0)[0] is Verdict.NEW
    assert memory.hear(b"n" * 16, ("192.0.2.9", 1), wire.MEMORY_S)[0] is Verdict.NEW


def test_a_flood_of_ids_is_bounded_and_what_is_known_stays() -> None:
    memory = SearchMemory()
    heard = memory.hear(ID, HOME, 0)[1]
    assert heard is not None
    heard.answer = b"answer"
    verdicts = [
        memory.hear(number.to_bytes(16, "big"), (f"10.0.{number % 200}.1", 1), 1)[0]
        for number in range(3 * wire.MAX_SEARCHES)
    ]
    assert verdicts.count(Verdict.NEW) == wire.MAX_SEARCHES - 1
    assert verdicts[-1] is Verdict.LIMIT
    assert len(memory) == wire.MAX_SEARCHES
    assert memory.hear(ID, HOME, 1) == (Verdict.REPEAT, heard)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["a", "b"]), st.floats(0, 3), st.booleans()),
        max_size=60,
    )
)
def test_as_a_slow_obvious_version_does(steps: list[tuple[int, str, float, bool]]) -> None:
    """New exactly when the id was not heard from its first source for MEMORY_S, or never."""
    memory = SearchMemory()
    known: dict[int, tuple[str, float]] = {}
    now = 0.0
    for number, host, later_s, forget in steps:
        now += later_s
        known = {key: value for key, value in known.items() if now - value[1] < wire.MEMORY_S}
        verdict, _ = memory.hear(number.to_bytes(16, "big"), (host, 1), now)
        assert (verdict is Verdict.NEW) == (number not in known)
        if number not in known or known[number][0] == host:
            known[number] = (host, now)
        if forget:
            memory.forget(number.to_bytes(16, "big"))
            del known[number]
        assert len(memory) == len(known)
