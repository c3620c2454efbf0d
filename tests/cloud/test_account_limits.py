"""What accounts with limits of their own may use, and what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.cloud_client import Client, running_cloud, until
from kkp2p_compat.cloud import directory_local
from kkp2p_compat.cloud.account_limits import AccountUse
from kkp2p_compat.cloud.counting import TABLE_SIZE
from kkp2p_compat.cloud.directory import NO_LIMITS, AccountLimits
from kkp2p_compat.cloud.directory_local import LocalDirectory


def test_a_rate_of_calls() -> None:
    use, limits = AccountUse(), AccountLimits(calls_per_s=2)
    assert [use.refusal("a", limits, 0.0) for _ in range(2)] == ["", ""]
    assert "over 2 calls a second" in use.refusal("a", limits, 0.0)
    assert use.refusal("b", limits, 0.0) == ""
    assert use.refusal("a", limits, 0.5) == ""
    assert use.refusal("a", limits, 0.5)
    assert use.refusal("a", AccountLimits(calls_per_s=9), 0.5) == ""  # it was given more


@pytest.mark.parametrize(("rate", "at_once"), [(0.0, 0), (0.1, 1), (1.0, 1), (2.5, 2)])
def test_rates_that_are_small(rate: float, at_once: int) -> None:
    use, limits = AccountUse(), AccountLimits(calls_per_s=rate)
    assert [use.refusal("a", limits, 0.0) for _ in range(5)].count("") == at_once


def test_calls_at_once() -> None:
    use, limits = AccountUse(), AccountLimits(channels=2)
    for _ in range(2):
        assert use.refusal("a", limits, 0.0) == ""
        use.enter("a")
    use.enter("b")
    assert "over 2 calls at once" in use.refusal("a", limits, 0.0)
    assert use.refusal("b", limits, 0.0) == use.refusal("a", NO_LIMITS, 0.0) == ""
    use.leave("a")
    assert use.refusal("a", limits, 0.0) == ""
    use.leave("a")
    use.leave("b")
    assert len(use) == 0


def test_many_accounts_do_not_fill_the_memory() -> None:
    use, limits = AccountUse(), AccountLimits(calls_per_s=1)
    for number in range(TABLE_SIZE + 1):
        assert use.refusal(f"peer{number}", limits, 0.0) == ""
    assert use.refusal(f"peer{TABLE_SIZE}", limits, 0.0)
    assert use.refusal("peer0", limits, 0.0) == ""  # forgotten: it was used least recently


def test_an_account_is_one_caller_however_many_connections_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_local, "CHANGES_EVERY_S", 0.0)
    accounts = LocalDirectory(tmp_path)
    for name in ("alice", "bob", "carol"):
        accounts.add(name, "s")
    accounts.update("bob", limits=AccountLimits(channels=2))
    with (
        running_cloud(data=tmp_path) as cloud,
        Client(cloud.address) as alice,
        Client(cloud.address) as bob,
        Client(cloud.address) as bob_too,
        Client(cloud.address) as carol,
    ):
        for client, name in ((alice, "alice"), (bob, "bob"), (carol, "carol")):
            assert client.login(name, "s")["op"] == "welcome"
        assert bob_too.login("bob", "s", call_only=True)["op"] == "welcome"
        assert _call(bob, 1) == _call(bob_too, 1) == "calling"
        assert _call(bob, 2) == _call(bob_too, 2) == "limit"
        assert [_call(carol, number) for number in range(5)] == ["calling"] * 5
        assert cloud.gate.counts.limits["account_limits"] == 2
        bob_too.send("cancel", call=1)
        assert _call(bob_too, 2) == "calling"
        accounts.update("bob", limits=AccountLimits())
        until(lambda: _call(bob, 3) == "calling")
    accounts.close()


def _call(client: Client, number: int) -> str:
    answer = client.ask("call", call=number, to="alice", ms=60_000, offer="o")
    return str(answer.get("reason", answer["op"]))
