"""Calls over one link: answers, refusals, trickle, and what the end of a call tells the cloud."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers.line_server import OpenLink, Visitor, wait_for
from helpers.support import SECRET
from kkp2p_compat._errors import (
    BadPacket,
    CallRefused,
    KKP2PError,
    LinkLost,
    NotSupported,
    PeerOffline,
    TimedOut,
)
from kkp2p_compat.control import link as link_module
from kkp2p_compat.control.link import Link
from kkp2p_compat.control.wire import MAX_TRICKLES, Message


def test_calls(open_link: OpenLink) -> None:
    def script(visitor: Visitor) -> None:
        first, second = visitor.receive("call"), visitor.receive("call")
        assert (first["to"], first["ms"], first["offer"]) == ("bob", 700, "offer 1")
        for number in (True, "1", 1.0, None, [1], 99):
            visitor.send("declined", call=number, reason="busy")
        visitor.send("answer", call=second["call"], answer="answer 2")
        visitor.send("calling", call=first["call"], relay=["r", 1, "t"])
        visitor.send("calling", call=first["call"], relay=["again"])
        visitor.send("answer", call=first["call"], answer="answer 1")
        visitor.send("declined", call=first["call"], reason="too late")
        assert visitor.receive() == {"op": "over", "call": first["call"]}
        assert visitor.receive() == {"op": "cancel", "call": second["call"]}
        visitor.send("error", re="cancel", reason="x")
        visitor.wait_until_gone()

    link = open_link(script)
    first, second = (link.calls.make("bob", f"offer {i}", 700) for i in (1, 2))
    assert first.relay.get()["relay"] == ["r", 1, "t"]
    assert (first.answer.get(), second.answer.get()) == ("answer 1", "answer 2")
    link.calls.forget(first, cancel=False)
    link.calls.forget(second, cancel=True)
    link.calls.forget(second, cancel=True)
    assert link.calls._calls == {}


@pytest.mark.parametrize(
    ("reason", "kind", "code"),
    [
        ("offline", PeerOffline, -109),
        ("timeout", TimedOut, -109),
        ("busy", CallRefused, -108),
        ("left", CallRefused, -108),
        ("not-allowed", CallRefused, -108),
        ("relay", CallRefused, -108),
        ("unsupported", NotSupported, -106),
        ("limit", LinkLost, -107),
        ("never heard of", CallRefused, -108),
        (None, CallRefused, -108),
        (["busy"], CallRefused, -108),
    ],
)
def test_declined(open_link: OpenLink, reason: object, kind: type[KKP2PError], code: int) -> None:
    def script(visitor: Visitor) -> None:
        visitor.send("declined", call=visitor.receive("call")["call"], reason=reason)
        visitor.wait_until_gone()

    call = open_link(script).calls.make("bob", "{}", 1000)
    for result in (call.relay, call.answer):
        with pytest.raises(KKP2PError) as caught:
            result.get()
        assert (type(caught.value), caught.value.code) == (kind, code)


@pytest.mark.parametrize("answer", [None, 5, ["x"], {"key": "x"}])
def test_an_answer_that_is_no_text(open_link: OpenLink, answer: object) -> None:
    def script(visitor: Visitor) -> None:
        visitor.send("answer", call=visitor.receive("call")["call"], answer=answer)
        visitor.wait_until_gone()

    link = open_link(script)
    with pytest.raises(BadPacket):
        link.calls.make("bob", "{}", 1000).answer.get()


# Trickle, and what the sides know of each other's NAT.


def test_trickle(open_link: OpenLink, offers: list[Message]) -> None:
    def script(visitor: Visitor) -> None:
        visitor.log_in()
        number = visitor.receive("call")["call"]
        assert visitor.receive() == {"op": "trickle", "call": number, "text": "to callee"}
        assert visitor.receive() == {"op": "trickle", "call": "abc", "text": "to caller"}
        visitor.send("trickle", call="abc", text="of a caller")
        for odd in (number + 1, True, None, 1.5):
            visitor.send("trickle", call=odd, text="x")
        for text in ("1", "2"):
            visitor.send("trickle", call=number, text=text)
        visitor.send("calling", call=number, relay=[], nat={"x": [1]})
        assert visitor.receive() == {"op": "cancel", "call": number}
        visitor.send("trickle", call=number, text="too late")
        visitor.receive("route")
        visitor.send("track", tracks=[])
        visitor.wait_until_gone()

    link = open_link(script)
    link.login("me", SECRET)
    call = link.calls.make("bob", "{}", 1000)
    link.trickle(call.number, "to callee")
    link.trickle("abc", "to caller")
    call.relay.get()
    assert call.peer_nat == {"x": [1]}
    texts: list[str] = []
    call.hear(texts.append)
    assert texts == ["1", "2"]  # came before, and were kept
    link.calls.forget(call, cancel=True)
    link.route("x")
    assert texts == ["1", "2"]
    assert offers == [{"op": "trickle", "call": "abc", "text": "of a caller"}]
    link.close()
    link.trickle(call.number, "nobody hears it, and that is no error")


def test_trickles_that_nobody_takes_are_bounded(open_link: OpenLink) -> None:
    def script(visitor: Visitor) -> None:
        number = visitor.receive("call")["call"]
        for text in range(1000):
            visitor.send("trickle", call=number, text=str(text))
        visitor.send("answer", call=number, answer="{}")
        visitor.receive("route")
        visitor.send("trickle", call=number, text="last")
        visitor.send("track", tracks=[])
        visitor.wait_until_gone()

    link = open_link(script)
    call = link.calls.make("bob", "{}", 1000)
    call.answer.get()
    texts: list[str] = []
    call.hear(texts.append)
    assert texts == [str(text) for text in range(MAX_TRICKLES)]
    link.route("x")
    assert texts[-1] == "last"


@pytest.mark.parametrize("text", [None, 5, "x" * 4097, ["x"]])
def test_a_bad_trickle_of_a_callee(open_link: OpenLink, text: object) -> None:
    def script(visitor: Visitor) -> None:
        visitor.send("trickle", call=visitor.receive("call")["call"], text=text)
        visitor.wait_until_gone()

    with pytest.raises(BadPacket):
        open_link(script).calls.make("bob", "{}", 1000).answer.get()


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize(
    ("op", "fields", "told"),
    [
        (None, {}, {False: [], True: ["cancel"]}),
        ("answer", {"answer": "{}"}, {False: ["over"], True: ["cancel"]}),
        ("declined", {"reason": "busy"}, {False: [], True: []}),
    ],
)
def test_what_the_end_of_a_call_tells(
    open_link: OpenLink, op: str | None, fields: Message, told: dict[bool, list[str]], cancel: bool
) -> None:
    heard: list[str] = []

    def script(visitor: Visitor) -> None:
        number = visitor.receive("call")["call"]
        if op is not None:
            visitor.send(op, call=number, **fields)
        while (message := visitor.receive())["op"] != "route":
            assert message["call"] == number
            heard.append(message["op"])
        visitor.send("track", tracks=[])
        visitor.wait_until_gone()

    link = open_link(script)
    call = link.calls.make("bob", "{}", 1000)
    wait_for(lambda: op is None or call.answer.ready())
    link.calls.forget(call, cancel)
    link.calls.forget(call, cancel)
    link.route("x")
    assert heard == told[cancel]


@pytest.mark.parametrize("cancel", [True, False])
def test_the_callee_of_a_settled_call_hears_of_no_end(open_link: OpenLink, cancel: bool) -> None:
    """It was told by the relay; a word by the track could overtake that."""

    def script(visitor: Visitor) -> None:
        number = visitor.receive("call")["call"]
        visitor.send("answer", call=number, answer="{}")
        assert visitor.receive() == {"op": "over", "call": number}
        visitor.wait_until_gone()

    link = open_link(script)
    call = link.calls.make("bob", "{}", 1000)
    call.answer.get()
    call.settle()
    link.calls.forget(call, cancel)


def test_a_trickle_breaks_no_one(open_link: OpenLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tells something waits for nothing, and need not know of the link's limits."""
    monkeypatch.setattr(link_module, "MAX_UNSENT_BYTES", 10)
    tells: list[Callable[[Link], object]] = [
        lambda link: link.trickle(1, "x"),
        lambda link: link.trickle("abc", "x"),
    ]
    for tell in tells:
        link = open_link(lambda visitor: visitor.wait_until_gone())
        tell(link)
        assert link.closed.is_set()


def test_the_nat_is_told_when_it_has_changed(open_link: OpenLink) -> None:
    heard: list[object] = []

    def script(visitor: Visitor) -> None:
        for _ in "abcd":
            message = visitor.receive("nat")
            heard.append((message["nat"], message.get("seen"), message.get("rtt")))

    link = open_link(script)
    for fields in ({"a": 1}, {"a": 1}, {"a": 2}):
        link.tell_nat(fields, {})
    link.tell_nat({"a": 2}, {"192.0.2.1": bytes(16)})
    link.tell_nat({"a": 2}, {"192.0.2.1": b"a newer one, but"})  # the same address
    for _ in range(2):
        link.tell_nat({"a": 2}, {}, {"192.0.2.9:3080": 12})
    link.closed.wait()
    assert heard == [
        ({"a": 1}, None, None),
        ({"a": 2}, None, None),
        ({"a": 2}, [["192.0.2.1", "A" * 22]], None),
        ({"a": 2}, None, {"192.0.2.9:3080": 12}),
    ]
