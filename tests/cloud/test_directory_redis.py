"""The directory in Redis: who is online where, the nodes, and every fault that Redis can have."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from redis import exceptions

from helpers.cloud_client import until
from helpers.redis_server import HOST, RedisServer, SentinelFleet
from helpers.support import PATIENCE_S
from kkp2p_compat.cloud import directory_redis, redis_link
from kkp2p_compat.cloud.certificate import load_identity
from kkp2p_compat.cloud.directory import DirectoryAway, Node, Presence, Refused, today
from kkp2p_compat.cloud.directory_redis import RedisDirectory
from kkp2p_compat.cloud.open_directory import open_directory
from kkp2p_compat.cloud.redis_link import RedisLink
from kkp2p_compat.cloud.redis_place import RedisPlace

ONE, TWO = Node("1" * 16, port=1, host="one.example"), Node("2" * 16, port=2, host="two.example")
Open = Callable[..., RedisDirectory]


@pytest.fixture
def open_node() -> Iterator[Open]:
    """Directories as nodes have them; each has its lease."""
    opened: list[RedisDirectory] = []

    def make(url: str, node: Node | None = ONE) -> RedisDirectory:
        directory = RedisDirectory(url)
        opened.append(directory)
        directory.start(node and node.id)
        if node is not None:
            directory.lease(node)
        return directory

    yield make
    for directory in opened:
        directory.close()


@pytest.fixture
def one(redis_server: RedisServer, open_node: Open) -> RedisDirectory:
    return open_node(redis_server.url, ONE)


@pytest.fixture
def two(redis_server: RedisServer, open_node: Open) -> RedisDirectory:
    return open_node(redis_server.url, TWO)


def _at(node: Node, peer_id: str = "alice", connection: int = 1, **fields: Any) -> Presence:
    known = {"session": "a session", "since_us": 1_000_000, **fields}
    return Presence(peer_id, node.id, connection, **known)


# Who is online where.


def test_a_peer_is_where_it_logged_in_last(one: RedisDirectory, two: RedisDirectory) -> None:
    assert two.where("alice") is None
    assert one.came(_at(ONE)) is None
    assert two.where("alice") == one.where("alice") == _at(ONE)
    assert two.came(_at(TWO, since_us=2)) == _at(ONE)
    assert one.where("alice") == _at(TWO, since_us=2)
    one.left(_at(ONE))  # crosses with the message that another has come
    assert one.where("alice") == _at(TWO, since_us=2)
    two.left(_at(TWO, connection=2))  # another connection of the same node
    assert two.where("alice") == _at(TWO, since_us=2)
    two.left(_at(TWO))
    assert two.where("alice") is None


def test_a_connection_number_is_compared_in_full(one: RedisDirectory) -> None:
    one.came(_at(ONE, connection=12))
    one.left(_at(ONE, connection=1))
    assert one.where("alice") == _at(ONE, connection=12)


def test_who_comes_again_throws_out_nobody(one: RedisDirectory, two: RedisDirectory) -> None:
    one.came(_at(ONE, session="program 1"))
    other = _at(TWO, session="program 2")
    assert two.came(other, again=True) == Refused(_at(ONE, session="program 1"))
    assert two.where("alice") == _at(ONE, session="program 1")
    same = _at(TWO, session="program 1")
    assert two.came(same, again=True) == _at(ONE, session="program 1")
    assert two.where("alice") == same


def test_a_login_at_a_node_that_is_gone_does_not_count(
    redis_server: RedisServer, one: RedisDirectory, two: RedisDirectory
) -> None:
    one.came(_at(ONE))
    redis_server.ask("DEL", f"kkp2p:node:{ONE.id}")  # its lease is over
    assert two.where("alice") is None
    other = _at(TWO, session="another", since_us=0)
    assert two.came(other, again=True) == _at(ONE)
    assert one.where("alice") == other


def test_the_newest_of_two_restored_logins_stays(one: RedisDirectory, two: RedisDirectory) -> None:
    older, newer = _at(ONE, since_us=999), _at(TWO, since_us=1000)
    for first, second in ((one, two), (two, one)):
        outcomes = [
            directory.came(older if directory is one else newer, restored=True)
            for directory in (first, second)
        ]
        assert two.where("alice") == newer
        assert outcomes[1] == (older if first is one else Refused(newer))
        two.left(newer)


def test_many_logins_at_once_have_one_winner(one: RedisDirectory, two: RedisDirectory) -> None:
    logins = [_at(node, connection=number) for number in range(50) for node in (ONE, TWO)]
    by_node = {ONE.id: one, TWO.id: two}
    jobs = [gevent.spawn(by_node[login.node].came, login) for login in logins]
    gevent.joinall(jobs, raise_error=True)
    replaced = [job.value for job in jobs]
    last = one.where("alice")
    assert replaced.count(None) == 1
    assert {*replaced, last} == {*logins, None}  # each was replaced once, but for the last


def test_strange_sessions(one: RedisDirectory) -> None:
    for session in ("", " ", "a b\nc", "\x00", "é" * 64, "x 1 2 3"):
        one.came(_at(ONE, session=session))
        assert one.where("alice") == _at(ONE, session=session)


def test_a_node_restores_what_it_has(
    redis_server: RedisServer, one: RedisDirectory, two: RedisDirectory
) -> None:
    names = [f"peer{number}" for number in range(directory_redis.AT_ONCE + 7)]
    here = {name: _at(ONE, name, number) for number, name in enumerate(names)}
    for presence in here.values():
        one.came(presence)
    redis_server.ask("FLUSHALL")
    one.lease(ONE)
    two.lease(TWO)
    two.came(_at(TWO, "peer3", since_us=2_000_000))
    one.came(_at(ONE, "gone long ago"[:4]))  # what left while nobody could be told
    del here["peer5"]  # one that leaves while this goes on
    outcomes = one.restore(ONE.id, names, here.get)
    assert outcomes == [(here["peer3"], Refused(_at(TWO, "peer3", since_us=2_000_000)))]
    for name in names:
        where = two.where(name)
        if name == "peer3":
            assert where is not None
            assert where.node == TWO.id
        else:
            assert where == here.get(name)
    assert two.where("gone") is None
    assert redis_server.ask("SCARD", f"kkp2p:peers:{ONE.id}") == len(names) - 2


# Usage.


def test_what_many_have_used_takes_few_requests(
    redis_server: RedisServer, one: RedisDirectory
) -> None:
    """It is told in one, of a script for so many accounts; it is read in one for so many."""

    def requests() -> int:
        return sum(one.link.latency.counts)

    def scripts() -> int:
        stats = redis_server.ask("INFO", "commandstats").decode()
        return int(stats.partition("cmdstat_evalsha:calls=")[2].partition(",")[0] or 0)

    many = 2 * directory_redis.AT_ONCE + 1
    counts = {f"peer{number}": {"logins": number, "calls": 1} for number in range(many)}
    before = requests(), scripts()
    one.add_usage({(who, what): n for who, used in counts.items() for what, n in used.items()})
    assert (requests() - before[0], scripts() - before[1]) == (1, 3)
    assert dict(one.usages(counts)) == counts
    assert requests() - before[0] == 1 + 3
    one.add_usage({("peer7", "calls"): 2})
    assert one.usage("peer7") == {"logins": 7, "calls": 3}
    (key,) = redis_server.ask("KEYS", "kkp2p:usage:*:peer7")
    assert 0 < int(redis_server.ask("TTL", key)) <= directory_redis.USAGE_S


# Nodes.


def test_nodes_find_each_other(one: RedisDirectory, two: RedisDirectory) -> None:
    assert sorted(one.nodes(), key=lambda node: node.id) == [ONE, TWO]
    two.release(TWO.id)
    assert one.nodes() == [ONE]


def test_what_a_dead_node_leaves_is_cleared(
    redis_server: RedisServer,
    one: RedisDirectory,
    two: RedisDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(directory_redis, "AT_ONCE", 10)
    for number in range(25):
        one.came(_at(ONE, f"peer{number}"))
    two.came(_at(TWO, "peer7"))
    redis_server.ask("DEL", f"kkp2p:node:{ONE.id}")
    assert two.nodes() == [TWO]
    until(lambda: set(redis_server.ask("SMEMBERS", "kkp2p:nodes")) == {TWO.id.encode()})
    assert redis_server.ask("EXISTS", f"kkp2p:peers:{ONE.id}") == 0
    assert redis_server.ask("KEYS", "kkp2p:peer:*") == [b"kkp2p:peer:peer7"]


def test_a_node_that_was_stopped_for_too_long_hears_of_it(
    redis_server: RedisServer, one: RedisDirectory
) -> None:
    back = Event()
    one.on_back = back.set
    one.lease(ONE)
    assert not back.is_set()
    redis_server.ask("DEL", f"kkp2p:node:{ONE.id}")
    one.lease(ONE)
    assert back.is_set()


def test_lines_reach_the_node_that_they_are_for(one: RedisDirectory, two: RedisDirectory) -> None:
    heard: list[bytes] = []
    two.on_line = heard.append
    one.on_line = lambda line: pytest.fail("not for this one")
    for number in range(1000):
        one.send(TWO.id, b'{"op":"x"}\n%d' % number)
    one.send("3" * 16, b"to nobody")
    until(lambda: len(heard) == 1000)
    assert heard == [b'{"op":"x"}\n%d' % number for number in range(1000)]


def test_a_line_that_cannot_be_taken_costs_only_that_line(
    one: RedisDirectory, two: RedisDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bytes] = []

    def take(line: bytes) -> None:
        if line == b"bad":
            raise ValueError("a fault of ours")
        heard.append(line)

    two.on_line = take
    one.send(TWO.id, b"bad")
    one.send(TWO.id, b"good")
    until(lambda: heard == [b"good"])
    assert "a fault of ours" in caplog.text


def test_a_redis_that_always_has_more_for_us_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has arrived is read without waiting: who publishes enough could have all our time."""
    monkeypatch.setattr(redis_link, "HEAR_S", 0.0)  # so that a slow machine makes no difference
    left, turns = iter(range(1000)), 0
    link = RedisLink(RedisPlace.parse("redis://nowhere.example"))

    def read(**_: object) -> list[bytes]:
        if next(left, None) is None:
            raise exceptions.ConnectionError("the end")
        return [b"message", b"to", b"junk"]

    def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    other = gevent.spawn(others)
    connection: Any = SimpleNamespace(read_response=read)
    link._hear(connection)
    other.kill()
    assert turns > 100


