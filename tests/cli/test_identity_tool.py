"""``kkp2p identity`` as a program."""

from __future__ import annotations

from pathlib import Path

import pytest

from kkp2p_compat.cli import main
from kkp2p_compat.engine.signalling.identity import Identity


def test_shows_the_key_that_it_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert main(["identity"]) == 0
    made = Identity.kept_in(str(tmp_path / "kkp2p" / "identity")).fingerprint
    assert capsys.readouterr().out == f"{made}\n"


def test_a_file_that_holds_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"none")
    path.chmod(0o600)
    assert main(["identity", "--identity", str(path)]) == 1
    assert "holds no key" in capsys.readouterr().err
