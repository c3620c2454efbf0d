"""Logging in, being replaced or removed, and what a stranger's login can do."""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent import ssl as gssl
from hypothesis import given, settings
from hypothesis import strategies as st
from scramp import ScramClient

from helpers.cloud_client import Client, running_cloud, until
from kkp2p_compat import _base64url
from kkp2p_compat.cloud import directory_local
from kkp2p_compat.cloud.certificate import load_identity
from kkp2p_compat.cloud.directory import Verifier, new_account
from kkp2p_compat.cloud.directory_local import LocalDirectory
from kkp2p_compat.cloud.login import Login, LoginFailed

ALICE = {"alice": "s3cret"}


def test_login() -> None:
    with running_cloud(ALICE) as cloud, Client(cloud.address) as alice:
        assert alice.ask("route", v=1, peer="alice") == {"op": "track", "tracks": []}
        answer = alice.login("alice", "s3cret")
        assert answer["op"] == "welcome"
        assert answer["beat"] == 25
        assert alice.ask("beat") == {"op": "beat"}
        assert cloud.track is not None
        assert cloud.track.online == 1


@pytest.mark.parametrize(
    ("peer_id", "secret", "binding", "reason"),
    [
        ("alice", "wrong", None, "bad-secret"),
        ("nobody", "s3cret", None, "unknown-peer"),
        ("alice", "s3cret", b"x" * 32, "bad-binding"),
    ],
)
def test_refusals(peer_id: str, secret: str, binding: bytes | None, reason: str) -> None:
    with running_cloud(ALICE) as cloud, Client(cloud.address) as client:
        assert client.login(peer_id, secret, binding) == {"op": "refused", "reason": reason}
        assert client.ended()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"v": 2, "peer": "alice", "scram": "p=tls-server-end-point,,n=alice,r=abc"},
        {"v": 1, "peer": "with space", "scram": "p=tls-server-end-point,,n=alice,r=abc"},
        {"v": 1, "peer": ["alice"], "scram": "p=tls-server-end-point,,n=alice,r=abc"},
        {"v": 1, "peer": "alice", "scram": None},
        {"v": 1, "peer": "alice", "scram": "x" * 3000},
        {"v": 1, "peer": "alice", "scram": "p=tls-server-end-point,,n=\u00e9,r=abc"},
    ],
)
def test_a_malformed_login(fields: dict[str, Any]) -> None:
    with running_cloud(ALICE) as cloud, Client(cloud.address) as client:
        assert client.ask("login", **fields) == {"op": "refused", "reason": "bad-message"}
        assert client.ended()


def test_a_login_without_binding_is_a_downgrade() -> None:
    with running_cloud(ALICE) as cloud, Client(cloud.address) as client:
        answer = client.ask("login", v=1, peer="alice", scram="n,,n=alice,r=abcdef")
        assert answer == {"op": "refused", "reason": "bad-binding"}


def test_two_names_in_one_login() -> None:
    with running_cloud({**ALICE, "bob": "b"}) as cloud, Client(cloud.address) as client:
        scram = "p=tls-server-end-point,,n=bob,r=abcdef"
        answer = client.ask("login", v=1, peer="alice", scram=scram)
        assert answer == {"op": "refused", "reason": "unknown-peer"}


def test_one_login_on_a_connection() -> None:
    with running_cloud({**ALICE, "bob": "b"}) as cloud, Client(cloud.address) as client:
        assert client.ask("proof", scram="x")["op"] == "error"
        assert client.login("alice", "s3cret")["op"] == "welcome"
        assert client.ask("proof", scram="x")["op"] == "error"
        assert client.login("bob", "b") == {"op": "refused", "reason": "bad-message"}
        assert client.ended()


def test_a_man_in_the_middle_with_a_certificate_of_his_own(tmp_path: Path) -> None:
    """A real TLS proxy: the login that it forwards fails, although the secret is right."""
    identity = load_identity(tmp_path)
    listener = gsocket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)

    def proxy(target: tuple[str, int]) -> None:
        sock, _ = listener.accept()
        victim = identity.context.wrap_socket(sock, server_side=True)
        with victim, Client(target) as onward:
            back = gevent.spawn(copy, onward.sock, victim)
            copy(victim, onward.sock)
            back.kill()

    def copy(source: gssl.SSLSocket, sink: gssl.SSLSocket) -> None:
        while data := source.recv(65536):
            sink.sendall(data)

    with running_cloud(ALICE) as cloud:
        proxying = gevent.spawn(proxy, cloud.address)
        with Client(listener.getsockname()) as victim:
            answer = victim.login("alice", "s3cret")
            assert answer == {"op": "refused", "reason": "bad-binding"}
            assert cloud.track is not None
            assert cloud.track.online == 0
        proxying.join()
    listener.close()


