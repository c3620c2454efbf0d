"""``kkp2p invite`` and ``kkp2p join``: one line, and then no options."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kkp2p_compat as kkp2p
from helpers.cloud_client import Client
from helpers.redis_server import RedisServer
from helpers.support import SECRET, CloudProcess
from helpers.tool_process import StartTool, start_tool
from kkp2p_compat import _base64url
from kkp2p_compat.cloud.directory import Verifier
from kkp2p_compat.cloud.directory_local import LocalDirectory
from kkp2p_compat.control.invitation import Invitation

__all__ = ["start_tool"]


@pytest.fixture
def own_cloud(tmp_path: Path) -> Iterator[CloudProcess]:
    process = CloudProcess(tmp_path / "data")
    process.pinned()
    yield process
    assert process.end() == 0, "".join(process.output)


@pytest.fixture
def invite(own_cloud: CloudProcess, tmp_path: Path, start_tool: StartTool) -> Callable[..., str]:
    def make(*arguments: str) -> str:
        status, line, errors = start_tool(
            "invite", *arguments, "--data", str(tmp_path / "data")
        ).end()
        assert (status, errors) == (0, "")
        return line.strip()

    return make


@pytest.fixture
def join(tmp_path: Path, start_tool: StartTool) -> Callable[..., tuple[int, str, str]]:
    def run(line: str, user: str = "user", **environment: str) -> tuple[int, str, str]:
        return start_tool("join", line, XDG_CONFIG_HOME=str(tmp_path / user), **environment).end()

    return run


def kept(tmp_path: Path, user: str = "user") -> Invitation:
    return Invitation.parse((tmp_path / user / "kkp2p" / "login").read_text())


def test_a_new_peer(
    invite: Callable[..., str],
    join: Callable[..., tuple[int, str, str]],
    own_cloud: CloudProcess,
    make_engine: Callable[..., kkp2p.engine_t],
    tmp_path: Path,
) -> None:
    line = invite("alice")
    given = Invitation.parse(line)
    assert (given.cloud, given.peer_id) == (own_cloud.pinned(), "alice")
    engine = make_engine(login_port=own_cloud.port)
    assert kkp2p.join_net(engine, "alice", str(given.secret)) == -111
    status, output, errors = join(line)
    assert (status, errors) == (0, "")
    assert f"as alice; kept in {tmp_path}/user/kkp2p/login" in output
    mine = kept(tmp_path)
    assert (mine.cloud, mine.peer_id) == (given.cloud, "alice")
    assert mine.secret not in (None, given.secret)
    assert kkp2p.join_net(engine, "alice", str(mine.secret)) == 0
    # The line is worth nothing to anybody who finds it later.
    status, output, errors = join(line, "another")
    assert (status, output) == (1, "")
    assert "bad-secret" in errors
    assert not (tmp_path / "another" / "kkp2p" / "login").exists()


def test_an_answer_that_was_lost(
    invite: Callable[..., str],
    join: Callable[..., tuple[int, str, str]],
    start_tool: StartTool,
    tmp_path: Path,
) -> None:
    """The cloud has the new secret, and the first try ended before that was kept."""
    line = invite("alice")
    assert join(line)[0] == 0
    mine = kept(tmp_path)
    folder = tmp_path / "user" / "kkp2p"
    (folder / "login").rename(folder / "login.begun")
    # A try that does not reach the cloud forgets nothing.
    assert (
        start_tool("join", line, "--ca", "/nowhere", XDG_CONFIG_HOME=str(tmp_path / "user")).end()[
            0
        ]
        == 1
    )
    status, _, errors = join(line)
    assert (status, errors) == (0, "")
    assert kept(tmp_path) == mine
    assert not (folder / "login.begun").exists()


def test_a_peer_that_has_an_account(
    own_cloud: CloudProcess,
    invite: Callable[..., str],
    join: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    accounts = LocalDirectory(tmp_path / "data")
    accounts.add("alice", SECRET)
    line = invite("alice")
    assert line == f"kkp2p://alice@{own_cloud.pinned()}"
    status, _, errors = join(line)
    assert status == 1
    assert "no terminal" in errors
    assert join(line, KKP2P_SECRET="wrong")[0] == 1
    assert join(line, KKP2P_SECRET=SECRET)[0] == 0
    assert kept(tmp_path).secret == SECRET
    assert accounts.account("alice") is not None
    again = Invitation.parse(
        invite("alice", "--again", "--at", "cloud.example", "--no-fingerprint")
    )
    assert again == Invitation("cloud.example", own_cloud.port, None, "alice", again.secret)
    changed = accounts.account("alice")
    assert changed is not None
    assert changed.once_until > time.time()
    accounts.close()


def test_an_invitation_that_is_over(
    invite: Callable[..., str], join: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    line = invite("alice", "--hours", "1")
    accounts = LocalDirectory(tmp_path / "data")
    secret = str(Invitation.parse(line).secret)
    accounts.update("alice", verifier=Verifier.of(secret), once_until=int(time.time()) - 1)
    accounts.close()
    status, _, errors = join(line)
    assert status == 1
    assert "the secret is that of an invitation" in errors


def test_only_a_caller_has_no_account(
    own_cloud: CloudProcess, join: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    assert join(own_cloud.pinned())[0] == 0
    assert str(kept(tmp_path)) == own_cloud.pinned()


@pytest.mark.parametrize("line", ["", "kkp2p://alice:hidden@", "kkp2p://alice:hidden@127.0.0.1:1"])
def test_no_invitation(
    join: Callable[..., tuple[int, str, str]], tmp_path: Path, line: str
) -> None:
    status, output, errors = join(line)
    assert (status, output) == (1, "")
    assert errors.startswith("kkp2p join: ")
    assert "hidden" not in errors
    assert not (tmp_path / "user" / "kkp2p" / "login").exists()


def test_into_a_cloud_of_nodes(
    redis_server: RedisServer,
    start_tool: StartTool,
    join: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    invite = ("invite", "alice", "--directory", redis_server.url)
    status, output, errors = start_tool(*invite).end()
    assert (status, output) == (1, "")
    assert "no node of this cloud is running" in errors
    node = CloudProcess(tmp_path / "data", "--directory", redis_server.url)
    try:
        status, line, errors = start_tool(*invite).end()
        assert (status, errors) == (0, "")
        assert Invitation.parse(line).cloud == node.pinned()
        status, _, errors = join(line)
        assert (status, errors) == (0, "")
        assert join(line, "another")[0] == 1
    finally:
        assert node.end() == 0, "".join(node.output)


def test_a_cloud_that_was_never_started(tmp_path: Path, start_tool: StartTool) -> None:
    status, output, errors = start_tool("invite", "alice", "--data", str(tmp_path / "new")).end()
    assert (status, output) == (1, "")
    assert "start it first" in errors


VERIFIER = ["A" * 22, "A" * 43, "A" * 43, 16384]


def test_only_an_invited_peer_may_replace_its_secret_and_once(
    invite: Callable[..., str], own_cloud: CloudProcess, tmp_path: Path
) -> None:
    given = Invitation.parse(invite("alice"))
    accounts = LocalDirectory(tmp_path / "data")
    accounts.add("bob", SECRET)
    accounts.close()
    with Client(("127.0.0.1", own_cloud.port)) as client:
        assert client.ask("secret", verifier=VERIFIER)["op"] == "error"
        assert "once" not in client.login("bob", SECRET, call_only=True)
        assert client.ask("secret", verifier=VERIFIER)["op"] == "error"
    with Client(("127.0.0.1", own_cloud.port)) as client:
        assert client.login("alice", str(given.secret), call_only=True)["once"] is True
        for bad in (
            None,
            7,
            [],
            VERIFIER[:3],
            [*VERIFIER, 1],
            ["", *VERIFIER[1:]],
            [*VERIFIER[:3], 4096],
            [*VERIFIER[:3], 10**9],
            [*VERIFIER[:3], True],
            [*VERIFIER[:3], 16384.0],
            [[], {}, None, 16384],
            ["A" * 23, *VERIFIER[1:]],
            ["\u00e9" * 22, *VERIFIER[1:]],
        ):
            assert client.ask("secret", verifier=bad)["op"] == "error"
        verifier = Verifier.of("another")
        told = [*map(_base64url.encode, verifier[:3]), verifier.iterations]
        assert client.ask("secret", verifier=told) == {"op": "secret"}
        assert client.ask("secret", verifier=told)["op"] == "error"
    with Client(("127.0.0.1", own_cloud.port)) as client:
        assert client.login("alice", "another")["op"] == "welcome"


def test_where_the_cloud_is_reached(start_tool: StartTool, tmp_path: Path) -> None:
    """An address that is given to others, and not the first one of the host, which is loopback."""
    options = ("--listen", "0.0.0.0:0", "--data", str(tmp_path / "data"))
    cloud = start_tool("cloud", *options, "--advertise", "192.0.2.1")
    assert any("invite one" in line for line in iter(cloud.line, ""))
    line = start_tool("invite", "alice", *options[2:]).line()
    assert Invitation.parse(line).host == "192.0.2.1"
