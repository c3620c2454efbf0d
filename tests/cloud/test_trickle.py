"""What the two sides of a call tell each other besides offer and answer, through a real track."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.cloud_client import SEEN, Client, Scene, running_scene, time_passes, until
from kkp2p_compat.control.wire import MAX_TRICKLE_CHARS, MAX_TRICKLES

TEXT = '{"predict": "\\u4f60 €"}'


@pytest.fixture
def scene() -> Iterator[Scene]:
    with running_scene() as made:
        yield made


def call(scene: Scene, number: int = 3, **fields: Any) -> str:
    """The caller calls; the name that the callee got for it."""
    assert scene.caller.call("callee", number, **fields)["op"] == "calling"
    return str(scene.callee.receive()["call"])


def answered(scene: Scene, number: int = 3, **fields: Any) -> str:
    name = call(scene, number, **fields)
    scene.callee.send("answer", call=name, answer="a")
    assert scene.caller.receive() == {"op": "answer", "call": number, "answer": "a", "seen": SEEN}
    return name


def nothing_came(*clients: Client) -> None:
    """What is there already would arrive before the answer to a question."""
    for client in clients:
        assert client.ask("beat") == {"op": "beat"}


@pytest.mark.parametrize("make", [call, answered])
def test_both_ways(scene: Scene, make: Any) -> None:
    name = make(scene)
    scene.caller.send("trickle", call=3, text=TEXT)
    assert scene.callee.receive() == {"op": "trickle", "call": name, "text": TEXT}
    scene.callee.send("trickle", call=name, text=TEXT + "!")
    assert scene.caller.receive() == {"op": "trickle", "call": 3, "text": TEXT + "!"}


def test_a_peer_that_calls_itself(scene: Scene) -> None:
    scene.callee.send("call", call=1, to="callee", ms=1000, offer="{}")
    assert scene.callee.receive()["op"] == "calling"
    name = scene.callee.receive()["call"]
    for mine, theirs in ((1, name), (name, 1)):
        scene.callee.send("trickle", call=mine, text="x")
        assert scene.callee.receive()["call"] == theirs


def test_each_direction_has_so_many(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    name = call(scene)
    for number in range(MAX_TRICKLES + 10):
        scene.caller.send("trickle", call=3, text=str(number))
    for number in range(MAX_TRICKLES):
        assert scene.callee.receive()["text"] == str(number)
    nothing_came(scene.callee)
    assert f"over {MAX_TRICKLES} trickles in a call" in caplog.text
    scene.callee.send("answer", call=name, answer="a")  # does not start it anew
    assert scene.caller.receive()["op"] == "answer"
    scene.caller.send("trickle", call=3, text="one more")
    scene.callee.send("trickle", call=name, text="the other way")
    assert scene.caller.receive()["text"] == "the other way"
    nothing_came(scene.caller, scene.callee)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x" * (MAX_TRICKLE_CHARS + 1)},
        {"text": None},
        {"text": {"a": 1}},
        {"call": None},
        {"call": True},
        {"call": -1},
        {"call": [3]},
        {"call": "x" * 100},
    ],
    ids=str,
)
def test_malformed(scene: Scene, fields: dict[str, Any]) -> None:
    answered(scene)
    answer = scene.caller.ask("trickle", **{"call": 3, "text": "x"} | fields)
    assert (answer["op"], answer["re"]) == ("error", "trickle")
    nothing_came(scene.callee)


def test_the_longest_text(scene: Scene) -> None:
    answered(scene)
    scene.caller.send("trickle", call=3, text="€" * MAX_TRICKLE_CHARS)
    assert scene.callee.receive()["text"] == "€" * MAX_TRICKLE_CHARS


def test_over_is_silent_and_ends_it(scene: Scene) -> None:
    name = answered(scene)
    scene.caller.send("over", call=3)
    scene.caller.send("over", call=3)
    scene.caller.send("cancel", call=3)
    scene.caller.send("trickle", call=3, text="x")
    nothing_came(scene.caller)
    scene.callee.send("trickle", call=name, text="x")
    nothing_came(scene.callee, scene.caller)
    assert scene.track.calls == 0


def test_cancel_after_the_answer_reaches_the_callee(scene: Scene) -> None:
    name = answered(scene)
    scene.caller.send("cancel", call=3)
    assert scene.callee.receive() == {"op": "cancel", "call": name}
    assert scene.track.calls == 0


def test_a_second_answer_and_a_late_decline_are_ignored(scene: Scene) -> None:
    name = answered(scene)
    scene.callee.send("answer", call=name, answer="b")
    scene.callee.send("decline", call=name, reason="busy")
    nothing_came(scene.callee, scene.caller)
    assert scene.track.calls == 1


def test_its_time_is_up(scene: Scene) -> None:
    """The two may have met long ago: nobody is told."""
    name = answered(scene, ms=60_000)
    time_passes(scene.cloud, 59)
    assert scene.track.calls == 1
    time_passes(scene.cloud, 62)
    assert scene.track.calls == 0
    scene.callee.send("trickle", call=name, text="x")
    nothing_came(scene.callee, scene.caller)


def test_the_caller_s_connection_ends_after_the_answer(scene: Scene) -> None:
    """It may have been only that connection: the callee goes on."""
    answered(scene)
    scene.caller.close()
    until(lambda: scene.track.calls == 0)
    assert scene.callee.receive()["op"] == "gone"
    nothing_came(scene.callee)


def test_the_callee_s_connection_ends_after_the_answer(scene: Scene) -> None:
    answered(scene)
    scene.callee.close()
    until(lambda: scene.track.calls == 0)
    assert scene.caller.receive()["op"] == "gone"
    nothing_came(scene.caller)


def test_nobody_trickles_into_the_call_of_another(scene: Scene) -> None:
    name = answered(scene)
    with Client(scene.cloud.address) as mallory:
        mallory.send("trickle", call=name, text="x")
        mallory.send("trickle", call=3, text="x")
        mallory.send("over", call=3)
        nothing_came(mallory, scene.callee, scene.caller)
    assert scene.track.calls == 1


def test_the_number_of_an_answered_call_may_be_used_again(scene: Scene) -> None:
    first = answered(scene)
    second = answered(scene)
    assert first != second
    assert scene.track.calls == 1
    scene.callee.send("trickle", call=first, text="x")
    nothing_came(scene.callee, scene.caller)


def test_a_caller_that_never_says_over_calls_all_the_same() -> None:
    with running_scene(kept_calls=3, open_calls=2) as scene:
        names = [answered(scene, number) for number in range(10)]
        assert scene.track.calls == 3
        for number, name in enumerate(names):
            scene.callee.send("trickle", call=name, text=str(number))
        assert [scene.caller.receive()["text"] for _ in range(3)] == ["7", "8", "9"]


def test_what_an_address_may_have_kept() -> None:
    with running_scene(kept_calls_per_address=2) as scene:
        answered(scene, 1)
        answered(scene, 2)
        with Client(scene.cloud.address) as other:
            assert other.call("callee", 1)["op"] == "calling"
            name = scene.callee.receive()["call"]
            scene.callee.send("answer", call=name, answer="a")
            assert other.receive()["op"] == "answer"
            assert scene.track.calls == 2  # not kept: there was none of its own to let go
            answered(scene, 3)
            assert scene.track.calls == 2


def test_a_callee_that_reads_slowly_is_not_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with (
        running_scene(output_bytes=100_000, bytes_per_s=1e9) as scene,
        Client(scene.cloud.address, receive_bytes=8192) as slow,
    ):
        assert slow.login("caller", "d")["op"] == "welcome"
        sent = number = 0
        while "a trickle to somebody who reads too slowly" not in caplog.text:
            number += 1
            assert scene.caller.call("caller", number)["op"] == "calling"
            for _ in range(MAX_TRICKLES):
                scene.caller.send("trickle", call=number, text="x" * MAX_TRICKLE_CHARS)
                sent += 1
            nothing_came(scene.caller)  # all are with the track by now
            scene.caller.send("over", call=number)
        slow.send("beat")
        got = 0
        while (op := slow.receive()["op"]) != "beat":
            got += op == "trickle"
        assert 0 < got < sent


# Telling of one's NAT.


def test_both_sides_hear_what_the_other_has_told(scene: Scene) -> None:
    scene.callee.send("nat", nat={"mapping": "none"})
    scene.caller.send("nat", nat={"mapping": "x", "deep": [[1]]})
    nothing_came(scene.callee, scene.caller)
    for last in ({"mapping": "none"}, {"mapping": "later"}):
        scene.caller.call("callee", 1)
        offer = scene.callee.receive()
        assert offer["nat"] == {"mapping": "x", "deep": [[1]]}
        scene.callee.send("answer", call=offer["call"], answer="a")
        assert scene.caller.receive()["nat"] == last
        scene.callee.send("nat", nat={"mapping": "later"})
        nothing_came(scene.callee)


@pytest.mark.parametrize("nat", [None, 5, "x", [1], {"x": "y" * 505}, {"x": [[0] * 200] * 3}])
def test_a_nat_that_is_none(scene: Scene, nat: object) -> None:
    scene.caller.send("nat", nat={"good": 1})
    answer = scene.caller.ask("nat", nat=nat)
    assert (answer["op"], answer["re"]) == ("error", "nat")
    assert "nat" not in scene.caller.call("callee", 3)  # the callee has told nothing
    assert scene.callee.receive()["nat"] == {"good": 1}


def test_it_buys_no_stranger_time(scene: Scene) -> None:
    with Client(scene.cloud.address) as stranger:
        stranger.send("nat", nat={})
        nothing_came(stranger)
        time_passes(scene.cloud, 11)
        assert stranger.ended()


def test_what_a_kept_call_costs() -> None:
    """Bytes at the track for each; the limits times this is what a stranger can make it hold."""
    with running_scene(kept_calls=500, unshown_to_a_peer=500) as scene:
        answered(scene, 0)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(1, 401):
                answered(scene, number)
            gc.collect()
            each = (tracemalloc.get_traced_memory()[0] - before) / 400
        finally:
            tracemalloc.stop()
        assert scene.track.calls == 401
        print(f"{each:.0f} bytes")
        assert each < 1000
