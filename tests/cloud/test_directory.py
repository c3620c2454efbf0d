"""What every directory does, whichever its maker is."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import gevent
import pytest
from scramp import ScramClient, ScramMechanism

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.cloud.accounts import Accounts
from kkp2p_compat.cloud.directory import (
    Account,
    AccountLimits,
    Directory,
    DirectoryAway,
    Node,
    UnknownAccount,
    Verifier,
    callers_of,
)
from kkp2p_compat.cloud.directory_local import LocalDirectory
from kkp2p_compat.cloud.open_directory import open_directory

NODE = Node(
    "0123456789abcdef", host="192.0.2.1", port=3080, region="eu", load=0.5, stats={"peers": 1}
)


@pytest.fixture(params=["local", "redis"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Directory]:
    url = None
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url
    directory = open_directory(url, tmp_path)
    directory.start(NODE.id)
    yield directory
    directory.close()


def test_only_verifiers_are_kept(tmp_path: Path) -> None:
    directory = LocalDirectory(tmp_path)
    directory.add("alice", "correct horse battery")
    account = directory.account("alice")
    assert account is not None
    client = ScramClient(["SCRAM-SHA-256"], "alice", "correct horse battery")
    server = ScramMechanism("SCRAM-SHA-256").make_server(lambda _: account.verifier)
    server.set_client_first(client.get_client_first())
    client.set_server_first(server.get_server_first())
    server.set_client_final(client.get_client_final())
    client.set_server_final(server.get_server_final())
    directory.close()
    for path in tmp_path.iterdir():
        assert b"battery" not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert account.verifier.iterations >= 4096


def test_add_change_remove(directory: Directory) -> None:
    directory.add("bob", "1")
    directory.add("alice", "2")
    assert [account.peer_id for account in directory.list_accounts()] == ["alice", "bob"]
    assert directory.count_accounts() == 2
    with pytest.raises(ValueError, match="already"):
        directory.add("bob", "3")
    before = directory.account("bob")
    directory.change_secret("bob", "1")
    after = directory.account("bob")
    assert before is not None
    assert after is not None
    assert after.verifier != before.verifier  # another salt
    directory.remove("bob")
    assert directory.account("bob") is None
    for action in (
        lambda: directory.remove("bob"),
        lambda: directory.change_secret("bob", "x"),
        lambda: directory.update("bob", disabled=True),
    ):
        with pytest.raises(UnknownAccount, match="no account bob"):
            action()


def test_of_several_that_replace_one_secret_one_does(directory: Directory) -> None:
    directory.add("alice", "invited")
    account = directory.account("alice")
    assert account is not None
    before = account.verifier.stored_key
    replaced: list[Verifier] = []

    def replace(secret: str) -> None:
        verifier = Verifier.of(secret)
        with contextlib.suppress(UnknownAccount):
            directory.update("alice", verifier=verifier, stored_key=before)
            replaced.append(verifier)

    gevent.joinall([gevent.spawn(replace, str(number)) for number in range(3)], raise_error=True)
    account = directory.account("alice")
    assert account is not None
    assert replaced == [account.verifier]


def test_what_an_account_may(directory: Directory) -> None:
    directory.add("alice", "x")
    account = directory.account("alice")
    assert account is not None
    assert (account.disabled, account.allow, account.limits) == (False, "anybody", AccountLimits())
    directory.update("alice", disabled=True)
    directory.update("alice", allow="bob,carol")
    directory.update("alice", limits=AccountLimits(1.5, 10**12, 3))
    changed = directory.account("alice")
    assert changed is not None
    assert changed.verifier == account.verifier
    assert (changed.disabled, changed.allow) == (True, "bob,carol")
    assert changed.limits == AccountLimits(1.5, 10**12, 3)
    directory.update("alice", limits=AccountLimits(channels=0))
    changed = directory.account("alice")
    assert changed is not None
    assert changed.limits == AccountLimits(None, None, 0)


def test_many_accounts_come_in_pages(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.add("model", "x")
    model = directory.account("model")
    assert model is not None
    names = sorted(f"peer{number}" for number in range(25))
    for name in names:
        directory.put(type(model)(name, model.verifier, 1))
    monkeypatch.setattr("kkp2p_compat.cloud.directory.PAGE", 10)
    assert [account.peer_id for account in directory.list_accounts()] == ["model", *names]
    assert [account.peer_id for account in directory.page("peer22", 2)] == ["peer23", "peer24"]
    found = dict(directory.accounts([*names, "nobody"]))
    assert set(found) == {*names, "nobody"}
    assert found["nobody"] is None
    assert found["peer7"] == type(model)("peer7", model.verifier, 1)


def test_another_process_notices(tmp_path: Path) -> None:
    here, there = LocalDirectory(tmp_path), LocalDirectory(tmp_path)
    heard: list[str | None] = []
    here.on_account_changed = heard.append
    here.sweep(10.0)
    assert heard == []
    there.add("alice", "x")
    here.sweep(20.0)
    assert heard == [None]
    assert here.account("alice") is not None
    there.remove("alice")
    here.sweep(30.0)
    assert heard == [None, None]
    here.close()
    there.close()


def test_a_change_is_heard_of_though_it_cannot_be_read_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader, too, is refused now and then: SQLite's write-ahead log is made anew, say."""

    def locked(*_: object) -> NoReturn:
        raise sqlite3.OperationalError("database is locked")

    here, there = LocalDirectory(tmp_path), LocalDirectory(tmp_path)
    found: list[Account | None] = []
    here.on_account_changed = lambda _: found.append(here.account("alice"))
    here.sweep(10.0)
    there.add("alice", "x")
    for number, method in enumerate(("version", "get")):
        with monkeypatch.context() as patched:
            patched.setattr(Accounts, method, locked)
            with contextlib.suppress(DirectoryAway):  # the track, whom it is told, logs it
                here.sweep(20.0 + number * 10.0)
        assert found == []
    assert "whether accounts have changed is not known for now" in caplog.text
    here.sweep(40.0)
    assert found == [there.account("alice")]
    here.sweep(50.0)
    assert len(found) == 1
    with monkeypatch.context() as patched:
        patched.setattr(Accounts, "__len__", locked)
        with pytest.raises(DirectoryAway, match="locked"):
            here.count_accounts()
    here.close()
    there.close()


