"""Nodes that are one cloud, on a real Redis: which is stopped, emptied, and held up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from helpers.cloud_client import running_cloud, until
from helpers.redis_server import RedisServer
from helpers.shared_directory import ACCOUNTS, Fleet, Shared

DUPLICATE = {"op": "bye", "reason": "duplicate"}


@pytest.fixture
def fleet(redis_server: RedisServer) -> Iterator[Fleet]:
    with ExitStack() as stack:
        clouds = [
            stack.enter_context(running_cloud(ACCOUNTS, directory_url=redis_server.url))
            for _ in range(2)
        ]
        for cloud in clouds:
            assert cloud.nodes is not None
            cloud.nodes.take_turn()
        made = Fleet(Shared(), clouds)
        yield made
        for client in made.clients:
            client.close()
        until(made.is_clean)


def back(fleet: Fleet) -> None:
    """Redis answers again, and all nodes know."""
    for cloud in fleet.clouds:
        directory = cloud.directory
        assert directory is not None
        until(lambda: directory.away_since is None)  # noqa: B023
        assert cloud.nodes is not None
        cloud.nodes.take_turn()


def may_call(fleet: Fleet, number: int) -> bool:
    return fleet.caller.call("callee", number)["op"] == "calling"


def test_a_call_and_its_answer(fleet: Fleet) -> None:
    calling = fleet.caller.call("callee", 1)
    assert calling["op"] == "calling"
    offer = fleet.callee.receive()
    fleet.callee.send("answer", call=offer["call"], answer="yes")
    assert fleet.caller.receive()["answer"] == "yes"
    assert calling["relay"][:2] == offer["relay"][:2]
    assert calling["relay"][1] in [cloud.address[1] for cloud in fleet.clouds]


def test_the_newer_of_two_logins_stays(fleet: Fleet) -> None:
    new = fleet.client(0, "callee")
    assert fleet.callee.receive() == DUPLICATE
    assert new.ask("beat") == {"op": "beat"}


def test_redis_is_restarted_and_knows_nothing(fleet: Fleet, redis_server: RedisServer) -> None:
    here = fleet.client(0, "other")
    redis_server.stop()
    assert fleet.caller.call("other", 1)["op"] == "calling"
    assert here.receive()["op"] == "offer"
    assert fleet.caller.call("callee", 2)["reason"] == "unavailable"
    meanwhile = fleet.client(1, "caller")  # a login that nobody else knows of yet
    redis_server.start()
    back(fleet)
    numbers = iter(range(3, 1000))
    until(lambda: may_call(fleet, next(numbers)))
    assert fleet.callee.receive()["op"] == "offer"
    new = fleet.client(0, "caller")
    assert meanwhile.receive() == DUPLICATE
    assert new.ask("beat") == {"op": "beat"}


def test_redis_is_emptied(fleet: Fleet, redis_server: RedisServer) -> None:
    redis_server.ask("FLUSHALL")
    back(fleet)
    numbers = iter(range(1, 1000))
    until(lambda: may_call(fleet, next(numbers)))


def test_redis_answers_nothing_for_a_while(fleet: Fleet, redis_server: RedisServer) -> None:
    here = fleet.client(0, "other")
    redis_server.pause()
    assert fleet.caller.call("callee", 1)["reason"] == "unavailable"
    assert fleet.caller.call("other", 2)["op"] == "calling"
    assert here.receive()["op"] == "offer"
    redis_server.go_on()
    back(fleet)
    numbers = iter(range(3, 1000))
    until(lambda: may_call(fleet, next(numbers)))
