"""Where a cloud is, in one line, and the line that was kept."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

import kkp2p_compat as kkp2p
from kkp2p_compat.control.invitation import Invitation, keep, kept_at, login_of_this_user

PIN = "sha256:" + "ab" * 32


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("KKP2P_LOGIN", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cloud.example", Invitation("cloud.example", 3080)),
        ("192.0.2.1:80", Invitation("192.0.2.1", 80)),
        ("2001:db8::1", Invitation("2001:db8::1", 3080)),
        (f"[2001:db8::1]:80#{PIN}", Invitation("2001:db8::1", 80, PIN)),
        ("kkp2p://cloud.example:80/", Invitation("cloud.example", 80)),
        (f" kkp2p://alice@a:80#{PIN}\n", Invitation("a", 80, PIN, "alice")),
        ("kkp2p://alice:s3@a", Invitation("a", 3080, None, "alice", "s3")),
        ("kkp2p://a%40b%3A%2F%23:%C3%A9%25@a", Invitation("a", 3080, None, "a@b:/#", "\xe9%")),
    ],
)
def test_a_line(line: str, found: Invitation) -> None:
    assert Invitation.parse(line) == found
    assert Invitation.parse(str(found)) == found
    assert Invitation.parse(found.cloud) == Invitation(found.host, found.port, found.fingerprint)
    conf = kkp2p.engine_conf_t()
    assert kkp2p.set_login(conf, line) == 0
    told = conf.login_domain, conf.login_port, conf.login_fingerprint
    assert told == (found.host, found.port, found.fingerprint)


BAD = [
    "",
    "a:0",
    "a:70000",
    "a#",
    "a#sha256:12",
    "http://a",
    "kkp2p://alice:hidden@",
    "kkp2p://:hidden@a",
    "kkp2p://a b:hidden@a",
    "alice:hidden@a",
    f"kkp2p://{'a' * 33}:hidden@a",
    "kkp2p://alice:hidden@a/path",
    "kkp2p://alice:hidden@a#x",
    "x" * 5000,
]


@pytest.mark.parametrize("line", BAD)
def test_no_line(line: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - which it is shows its text
        Invitation.parse(line)
    assert "hidden" not in str(caught.value)
    conf = kkp2p.engine_conf_t()
    assert kkp2p.set_login(conf, line) == kkp2p.KKP2P_ERROR_PARAMETER
    assert conf == kkp2p.engine_conf_t()


def test_what_is_kept() -> None:
    assert login_of_this_user() == Invitation("127.0.0.1", 3080)
    given = Invitation("a", 80, PIN, "alice", "a secret of hers")
    keep(given)
    keep(given)
    assert login_of_this_user() == given
    assert stat.S_IMODE(kept_at().stat().st_mode) == 0o600
    assert stat.S_IMODE(kept_at().parent.stat().st_mode) == 0o700
    assert [path.name for path in kept_at().parent.iterdir()] == ["login"]
    conf = kkp2p.engine_conf_t()
    assert kkp2p.set_login(conf, None) == 0
    assert (conf.login_domain, conf.login_port, conf.login_fingerprint) == ("a", 80, PIN)


def test_the_account_that_is_kept() -> None:
    assert kkp2p.kept_account() is None
    assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_PARAMETER
    assert kkp2p.error_text() == f"kkp2p join has kept no account in {kept_at()}"
    keep(Invitation("a", 80, PIN))
    assert kkp2p.kept_account() is None
    keep(Invitation("a", 80, PIN, "alice", "a secret of hers"))
    assert kkp2p.kept_account() == ("alice", "a secret of hers")
    assert kkp2p.error_no() == 0


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(Invitation("kept", 80))
    monkeypatch.setenv("KKP2P_LOGIN", "named:81")
    assert login_of_this_user() == Invitation("named", 81)


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"kkp2p://:x@", b"a" * 100_000])
def test_a_file_that_is_not_ours(content: bytes) -> None:
    kept_at().parent.mkdir()
    kept_at().write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        login_of_this_user()
    assert kkp2p.set_login(kkp2p.engine_conf_t(), None) == kkp2p.KKP2P_ERROR_PARAMETER
    assert kkp2p.kept_account() is None
    assert kkp2p.error_text().startswith(f"{kept_at()}: ")


def test_a_file_that_cannot_be_read() -> None:
    kept_at().mkdir(parents=True)
    assert kkp2p.set_login(kkp2p.engine_conf_t(), None) == kkp2p.KKP2P_ERROR_PARAMETER
