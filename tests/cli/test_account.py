"""``kkp2p account``: what an account may, moving accounts, and what was done to them."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from helpers.redis_server import RedisServer
from kkp2p_compat.cli import main
from kkp2p_compat.cloud.account_file import line_of, parse_line
from kkp2p_compat.cloud.directory import Account, AccountLimits, Directory, Presence, Verifier
from kkp2p_compat.cloud.directory_redis import RedisDirectory
from kkp2p_compat.cloud.open_directory import open_directory
from kkp2p_compat.cloud.usage import RELAY_BYTES, tag_of

VERIFIER = Verifier(b"salt", b"stored key", b"server key", 4096)


def run(*arguments: str) -> int:
    try:
        return main(["account", *arguments])
    except SystemExit as error:
        return int(error.code or 0)


@pytest.fixture(params=["data", "directory", "variable"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Where the accounts are, as arguments."""
    if request.param == "data":
        return ["--data", str(tmp_path / "data")]
    url = request.getfixturevalue("redis_server").url
    if request.param == "directory":
        return ["--directory", url]
    monkeypatch.setenv("KKP2P_CLOUD_DIRECTORY", url)
    return []


def test_everything_that_can_be_done_to_an_account(
    place: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> str:
        assert run(*arguments, *place) == 0
        return capsys.readouterr().out

    def refused(*arguments: str) -> str:
        assert run(*arguments, *place) == 1
        error = capsys.readouterr().err
        assert error.startswith("kkp2p account: ")
        return error

    told("add", "alice", "--secret", "one")
    assert told("list").split()[0] == "alice"
    assert told("allow", "alice", "--from", "bob", "carol") == (
        "alice may be called by bob, carol\n"
    )
    told("limit", "alice", "--calls-per-s", "1.5", "--channels", "3")
    told("limit", "alice", "--relay-bytes-per-day", "1000000", "--channels", "none")
    told("disable", "alice")
    listed = told("list")
    assert "disabled; from bob, carol; 1.5 calls a second, 1000000 bytes a day" in listed
    shown = told("show", "alice")
    assert shown.startswith("alice: disabled\n")
    assert "may be called by: bob, carol\n" in shown
    assert ("online: no" in shown) == ("--data" not in place)
    told("enable", "alice")
    assert told("show", "alice").startswith("alice: may log in\n")
    for word, text in (("accounts", "whoever has logged in"), ("nobody", "nobody")):
        assert told("allow", "alice", "--from", word).endswith(f"by {text}\n")
    told("passwd", "alice", "--secret", "two")
    told("remove", "alice")
    assert told("list") == ""
    assert "no limit given" in refused("limit", "alice") or "no account" in refused("show", "alice")
    for action in (
        ("passwd", "alice", "--secret", "x"),
        ("remove", "alice"),
        ("disable", "alice"),
        ("allow", "alice", "--from", "bob"),
        ("limit", "alice", "--channels", "1"),
        ("show", "alice"),
    ):
        assert "no account alice" in refused(*action)
    records = [json.loads(line) for line in told("log").splitlines()]
    assert [record["what"] for record in records] == [
        "account-added",
        *["account-changed"] * 8,
        "account-removed",
    ]
    assert all(record["account"] == "alice" and "@" in record["by"] for record in records)
    assert records[1]["allow"] == "bob,carol"
    assert records[3]["limits"] == {
        "calls_per_s": 1.5,
        "relay_bytes_per_day": 1_000_000,
        "channels": None,
    }
    assert records[4]["disabled"] is True
    assert records[8]["secret"] == "another"
    assert records[0]["time"] <= records[-1]["time"]
    assert len(told("log", "--count", "2").splitlines()) == 2


def test_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(tmp_path)]
    assert run("add", "alice", *data) == 0
    for arguments, reason in (
        (("allow", "alice", "--from", "bob", "anybody"), "stands alone"),
        (("allow", "alice", "--from", "b b"), "who may call"),
        (("allow", "alice", "--from", *["x" * 32] * 2000), "who may call"),
        (("limit", "alice"), "no limit given"),
        (("limit", "alice", "--channels", "-1"), "0 or more"),
        (("limit", "alice", "--calls-per-s", "nan"), "0 or more"),
        (("limit", "alice", "--calls-per-s", "inf"), "0 or more"),
        (("limit", "alice", "--relay-bytes-per-day", str(2**63)), "0 or more"),
        (("import", str(tmp_path / "missing")), "missing"),
        (("export", str(tmp_path / "accounts.db")), "exists"),
        (("export", str(tmp_path / "none" / "backup")), "/none/backup'\n"),
    ):
        assert run(*arguments, *data) == 1, arguments
        assert reason in capsys.readouterr().err
    assert run("limit", "alice", "--channels", "many", *data) == 2
    assert run("list", "--data", "x", "--directory", "redis://x") == 2
    assert run("list", "--directory", "http://x") == 1
    assert run("list", "--directory", "redis://:hidden@127.0.0.1:1") == 1
    assert "hidden" not in capsys.readouterr().err


