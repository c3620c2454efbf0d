"""Who is online where: of two logins under one id the newer one stays, at whichever node it is."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from helpers.cloud_client import SEEN, Client, until
from helpers.shared_directory import ACCOUNTS, Fleet, running_nodes

DUPLICATE = {"op": "bye", "reason": "duplicate"}
MOVED = {"op": "bye", "reason": "moved"}
ONE, TWO = "session-one", "session-two"


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with running_nodes(3, ACCOUNTS) as (shared, clouds):
        made = Fleet(shared, clouds)
        yield made
        made.end()
        if shared.away:
            shared.come_back()  # what it could not be told meanwhile it is told now
        until(lambda: not shared.presences)


def test_the_newer_login_stays(fleet: Fleet) -> None:
    old = fleet.client(0, "other", session=ONE)
    new = fleet.client(1, "other", session=TWO)
    assert old.receive() == DUPLICATE
    assert fleet.caller.call("other", 1)["op"] == "calling"
    assert new.receive()["op"] == "offer"
    assert fleet.shared.presences["other"].node == fleet.id(1)


def test_one_that_was_replaced_meanwhile_does_not_come_again(fleet: Fleet) -> None:
    new = fleet.client(1, "other", session=TWO)
    old = fleet.client(0, "other", session=ONE, again=True)
    assert old.receive() == DUPLICATE
    assert new.ask("beat") == {"op": "beat"}
    assert fleet.shared.presences["other"].node == fleet.id(1)


def test_one_that_comes_again_at_another_node(fleet: Fleet) -> None:
    """Its correspondents hear nothing: it was never gone.  When it goes, they do."""
    old = fleet.client(1, "other", session=ONE)
    caller = fleet.client(0, "caller")
    caller.call("other", 1)
    name = old.receive()["call"]
    old.send("answer", call=name, answer="yes")
    assert caller.receive()["op"] == "answer"
    new = fleet.client(2, "other", session=ONE, again=True)
    assert old.receive() == MOVED
    until(lambda: fleet.sent("met"))
    caller.close()
    assert new.receive() == {"op": "gone", "calls": [name]}
    again = fleet.client(0, "caller")
    new.close()
    assert again.receive() == {"op": "gone", "peer": "other"}


def test_a_program_that_was_replaced_at_another_node_is_gone(fleet: Fleet) -> None:
    caller = fleet.client(0, "caller")
    caller.call("callee", 1)
    fleet.callee.send("answer", call=fleet.callee.receive()["call"], answer="yes")
    assert caller.receive()["op"] == "answer"
    fleet.client(2, "callee", session=TWO)
    assert caller.receive() == {"op": "gone", "peer": "callee"}


def test_the_older_connection_of_a_program_may_be_the_one_that_it_has(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of one node is ahead, and it missed that the program is at another one."""
    track, now_ns = fleet.clouds[0].track, time.time_ns()
    assert track is not None
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time_ns", lambda: now_ns + 60 * 10**9)
        dead = fleet.client(0, "other", session=ONE)
    fleet.shared.lose = 1
    alive = fleet.client(1, "other", session=ONE, again=True)
    assert fleet.shared.lose == 0
    track._presences.restore()
    assert alive.receive() == MOVED
    alive = fleet.client(1, "other", session=ONE, again=True)
    assert dead.receive() == MOVED
    assert alive.ask("beat") == {"op": "beat"}


def test_who_moves_stays_until_its_calls_are_over(fleet: Fleet) -> None:
    old = fleet.client(1, "other", session=ONE, moves=True)
    fleet.caller.call("other", 1)
    name = old.receive()["call"]
    track = fleet.clouds[1].track
    assert track is not None
    track._presences.tell_to_move(track._online["other"])
    assert old.receive() == {"op": "move"}
    new = fleet.client(2, "other", session=ONE, again=True, moves=True)
    until(lambda: track._presences.lingering == 1)
    fleet.caller.call("other", 2)
    assert new.receive()["op"] == "offer"
    old.send("answer", call=name, answer="yes")
    assert fleet.caller.receive() == {"op": "answer", "call": 1, "answer": "yes", "seen": SEEN}
    fleet.caller.send("over", call=1)
    until(lambda: not track.calls)
    track._presences.sweep(1e12)
    assert old.receive() == {"op": "bye", "reason": "moved"}
    assert new.ask("beat") == {"op": "beat"}


