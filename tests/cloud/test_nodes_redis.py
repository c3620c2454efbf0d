"""Nodes that are one cloud, on a real Redis: which is stopped, emptied, and held up."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from helpers.cloud_client import SEEN, Client, running_cloud, until
from helpers.redis_server import RedisServer
from helpers.shared_directory import ACCOUNTS, Fleet, Shared
from kkp2p_compat.cloud import guests
from kkp2p_compat.cloud.status import why_not_ready

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
        made.end()


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


def test_redis_refuses_to_be_written_to(fleet: Fleet, redis_server: RedisServer) -> None:
    """As when its replicas are gone (min-replicas-to-write), or its disk is full."""
    redis_server.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    for cloud in fleet.clouds:
        assert cloud.nodes is not None
        cloud.nodes.take_turn()
        assert "NOREPLICAS" in why_not_ready(cloud)
    other = fleet.client(1, "other")
    assert fleet.caller.call("other", 1)["reason"] == "unavailable"
    redis_server.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    back(fleet)
    assert [why_not_ready(cloud) for cloud in fleet.clouds] == ["", ""]
    numbers = iter(range(2, 1000))
    until(lambda: fleet.caller.call("other", next(numbers))["op"] == "calling")
    assert other.receive()["op"] == "offer"


CALL = {
    "op": "call",
    "from": "0123456789abcdef",
    "connection": 0,
    "seen": SEEN,
    "host": "192.0.2.1",
    "message": {"op": "call", "call": 3, "to": "callee", "ms": 20_000, "offer": "{}"},
}


@pytest.mark.parametrize(
    "line",
    [
        '{"op":"unheard-of","from":"0123456789abcdef","x":[%s0]}' % ("0," * 60_000),
        json.dumps(CALL).replace('"connection": 0', '"connection": __rand_int__'),
    ],
    ids=["numbers", "callers"],
)
def test_whoever_can_write_to_redis_floods_a_node(
    fleet: Fleet, redis_server: RedisServer, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It serves its own peers, even when Redis gives up on a node that it has so much for."""
    caller = fleet.client(1, "caller")
    told, track = [f"kkp2p:to:{fleet.id(1)}", line], fleet.clouds[1].track
    assert track is not None
    assert track._abroad is not None
    flood = subprocess.Popen(
        [
            "redis-benchmark",
            "-p",
            str(redis_server.port),
            "-P",
            "16",
            "-c",
            "4",
            "-q",
            "-l",
            "-r",
            "1000000000",
            "PUBLISH",
            *told,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: float(_info(redis_server, "total_net_input_bytes")) > 1e7)
        for number in range(200):
            assert caller.call("callee", number)["op"] == "calling"
            offer = _offer_from(fleet.callee, "caller")
            fleet.callee.send("decline", call=offer["call"], reason="no")
            assert caller.receive() == {"op": "declined", "call": number, "reason": "no"}
        assert len(track._abroad._guests) <= guests.MAX_OF_A_NODE
    finally:
        flood.kill()
        flood.wait()
    late, numbers = fleet.client(0, "other"), iter(range(1, 1000))
    until(lambda: late.call("callee", next(numbers))["op"] == "calling")
    assert "a fault of ours" not in caplog.text


def _info(redis: RedisServer, name: str) -> str:
    lines = redis.ask("INFO").decode().splitlines()
    return str(dict(line.split(":", 1) for line in lines if ":" in line)[name])


def _offer_from(callee: Client, peer_id: str) -> dict[str, Any]:
    while (message := callee.receive()).get("from") != peer_id:
        pass
    return message