def test_an_export_that_fails_half_way_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would pass for a backup, and be in the way of the next one."""
    data, folder = ["--data", str(tmp_path / "data")], tmp_path / "backup"
    folder.mkdir()
    assert run("add", "alice", *data) == 0
    whole = Directory.list_accounts

    def broken(accounts: Directory) -> Iterator[Account]:
        yield from whole(accounts)
        raise OSError("the directory is away")

    with monkeypatch.context() as patched:
        patched.setattr(Directory, "list_accounts", broken)
        assert run("export", str(folder / "accounts"), *data) == 1
    assert "the directory is away" in capsys.readouterr().err
    assert list(folder.iterdir()) == []
    assert run("export", str(folder / "accounts"), *data) == 0


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no links"])
def test_an_export_never_replaces_a_file(
    has_links: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not one either that has come meanwhile, whether its disk has hard links or not."""
    data, folder = ["--data", str(tmp_path / "data")], tmp_path / "backup"
    folder.mkdir()
    assert run("add", "alice", *data) == 0
    if not has_links:

        def link(source: str, target: str) -> NoReturn:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

        monkeypatch.setattr(os, "link", link)
    longest = folder / ("x" * 255)
    assert run("export", str(longest), *data) == 0
    assert json.loads(longest.read_text())["peer"] == "alice"
    assert stat.S_IMODE(longest.stat().st_mode) == 0o600
    other, whole = folder / "other", Directory.list_accounts

    def slow(accounts: Directory) -> Iterator[Account]:
        yield from whole(accounts)
        other.write_text("another's")

    capsys.readouterr()
    monkeypatch.setattr(Directory, "list_accounts", slow)
    assert run("export", str(other), *data) == 1
    assert f"File exists: '{other}'\n" in capsys.readouterr().err
    assert other.read_text() == "another's"
    assert sorted(folder.iterdir()) == [other, longest]


