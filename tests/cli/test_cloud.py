"""``kkp2p cloud``: its command line."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from helpers.cloud_client import running_cloud
from kkp2p_compat.cli import main
from kkp2p_compat.cli.cloud import _say_hello
from kkp2p_compat.cloud.directory import DirectoryAway
from kkp2p_compat.cloud.directory_local import LocalDirectory
from kkp2p_compat.cloud.settings import Limits


@pytest.mark.parametrize(
    "arguments",
    [
        ["--role", "king"],
        ["--beat-s", "-1"],
        ["--beat-s", "nan"],
        ["--open-calls", "1.5"],
        ["--account", "alice"],
        ["--listen", "nonsense"],
        ["--role", "route"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["cloud", *arguments])
    except SystemExit as error:
        status = int(error.code or 0)
    assert status == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--track", "--relay", "--vouch", "--relay-key"])
def test_an_option_that_there_was(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([option, "r.example:3082"], [f"{option}=x"], ["--role", "track", option]):
        with pytest.raises(SystemExit) as ended:
            main(["cloud", *arguments])
        assert ended.value.code == 2
        assert f"{option} is no more: " in (text := capsys.readouterr().err)
        assert "--directory redis://" in text


def test_every_limit_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cloud", "--help"])
    text = capsys.readouterr().out
    for name in Limits.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


def test_accounts_that_cannot_be_counted_hold_up_no_start(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def count(_: LocalDirectory) -> NoReturn:
        raise DirectoryAway("database is locked")

    monkeypatch.setattr(LocalDirectory, "count_accounts", count)
    with running_cloud(data=tmp_path) as cloud:
        _say_hello(cloud)
    said = capsys.readouterr().out
    assert f"add one: kkp2p account add PEER --data {tmp_path}\n" in said
    assert "accounts:" not in said
    assert "how many accounts there are is not known for now: database is locked" in caplog.text
