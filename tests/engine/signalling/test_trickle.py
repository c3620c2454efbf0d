"""The texts that follow an offer or answer: only the peer's, only new ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.control.wire import MAX_TRICKLE_CHARS
from kkp2p_compat.engine.signalling.trickle import Trickle

KEY = bytes(range(32))


def pair() -> tuple[Trickle, Trickle, list[str]]:
    """A caller, a callee, and what they have sent."""
    sent: list[str] = []
    return Trickle(KEY, True, sent.append), Trickle(KEY, False, sent.append), sent


def opened(trickle: Trickle, text: str) -> dict[str, Any]:
    fields = trickle.open_untrusted(text)
    del fields["n"]
    return fields


def test_both_ways() -> None:
    caller, callee, sent = pair()
    for one, other in ((caller, callee), (callee, caller)):
        one.send({"candidates": ["host 1 192.0.2.1 1"]})
        one.send({"more": 1})
        first, second = sent[-2:]
        assert opened(other, first) == {"candidates": ["host 1 192.0.2.1 1"]}
        assert opened(other, second) == {"more": 1}


def test_a_lost_one_does_not_matter() -> None:
    caller, callee, sent = pair()
    for number in range(3):
        caller.send({"number": number})
    assert opened(callee, sent[2]) == {"number": 2}


def refused(trickle: Trickle, text: object, why: str) -> None:
    with pytest.raises(BadPacket, match=why):
        trickle.open_untrusted(text)


def test_repeated_or_late() -> None:
    caller, callee, sent = pair()
    caller.send({})
    caller.send({})
    callee.open_untrusted(sent[1])
    refused(callee, sent[1], "not new")
    refused(callee, sent[0], "not new")


def test_sent_back() -> None:
    caller, _, sent = pair()
    caller.send({"a": 1})
    refused(caller, sent[0], "wrong MAC")


def test_another_call() -> None:
    caller, _, sent = pair()
    caller.send({"a": 1})
    refused(Trickle(bytes(32), False, sent.append), sent[0], "wrong MAC")


@pytest.mark.parametrize("place", [0, 10, 23, 24, 25, 30, -1])
def test_changed(place: int) -> None:
    caller, callee, sent = pair()
    caller.send({"a": 1})
    text = bytearray(sent[0].encode())
    text[place] ^= 1
    refused(callee, text.decode(), "wrong MAC")


@pytest.mark.parametrize(
    "text", [None, 7, [], "", "x" * (MAX_TRICKLE_CHARS + 1), "ä", " ", "a b c"]
)
def test_nonsense(text: object) -> None:
    refused(pair()[1], text, "trickled text")


@pytest.mark.parametrize(
    "body", ["[]", "7", "null", "{", "[" * 4000, "{}", '{"n":"1"}', '{"n":true}', '{"n":0}']
)
def test_a_peer_that_says_nonsense(body: str) -> None:
    """Under the right key."""
    caller, callee, _ = pair()
    refused(callee, f"{caller._mac(b'caller ', body)} {body}", "trickled text")


def test_numbers_only_grow() -> None:
    caller, callee, sent = pair()
    for _ in range(20):
        caller.send({})
    numbers = [json.loads(text.partition(" ")[2])["n"] for text in sent]
    assert numbers == sorted(set(numbers))
    for text in sent:
        callee.open_untrusted(text)