def test_a_redis_that_refuses_pings_is_heard_on() -> None:
    """As one whose disk is full does."""
    answers = iter([exceptions.TimeoutError(), exceptions.ResponseError("MISCONF"), b"a message"])

    def read(**_: object) -> list[bytes]:
        answer = next(answers, exceptions.ConnectionError("the end"))
        if isinstance(answer, Exception):
            raise answer
        return [b"message", b"to", answer]

    heard: list[tuple[str, bytes]] = []
    link = RedisLink(
        RedisPlace.parse("redis://nowhere.example"), (), lambda *told: heard.append(told)
    )
    connection: Any = SimpleNamespace(read_response=read, send_command=lambda *_, **__: None)
    link._hear(connection)
    assert heard == [("to", b"a message")]


def test_failed_logins_are_told_to_the_others(one: RedisDirectory, two: RedisDirectory) -> None:
    heard: list[tuple[str | None, str]] = []
    two.on_failed_login = lambda peer_id, host: heard.append((peer_id, host))
    one.on_failed_login = lambda peer_id, host: pytest.fail("its own")
    one.tell_failed_login("alice", "192.0.2.1")
    one.tell_failed_login(None, "2001:db8::1")
    until(lambda: heard == [("alice", "192.0.2.1"), (None, "2001:db8::1")])


