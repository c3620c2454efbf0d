"""What a track hands out for a TURN server, and to whom."""

from __future__ import annotations

import time
from typing import Any

from helpers.cloud_client import Client, running_cloud
from kkp2p_compat.cloud.directory import AccountLimits
from kkp2p_compat.cloud.turn_credentials import TurnCredentials
from kkp2p_compat.traversal.turn_server import parse_untrusted, time_limited

SECRET = b"a secret of sixteen or more"
SERVER = ("turn.example.org", 3478)


def test_a_field() -> None:
    made = TurnCredentials(SERVER, SECRET, 600)
    server = parse_untrusted(made.field("account alice", 1_800_000_000.7))
    assert (server.host, server.port) == SERVER
    until, _, who = server.username.partition(":")
    assert int(until) == 1_800_000_600
    assert (server.username, server.password) == time_limited(SECRET, who, int(until))


def test_the_server_sees_whose_quota_it_is_and_nothing_else() -> None:
    made = TurnCredentials(SERVER, SECRET, 600)
    shares = ["account alice", "account bob", "192.0.2.1"]
    names = {share: _who(made.field(share, 1.0)) for share in shares}
    assert len(set(names.values())) == 3
    assert _who(made.field("account alice", 5000.0)) == names["account alice"]
    assert "alice" not in names["account alice"]
    another = TurnCredentials(SERVER, b"another secret of the same", 600)
    assert _who(another.field("account alice", 1.0)) != names["account alice"]


def _who(field: Any) -> str:
    return parse_untrusted(field).username.partition(":")[2]


def test_both_sides_of_a_call_get_their_own() -> None:
    options: dict[str, Any] = {"turn": SERVER, "turn_secret": SECRET, "limits": {"turn_s": 900.0}}
    accounts = {"callee": "c", "caller": "d"}
    with running_cloud(accounts, **options) as cloud, Client(cloud.address) as callee:
        callee.login("callee", "c")
        fields = []
        for name in (None, None, "caller"):
            with Client(cloud.address) as caller:
                if name is not None:
                    caller.login(name, "d")
                before = time.time()
                fields.append(caller.call("callee", 1, "{}", 5000)["turn"])
                fields.append(callee.receive()["turn"])
            assert callee.receive()["op"] == "cancel"  # the caller has left
            for field in fields[-2:]:
                until = int(parse_untrusted(field).username.partition(":")[0])
                assert before + 899 <= until <= time.time() + 900
        names = [_who(field) for field in fields]
        assert names[0] == names[2]  # strangers of one address
        assert names[1] == names[3] == names[5]
        assert len(set(names)) == 3


def test_who_has_used_up_what_relays_may_carry_gets_none() -> None:
    options: dict[str, Any] = {"turn": SERVER, "turn_secret": SECRET}
    with running_cloud({"callee": "c"}, **options) as cloud, Client(cloud.address) as callee:
        callee.login("callee", "c")
        assert cloud.directory is not None
        cloud.directory.add("payer", "p")
        cloud.directory.update("payer", limits=AccountLimits(relay_bytes_per_day=0))
        with Client(cloud.address) as caller:
            caller.login("payer", "p")
            for told in (caller.call("callee", 1, "{}", 5000), callee.receive()):
                assert told["no_relay"] == "limit"
                assert "turn" not in told


def test_without_a_server_nothing_is_told() -> None:
    with running_cloud({"callee": "c"}) as cloud, Client(cloud.address) as callee:
        callee.login("callee", "c")
        with Client(cloud.address) as caller:
            assert "turn" not in caller.call("callee", 1, "{}", 5000)
            assert "turn" not in callee.receive()
