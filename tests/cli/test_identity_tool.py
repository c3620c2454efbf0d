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


KEY, OTHER = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's known_peers, which are not there yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "kkp2p" / "known_peers"


def test_keys_of_peers_are_added_listed_and_forgotten(
    known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["identity", "peers"]) == 0
    for peer, key in (("bob", KEY), ("alice", OTHER), ("alice", KEY), ("alice", KEY)):
        assert main(["identity", "add", peer, key]) == 0
    assert main(["identity", "peers"]) == 0
    assert capsys.readouterr().out == f"alice {KEY}\nalice {OTHER}\nbob {KEY}\n"
    with known.open("a") as file:
        file.write("# of the office\n")
    assert main(["identity", "forget", "alice"]) == 0
    assert known.read_text() == f"bob {KEY}\n# of the office\n"


def test_a_peer_that_is_not_known_is_not_forgotten(
    known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those beside it are."""
    for made in (False, True):
        assert main(["identity", "forget", "alice", "bob"]) == 1
        missing = ["alice", "bob"][: 2 - made]
        lines = [f"kkp2p identity: {known} has no key of {peer}\n" for peer in missing]
        assert capsys.readouterr().err == "".join(lines)
        assert main(["identity", "add", "bob", KEY]) == 0


def test_another_file_of_keys(known: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for command in (["add", "alice", KEY], ["peers"], ["forget", "alice"]):
        assert main(["identity", *command, "--known-peers", str(other)]) == 0
    assert other.read_text() == ""
    assert not known.exists()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["add", "alice", "sha256:12"], "'sha256:12' is not sha256: and 64 hex digits"),
        (["add", "a" * 33, KEY], "is not a peer id"),
        (["forget"], "arguments are required: PEER"),
    ],
)
def test_used_wrongly(
    known: Path, capsys: pytest.CaptureFixture[str], command: list[str], problem: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["identity", *command])
    assert problem in capsys.readouterr().err