def test_throw_away_accounts_leave_no_trace(tmp_path: Path) -> None:
    directory = LocalDirectory(tmp_path, {"alice": "x"})
    assert directory.account("alice") is not None
    assert list(directory.list_accounts()) == []
    directory.close()
    with pytest.raises(ValueError, match="peer id"):
        LocalDirectory(None, {"with space": "x"})


@pytest.mark.parametrize("secret", ["", "\x00", "a\u0007b"])
def test_secrets_that_cannot_be_used(directory: Directory, secret: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        directory.add("alice", secret)


def test_the_file_of_an_earlier_release(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "accounts.db") as database:
        database.execute(
            "CREATE TABLE accounts (peer_id TEXT PRIMARY KEY, salt BLOB NOT NULL, stored_key BLOB"
            " NOT NULL, server_key BLOB NOT NULL, iterations INTEGER NOT NULL, changed INTEGER NOT"
            " NULL) WITHOUT ROWID"
        )
        database.execute("INSERT INTO accounts VALUES ('old', x'01', x'02', x'03', 4096, 7)")
    database.close()
    for _ in range(2):  # the second one finds what the first has done
        directory = LocalDirectory(tmp_path)
        account = directory.account("old")
        assert account is not None
        assert account.verifier == (b"\1", b"\2", b"\3", 4096)
        assert (account.changed, account.disabled, account.allow) == (7, False, "anybody")
        assert account.limits == AccountLimits()
        directory.add("new", "x")
        directory.remove("new")
        directory.close()


def test_usage_is_added_up(directory: Directory) -> None:
    directory.add_usage({("alice", "calls"): 2, ("bob", "calls"): 1})
    directory.add_usage({("alice", "calls"): 1, ("alice", "relay_bytes"): 2**40})
    directory.add_usage({})
    assert directory.usage("alice") == {"calls": 3, "relay_bytes": 2**40}
    assert directory.usage("bob") == {"calls": 1}
    assert directory.usage("carol") == directory.usage("alice", "2020-01-01") == {}


def test_usage_outlives_the_process_and_a_file_that_is_held(tmp_path: Path) -> None:
    directory = LocalDirectory(tmp_path)
    with sqlite3.connect(tmp_path / "usage.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        directory.add_usage({("alice", "calls"): 1})
        assert directory.usage("alice") == {"calls": 1}
        other.execute("ROLLBACK")
    other.close()
    directory.add_usage({("alice", "calls"): 1})
    directory.close()
    again = LocalDirectory(tmp_path)
    assert again.usage("alice") == {"calls": 2}
    again.close()


def test_the_nodes_that_live(directory: Directory) -> None:
    assert directory.nodes() == []
    directory.lease(NODE)
    assert directory.nodes() == [NODE]
    directory.release(NODE.id)
    assert directory.nodes() == []


def test_a_node_is_told_and_read() -> None:
    assert Node.parse_untrusted(NODE.to_json()) == NODE
    newer = NODE.to_json().replace(b'{"id"', b'{"news":[1],"id"')
    assert Node.parse_untrusted(newer) == NODE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "'x"),
        ("id", 7),
        ("id", None),
        ("role", "a b"),
        ("host", "a b"),
        ("host", "a\n"),
        ("host", ["x"]),
        ("port", -1),
        ("port", 65536),
        ("port", "80"),
        ("port", True),
        ("relay_port", 1.5),
        ("relay_host", "<b>"),
        ("region", "x" * 33),
        ("fingerprint", "ab"),
        ("draining", 1),
        ("load", "1"),
        ("load", float("nan")),
        ("stats", []),
        ("protocol", None),
    ],
)
def test_nodes_that_cannot_be_right(field: str, value: object) -> None:
    import json

    text = json.dumps({**json.loads(NODE.to_json()), field: value})
    with pytest.raises(BadPacket):
        Node.parse_untrusted(text)


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", "\xff", "[" * 8000, "x" * 9000])
def test_what_is_no_node(text: str) -> None:
    with pytest.raises(BadPacket):
        Node.parse_untrusted(text)


def test_who_may_call() -> None:
    assert callers_of("anybody").allow(None)
    assert not callers_of("accounts").allow(None)
    assert callers_of("accounts").allow("bob")
    assert not callers_of("nobody").allow("bob")
    assert not callers_of("nobody").allow("nobody")
    assert callers_of("bob,carol").allow("carol")
    for text in ("", "a b", "a,,b"):
        with pytest.raises(ValueError, match="who may call"):
            callers_of(text)