def test_a_call_that_was_on_its_way_when_its_callee_moved(fleet: Fleet) -> None:
    old = fleet.client(1, "other", session=ONE, moves=True)
    track, nodes = fleet.clouds[1].track, fleet.clouds[1].nodes
    assert track is not None
    assert nodes is not None
    fleet.caller.call("callee", 3)
    sent = fleet.sent("call")[0]
    track._presences.tell_to_move(track._online["other"])
    assert old.receive() == {"op": "move"}
    fleet.client(2, "other", session=ONE, again=True, moves=True)
    until(lambda: track._presences.lingering == 1)
    late = {**sent, "message": {**sent["message"], "to": "other", "call": 9}}
    nodes.handlers["call"](fleet.id(0), late)
    assert old.receive()["op"] == "offer"
    nodes.handlers["left"](fleet.id(0), late)


def test_those_that_do_not_know_move_are_sent_away(fleet: Fleet) -> None:
    track = fleet.clouds[1].track
    assert track is not None
    track._presences.tell_to_move(track._online["callee"])
    assert fleet.callee.receive() == {"op": "bye", "reason": "shutdown"}


def test_a_flushed_directory_is_told_again(fleet: Fleet) -> None:
    fleet.shared.flush()
    assert fleet.caller.call("callee", 1)["reason"] == "offline"
    for cloud in fleet.clouds:
        assert cloud.nodes is not None
        cloud.nodes.take_turn()
    until(lambda: "callee" in fleet.shared.presences)
    assert fleet.caller.call("callee", 2)["op"] == "calling"


def test_a_login_that_is_not_complete_when_the_directory_is_told_again(fleet: Fleet) -> None:
    login, directory = fleet.begin_login(0, "other")
    track = fleet.clouds[0].track
    assert track is not None
    track._presences._restore()
    directory.completes.set()
    login.get()
    where = directory.where("other")
    assert where is not None
    assert where.node == fleet.id(0)


def test_a_login_while_the_directory_is_away(fleet: Fleet) -> None:
    """It goes on, and the directory hears of it when it is back; the newer one of two stays."""
    fleet.shared.away = True
    first = fleet.client(0, "other", session=ONE)
    second = fleet.client(1, "other", session=TWO)
    assert first.ask("beat") == second.ask("beat") == {"op": "beat"}
    fleet.shared.come_back()
    assert first.receive() == DUPLICATE
    assert second.ask("beat") == {"op": "beat"}
    assert fleet.shared.presences["other"].node == fleet.id(1)


def test_a_login_of_an_account_that_cannot_be_looked_up(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = fleet.clouds[0].directory
    assert directory is not None
    fleet.shared.away = True
    monkeypatch.setattr(directory, "account", lambda peer_id: directory.where(peer_id))
    with Client(fleet.clouds[0].address) as client:
        assert client.login("other", "o") == {"op": "bye", "reason": "unavailable"}


def test_a_node_whose_lease_had_run_out(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after SIGSTOP: the others took it for gone, and its peers logged in elsewhere, or not."""
    other = fleet.client(1, "other", session=ONE)
    stopped = fleet.clouds[1].nodes
    assert stopped is not None
    directory = fleet.clouds[0].directory
    assert directory is not None
    directory.release(stopped.id)
    new = fleet.client(2, "other", session=ONE, again=True)
    stopped.take_turn()
    assert other.receive() == MOVED
    assert new.ask("beat") == {"op": "beat"}
    until(lambda: "callee" in fleet.shared.presences)
    assert fleet.caller.call("callee", 1)["op"] == "calling"
