"""The file of known peers: what is in it, who changes it, and what is no such file."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import kkp2p_compat as kkp2p
from helpers.support import ENVIRONMENT
from kkp2p_compat import _kept_files
from kkp2p_compat._errors import UnprovenPeer
from kkp2p_compat.engine.signalling.known_peers import KnownPeers

ONE, TWO = (f"sha256:{digit * 64}" for digit in "1a")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "known_peers"


@pytest.fixture
def known(path: Path) -> KnownPeers:
    return KnownPeers(str(path))


def test_what_is_added_is_known_to_all_and_other_lines_stay(path: Path, known: KnownPeers) -> None:
    assert known.keys() == {}
    path.write_text("# ours\n\n#bob is at home\nbob " + ONE)  # no newline at the end
    other = KnownPeers(str(path))
    assert other.keys() == {"bob": {ONE}}
    known.add("alice", ONE)
    known.add("alice", TWO)
    known.add("#", ONE)  # a peer id, too
    assert other.keys() == {"bob": {ONE}, "alice": {ONE, TWO}, "#": {ONE}}
    begin = f"# ours\n\n#bob is at home\nbob {ONE}\n"
    assert path.read_text() == f"{begin}alice {ONE}\nalice {TWO}\n# {ONE}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert known.forget("#")
    assert known.forget("alice")
    assert not known.forget("alice")
    assert path.read_text() == begin
    path.unlink()
    assert other.keys() == {}


def test_the_first_key_is_not_overruled(path: Path, known: KnownPeers) -> None:
    known.add("bob", ONE, only_first=True)
    known.add("bob", ONE, only_first=True)
    with pytest.raises(UnprovenPeer, match="another key"):
        known.add("bob", TWO, only_first=True)
    assert path.read_text() == f"bob {ONE}\n"


BAD = [
    "bob",
    f"bob {ONE} more",
    f"bob {ONE[:-1]}",
    f"bob {ONE.upper()}",
    f"é {ONE}",
    f"{'b' * 33} {ONE}",
    " # not a comment",
    "bob sha256:",
]


@pytest.mark.parametrize("line", BAD)
def test_a_line_that_cannot_be_read_lets_nobody_in(
    path: Path, known: KnownPeers, tmp_path: Path, line: str
) -> None:
    content = f"alice {ONE}\n{line}\n"
    path.write_text(content)
    for ask in (known.keys, lambda: known.add("carol", ONE), lambda: known.forget("alice")):
        with pytest.raises(UnprovenPeer, match="line 2"):
            ask()
    assert path.read_text() == content
    conf = kkp2p.engine_conf_t(
        log_path=str(tmp_path), identity=str(tmp_path / "key"), known_peers=str(path)
    )
    assert kkp2p.engine_init(conf, 0) is None
    assert kkp2p.error_no() == -106


@pytest.mark.parametrize("content", [b"\xff\n", b"#" * (1 << 20) + b"\n"])
def test_a_file_that_is_no_text_or_too_long(path: Path, known: KnownPeers, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UnprovenPeer):
        known.keys()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file(path: Path, known: KnownPeers, make: object) -> None:
    assert callable(make)
    make(path)
    with pytest.raises(UnprovenPeer):
        known.keys()


def test_a_file_that_cannot_be_looked_at_is_not_one_that_is_missing(path: Path) -> None:
    path.write_text("in place of a folder")
    with pytest.raises(UnprovenPeer):
        KnownPeers(str(path / "known_peers")).keys()


def test_a_full_file(path: Path, known: KnownPeers) -> None:
    path.write_text("#" * (1 << 20))
    with pytest.raises(UnprovenPeer, match="full"):
        known.add("bob", ONE)


def test_a_link_stays_one(path: Path, tmp_path: Path, known: KnownPeers) -> None:
    (tmp_path / "elsewhere").write_text("")
    path.symlink_to("elsewhere")
    known.add("bob", ONE)
    assert path.is_symlink()
    assert (tmp_path / "elsewhere").read_text() == f"bob {ONE}\n"


def test_who_keeps_it_locked_is_not_waited_for_without_end(
    path: Path, known: KnownPeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kept_files, "LOCK_S", 0)
    with open(f"{path}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UnprovenPeer, match="locked"):
            known.add("bob", ONE)
    known.add("bob", ONE)


ADD = """
import sys
from kkp2p_compat.engine.signalling.known_peers import KnownPeers
known = KnownPeers(sys.argv[1])
sys.stdin.read(1)
for number in range(50):
    known.add(f"{sys.argv[2]}-{number}", "sha256:" + "0" * 64)
"""


def test_several_programs_add_at_once(path: Path, known: KnownPeers) -> None:
    with ExitStack() as running:
        programs = [
            running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ADD, str(path), name],
                    stdin=subprocess.PIPE,
                    env=ENVIRONMENT,
                )
            )
            for name in "abc"
        ]
        for program in programs:
            program.communicate(b"x")
            assert program.returncode == 0
    assert set(known.keys()) == {f"{name}-{number}" for name in "abc" for number in range(50)}


def test_a_write_that_fails_leaves_what_was_there(
    path: Path, known: KnownPeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.add("bob", ONE)

    def fail(number: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UnprovenPeer, match="no space left"):
        known.add("alice", ONE)
    assert path.read_text() == f"bob {ONE}\n"
    assert sorted(os.listdir(path.parent)) == ["known_peers", "known_peers.lock"]
