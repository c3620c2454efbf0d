"""Failed logins cost time, and nobody is locked out by somebody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scramp import ScramClient

import kkp2p_compat as kkp2p
from helpers.cloud_client import Client, running_cloud, until
from helpers.redis_server import RedisServer
from helpers.support import SECRET, CloudProcess
from kkp2p_compat.cloud import login_limits
from kkp2p_compat.cloud.control_connection import ControlConnection
from kkp2p_compat.cloud.directory_redis import RedisDirectory
from kkp2p_compat.cloud.limits import Gatekeeper
from kkp2p_compat.cloud.login_limits import FORGIVEN, RETRY_S, LoginLimits
from kkp2p_compat.cloud.settings import Limits
from kkp2p_compat.control.binding import end_point_binding

ACCOUNTS = {"alice": "s3cret", "bob": "b"}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The logins that are held, by seconds; none for long."""
    seconds: list[float] = []
    pause = ControlConnection.pause

    def record(self: ControlConnection, wait_s: float, then: Any = None) -> None:
        if then is not None:
            seconds.append(wait_s)
        pause(self, wait_s, then)

    monkeypatch.setattr(ControlConnection, "pause", record)
    monkeypatch.setattr(login_limits, "RETRY_S", 0.3)
    return seconds


def log_in(cloud: Any, peer: str, secret: str, source: str = "127.0.0.1") -> str:
    with Client(cloud.address, source=source) as client:
        answer = client.login(peer, secret)
        return str(answer.get("reason", answer["op"]))


def test_a_right_secret_is_taken_whatever_was_tried_before(held: list[float]) -> None:
    shares = {"work": 10.0, "work_per_address": 10.0}  # what else one waits for
    with running_cloud(ACCOUNTS, {"login_failures": 1, **shares}) as cloud:
        while not held:  # on a slow host the first ones have time enough
            assert log_in(cloud, "alice", "guess") == "bad-secret"
        assert max(held) <= 0.3
        held.clear()
        assert log_in(cloud, "bob", "b") == "welcome"  # behind the same address
        assert log_in(cloud, "alice", "s3cret", source="127.0.0.2") == "welcome"
        assert held == []
        assert log_in(cloud, "alice", "s3cret") == "welcome"


def test_who_has_logged_in_from_there_before_is_not_held(held: list[float]) -> None:
    shares = {"work": 10.0, "work_per_address": 10.0}
    with running_cloud(ACCOUNTS, {"login_failures": 0, **shares}) as cloud:
        assert log_in(cloud, "alice", "s3cret") == "welcome"
        held.clear()
        for _ in range(5):
            assert log_in(cloud, "alice", "guess") == "bad-secret"
        assert log_in(cloud, "alice", "s3cret") == "welcome"
        assert held == []


def test_many_logins_at_once_are_not_more_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_limits, "RETRY_S", 100.0)
    with running_cloud(ACCOUNTS, {"login_failures": 2}) as cloud:
        clients = [Client(cloud.address) for _ in range(5)]
        ends = []
        for client in clients:
            certificate = client.sock.getpeercert(binary_form=True)
            binding = "tls-server-end-point", end_point_binding(certificate)
            scram = ScramClient(["SCRAM-SHA-256-PLUS"], "alice", "x", channel_binding=binding)
            ends.append(client.ask("login", v=1, peer="alice", scram=scram.get_client_first()))
        assert [answer["op"] for answer in ends] == ["challenge"] * 2 + ["refused"] * 3
        assert ends[-1] == {"op": "refused", "reason": "limit"}
        for client in clients:
            client.close()


def limits(**fields: Any) -> LoginLimits:
    gate = Gatekeeper(Limits(**fields))
    return LoginLimits(gate.limits)


def guesses(counted: LoginLimits, hosts: list[str], peer: str = "alice", now: float = 0.0) -> int:
    """How many of them are taken at once; all fail."""
    taken = 0
    for host in hosts:
        if counted.exempt(peer, host) or counted.begin(peer, host, now) == 0.0:
            taken += 1
            counted.failed(peer, host, now)
    return taken


