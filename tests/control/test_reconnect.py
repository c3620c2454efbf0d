"""Coming back: after a change of the network, when the cloud was away, and after being replaced."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from helpers.cloud_client import Client, running_cloud, time_passes, until
from helpers.line_server import RawServer, Script, Serve, Visitor, wait_for
from helpers.support import PATIENCE_S, SECRET
from kkp2p_compat._errors import CloudUnreachable, DuplicateLogin, KKP2PError
from kkp2p_compat.cloud.control_connection import ControlConnection
from kkp2p_compat.control import client as client_module
from kkp2p_compat.control import link as link_module
from kkp2p_compat.control.client import CloudClient
from kkp2p_compat.control.wire import Message

Make = Callable[..., CloudClient]
LONG_S = 3600.0  # a pause that no test outlasts


@pytest.fixture
def lost() -> list[KKP2PError]:
    """The ends of logins that accept would tell."""
    return []


@pytest.fixture
def make(lost: list[KKP2PError]) -> Iterator[Make]:
    clients: list[CloudClient] = []

    def make(port: int) -> CloudClient:
        clients.append(
            CloudClient(
                "127.0.0.1",
                port,
                ["127.0.0.1"],
                logging.getLogger("test"),
                ca_file=None,
                on_offer=print,
                on_login_lost=lost.append,
            )
        )
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def endless_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BACKOFF_FIRST_S", "BACKOFF_MOST_S", "BACKOFF_SPREAD_S"):
        monkeypatch.setattr(client_module, name, LONG_S)


def here(script: Script) -> Script:
    """A cloud that serves every peer on the first connection."""

    def run(visitor: Visitor) -> None:
        visitor.receive("route")
        visitor.send("track", tracks=[])
        script(visitor)

    return run


class Moody:
    """A cloud whose connections answer heartbeats until they are told to fall silent."""

    def __init__(self) -> None:
        self.logins: list[Message] = []
        self.beats = 0
        self.told: list[object] = []
        self.silent = False

    def __call__(self, visitor: Visitor) -> None:
        first = visitor.receive()
        while first["op"] != "route":
            first = visitor.receive()
        visitor.send("track", tracks=[])
        scram = visitor.scram()
        while True:
            message = visitor.receive()
            if message["op"] == "nat":
                self.told.append(message["nat"])
            elif message["op"] == "login":
                self.logins.append(message)
                scram = visitor.scram()
                scram.set_client_first(message["scram"])
                visitor.send("challenge", scram=scram.get_server_first())
            elif message["op"] == "proof":
                scram.set_client_final(message["scram"])
                visitor.send("welcome", scram=scram.get_server_final(), beat=60)
            elif message["op"] == "beat" and not self.silent:
                self.beats += 1
                visitor.send("beat")
            elif message["op"] == "beat":
                self.silent = False
                visitor.wait_until_gone()


# The network changes.


def test_a_link_that_lives_is_kept(make: Make, serve: Serve) -> None:
    cloud = Moody()
    server = serve(cloud)
    client = make(server.address[1])
    assert not client.online
    client.login("me", SECRET).get()
    client.check_links()
    wait_for(lambda: cloud.beats == 1)
    assert client.online
    assert server.visits == 1


@pytest.mark.usefixtures("endless_pauses")
def test_a_dead_link_is_found_and_made_anew_at_once(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CHECK_S", 0.05)
    cloud = Moody()
    server = serve(cloud)
    client = make(server.address[1])
    client.login("me", SECRET).get()
    cloud.silent = True
    client.check_links()
    wait_for(lambda: len(cloud.logins) == 2 and client.online)
    assert server.visits == 2


@pytest.mark.usefixtures("endless_pauses")
def test_a_loss_long_after_a_change_waits_for_its_turn(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "HURRY_S", 0.0)
    server = serve(Moody())
    client = make(server.address[1])
    client.login("me", SECRET).get()
    client.check_links()
    client._links.open(("127.0.0.1", server.address[1])).close()
    wait_for(lambda: f"next try in {LONG_S:.1f} s" in caplog.text)
    assert not client.online


@pytest.mark.usefixtures("endless_pauses")
def test_a_change_cuts_a_pause_short(make: Make, serve: Serve) -> None:
    turns = iter([lambda visitor: None, Moody()])
    server = serve(lambda visitor: next(turns)(visitor))
    client = make(server.address[1])
    verdict = client.login("me", SECRET)
    wait_for(lambda: server.visits == 1 and not client._links.all())
    gevent.sleep(0)
    client.check_links()
    with gevent.Timeout(PATIENCE_S):
        verdict.get()


def test_a_link_that_is_being_opened_is_opened_anew(make: Make) -> None:
    """By the old network no answer will come."""
    accepted = []
    arrived = Event()

    def script(sock: Any) -> None:
        accepted.append(sock)
        arrived.set()
        gevent.sleep(PATIENCE_S)

    server = RawServer(script)
    client = make(server.address[1])
    opening = gevent.spawn(lambda: next(client.links_to("bob")))
    for count in (1, 2, 3):
        assert arrived.wait(PATIENCE_S)
        arrived.clear()
        assert len(accepted) == count
        if count < 3:
            client.check_links()
    client.close()
    opening.kill()
    server.close()


def test_without_a_change_a_link_that_does_not_open_is_an_error(make: Make) -> None:
    server = RawServer(lambda sock: sock.close())
    with pytest.raises(CloudUnreachable):
        next(make(server.address[1]).links_to("bob"))
    server.close()


def test_the_nat_is_told_to_each_track(make: Make, serve: Serve) -> None:
    cloud = Moody()
    client = make(serve(cloud).address[1])
    client.login("me", SECRET).get()
    assert cloud.told == []
    client.set_nat({"mapping": "none"})
    wait_for(lambda: cloud.told == [{"mapping": "none"}])
    client.set_nat({"mapping": "none"})
    client.set_nat({"mapping": "other"})
    wait_for(lambda: cloud.told[1:] == [{"mapping": "other"}])
    assert client._home_link is not None
    client._home_link.close()
    wait_for(lambda: len(cloud.logins) == 2 and client.online)
    wait_for(lambda: cloud.told[2:] == [{"mapping": "other"}])  # once the login has proved it


def test_a_cloud_that_does_not_read_is_no_trouble_to_who_tells_the_nat(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told by whoever watches our addresses, who goes on watching."""
    client = make(serve(Moody()).address[1])
    client.login("me", SECRET).get()
    link = client._home_link
    assert link is not None
    monkeypatch.setattr(link_module, "MAX_UNSENT_BYTES", 0)
    client.set_nat({"mapping": "none"})
    assert link.closed.is_set()