def test_what_was_used_and_where_it_is(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    node = RedisDirectory(redis_server.url)
    node.start("1" * 16)
    node.add("alice", "x")
    node.add_usage({("alice", "calls"): 3, (tag_of("alice"), RELAY_BYTES): 10**12})
    redis_server.ask("SET", f"kkp2p:node:{'1' * 16}", "{}")
    node.came(Presence("alice", "1" * 16, 1, "", 1))
    assert run("show", "alice", "--directory", redis_server.url) == 0
    shown = capsys.readouterr().out
    assert "today (UTC), calls: 3\n" in shown
    assert "today (UTC), relay bytes: 1000000000000\n" in shown
    assert f"online: at node {'1' * 16}\n" in shown
    node.close()


def test_accounts_move_from_one_machine_to_a_fleet(
    tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = ["--data", str(tmp_path)], ["--directory", redis_server.url]
    file = tmp_path / "accounts.txt"
    for name in ("alice", "bob", "carol"):
        assert run("add", name, "--secret", name, *here) == 0
    assert run("allow", "bob", "--from", "alice", *here) == 0
    assert run("limit", "bob", "--calls-per-s", "0.5", *here) == 0
    assert run("disable", "carol", *here) == 0
    assert run("add", "alice", "--secret", "another", *there) == 0
    assert run("export", str(file), *here) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    capsys.readouterr()
    assert run("import", str(file), *there) == 0
    assert capsys.readouterr().out.startswith("2 accounts added, 0 replaced, 1 were there")
    local, fleet = open_directory(None, tmp_path), open_directory(redis_server.url, None)
    fleet.start()
    ours = list(local.list_accounts())
    theirs = list(fleet.list_accounts())
    assert theirs[1:] == ours[1:]
    assert theirs[0].verifier != ours[0].verifier
    assert run("import", "--replace", str(file), *there) == 0
    assert capsys.readouterr().out.startswith("0 accounts added, 3 replaced, 0 were there")
    assert list(fleet.list_accounts()) == ours
    local.close()
    fleet.close()
    back = ["--data", str(tmp_path / "back")]
    again = tmp_path / "again.txt"
    assert run("export", str(again), *there) == 0
    assert run("import", str(again), *back) == 0
    assert again.read_text() == file.read_text()
    capsys.readouterr()
    assert run("log", *back) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (record["what"], record["added"]) == ("accounts-imported", 3)


def test_a_file_with_a_bad_line_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = line_of(Account("alice", VERIFIER, 1))
    file = tmp_path / "accounts.txt"
    file.write_text(f"{good}\n{good[:-5]}\n")
    data = ["--data", str(tmp_path)]
    assert run("import", str(file), *data) == 1
    assert "line 2, so nothing was imported" in capsys.readouterr().err
    assert run("list", *data) == 0
    assert capsys.readouterr().out == ""


def test_accounts_go_through_pipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("add", "alice", "--secret", "x", "--data", str(tmp_path / "one")) == 0
    capsys.readouterr()
    assert run("export", "--data", str(tmp_path / "one")) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(capsys.readouterr().out))
    assert run("import", "--data", str(tmp_path / "two")) == 0
    assert capsys.readouterr().out.startswith("1 accounts added")


def test_a_line_is_what_it_was() -> None:
    account = Account("alice", VERIFIER, 7, True, "bob,carol", AccountLimits(0.5, 2**40, 0))
    assert parse_line(line_of(account)) == account
    newer = line_of(account).replace('{"peer"', '{"news": [1], "peer"')
    assert parse_line(newer) == account


@pytest.mark.parametrize(
    "change",
    [
        {"peer": "a b"},
        {"peer": 7},
        {"salt": "not base 64!"},
        {"salt": ""},
        {"salt": None},
        {"stored_key": "x" * 1000},
        {"iterations": 0},
        {"iterations": 10**9},
        {"iterations": "1"},
        {"iterations": True},
        {"changed": "now"},
        {"disabled": 1},
        {"allow": ""},
        {"allow": ["bob"]},
        {"limits": []},
        {"limits": {"channels": -1}},
        {"limits": {"channels": 1.5}},
        {"limits": {"calls_per_s": "fast"}},
        {"limits": {"calls_per_s": True}},
    ],
)
def test_lines_that_are_no_accounts(change: dict[str, object]) -> None:
    fields = json.loads(line_of(Account("alice", VERIFIER, 7)))
    with pytest.raises(ValueError):  # noqa: PT011 - each has a reason of its own
        parse_line(json.dumps({**fields, **change}))


@pytest.mark.parametrize("text", ["", "7", "[]", "{}", "null", "[" * 99_999, "x" * 100_001])
def test_what_is_no_line(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has a reason of its own
        parse_line(text)
