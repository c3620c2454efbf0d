"""The audit log: every login and refusal, never a secret, and no more than a disk can hold."""

from __future__ import annotations

import json
import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest

from helpers.cloud_client import Client, running_cloud, until
from kkp2p_compat.cloud import audit as audit_module
from kkp2p_compat.cloud import directory_local
from kkp2p_compat.cloud.audit import Audit
from kkp2p_compat.cloud.directory_local import LocalDirectory


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_logins_and_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_local, "CHANGES_EVERY_S", 0.0)
    path = tmp_path / "audit.log"
    accounts = LocalDirectory(tmp_path)
    accounts.add("alice", "s3cret")
    accounts.add("bob", "other secret")
    accounts.update("alice", allow="nobody")
    with running_cloud(data=tmp_path, audit=str(path)) as cloud:
        with Client(cloud.address) as alice, Client(cloud.address) as bob:
            assert alice.login("alice", "s3cret")["op"] == "welcome"
            assert bob.login("bob", "wrong guess")["op"] == "refused"
            with Client(cloud.address) as again:
                assert again.login("bob", "other secret")["op"] == "welcome"
                answer = again.ask("call", call=1, to="alice", ms=5000, offer="o")
                assert answer["reason"] == "not-allowed"
            accounts.remove("alice")
            assert alice.receive()["op"] == "bye"
        lines = _read(path)
        assert cloud.nodes is not None
        assert {line["node"] for line in lines} == {cloud.nodes.id}
    accounts.close()
    assert [(line["what"], line.get("account")) for line in lines] == [
        ("login", "alice"),
        ("login-refused", "bob"),
        ("login", "bob"),
        ("call-refused", None),
        ("login-ended", "alice"),
    ]
    assert lines[1]["reason"] == "bad-secret"
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for secret in ("s3cret", "other secret", "wrong guess"):
        assert secret not in path.read_text()


def test_what_strangers_say_stays_on_its_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with running_cloud(audit=str(path)) as cloud, Client(cloud.address) as stranger:
        stranger.send("login", v=1, peer='a\n{"what":"login"}' + "x" * 1000, scram="x")
        until(lambda: path.read_text())
    (line,) = _read(path)
    assert line["what"] == "login-refused"
    assert len(line["account"]) <= 200


def test_a_flood_of_refusals_is_counted_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "REFUSALS_AT_ONCE", 3.0)
    monkeypatch.setattr(audit_module, "REFUSALS_PER_S", 1e-9)
    audit = Audit(str(tmp_path / "log"))
    for number in range(10):
        audit.refuse("login-refused", account=f"peer{number}")
    for number in range(5):
        audit.write("login", account=f"peer{number}")
    audit.sweep(1e12)
    audit.close()
    whats = [line["what"] for line in _read(tmp_path / "log")]
    assert whats == ["login-refused"] * 3 + ["login"] * 5 + ["refusals-left-out"]
    assert _read(tmp_path / "log")[-1]["count"] == 7


def test_a_file_that_was_moved_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"
    audit = Audit(str(path))
    audit.write("one")
    path.rename(tmp_path / "old")
    audit.write("two")
    audit.reopen()
    audit.write("three")
    path.unlink()
    path.mkdir()
    audit.reopen()  # that is no file: the one before goes on
    audit.close()
    assert [line["what"] for line in _read(tmp_path / "old")] == ["one", "two"]
    assert "goes on" in caplog.text


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "log"
    with pytest.raises(OSError, match="nowhere"), running_cloud(audit=str(path)):
        pass


def test_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    audit = Audit("-")
    audit.write("one")
    audit.reopen()
    audit.write("two")
    audit.close()
    assert [json.loads(line)["what"] for line in capsys.readouterr().out.splitlines()] == [
        "one",
        "two",
    ]


def test_a_full_disk_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    audit = Audit("/dev/full")
    for _ in range(3):
        audit.write("login")
    audit.close()
    assert caplog.text.count("cannot be written") == 1


def test_a_line_that_is_torn_leaves_the_next_one_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Here by the limit on a file's size, as by a full disk."""
    path = tmp_path / "log"
    audit = Audit(str(path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        audit.write("torn")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    audit.write("whole")
    audit.close()
    torn, whole = path.read_text().splitlines()
    assert len(torn) == 20
    assert json.loads(whole)["what"] == "whole"
    assert caplog.text.count("cannot be written") == 1


def test_a_pipe_that_nobody_reads_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        Audit(str(path))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        audit = Audit(str(path))
        while "cannot be written" not in caplog.text:
            audit.write("login")
        audit.close()
    finally:
        os.close(reader)