def test_a_login_says_whether_it_comes_again(make: Make, serve: Serve) -> None:
    cloud = Moody()
    client = make(serve(cloud).address[1])
    for _ in range(2):
        client.login("me", SECRET).get()
        assert client._home_link is not None
        seen = len(cloud.logins)
        client._home_link.close()
        wait_for(lambda: len(cloud.logins) > seen and client.online)  # noqa: B023
    sessions = [(login["session"], login.get("again")) for login in cloud.logins]
    assert [again for _, again in sessions] == [None, True, None, True]
    assert sessions[0][0] == sessions[1][0] != sessions[2][0] == sessions[3][0]


# Ghosts: peers that were cut off without a word.


def test_a_fresh_login_gets_in_at_once_and_the_ghost_is_freed() -> None:
    with running_cloud({"me": SECRET}) as cloud, Client(cloud.address) as caller:
        assert cloud.track is not None
        ghost = Client(cloud.address)  # reads nothing more from here on
        assert ghost.login("me", SECRET)["op"] == "welcome"
        with Client(cloud.address) as fresh:
            assert fresh.login("me", SECRET)["op"] == "welcome"
            assert caller.call("me")["op"] == "calling"
            assert fresh.receive()["op"] == "offer"
            assert cloud.track.online == 1
            time_passes(cloud, 30)  # not 2.5 heartbeats: it has no more than the last line needs
            until(lambda: cloud.gate.connections == 2)
        ghost.close()


def test_a_ghost_is_freed_in_two_heartbeats_and_a_half() -> None:
    with running_cloud({"me": SECRET}) as cloud, Client(cloud.address) as caller:
        assert cloud.track is not None
        ghost = Client(cloud.address)
        assert ghost.login("me", SECRET)["op"] == "welcome"
        assert caller.call("me", 1)["op"] == "calling"  # nobody can know yet
        cloud.gate.sweep(time.monotonic() + 63)
        assert caller.receive() == {"op": "declined", "call": 1, "reason": "left"}
        assert caller.call("me", 2)["reason"] == "offline"
        assert cloud.track.online == 0
        ghost.close()


def test_one_that_was_replaced_does_not_take_the_place_back(
    make: Make, lost: list[KKP2PError]
) -> None:
    """The old program was cut off, a new one logged in; then the old one's network is back."""
    with running_cloud({"me": SECRET}) as cloud:
        assert cloud.track is not None
        old = make(cloud.address[1])
        old.login("me", SECRET).get()
        assert old._home_link is not None
        unheard = old._home_link
        unheard._greenlets[0].kill()  # nothing that the cloud says gets through
        new = make(cloud.address[1])
        new.login("me", SECRET).get()
        until(lambda: cloud.gate.connections == 1)
        old.check_links()
        unheard.close()
        until(lambda: lost)
        assert [type(error) for error in lost] == [DuplicateLogin]
        assert new.online
        assert not old.online
        old.login("me", SECRET).get()  # but the user may want just that
        until(lambda: len(lost) == 2)
        assert old.online
        assert not new.online