def test_a_newer_login_ends_the_older() -> None:
    with running_cloud(ALICE) as cloud, Client(cloud.address) as old, Client(cloud.address) as new:
        assert old.login("alice", "s3cret")["op"] == "welcome"
        assert new.login("alice", "s3cret")["op"] == "welcome"
        assert old.receive() == {"op": "bye", "reason": "duplicate"}
        assert old.ended()
        assert new.ask("beat")["op"] == "beat"
        assert cloud.track is not None
        assert cloud.track.online == 1


@pytest.mark.parametrize("action", ["remove", "passwd", "disable"])
def test_an_account_removed_or_changed_while_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Another connection to the file, as the command line in another process has one."""
    monkeypatch.setattr(directory_local, "CHANGES_EVERY_S", 0.0)
    accounts = LocalDirectory(tmp_path)
    accounts.add("alice", "s3cret")
    accounts.add("bob", "b")
    with (
        running_cloud(data=tmp_path) as cloud,
        Client(cloud.address) as alice,
        Client(cloud.address) as bob,
    ):
        assert alice.login("alice", "s3cret")["op"] == "welcome"
        assert bob.login("bob", "b")["op"] == "welcome"
        if action == "remove":
            accounts.remove("alice")
        elif action == "disable":
            accounts.update("alice", disabled=True)
        else:
            accounts.change_secret("alice", "another")
        assert alice.receive() == {"op": "bye", "reason": "removed"}
        assert alice.ended()
        assert bob.ask("beat")["op"] == "beat"
    accounts.close()


@pytest.mark.parametrize("is_here", [True, False], ids=["here", "another process"])
def test_whoever_else_has_logged_in_with_an_invitation_that_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    monkeypatch.setattr(directory_local, "CHANGES_EVERY_S", math.inf)
    accounts = LocalDirectory(tmp_path)
    accounts.put(replace(new_account("alice", "invited"), once_until=int(time.time()) + 3600))
    with (
        running_cloud(data=tmp_path) as cloud,
        Client(cloud.address) as alice,
        Client(cloud.address) as other,
    ):
        assert alice.login("alice", "invited", call_only=True)["once"] is True
        assert other.login("alice", "invited", call_only=True)["once"] is True
        if is_here:
            assert alice.ask("secret", verifier=_told("s3cret")) == {"op": "secret"}
        else:
            accounts.change_secret("alice", "s3cret")
            other.send("secret", verifier=_told("another"))
        assert other.receive() == {"op": "bye", "reason": "removed"}
        assert other.ended()
        with Client(cloud.address) as again:
            assert again.login("alice", "s3cret")["op"] == "welcome"
    accounts.close()


def test_an_invitation_that_is_taken_up_while_a_tool_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It can be taken up a moment later; whoever only reads accounts notices nothing."""
    accounts = LocalDirectory(tmp_path)
    accounts.put(replace(new_account("alice", "invited"), once_until=int(time.time()) + 3600))
    with running_cloud(data=tmp_path) as cloud:
        tool = sqlite3.connect(tmp_path / "accounts.db", isolation_level=None)
        with contextlib.closing(tool), Client(cloud.address) as alice:
            tool.execute("BEGIN EXCLUSIVE")
            assert cloud.directory is not None
            cloud.directory.sweep(math.inf)
            assert alice.login("alice", "invited", call_only=True)["once"] is True
            alice.send("secret", verifier=_told("s3cret"))
            assert alice.receive() == {"op": "bye", "reason": "unavailable"}
        assert "locked" in caplog.text
        assert "a fault of ours" not in caplog.text
        with Client(cloud.address) as alice:
            assert alice.login("alice", "invited", call_only=True)["once"] is True
            assert alice.ask("secret", verifier=_told("s3cret")) == {"op": "secret"}
    accounts.close()


def _told(secret: str) -> list[object]:
    *keys, iterations = Verifier.of(secret)
    return [*map(_base64url.encode, keys), iterations]


def test_only_who_has_the_secret_learns_that_an_account_is_disabled(tmp_path: Path) -> None:
    accounts = LocalDirectory(tmp_path)
    accounts.add("alice", "s3cret")
    accounts.update("alice", disabled=True)
    with running_cloud(data=tmp_path) as cloud:
        with Client(cloud.address) as alice:
            assert alice.login("alice", "s3cret") == {"op": "refused", "reason": "removed"}
        with Client(cloud.address) as guess:
            assert guess.login("alice", "guess") == {"op": "refused", "reason": "bad-secret"}
        accounts.update("alice", disabled=False)
        with Client(cloud.address) as alice:
            assert alice.login("alice", "s3cret")["op"] == "welcome"
    accounts.close()