def test_a_home_has_not_256_times_the_guesses() -> None:
    hosts = [f"2001:db8:0:{net:x}::1" for net in range(256)]
    assert guesses(limits(), hosts * 2) == 20
    hosts = [f"2001:db8:0:{net:x}::1" for net in range(0, 65536, 64)]
    assert guesses(limits(), hosts) == 40
    assert guesses(limits(), [f"192.0.2.{host}" for host in range(256)]) == 20
    assert guesses(limits(), ["192.0.2.1"] * 30) == 10


def test_after_that_one_in_a_while() -> None:
    counted = limits()
    guesses(counted, ["192.0.2.1"] * 10)
    waits = [counted.begin("alice", "192.0.2.1", 0.0) for _ in range(4)]
    assert waits == [RETRY_S, 2 * RETRY_S, None, None]
    assert counted.begin("alice", "192.0.2.1", 3 * RETRY_S) == 0.0
    assert counted.begin("alice", "192.0.2.2", 0.0) == 0.0


def test_one_that_succeeds_costs_nothing() -> None:
    counted = limits()
    for _ in range(100):
        assert counted.begin("alice", "192.0.2.1", 0.0) == 0.0
        counted.succeeded("alice", "192.0.2.1", True, 0.0)


def test_where_the_owner_has_been_before_it_is_exempt_for_long() -> None:
    counted = limits()
    counted.succeeded("alice", "192.0.2.1", False, 0.0)
    assert guesses(counted, ["192.0.2.1"] * FORGIVEN) == FORGIVEN
    assert not counted.exempt("alice", "192.0.2.1")
    assert not counted.exempt("alice", "192.0.2.2")
    assert not counted.exempt("bob", "192.0.2.1")
    counted.succeeded("alice", "192.0.2.1", False, 0.0)
    assert counted.exempt("alice", "192.0.2.1")
    assert limits().exempt("alice", "127.0.0.1")
    assert not limits(limit_loopback=True).exempt("alice", "127.0.0.1")


def test_failures_of_all_accounts_have_a_bound_too() -> None:
    counted = limits(login_failures_per_address=30)
    names = [f"peer{number}" for number in range(100)]
    assert sum(guesses(counted, ["192.0.2.1"], name) for name in names) == 30
    for _ in range(30):  # names that nobody has
        counted.failed(None, "198.51.100.1", 0.0)
    assert counted.begin("alice", "198.51.100.1", 0.0) == 2.0
    assert counted.begin(None, "198.51.100.1", 0.0) == 2.0


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_limits, "TABLE_SIZE", 10)
    counted = limits()
    for number in range(100):
        counted.succeeded(f"peer{number}", "192.0.2.1", False, 0.0)
        counted.failed(f"peer{number}", "192.0.2.1", 0.0)
    assert len(counted._familiar) == len(counted._today) == 10
    assert counted.exempt("peer99", "192.0.2.1")