# Accounts.


def test_a_changed_account_is_announced(one: RedisDirectory, two: RedisDirectory) -> None:
    heard: list[str | None] = []
    two.on_account_changed = heard.append
    one.add("alice", "x")
    until(lambda: heard == ["alice"])
    before = two.account("alice")
    assert before is not None
    one.update("alice", disabled=True)
    until(lambda: heard == ["alice", "alice"])
    after = two.account("alice")
    assert after is not None
    assert after.disabled
    one.remove("alice")
    until(lambda: len(heard) == 3)
    assert two.account("alice") is None


def test_all_nodes_and_relays_have_the_same_key(one: RedisDirectory, two: RedisDirectory) -> None:
    assert one.secret_key() == two.secret_key()
    assert len(one.secret_key()) == 32


def test_two_fleets_share_a_redis(redis_server: RedisServer, open_node: Open) -> None:
    ours = open_node(redis_server.url)
    theirs = open_node(f"{redis_server.url}/0?prefix=other:", TWO)
    ours.add("alice", "x")
    ours.came(_at(ONE))
    assert theirs.account("alice") is None
    assert theirs.where("alice") is None
    assert theirs.nodes() == [TWO]
    assert theirs.secret_key() != ours.secret_key()
    numbered = open_node(f"{redis_server.url}/3", TWO)
    assert numbered.account("alice") is None


