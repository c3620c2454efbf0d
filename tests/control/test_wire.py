"""Lines of the control plane: whole, cut, glued, oversized, hostile."""

from __future__ import annotations

import itertools
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.control import wire
from kkp2p_compat.control.wire import MAX_LINE_BYTES, LineReader, Message, encode, number_untrusted

MESSAGES: list[Message] = [
    {"op": "beat"},
    {"op": "route", "v": 1, "peer": "alice"},
    {"op": "answer", "call": 3, "answer": '{"key":"\u00e9\n"}'},
    {"op": "track", "tracks": [["10.0.0.1", 3080], ["::1", 1]]},
]
LINES = b"".join(
    encode(message["op"], **_rest)
    for message in MESSAGES
    for _rest in [{k: v for k, v in message.items() if k != "op"}]
)


def read(*pieces: bytes) -> list[Message]:
    reader, messages = LineReader(), []
    for piece in pieces:
        reader.feed(piece)
        messages += list(reader.messages())
    return messages


def test_the_bytes_of_a_message() -> None:
    assert encode("call", call=1, to="bob", offer="{}") == (
        b'{"op":"call","call":1,"to":"bob","offer":"{}"}\n'
    )


def test_fields_that_are_none_are_left_out() -> None:
    assert encode("offer", **{"from": None}) == b'{"op":"offer"}\n'


def test_text_stays_on_one_line_of_ascii() -> None:
    line = encode("x", text="a\nb\u2028c\u00e9")
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert read(line) == [{"op": "x", "text": "a\nb\u2028c\u00e9"}]


def test_whole() -> None:
    assert read(LINES) == MESSAGES


def test_byte_by_byte() -> None:
    assert read(*(LINES[i : i + 1] for i in range(len(LINES)))) == MESSAGES


@given(st.lists(st.integers(0, len(LINES)), max_size=10))
def test_cut_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(LINES)]
    assert read(*(LINES[a:b] for a, b in itertools.pairwise(edges))) == MESSAGES


def test_a_line_without_its_end_is_no_message() -> None:
    assert read(LINES[:-1]) == MESSAGES[:-1]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r",
        b"beat",
        b"{}",
        b'{"op":1}',
        b'{"op":null}',
        b'{"op":["beat"]}',
        b'["op"]',
        b'"op"',
        b"null",
        b"123",
        b'{"op":"beat"',
        b'{"op":"beat"}}',
        b'{"op":"beat"}{"op":"beat"}',
        b'{"op":"b\xff"}',
        b"\xef\xbb\xbf" + b'{"op":"beat"}',
        '{"op":"beat"}'.encode("utf-16-le"),
        b'{"op":"x","n":' + b"9" * 5000 + b"}",
        b'{"op":"x","deep":' + b"[" * 30000 + b"]" * 30000 + b"}",
        b"[" * 60000,
        b'{"op":"a\x00b"}',
        b'{"op":"x","text":"\\ud800"}',
        b'{"op":"x","n":NaN}',
        b'{"op":"x","n":Infinity}',
    ],
    ids=lambda line: repr(line[:24]),
)
def test_bad_lines(line: bytes) -> None:
    with pytest.raises(BadPacket):
        read(line + b"\n")


def test_the_messages_before_a_bad_line_are_read() -> None:
    reader = LineReader()
    reader.feed(encode("beat") + b"rubbish\n")
    messages = reader.messages()
    assert next(messages) == {"op": "beat"}
    with pytest.raises(BadPacket):
        next(messages)


def line_of(size: int) -> bytes:
    frame = len(encode("x", pad=""))
    return encode("x", pad="p" * (size - frame))


def test_the_longest_line_is_read_and_written() -> None:
    line = line_of(MAX_LINE_BYTES)
    assert len(line) == MAX_LINE_BYTES
    (message,) = read(line[:-1], line[-1:])
    assert message["op"] == "x"


def test_one_byte_more_is_not_written() -> None:
    with pytest.raises(ValueError, match="over 65536"):
        line_of(MAX_LINE_BYTES + 1)


@pytest.mark.parametrize("ended", [b"", b"\n"])
def test_one_byte_more_is_not_read_and_not_held(ended: bytes) -> None:
    reader = LineReader()
    reader.feed(line_of(MAX_LINE_BYTES)[:-1] + b"p" + ended)
    with pytest.raises(BadPacket, match="over 65536"):
        list(reader.messages())
    assert reader._buffer == b""


def test_an_idle_reader_holds_nothing() -> None:
    reader = LineReader()
    reader.feed(LINES)
    list(reader.messages())
    assert reader._buffer == b""


