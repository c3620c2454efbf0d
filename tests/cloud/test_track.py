"""Calls through one track: offer and answer, and every way in which a call ends early."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from helpers.cloud_client import SEEN, Client, Scene, open_relay, running_scene, time_passes, until
from kkp2p_compat.transport import relay_wire


@pytest.fixture
def scene() -> Iterator[Scene]:
    with running_scene() as made:
        yield made


@pytest.fixture
def tight_scene() -> Iterator[Scene]:
    with running_scene(open_calls=3, output_bytes=100_000) as made:
        yield made


def test_a_call_from_offer_to_relay(scene: Scene) -> None:
    text = '{"type":0, "desc":-1, "text":"\\u4f60\\u597d €"}'
    calling = scene.caller.call("callee", 7, text, 5000)
    offer = scene.callee.receive()
    assert (calling["op"], calling["call"]) == ("calling", 7)
    assert (offer["op"], offer["offer"], offer["ms"]) == ("offer", text, 5000)
    assert isinstance(offer["call"], str)
    assert "from" not in offer
    scene.callee.send("answer", call=offer["call"], answer=text + "!")
    assert scene.caller.receive() == {"op": "answer", "call": 7, "answer": text + "!", "seen": SEEN}
    ends = [open_relay(m["relay"], scene.cloud.address) for m in (calling, offer)]
    for end in ends:
        assert end.recv(1) == bytes([relay_wire.PAIRED])
    ends[0].sendall(b"hello")
    assert ends[1].recv(10) == b"hello"
    for end in ends:
        end.close()


def test_a_caller_that_has_logged_in_is_named(scene: Scene) -> None:
    assert scene.caller.login("caller", "d")["op"] == "welcome"
    scene.caller.call("callee")
    assert scene.callee.receive()["from"] == "caller"


def test_a_peer_may_call_itself(scene: Scene) -> None:
    scene.callee.send("call", call=1, to="callee", ms=1000, offer="{}")
    assert scene.callee.receive()["op"] == "calling"
    offer = scene.callee.receive()
    scene.callee.send("answer", call=offer["call"], answer="me")
    assert scene.callee.receive() == {"op": "answer", "call": 1, "answer": "me", "seen": SEEN}


def test_offline(scene: Scene) -> None:
    assert scene.caller.call("caller", 3) == {"op": "declined", "call": 3, "reason": "offline"}
    assert scene.caller.call("nobody", 4) == {"op": "declined", "call": 4, "reason": "offline"}


def test_declined(scene: Scene) -> None:
    scene.caller.call("callee", 3)
    scene.callee.send("decline", call=scene.callee.receive()["call"], reason="busy")
    assert scene.caller.receive() == {"op": "declined", "call": 3, "reason": "busy"}
    assert scene.track.calls == 0


def test_cancelled(scene: Scene) -> None:
    scene.caller.call("callee", 3)
    offer = scene.callee.receive()
    scene.caller.send("cancel", call=3)
    assert scene.callee.receive() == {"op": "cancel", "call": offer["call"]}
    # What crosses the cancel is no error.
    scene.callee.send("answer", call=offer["call"], answer="late")
    scene.caller.send("cancel", call=3)
    assert scene.callee.ask("beat")["op"] == "beat"
    assert scene.caller.ask("beat")["op"] == "beat"


def test_the_callee_leaves(scene: Scene) -> None:
    scene.caller.call("callee", 3)
    scene.caller.call("callee", 4)
    scene.callee.close()
    gone = [scene.caller.receive() for _ in range(2)]
    assert sorted(message["call"] for message in gone) == [3, 4]
    assert {message["reason"] for message in gone} == {"left"}
    assert scene.caller.call("callee", 5)["reason"] == "offline"


def test_the_caller_leaves(scene: Scene) -> None:
    scene.caller.call("callee", 3)
    offer = scene.callee.receive()
    scene.caller.close()
    assert scene.callee.receive() == {"op": "cancel", "call": offer["call"]}


def test_a_call_is_forgotten_when_its_time_is_up(scene: Scene) -> None:
    scene.caller.call("callee", 3, ms=60_000)
    offer = scene.callee.receive()
    time_passes(scene.cloud, 59)
    assert scene.track.calls == 1
    assert scene.caller.ask("beat")["op"] == "beat"
    assert scene.callee.ask("beat")["op"] == "beat"
    time_passes(scene.cloud, 62)
    assert scene.callee.receive() == {"op": "cancel", "call": offer["call"]}
    assert scene.track.calls == 0
    assert scene.caller.call("callee", 3)["op"] == "calling"  # the number is free again


def test_nobody_answers_the_call_of_another(scene: Scene) -> None:
    scene.caller.call("callee", 3)
    offer = scene.callee.receive()
    with Client(scene.cloud.address) as mallory:
        for op, fields in (("answer", {"answer": "x"}), ("decline", {"reason": "x"})):
            mallory.send(op, call=offer["call"], **fields)
        mallory.send("cancel", call=3)
        assert mallory.ask("beat")["op"] == "beat"
    assert scene.track.calls == 1
    scene.callee.send("answer", call=offer["call"], answer="mine")
    assert scene.caller.receive()["answer"] == "mine"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"call": "1"},
        {"call": True},
        {"call": -1},
        {"call": 2**60},
        {"call": 1.5},
        {"to": "with space"},
        {"to": "x" * 33},
        {"to": None},
        {"ms": 0},
        {"ms": 60_001},
        {"ms": "soon"},
        {"offer": None},
        {"offer": {"type": 0}},
        {"offer": "x" * 32_769},
        {"offer": "€" * 16_000},  # fits in, but not out: JSON writes six characters for each
    ],
)
def test_a_malformed_call(scene: Scene, fields: dict[str, Any]) -> None:
    good = {"call": 1, "to": "callee", "ms": 1000, "offer": "{}"}
    line = {**good, **fields} if fields else {}
    if fields.get("offer") == "€" * 16_000:
        scene.caller.send_raw(
            b'{"op":"call","call":1,"to":"callee","ms":1000,"offer":"'
            + ("€" * 16_000).encode()
            + b'"}\n'
        )
        answer = scene.caller.receive()
    else:
        answer = scene.caller.ask("call", **line)
    assert (answer["op"], answer["re"]) == ("error", "call")
    assert scene.caller.call("callee", 1)["op"] == "calling"


def test_an_answer_that_is_too_long_when_written_out(scene: Scene) -> None:
    scene.caller.call("callee", 3)
    call = scene.callee.receive()["call"]
    scene.callee.send_raw(
        f'{{"op":"answer","call":"{call}","answer":"'.encode() + ("€" * 16_000).encode() + b'"}\n'
    )
    assert scene.callee.receive()["op"] == "error"
    scene.callee.send("answer", call=call, answer="short")
    assert scene.caller.receive()["answer"] == "short"


def test_a_number_in_use(scene: Scene) -> None:
    scene.caller.call("callee", 3)
    assert scene.caller.call("callee", 3)["op"] == "error"
    assert scene.track.calls == 1


def test_open_calls_are_limited(tight_scene: Scene) -> None:
    scene = tight_scene
    for number in range(3):
        assert scene.caller.call("callee", number)["op"] == "calling"
    assert scene.caller.call("callee", 3) == {"op": "declined", "call": 3, "reason": "limit"}
    with Client(scene.cloud.address) as other:
        assert other.call("callee")["op"] == "calling"
    scene.caller.send("cancel", call=0)
    assert scene.caller.call("callee", 3)["op"] == "calling"


def test_open_calls_of_an_address_are_limited() -> None:
    with running_scene(open_calls_per_address=2) as scene:
        with Client(scene.cloud.address) as other:
            assert scene.caller.call("callee", 1)["op"] == "calling"
            assert other.call("callee", 1)["op"] == "calling"
            assert other.call("callee", 2)["reason"] == "limit"
        with Client(scene.cloud.address, source="127.0.0.2") as elsewhere:
            assert elsewhere.call("callee", 1)["op"] == "calling"


def test_who_tries_many_ids_does_not_learn_who_is_online(caplog: pytest.LogCaptureFixture) -> None:
    with running_scene(stranger_peers=3) as scene:
        ends = [scene.caller.call(f"nobody{number}", number) for number in range(10)]
        assert [end["reason"] for end in ends] == ["offline"] * 3 + ["limit"] * 7
        assert scene.caller.call("callee", 20)["reason"] == "limit"  # as if it were not there
        assert scene.caller.call("nobody1", 21)["reason"] == "offline"  # asked again
        with Client(scene.cloud.address) as another:  # a connection of its own is no help
            assert another.call("nobody5")["reason"] == "limit"
        with Client(scene.cloud.address, source="127.0.0.2") as elsewhere:
            assert elsewhere.call("callee")["op"] == "calling"
    assert caplog.text.count("too many different peers in a minute") == 1


def test_an_account_may_call_more_peers() -> None:
    with running_scene(stranger_peers=1, account_peers=3) as scene:
        for source in ("127.0.0.1", "127.0.0.2"):
            with Client(scene.cloud.address, source=source) as caller:
                assert caller.login("caller", "d")["op"] == "welcome"
                ends = [caller.call(f"nobody{source}{number}", number) for number in range(4)]
                assert [end["reason"] for end in ends][-1] == "limit"
                if source == "127.0.0.1":
                    assert [end["reason"] for end in ends][:3] == ["offline"] * 3
                else:
                    assert [end["reason"] for end in ends][:3] == ["limit"] * 3


def test_calls_per_second_are_limited() -> None:
    with running_scene(calls_per_s=2.0) as scene:
        reasons = [scene.caller.call("nobody", number)["reason"] for number in range(3)]
        assert reasons == ["offline", "offline", "limit"]
        with Client(scene.cloud.address) as other:
            assert other.call("nobody")["reason"] == "offline"


def test_strangers_offers_do_not_drop_a_callee_that_reads_slowly() -> None:
    """Half of its buffer is for what it has asked for itself."""
    with running_scene(output_bytes=400_000, bytes_per_s=1e9) as scene:
        answers: list[dict[str, Any]] = []
        number = 0
        while not answers or answers[-1]["op"] == "calling":
            number += 1
            answers.append(scene.caller.call("callee", number, "x" * 30_000))
            scene.caller.send("cancel", call=number)
        assert answers[-1]["reason"] == "busy"
        offers = [message for message in _read_until_beat(scene.callee) if message["op"] == "offer"]
        assert len(offers) == len(answers) - 1


def _read_until_beat(client: Client) -> Iterator[dict[str, Any]]:
    client.send("beat")
    while (message := client.receive())["op"] != "beat":
        yield message


def test_one_peers_trouble_does_not_reach_another(scene: Scene) -> None:
    """The callee vanishes with a reset while many callers wait for it."""
    callers = [Client(scene.cloud.address) for _ in range(20)]
    for caller in callers:
        assert caller.call("callee")["op"] == "calling"
    callers[3].close()
    until(lambda: scene.track.calls == 19)
    with gevent.Timeout(20):
        scene.callee.close()  # with unread offers: a reset
        for index, caller in enumerate(callers):
            if index != 3:
                assert caller.receive()["reason"] == "left"
                caller.close()


def test_unknown_ops_and_fields(scene: Scene) -> None:
    answer = scene.caller.ask("dance", to="callee")
    assert (answer["op"], answer["re"]) == ("error", "dance")
    assert len(scene.caller.ask("x" * 1000)["re"]) == 32
    assert scene.caller.ask("route", v=1, peer="callee", colour="red")["op"] == "track"
    assert scene.caller.ask("route", v=1)["op"] == "error"
    assert scene.caller.ask("answer", call=7)["op"] == "error"
    assert scene.caller.ask("decline")["op"] == "error"
    assert scene.caller.ask("cancel", call="x")["op"] == "error"