# Faults.


def test_no_redis_at_the_start() -> None:
    directory = RedisDirectory("redis://:secret@127.0.0.1:1")
    with pytest.raises(OSError, match=r"redis://127\.0\.0\.1:1: ") as raised:
        directory.start(ONE.id)
    assert "secret" not in str(raised.value)
    directory.close()


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_while_redis_is_away_nobody_waits_and_then_all_is_told_again(
    redis_server: RedisServer, one: RedisDirectory, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(redis_link, "REDIS_TIMEOUT_S", 0.2)
    one.add("alice", "x")
    one.add("bob", "x")
    known = one.account("alice")
    back, changed = Event(), []
    one.on_back, one.on_account_changed = back.set, changed.append
    redis_server.pause() if fault == "paused" else redis_server.stop()
    with pytest.raises(DirectoryAway):
        one.where("alice")
    until(lambda: one.away_since is not None)
    assert one.away_reason
    for ask in (
        lambda: one.where("alice"),
        lambda: one.came(_at(ONE)),
        lambda: one.lease(ONE),
        lambda: one.account("bob"),  # nobody has logged in as that one here
        one.nodes,
    ):
        with pytest.raises(DirectoryAway):
            ask()
    assert one.account("alice") == known
    one.left(_at(ONE))  # these do not wait, and are lost
    one.send(TWO.id, b"x")
    redis_server.go_on() if fault == "paused" else redis_server.start()
    assert back.wait(10)
    assert one.away_since is None
    assert one.away_reason == ""
    until(lambda: None in changed)
    assert one.came(_at(ONE)) is None
    one.lease(ONE)
    assert one.where("alice") == _at(ONE)


def test_a_redis_that_was_flushed(redis_server: RedisServer, one: RedisDirectory) -> None:
    one.came(_at(ONE))
    back = Event()
    one.on_back = back.set
    redis_server.ask("FLUSHALL")
    redis_server.ask("SCRIPT", "FLUSH")
    assert one.where("alice") is None
    one.lease(ONE)
    assert back.is_set()
    one.came(_at(ONE), restored=True)
    assert one.where("alice") == _at(ONE)


def test_a_redis_that_has_lost_its_accounts(
    redis_server: RedisServer, one: RedisDirectory, two: RedisDirectory
) -> None:
    """Nobody is told that his account is gone, and the key stays what it was."""
    key = one.secret_key()
    two.add("alice", "a secret")
    two.add("bob", "another")
    known = one.account("alice")
    assert known is not None
    one.lease(ONE)
    redis_server.ask("FLUSHALL")
    one.lease(ONE)
    with pytest.raises(DirectoryAway, match="lost all accounts"):
        one.account("bob")
    assert one.away_since is not None
    assert "import" in one.away_reason
    with pytest.raises(DirectoryAway, match="lost all accounts"):
        dict(one.accounts(["alice"]))
    assert one.account("alice") == known  # as while Redis is away
    backs: list[bool] = []
    one.on_back = lambda: backs.append(True)
    one.lease(ONE)
    assert not backs
    assert two.secret_key() == key
    two.add("alice", "a secret")
    one.lease(ONE)
    assert backs == [True]
    assert (one.away_since, one.away_reason) == (None, "")
    assert one.account("bob") is None


def test_the_last_account_is_removed(one: RedisDirectory, two: RedisDirectory) -> None:
    two.add("alice", "a secret")
    assert one.account("alice") is not None
    two.remove("alice")
    assert dict(one.accounts(["alice"])) == {"alice": None}
    until(lambda: one.account("alice") is None)
    assert one.away_since is None


def test_a_full_redis_takes_no_logins_and_keeps_the_rest(
    redis_server: RedisServer, one: RedisDirectory, two: RedisDirectory
) -> None:
    one.came(_at(ONE))
    one.came(_at(ONE, "bob"))
    redis_server.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(DirectoryAway, match="maxmemory"):
        two.came(_at(TWO))
    assert two.away_since is not None
    assert "maxmemory" in two.away_reason
    one.lease(ONE)  # it lives on
    assert one.away_reason == two.away_reason
    assert int(redis_server.ask("PTTL", f"kkp2p:node:{ONE.id}")) > 9000
    assert two.where("alice") == _at(ONE)
    heard: list[bytes] = []
    two.on_line = heard.append
    one.send(TWO.id, b"x")
    one.left(_at(ONE, "bob"))
    assert one.where("bob") is None
    until(lambda: heard == [b"x"])
    redis_server.ask("CONFIG", "SET", "maxmemory", "0")
    for directory, node in ((one, ONE), (two, TWO)):
        back = Event()
        directory.on_back = back.set
        directory.lease(node)
        assert back.is_set()  # whoever has come meanwhile is told now
        assert directory.away_since is None
        assert directory.away_reason == ""
    assert two.came(_at(TWO)) == _at(ONE)


def test_a_redis_that_refuses_to_be_written_to(
    redis_server: RedisServer, one: RedisDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    used = {("alice", "calls"): 7, ("bob", "calls"): 1}
    for _ in range(2):
        for write in (
            lambda: one.lease(ONE),
            lambda: one.came(_at(ONE)),
            lambda: one.add_usage(used),
        ):
            with pytest.raises(DirectoryAway, match="NOREPLICAS"):
                write()
    assert one.away_since is not None
    assert "NOREPLICAS" in one.away_reason
    assert len([each for each in caplog.messages if "NOREPLICAS" in each]) == 1
    back = Event()
    one.on_back = back.set
    redis_server.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    one.lease(ONE)
    assert back.is_set()
    assert one.away_since is None
    one.add_usage(used)
    assert used == {}
    assert one.usage("alice") == {"calls": 7}


def test_usage_of_which_redis_takes_a_part(
    one: RedisDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_redis, "AT_ONCE", 1)
    refusal = exceptions.ResponseError("NOREPLICAS Not enough good replicas to write.")
    monkeypatch.setattr(one.link, "ask", lambda *commands: [1, refusal])
    used = {("alice", "calls"): 7, ("bob", "calls"): 1, ("alice", "logins"): 1}
    with pytest.raises(DirectoryAway):
        one.add_usage(used)
    assert used == {("bob", "calls"): 1}


def test_a_slow_redis_is_asked_in_batches(redis_server: RedisServer, one: RedisDirectory) -> None:
    """While it does not answer everything gathers, and none of it is lost."""
    redis_server.pause()
    jobs = [gevent.spawn(one.came, _at(ONE, f"peer{number}")) for number in range(2000)]
    gevent.sleep(0.1)
    redis_server.go_on()
    gevent.joinall(jobs, raise_error=True)
    assert redis_server.ask("SCARD", f"kkp2p:peers:{ONE.id}") == 2000
    assert sum(one.link.latency.counts) >= 2000
    assert one.link.latency.sum > 2000 * 0.05


def test_a_failover(
    tmp_path: Path, start_redis: Callable[..., RedisServer], open_node: Open
) -> None:
    fleet = SentinelFleet(tmp_path, start_redis)
    one = open_node(fleet.url)
    one.add("alice", "x")
    back = Event()
    one.on_back = back.set
    until(lambda: fleet.replica.ask("EXISTS", "kkp2p:account:alice"))
    fleet.master.stop()
    with gevent.Timeout(30, AssertionError("no failover")):
        while not back.is_set():
            with contextlib.suppress(DirectoryAway):
                one.lease(ONE)
            gevent.sleep(0.05)
    assert one.account("alice") is not None
    assert one.came(_at(ONE)) is None
    assert fleet.replica.ask("ROLE")[0] == b"master"
    fleet.master.start()  # it comes back as a master that knows nothing, until the sentinel sees it
    until(lambda: fleet.is_replica(fleet.master))
    one.lease(ONE)
    assert one.where("alice") == _at(ONE)


def test_a_master_that_was_deposed_while_we_are_connected(
    redis_server: RedisServer, one: RedisDirectory
) -> None:
    backs, back = itertools.count(1), Event()
    one.on_back = lambda: back.set() if next(backs) == 1 else pytest.fail("it was back already")
    redis_server.ask("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(DirectoryAway):
        one.came(_at(ONE))
    until(lambda: one.away_since is not None)
    redis_server.ask("REPLICAOF", "NO", "ONE")
    assert back.wait(10)
    assert one.away_since is None
    one.lease(ONE)
    assert one.came(_at(ONE)) is None


def test_a_master_that_lives_on_when_another_has_taken_its_place(
    start_redis: Callable[..., RedisServer], open_node: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take what we write, and nobody who is at the new one would hear of it."""
    old, new = start_redis(), start_redis()
    master = [old]
    monkeypatch.setattr(redis_link, "WATCH_EVERY_S", 0.02)
    monkeypatch.setattr(RedisPlace, "find_master", lambda _: (HOST, master[0].port))
    one, back = open_node(f"redis+sentinel://{HOST}/fleet"), Event()
    one.on_back = back.set
    master[0] = new
    assert back.wait(PATIENCE_S)
    one.lease(ONE)
    assert one.came(_at(ONE)) is None
    assert new.ask("EXISTS", "kkp2p:peer:alice") == 1
    assert old.ask("EXISTS", "kkp2p:peer:alice") == 0


def test_a_master_is_kept_while_no_sentinel_answers(
    start_redis: Callable[..., RedisServer], open_node: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, asked, tries = start_redis(), Event(), itertools.count()
    monkeypatch.setattr(redis_link, "WATCH_EVERY_S", 0.02)
    monkeypatch.setattr(RedisPlace, "find_master", lambda _: (HOST, old.port))
    one = open_node(f"redis+sentinel://{HOST}/fleet")

    def find_none(_: RedisPlace) -> NoReturn:
        if next(tries) == 2:
            asked.set()
        raise OSError("no sentinel")

    monkeypatch.setattr(RedisPlace, "find_master", find_none)
    assert asked.wait(PATIENCE_S)
    assert one.away_since is None
    assert one.came(_at(ONE)) is None


def test_hostile_values(
    redis_server: RedisServer, one: RedisDirectory, two: RedisDirectory
) -> None:
    ask = redis_server.ask
    one.add("good", "x")
    for name in ("list", "text", "broken", "huge"):
        ask("ZADD", "kkp2p:accounts", "0", name)
    ask("ZADD", "kkp2p:accounts", "0", b"\xff\x00 no id")
    ask("RPUSH", "kkp2p:account:list", "x")
    ask("SET", "kkp2p:account:text", "x")
    ask("HSET", "kkp2p:account:broken", "salt", "s", "iterations", "many")
    ask(
        "HSET",
        "kkp2p:account:huge",
        "salt",
        "x" * 1_000_000,
        "stored_key",
        "k",
        "server_key",
        "k",
        "iterations",
        "4096",
        "changed",
        "1",
    )
    assert [account.peer_id for account in one.list_accounts()] == ["good"]
    for name in ("list", "text", "broken", "huge"):
        assert one.account(name) is None
    bad: list[object] = [
        "",
        "x",
        "x" * 1000,
        f"{TWO.id} 1",
        f"{TWO.id} -1 2 s",
        b"\xff" * 40,
        f"{TWO.id} {'9' * 40} 1 s",
        "../../../etc 1 2 s",
    ]
    for value in bad:
        ask("SET", "kkp2p:peer:alice", value)
        assert one.where("alice") is None
        assert one.came(_at(ONE), again=True) is None
        assert one.where("alice") == _at(ONE)
    ask("DEL", "kkp2p:peer:alice")
    ask("RPUSH", "kkp2p:peer:alice", "x")
    assert one.where("alice") is None
    assert one.came(_at(ONE)) is None
    for value in ("x", "{}", "[" * 9000, '{"id":"' + "3" * 16 + '","host":"<script>"}'):
        ask("SADD", "kkp2p:nodes", "3" * 16)
        ask("SET", f"kkp2p:node:{'3' * 16}", value)
        assert {node.id for node in one.nodes()} == {ONE.id, TWO.id}
    ask("DEL", f"kkp2p:node:{'3' * 16}")
    ask("SADD", "kkp2p:nodes", "not an id", b"\xff")
    assert {node.id for node in one.nodes()} == {ONE.id, TWO.id}
    until(lambda: ask("SCARD", "kkp2p:nodes") == 2)
    ask("HSET", "kkp2p:usage:2020-01-01:alice", "calls", "many", "bytes", "5")
    assert one.usage("alice", "2020-01-01") == {"bytes": 5}
    ask("SET", f"kkp2p:usage:{today()}:alice", "x")
    ask("HSET", f"kkp2p:usage:{today()}:bob", "calls", "many")
    one.add_usage({(name, "calls"): 1 for name in ("alice", "bob", "good")})  # that is not held up
    assert one.usage("good") == {"calls": 1}
    for payload in ("", "x", f"{TWO.id} nowhere alice", f"{TWO.id} 192.0.2.1 a b", "\n" * 1000):
        ask("PUBLISH", "kkp2p:failed", payload)
        ask("PUBLISH", "kkp2p:changed", payload)
    one.on_failed_login = lambda peer_id, host: pytest.fail("hostile")
    assert one.where("alice") == _at(ONE)


def test_a_key_that_is_not_ours_is_not_taken(
    redis_server: RedisServer, one: RedisDirectory
) -> None:
    for value in ("", "short", "z" * 64):
        redis_server.ask("SET", "kkp2p:key", value)
        with pytest.raises(OSError, match="not one of ours"):
            one.secret_key()


# Where it is.


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host", "redis://host:6379"),
        ("redis://u:p@host:1/2", "redis://host:1/2"),
        ("redis://[::1]:1", "redis://[::1]:1"),
        ("rediss://host/1", "rediss://host:6379/1"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis+sentinel://a:1,b/fleet/2", "redis+sentinel://a:1,b:26379/fleet/2"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    place = RedisPlace.parse(url)
    assert str(place) == shown
    assert place.prefix == "kkp2p:"
    assert place.password == ("p" if "u:p" in url else None)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "http://host",
        "redis://",
        "redis://a,b",
        "redis://host/x",
        "redis://host:0",
        "redis+sentinel://host",
        "redis+sentinel://host/",
        "redis://host?nonsense=1",
        "unix+sentinel:///x/y",
        "redis+other://x",
    ],
)
def test_urls_that_are_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the sentences are several modules' own
        open_directory(url or "x", tmp_path)


def test_redis_by_tls(
    tmp_path: Path, start_redis: Callable[..., RedisServer], open_node: Open
) -> None:
    load_identity(tmp_path)  # makes a certificate, for this host's addresses
    crt, key = tmp_path / "cloud.crt", tmp_path / "cloud.key"
    server = start_redis()
    tls = start_redis(
        "tls-port 0", f"tls-cert-file {crt}", f"tls-key-file {key}", "tls-auth-clients no"
    )
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    tls.ask("CONFIG", "SET", "tls-port", port)
    one = open_node(f"rediss://localhost:{port}?ssl_ca_certs={crt}")
    one.came(_at(ONE))
    assert one.where("alice") == _at(ONE)
    for url in (f"rediss://localhost:{port}", f"rediss://127.0.0.1:{server.port}"):
        with pytest.raises(DirectoryAway):
            open_node(url)