@given(st.binary(max_size=300))
def test_strangers_bytes_raise_only_bad_packet(data: bytes) -> None:
    try:
        messages = read(data + b"\n")
    except BadPacket:
        return
    assert all(isinstance(message["op"], str) for message in messages)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), json_values))
def test_any_object_with_an_op_comes_through(fields: dict[str, object]) -> None:
    fields["op"] = "x"
    line = json.dumps(fields, ensure_ascii=False).encode()
    assert read(line + b"\n") == [fields]


def test_a_reader_with_a_lower_limit() -> None:
    reader = LineReader(max_line=20)
    reader.feed(b'{"op":"12345678901"}')
    with pytest.raises(BadPacket, match="over 20"):
        list(reader.messages())


@pytest.mark.parametrize(
    "values", ["1.5,", "1e9,", "-7,", "true,", '"\\\\ud",', '"\\ud83d\\ude00",', "[],", "{},"]
)
def test_a_line_of_many_values_costs_no_python_call_for_each(values: str) -> None:
    """It would cost a hundred times what one of text does, and the cloud has one thread."""
    calls = []

    def parse(count: int) -> None:
        reader = LineReader()
        reader.feed(b'{"op":"x","values":[' + values.encode() * count + b"0]}\n")
        calls.append(0)
        sys.setprofile(count_calls)
        try:
            assert len(list(reader.messages())) == 1
        finally:
            sys.setprofile(None)

    def count_calls(*_: object) -> None:
        calls[-1] += 1

    parse(1)
    parse(1000)
    assert calls[1] < calls[0] + 100  # what the garbage collector calls is counted, too


ESCAPES = (r"\\", r"\ud83d", r"\uDBFF", r"\ude00", r"\uDFFF", r"\uD7ff", r"\n", r"\u0041")
json_texts = st.lists(st.sampled_from((*ESCAPES, "ud83d", "ude00", "u", "d", "x"))).map("".join)


@given(json_texts)
def test_half_a_surrogate_pair_is_what_cannot_be_encoded(text: str) -> None:
    """Against the slow way: to write the message out again."""
    line = b'{"op":"x","text":"' + text.encode() + b'"}'
    try:
        json.loads(line)["text"].encode()
    except UnicodeEncodeError:
        with pytest.raises(BadPacket, match="surrogate"):
            read(line + b"\n")
    else:
        assert read(line + b"\n") == [json.loads(line)]


@pytest.mark.parametrize(
    "value", [0, 4, 2**63, 2.0, True, None, "2", [2], float("inf"), float("nan")]
)
def test_numbers_that_are_not_taken(value: object) -> None:
    with pytest.raises(BadPacket, match="n is not a whole number from 1 to 3"):
        number_untrusted({"op": "x", "n": value}, "n", 1, 3)
    assert number_untrusted({"op": "x", "n": 3}, "n", 1, 3) == 3


def test_a_number_too_large_for_a_float_is_read_and_not_taken() -> None:
    (message,) = read(b'{"op":"x","n":1e999}\n')
    with pytest.raises(BadPacket):
        number_untrusted(message, "n", 0, 2**53)


def test_what_no_reader_takes_is_not_written() -> None:
    for number in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="compliant"):
            encode("x", n=number)


@pytest.mark.parametrize("start", ['{"op":"call"', '{"op":"trickle"', '{"op": "call"'])
def test_lines_of_calls_may_be_long_where_others_may_not(start: str) -> None:
    line = start.encode() + b',"pad":"' + b"p" * 4000 + b'"}\n'
    reader = LineReader(short_line=100)
    for index in range(0, len(line), 50):
        reader.feed(line[index : index + 50])
        messages = list(reader.messages())
    assert messages == [json.loads(line)]


@pytest.mark.parametrize("start", [b'{"op":"beat"', b'{"x":1,"op":"call"', b"[", b'{"op":"callx"'])
def test_lines_that_are_too_long_are_refused_before_they_are_there(start: bytes) -> None:
    reader = LineReader(short_line=100)
    reader.feed(start.ljust(99, b" "))
    assert list(reader.messages()) == []
    reader.feed(b" ")
    with pytest.raises(BadPacket, match="over 100 bytes"):
        list(reader.messages())
    assert reader._buffer == b""
    reader.allow_long_lines()
    reader.feed(start.ljust(100, b" "))
    assert list(reader.messages()) == []


def test_limits_are_those_of_the_protocol_document() -> None:
    assert (wire.PROTOCOL_VERSION, wire.MAX_LINE_BYTES) == (1, 65536)
