"""A node that has lost the others: its peers look for another one, and hear when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from helpers.cloud_client import Client, running_cloud, until
from helpers.ports import free_port
from helpers.shared_directory import ACCOUNTS, Shared, SharedDirectory
from kkp2p_compat.cloud.directory import LEASE_S, Node
from kkp2p_compat.control import client as client_module
from kkp2p_compat.control.client import CloudClient

HOSTS = ["127.0.0.1", "127.0.0.2"]
PEER, SECRET = next(iter(ACCOUNTS.items()))
SETTLED_S, SPREAD_S = 30.0, 300.0


class Parted(SharedDirectory):
    """``lost_at``: the directory is there, and not for this node."""

    lost_at: float | None = None

    @property
    def away_since(self) -> float | None:
        return self.lost_at


class Fleet:
    def __init__(self, stack: ExitStack) -> None:
        self.directories, self.clouds, port = [], [], free_port()
        shared = Shared()
        for host in HOSTS:
            directory = Parted(shared, ACCOUNTS)
            cloud = stack.enter_context(
                running_cloud(
                    directory=directory,
                    host=host,
                    port=port,
                    stun=False,
                    lane=False,
                    limits={"beat_s": 0.1},
                )
            )
            self.directories.append(directory)
            self.clouds.append(cloud)
        self.lost: list[Any] = []
        self.client = CloudClient(
            "|".join(HOSTS),
            port,
            list(HOSTS),
            logging.getLogger("test"),
            ca_file=None,
            on_offer=print,
            on_login_lost=self.lost.append,
        )
        stack.callback(self.client.close)
        self.client.login(PEER, SECRET).get()

    def where(self) -> int:
        """At which node the peer's home is."""
        link = self.client._home_link
        assert link is not None
        return HOSTS.index(link.address[0])

    def part(self, *nodes: int, for_s: float = LEASE_S + 1) -> None:
        for node in nodes:
            self.directories[node].lost_at = time.monotonic() - for_s


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    for name in ("CUT_OFF_FIRST_S", "CUT_OFF_SPREAD_S", "CUT_OFF_MOST_S"):
        monkeypatch.setattr(client_module, name, 0.05)
    with ExitStack() as stack:
        yield Fleet(stack)


def test_a_peer_leaves_a_node_that_is_cut_off(fleet: Fleet) -> None:
    first = fleet.where()
    fleet.part(first)
    until(lambda: fleet.where() != first)
    assert fleet.client.online
    member = fleet.clouds[1 - first].track
    assert member is not None
    assert member.member(PEER) is not None
    assert fleet.lost == []


def test_where_all_are_cut_off_it_stays_and_is_online(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    home = fleet.client._home_link
    assert home is not None
    fleet.part(0, 1)
    until(lambda: caplog.text.count("cannot move yet") >= 3)
    assert fleet.client._home_link is home
    assert fleet.client.online
    fleet.directories[0].lost_at = fleet.directories[1].lost_at = None
    until(lambda: fleet.client._home_link is not home or not home.cut_off.is_set())
    assert fleet.client.online
    assert fleet.lost == []


def test_a_node_is_not_cut_off_at_once(fleet: Fleet) -> None:
    """Redis is started anew within seconds: nobody need leave for that."""
    fleet.part(0, 1, for_s=LEASE_S / 2)
    with Client(fleet.clouds[0].address) as client:
        assert client.ask("beat") == {"op": "beat"}
        fleet.part(0)
        assert client.ask("beat") == {"op": "beat", "cut_off": True}


def test_a_login_that_leaves_such_a_node_is_for_one_that_is_better(fleet: Fleet) -> None:
    fleet.part(0)
    with Client(fleet.clouds[0].address) as client:
        answer = client.login(PEER, SECRET, leaves_cut_off=True)
        assert answer == {"op": "bye", "reason": "unavailable"}


def test_peers_hear_of_a_relay_that_has_come_and_stays(fleet: Fleet) -> None:
    cloud = fleet.clouds[0]
    assert cloud.nodes is not None
    assert cloud.track is not None
    with Client(cloud.address) as knows, Client(cloud.address) as old:
        ids = list(ACCOUNTS)[1:3]
        assert knows.login(ids[0], ACCOUNTS[ids[0]], relays=True)["op"] == "welcome"
        assert old.login(ids[1], ACCOUNTS[ids[1]])["op"] == "welcome"
        now = time.monotonic()
        cloud.track.sweep(now)
        relay = Node("f" * 16, "relay", relay_host="192.0.2.1", relay_port=1)
        cloud.nodes.living["f" * 16] = relay
        cloud.track.sweep(now + 1)
        cloud.track.sweep(now + SETTLED_S)  # it has just come
        assert knows.ask("beat")["op"] == "beat"
        cloud.track.sweep(now + 2 + SETTLED_S)
        for second in range(int(SPREAD_S)):
            cloud.track.sweep(now + 3 + SETTLED_S + second)
        told = knows.receive()
        assert told["op"] == "relays"
        assert ["192.0.2.1", 1] in told["relays"]
        assert old.ask("beat")["op"] == "beat"
        assert knows.ask("beat")["op"] == "beat"  # once
        del cloud.nodes.living["f" * 16]
        for second in range(2 * int(SETTLED_S)):
            cloud.track.sweep(now + 1000 + second)
        assert knows.ask("beat")["op"] == "beat"  # of one that has gone nobody is told