def test_a_peer_takes_its_own_place_back(make: Make, lost: list[KKP2PError]) -> None:
    """Its former connection seems to live as far as the cloud knows."""
    with running_cloud({"me": SECRET}) as cloud:
        assert cloud.track is not None
        client = make(cloud.address[1])
        client.login("me", SECRET).get()
        ghost = client._home_link
        assert ghost is not None
        sock, ghost._sock = ghost._sock, None  # stays open, so the cloud hears of no end
        client.check_links()
        ghost.close()
        wait_for(lambda: client.online and client._home_link is not ghost)
        assert (cloud.track.online, lost) == (1, [])
        sock.close()


@pytest.mark.parametrize("session", [5, "x" * 65, ["x"]])
def test_a_session_that_is_none(session: object) -> None:
    with running_cloud({"me": SECRET}) as cloud, Client(cloud.address) as client:
        answer = client.ask("login", v=1, peer="me", scram="n=me", session=session)
        assert answer == {"op": "refused", "reason": "bad-message"}


# A storm.


def test_a_hundred_peers_come_back_after_a_restart(
    make: Make, lost: list[KKP2PError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, once each, and nothing is left of the old connections."""
    monkeypatch.setattr(client_module, "BACKOFF_SPREAD_S", 1.0)
    accounts = {f"peer{number}": SECRET for number in range(100)}
    limits = {"limit_loopback": False}

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def connections() -> bool:
        gc.collect()
        return any(isinstance(thing, ControlConnection) for thing in gc.get_objects())

    with running_cloud(accounts, limits) as cloud:
        address = cloud.address
        clients = [make(address[1]) for _ in accounts]
        for client, peer_id in zip(clients, accounts, strict=True):
            client.login(peer_id, SECRET).get()
        before = descriptors()
    wait_for(lambda: not any(client.online for client in clients))
    with running_cloud(accounts, limits, port=address[1]) as cloud:
        assert cloud.track is not None
        wait_for(lambda: all(client.online for client in clients))
        assert (cloud.track.online, cloud.gate.connections) == (100, 100)
        assert descriptors() == before
        assert lost == []
        for client in clients:
            client.close()
        until(lambda: cloud.gate.connections == 0)
        until(lambda: descriptors() <= before - 200)  # closed in callbacks
        until(lambda: not connections())


# The cloud sends its peers elsewhere.


def test_a_peer_that_is_to_move_logs_in_before_it_leaves(make: Make, serve: Serve) -> None:
    cloud, visitors = Moody(), []

    def script(visitor: Visitor) -> None:
        visitors.append(visitor)
        cloud(visitor)

    server = serve(script)
    client = make(server.address[1])
    client.login("me", SECRET).get()
    first = client._home_link
    assert first is not None
    assert cloud.logins[0]["moves"] is True
    visitors[0].send("move")
    wait_for(lambda: client._home_link is not first)
    assert len(cloud.logins) == 2
    assert cloud.logins[1]["again"] is True
    assert cloud.logins[0]["session"] == cloud.logins[1]["session"]
    assert first.takes_offers
    assert not first.closed.is_set()
    visitors[0].send("bye", reason="moved")
    wait_for(first.closed.is_set)
    assert client.online
    client.check_links()
    wait_for(lambda: cloud.beats == 1)


def test_a_peer_that_cannot_move_stays(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MOVE_FIRST_S", 0.01)
    cloud, visitors = Moody(), []

    def script(visitor: Visitor) -> None:
        visitors.append(visitor)
        if len(visitors) in (2, 3):
            visitor.receive("route")
            visitor.send("track", tracks=[])
            visitor.receive("login")
            visitor.send("bye", reason="shutdown")
        elif len(visitors) == 4:
            visitor.receive("route")
            visitor.send("track", tracks=[])
            visitor.receive("login")
            visitor.send("refused", reason="bad-secret")  # nothing has proved who says so
        else:
            cloud(visitor)

    client = make(serve(script).address[1])
    client.login("me", SECRET).get()
    first = client._home_link
    visitors[0].send("move")
    wait_for(lambda: len(visitors) == 5 and len(cloud.logins) == 2)
    wait_for(lambda: client._home_link is not first)
    assert client.online