def test_the_operator_hears_once_a_day_of_an_account_at_which_many_guess(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    today = 0.0
    monkeypatch.setattr(login_limits.time, "time", lambda: today)
    counted = limits(login_alarm=5)
    for _ in range(20):
        counted.failed("alice", "192.0.2.1", 0.0)
        counted.failed(None, "192.0.2.1", 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "account alice: over 5 failed logins today, the last from 192.0.2.1"
    ]
    today = 86_400.0
    for _ in range(20):
        counted.failed("alice", "192.0.2.1", 0.0)
    assert len(caplog.records) == 2


def test_join_net_tells_a_wrong_secret_each_time(tmp_path: Path) -> None:
    """Also when many have failed before: a limit is no answer to give instead."""
    options = ("--account", f"peer:{SECRET}", "--limit-loopback", "--login-failures", "2")
    cloud = CloudProcess(tmp_path, *options)
    try:
        codes = []
        for number in range(4):
            conf = kkp2p.engine_conf_t("127.0.0.1", cloud.port)
            conf.log_path = str(tmp_path / str(number))
            conf.disable_upnp = 1
            engine = kkp2p.engine_init(conf, 5000)
            codes.append(kkp2p.join_net(engine, "peer", "wrong"))
            if number == 3:
                assert kkp2p.join_net(engine, "peer", SECRET) == 0
            kkp2p.engine_destroy(engine)
        assert codes == [-111] * 4
    finally:
        cloud.end()


def test_failures_at_other_nodes_count() -> None:
    here, now = LoginLimits(Limits(login_failures=3, limit_loopback=True)), 1000.0
    host = "192.0.2.1"
    for _ in range(3):
        assert here.begin("alice", host, now) == 0
        here.failed("alice", host, now)
    elsewhere = LoginLimits(Limits(login_failures=3, limit_loopback=True))
    for _ in range(3):
        elsewhere.failed_elsewhere("alice", host, now)
    for limits in (here, elsewhere):
        assert limits.begin("alice", host, now) == pytest.approx(RETRY_S)
        assert limits.begin("alice", "198.51.100.1", now) == 0
        assert limits.begin("bob", host, now) == 0


def test_failures_without_an_account_at_other_nodes_count_for_the_address() -> None:
    limits, now = LoginLimits(Limits(login_failures_per_address=10)), 1000.0
    for _ in range(10):
        limits.failed_elsewhere(None, "192.0.2.1", now)
    assert limits.begin("alice", "192.0.2.1", now) != 0
    assert limits.begin("alice", "198.51.100.1", now) == 0
    for _ in range(100):
        limits.failed_elsewhere(None, "127.0.0.1", now)  # exempt here, as everywhere
    assert limits.begin("alice", "127.0.0.1", now) == 0


def test_what_is_forgiven_runs_out_at_other_nodes_too() -> None:
    limits, host = LoginLimits(Limits()), "192.0.2.1"
    limits.succeeded("alice", host, False, 0.0)
    for _ in range(FORGIVEN - 1):
        limits.failed_elsewhere("alice", host, 0.0)
    assert limits.exempt("alice", host)
    limits.failed_elsewhere("alice", host, 0.0)
    assert not limits.exempt("alice", host)


def test_the_operator_is_told_once_by_a_node_that_is_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = LoginLimits(Limits(login_alarm=5))
    for number in range(20):
        limits.failed_elsewhere("alice", f"192.0.{number}.1", 0.0)
    assert "alice" not in caplog.text
    for number in range(20):
        limits.failed("alice", f"192.0.{number}.1", 0.0)
    assert caplog.text.count("account alice: over 5 failed logins today") == 1


def test_guesses_at_one_node_of_a_fleet_count_at_the_other(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_limits, "RETRY_S", 1000.0)
    ours, theirs = RedisDirectory(redis_server.url), RedisDirectory(redis_server.url)
    limits = {"work": 10.0, "work_per_address": 10.0, "login_failures": 2}
    with (
        running_cloud(None, limits, directory=ours) as one,
        running_cloud(None, limits, directory=theirs) as two,
    ):
        heard: list[str | None] = []
        take = theirs.on_failed_login

        def hear(peer_id: str | None, host: str) -> None:
            heard.append(peer_id)
            take(peer_id, host)

        theirs.on_failed_login = hear
        ours.add("alice", "s3cret")
        ours.add("bob", "b")
        guesses = [log_in(one, "alice", "guess") for _ in range(3)]
        assert guesses == ["bad-secret", "bad-secret", "limit"]
        until(lambda: heard == ["alice", "alice"])
        assert log_in(two, "alice", "guess") == "limit"
        assert log_in(two, "alice", "s3cret", source="127.0.0.2") == "welcome"
        assert log_in(two, "bob", "b") == "welcome"
