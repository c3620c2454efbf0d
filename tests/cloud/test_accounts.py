"""Accounts: what is kept, who notices changes, and the command line."""

from __future__ import annotations

import io
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from scramp import ScramMechanism

from helpers.support import ENVIRONMENT
from kkp2p_compat.cli import main
from kkp2p_compat.cloud.accounts import Accounts, default_data
from kkp2p_compat.cloud.directory_local import LocalDirectory


def _kkp2p(*arguments: str) -> int:
    """The exit status of the command line."""
    try:
        return main(["account", *arguments])
    except SystemExit as error:
        return int(error.code or 0)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert default_data() == Path("/somewhere/kkp2p/cloud")
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # not to be followed, the specification says
    assert default_data() == Path("/home/x/.local/share/kkp2p/cloud")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_data() == Path("/home/x/.local/share/kkp2p/cloud")


def test_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("--data", str(tmp_path))
    assert _kkp2p("add", "alice", "--secret", "one", *data) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\n"))
    assert _kkp2p("add", "bob", "--secret-stdin", *data) == 0
    assert _kkp2p("add", "carol", *data) == 0
    capsys.readouterr()
    assert _kkp2p("list", *data) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "alice",
        "bob",
        "carol",
    ]
    assert _kkp2p("passwd", "alice", "--secret", "new", *data) == 0
    assert _kkp2p("remove", "bob", *data) == 0
    capsys.readouterr()
    for arguments, reason in (
        (("add", "alice", "--secret", "x"), "already"),
        (("add", "with space", "--secret", "x"), "peer id"),
        (("add", "dave", "--secret", ""), "empty"),
        (("remove", "bob"), "no account bob"),
        (("passwd", "bob", "--secret", "x"), "no account bob"),
    ):
        assert _kkp2p(*arguments, *data) == 1
        error = capsys.readouterr().err
        assert error.startswith("kkp2p account: ")
        assert reason in error
    assert _kkp2p("add") == 2
    assert _kkp2p("add", "x", "--secret", "a", "--secret-stdin") == 2
    assert _kkp2p("add", "x", "--secret", "a", "--ask") == 2
    assert _kkp2p("nonsense") == 2


@pytest.mark.parametrize("action", ["add", "passwd"])
def test_a_secret_is_made_and_shown_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    data = ("--data", str(tmp_path))
    if action == "passwd":
        assert _kkp2p("add", "alice", "--secret", "old", *data) == 0
        capsys.readouterr()
    assert _kkp2p(action, "alice", *data) == 0
    head, shown = capsys.readouterr().out.splitlines()
    assert head.startswith("alice ")
    secret = shown.rpartition(": ")[2]
    assert re.fullmatch("[0-9a-f]{32}", secret)  # 128 bits
    accounts = LocalDirectory(tmp_path)
    account = accounts.account("alice")
    assert account is not None
    verifier = account.verifier
    mechanism = ScramMechanism("SCRAM-SHA-256-PLUS")
    assert verifier == mechanism.make_auth_info(secret, verifier.iterations, verifier.salt)
    accounts.close()
    assert _kkp2p("add", "bob", *data) == 0
    assert secret not in capsys.readouterr().out


@pytest.mark.parametrize(("typed", "status"), [(["a", "a"], 0), (["a", "b"], 1)])
def test_a_secret_is_asked_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], status: int
) -> None:
    answers = iter(typed)
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    assert _kkp2p("add", "alice", "--ask", "--data", str(tmp_path)) == status
    assert list(answers) == []


def test_a_data_folder_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert _kkp2p("list", "--data", str(tmp_path / "file")) == 1
    (tmp_path / "accounts.db").write_bytes(b"not a database, but long enough" * 100)
    assert _kkp2p("list", "--data", str(tmp_path)) == 1
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(sqlite3.Error):
        Accounts(tmp_path)


IN_A_THREAD = """
import threading
from kkp2p_compat.cloud.accounts import Accounts
made = []
thread = threading.Thread(target=lambda: made.append(Accounts(None)))
thread.start()
thread.join()
"""


def test_accounts_in_memory_end_with_the_program_whoever_made_them() -> None:
    command = [sys.executable, "-W", "error", "-c", IN_A_THREAD]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
