"""Calls between peers of two nodes: as if they were at one."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from helpers.cloud_client import SEEN, Client, time_passes, until
from helpers.shared_directory import Fleet, SharedDirectory, running_fleet
from kkp2p_compat.cloud.abroad import UNHEARD_S


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with running_fleet() as made:
        yield made


def test_a_call_from_offer_to_over(fleet: Fleet) -> None:
    calling = fleet.caller.call("callee", 7, '{"text": "\\u4f60"}', 5000)
    offer = fleet.callee.receive()
    assert (calling["op"], calling["call"]) == ("calling", 7)
    assert (offer["op"], offer["offer"]) == ("offer", '{"text": "\\u4f60"}')
    assert 4000 < offer["ms"] <= 5000
    assert offer["seen"] == SEEN
    assert "from" not in offer
    fleet.callee.send("answer", call=offer["call"], answer="yes")
    assert fleet.caller.receive() == {"op": "answer", "call": 7, "answer": "yes", "seen": SEEN}
    fleet.caller.send("trickle", call=7, text="more")
    assert fleet.callee.receive() == {"op": "trickle", "call": offer["call"], "text": "more"}
    fleet.callee.send("trickle", call=offer["call"], text="even more")
    assert fleet.caller.receive() == {"op": "trickle", "call": 7, "text": "even more"}
    assert fleet.calls == [1, 1]
    fleet.caller.send("over", call=7)
    until(fleet.is_clean)
    assert fleet.callee.ask("beat") == {"op": "beat"}


def test_a_caller_that_has_logged_in_is_named(fleet: Fleet) -> None:
    caller = fleet.client(0, "caller")
    caller.send("nat", nat={"mapping": "none"})
    caller.call("callee")
    offer = fleet.callee.receive()
    assert (offer["from"], offer["nat"]) == ("caller", {"mapping": "none"})


def test_declined_cancelled_and_gone(fleet: Fleet) -> None:
    fleet.caller.call("callee", 1)
    fleet.callee.send("decline", call=fleet.callee.receive()["call"], reason="busy")
    assert fleet.caller.receive() == {"op": "declined", "call": 1, "reason": "busy"}
    fleet.caller.call("callee", 2)
    name = fleet.callee.receive()["call"]
    fleet.caller.send("cancel", call=2)
    assert fleet.callee.receive() == {"op": "cancel", "call": name}
    fleet.caller.call("callee", 3)
    name = fleet.callee.receive()["call"]
    fleet.caller.close()
    assert fleet.callee.receive() == {"op": "cancel", "call": name}
    until(fleet.is_clean)


def test_a_callee_that_leaves(fleet: Fleet) -> None:
    fleet.caller.call("callee", 1)
    fleet.callee.close()
    assert fleet.caller.receive() == {"op": "declined", "call": 1, "reason": "left"}
    assert fleet.caller.call("callee", 2) == {"op": "declined", "call": 2, "reason": "offline"}


def test_nobody_there(fleet: Fleet) -> None:
    assert fleet.caller.call("nobody", 1) == {"op": "declined", "call": 1, "reason": "offline"}
    assert fleet.sent("call") == []


def test_who_may_not_call_is_declined_by_the_callee_s_node(fleet: Fleet) -> None:
    fleet.client(1, "other", callers="caller")
    declined = {"op": "declined", "call": 1, "reason": "not-allowed"}
    assert fleet.caller.call("other", 1) == declined
    caller = fleet.client(0, "caller")
    assert caller.call("other", 1)["op"] == "calling"


def test_a_call_whose_time_is_over(fleet: Fleet) -> None:
    fleet.caller.call("callee", 1, ms=2000)
    name = fleet.callee.receive()["call"]
    for cloud in fleet.clouds:
        time_passes(cloud, 4)
    assert fleet.callee.receive() == {"op": "cancel", "call": name}
    until(fleet.is_clean)


def test_a_number_may_be_used_again_when_its_call_was_answered(fleet: Fleet) -> None:
    for _ in range(2):
        fleet.caller.call("callee", 1)
        fleet.callee.send("answer", call=fleet.callee.receive()["call"], answer="yes")
        assert fleet.caller.receive()["op"] == "answer"
    assert fleet.calls == [1, 1]


def test_a_node_that_says_nothing(fleet: Fleet) -> None:
    fleet.shared.lose = 1
    fleet.caller.send("call", call=1, to="callee", ms=20_000, offer="{}")
    until(lambda: fleet.calls == [1, 0])
    time_passes(fleet.clouds[0], UNHEARD_S + 1)
    assert fleet.caller.receive() == {
        "op": "declined",
        "call": 1,
        "reason": "unavailable",
        "again": True,
    }
    assert fleet.clouds[0].gate.counts.calls == {"unavailable": 1}


def test_a_node_that_is_only_slow_ends_a_call_of_which_it_was_not_heard(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet.shared.listeners[fleet.id(0)], "on_line", lambda line: None)
    fleet.caller.send("call", call=1, to="callee", ms=20_000, offer="{}")
    name = fleet.callee.receive()["call"]
    time_passes(fleet.clouds[0], UNHEARD_S + 1)
    assert fleet.caller.receive()["reason"] == "unavailable"
    assert fleet.callee.receive() == {"op": "cancel", "call": name}
    until(fleet.is_clean)
    assert [cloud.gate.counts.calls for cloud in fleet.clouds] == [{"unavailable": 1}, {}]


def call_while_it_logs_in(
    fleet: Fleet, caller: Client
) -> tuple[gevent.Greenlet[..., Client], SharedDirectory]:
    """Call "other" at the second node, where its login is held up; see begin_login."""
    login = fleet.begin_login(1, "other")
    caller.send("call", call=1, to="other", ms=20_000, offer="{}")
    track = fleet.clouds[1].track
    assert track is not None
    until(lambda: track._presences._arriving["other"].waiting)
    return login


def test_a_call_that_waits_too_long_for_a_login_rings_nobody(fleet: Fleet) -> None:
    login, directory = call_while_it_logs_in(fleet, fleet.caller)
    time_passes(fleet.clouds[0], UNHEARD_S + 1)
    assert fleet.caller.receive()["reason"] == "unavailable"
    assert fleet.caller.call("callee", 2)["op"] == "calling"  # so the first has been ended, too
    directory.completes.set()
    assert login.get().ask("beat") == {"op": "beat"}
    assert [cloud.gate.counts.calls for cloud in fleet.clouds] == [{"unavailable": 1}, {}]


def test_the_log_of_a_node_that_says_nothing_is_short(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.shared.lose = 3
    for number in range(3):
        fleet.caller.send("call", call=number, to="callee", ms=20_000, offer="{}")
    until(lambda: fleet.calls == [3, 0])
    time_passes(fleet.clouds[0], UNHEARD_S + 1)
    assert caplog.text.count("no word of a call to callee") == 1


def test_a_call_of_two_nodes_is_counted_as_one(fleet: Fleet) -> None:
    fleet.caller.call("callee", 1)
    assert [cloud.track and cloud.track.calls for cloud in fleet.clouds] == [0, 1]


def test_the_directory_is_away(fleet: Fleet) -> None:
    """Who is at this node can still be called."""
    here = fleet.client(0, "other")
    fleet.shared.away = True
    declined = {"op": "declined", "call": 1, "reason": "unavailable", "again": True}
    assert fleet.caller.call("callee", 1) == declined
    assert fleet.caller.call("other", 2)["op"] == "calling"
    assert here.receive()["op"] == "offer"
    fleet.shared.come_back()
    assert fleet.caller.call("callee", 3)["op"] == "calling"


def test_a_call_that_meets_a_login_which_is_not_complete(fleet: Fleet) -> None:
    login, directory = call_while_it_logs_in(fleet, fleet.caller)
    directory.completes.set()
    assert login.get().receive()["op"] == "offer"


@pytest.mark.parametrize("node", [0, 1], ids=["another node", "the callee's node"])
def test_a_call_that_is_given_up_while_it_waits_for_a_login(fleet: Fleet, node: int) -> None:
    """Its number is free, and its callee hears nothing of it."""
    caller = fleet.client(node)
    login, directory = fleet.begin_login(1, "other")
    caller.send("call", call=1, to="other", ms=20_000, offer="{}")
    caller.send("cancel", call=1)
    assert caller.call("callee", 1)["op"] == "calling"
    offer = fleet.callee.receive()
    directory.completes.set()
    assert login.get().ask("beat") == {"op": "beat"}
    assert fleet.calls == [1 - node, 1]
    fleet.callee.send("decline", call=offer["call"], reason="busy")
    assert caller.receive() == {"op": "declined", "call": 1, "reason": "busy"}
    assert fleet.clouds[1].gate.counts.calls == {"cancelled": 1, "declined": 1}


@pytest.mark.parametrize("node", [0, 1], ids=["another node", "the callee's node"])
def test_a_caller_that_leaves_while_its_call_waits_for_a_login(fleet: Fleet, node: int) -> None:
    caller, counts = fleet.client(node), fleet.clouds[1].gate.counts.calls
    login, directory = call_while_it_logs_in(fleet, caller)
    caller.close()
    until(lambda: counts["cancelled"] == 1)
    directory.completes.set()
    assert login.get().ask("beat") == {"op": "beat"}
    assert fleet.calls == [0, 0]


def test_a_number_is_in_use_while_its_call_waits_for_a_login(fleet: Fleet) -> None:
    caller = fleet.client(1)
    login, directory = fleet.begin_login(1, "other")
    caller.send("call", call=1, to="other", ms=20_000, offer="{}")
    assert caller.call("callee", 1)["op"] == "error"
    directory.completes.set()
    assert login.get().receive()["op"] == "offer"
    assert caller.receive()["op"] == "calling"


def test_a_node_that_is_gone(fleet: Fleet) -> None:
    """Its callers' calls end, and those that it carried."""
    fleet.caller.call("callee", 1)
    name = fleet.callee.receive()["call"]
    there = fleet.client(1)
    here = fleet.client(0, "other")
    there.call("other", 4)
    offer = here.receive()
    first = fleet.clouds[0].nodes
    assert first is not None
    del fleet.shared.leases[fleet.id(1)]
    first.take_turn()
    assert fleet.calls == [2, 2]  # it may only have been missed
    first.take_turn()
    assert fleet.caller.receive() == {"op": "declined", "call": 1, "reason": "left"}
    assert fleet.clouds[0].gate.counts.calls["left"] == 1
    assert here.receive() == {"op": "cancel", "call": offer["call"]}
    assert fleet.calls[0] == 0
    assert fleet.callee.receive() == {"op": "cancel", "call": name}  # its node lives on
    assert fleet.clouds[1].gate.counts.calls == {}


def test_gone_is_told_over_the_border(fleet: Fleet) -> None:
    caller = fleet.client(0, "caller")
    caller.call("callee", 1)
    name = fleet.callee.receive()["call"]
    fleet.callee.send("answer", call=name, answer="yes")
    assert caller.receive()["op"] == "answer"
    stranger = fleet.client(0)
    stranger.call("callee", 1)
    strangers_call = fleet.callee.receive()["call"]
    fleet.callee.send("answer", call=strangers_call, answer="yes")
    assert stranger.receive()["op"] == "answer"
    caller.close()
    assert fleet.callee.receive() == {"op": "gone", "calls": [name]}
    stranger.close()
    assert fleet.callee.receive() == {"op": "gone", "calls": [strangers_call]}
    again = fleet.client(0, "caller")
    again.call("callee", 1)
    fleet.callee.send("answer", call=fleet.callee.receive()["call"], answer="yes")
    assert again.receive()["op"] == "answer"
    fleet.callee.close()
    assert again.receive() == {"op": "gone", "peer": "callee"}