@pytest.mark.parametrize("told", [None, "anybody", "bob,carol"])
def test_both_the_account_and_the_login_must_allow_a_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str | None
) -> None:
    monkeypatch.setattr(directory_local, "CHANGES_EVERY_S", 0.0)
    accounts = LocalDirectory(tmp_path)
    for name in ("alice", "bob", "dave"):
        accounts.add(name, "s")
    accounts.update("alice", allow="bob,dave")
    with (
        running_cloud(data=tmp_path) as cloud,
        Client(cloud.address) as alice,
        Client(cloud.address) as bob,
        Client(cloud.address) as dave,
        Client(cloud.address) as stranger,
    ):
        assert alice.login("alice", "s", callers=told)["op"] == "welcome"
        assert bob.login("bob", "s")["op"] == "welcome"
        assert dave.login("dave", "s")["op"] == "welcome"
        allowed = {
            name: _may_call(who) for name, who in (("bob", bob), ("dave", dave), ("", stranger))
        }
        assert allowed == {"bob": True, "dave": told != "bob,carol", "": False}
        accounts.update("alice", allow="nobody")
        until(lambda: not _may_call(bob))
    accounts.close()


def _may_call(caller: Client) -> bool:
    """It cancels the call again."""
    answer = caller.ask("call", call=1, to="alice", ms=5000, offer="o")
    if answer["op"] == "calling":
        caller.send("cancel", call=1)
        return True
    assert answer["reason"] == "not-allowed"
    return False


def test_an_account_removed_during_its_login(tmp_path: Path) -> None:
    accounts = LocalDirectory(tmp_path)
    accounts.add("alice", "s3cret")
    with running_cloud(data=tmp_path) as cloud, Client(cloud.address) as alice:
        scram = ScramClient(
            ["SCRAM-SHA-256-PLUS"],
            "alice",
            "s3cret",
            channel_binding=("tls-server-end-point", load_identity(tmp_path).binding),
        )
        answer = alice.ask("login", v=1, peer="alice", scram=scram.get_client_first())
        scram.set_server_first(answer["scram"])
        accounts.remove("alice")
        answer = alice.ask("proof", scram=scram.get_client_final())
        assert answer == {"op": "refused", "reason": "removed"}
    accounts.close()


def test_the_accounts_failing_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running_cloud({**ALICE, "bob": "b"}) as cloud, Client(cloud.address) as bob:
        assert bob.login("bob", "b")["op"] == "welcome"

        def fail(peer_id: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(cloud.directory, "account", fail)
        with Client(cloud.address) as alice:
            alice.send("login", v=1, peer="alice", scram="p=tls-server-end-point,,n=alice,r=abc")
            assert alice.ended()
        assert "disk I/O error" in caplog.text
        assert bob.ask("beat")["op"] == "beat"


def test_a_cloud_in_a_thread_of_its_own() -> None:
    done: list[str] = []

    def run() -> None:
        with running_cloud(ALICE) as cloud, Client(cloud.address) as alice:
            done.append(alice.login("alice", "s3cret")["op"])
        gevent.get_hub().destroy()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert done == ["welcome"]


def test_stop_says_good_bye_and_leaves_nothing() -> None:
    with running_cloud(ALICE) as cloud:
        alice, caller = Client(cloud.address), Client(cloud.address)
        silent = gsocket.create_connection(cloud.address)
        assert alice.login("alice", "s3cret")["op"] == "welcome"
        assert caller.ask("route", v=1, peer="alice")["op"] == "track"
        until(lambda: cloud.gate.connections == 3)
        cloud.stop()
        for client in (alice, caller):
            assert client.receive() == {"op": "bye", "reason": "shutdown"}
            assert client.ended()
            client.close()
        assert silent.recv(1) == b""
        silent.close()
        assert cloud.gate.connections == 0
        assert not cloud.gate.deadlines.items()
        assert cloud.track is not None
        assert cloud.track.online == 0


ACCOUNT = LocalDirectory(None, ALICE).account("alice")


@settings(max_examples=100)
@given(st.one_of(st.text(max_size=80), st.from_regex(r"p=tls-server-end-point,,n=[^,]*,r=.*")))
def test_strangers_first_messages_raise_only_login_refused(text: str) -> None:
    login = Login(ACCOUNT, b"b" * 32, "alice")
    with contextlib.suppress(LoginFailed):  # hypothesis may hit upon a good one
        login.challenge_untrusted(text)


@settings(max_examples=100)
@given(st.one_of(st.text(max_size=80), st.from_regex(r"c=[A-Za-z0-9+/=]*,r=.*,p=[A-Za-z0-9=]*")))
def test_strangers_proofs_raise_only_login_refused(text: str) -> None:
    login = Login(ACCOUNT, b"b" * 32, "alice")
    login.challenge_untrusted("p=tls-server-end-point,,n=alice,r=abcdef")
    with pytest.raises(LoginFailed):
        login.welcome_untrusted(text)


def test_log_is_quiet_about_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running_cloud(ALICE) as cloud, Client(cloud.address) as alice:
        assert alice.login("alice", "s3cret")["op"] == "welcome"
    assert "s3cret" not in caplog.text
