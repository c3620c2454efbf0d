"""Nodes that are restarted one after the other, under load: nobody notices but those who count."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest

from helpers.cloud_client import Client, running_cloud, until
from helpers.ports import free_port
from helpers.shared_directory import ACCOUNTS, Shared, SharedDirectory
from kkp2p_compat._errors import KKP2PError
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.control.client import CloudClient
from kkp2p_compat.control.link import Link
from kkp2p_compat.control.wire import Message

HOSTS = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
DRAIN_S = 10.0  # far more than it takes
CALL_S = 10.0
Running = tuple[Cloud, Callable[[], None]]  # and what stops it

log = logging.getLogger("test")


class Restarts:
    """Three nodes at addresses of their own, and peers that know all three."""

    def __init__(self, accounts: dict[str, str]) -> None:
        self.accounts = accounts
        self.shared = Shared()
        self.port = free_port()
        self.running = {host: self._start(host) for host in HOSTS}
        self.clients: list[CloudClient] = []
        self.lost: list[KKP2PError] = []

    def _start(self, host: str) -> Running:
        stack = ExitStack()
        directory = SharedDirectory(self.shared, self.accounts)
        cloud = stack.enter_context(
            running_cloud(directory=directory, host=host, port=self.port, stun=False, lane=False)
        )
        return cloud, stack.close

    def restart(self, host: str) -> None:
        cloud, close = self.running[host]
        self.take_turns()
        cloud.stop(DRAIN_S)
        close()
        self.running[host] = self._start(host)
        self.take_turns()

    def take_turns(self) -> None:
        """The nodes know each other."""
        for cloud, _ in self.running.values():
            if cloud.nodes is not None:
                cloud.nodes.take_turn()

    def client(self, on_offer: Callable[[Link, Message], object] = print) -> CloudClient:
        made = CloudClient(
            "|".join(HOSTS),
            self.port,
            list(HOSTS),
            log,
            ca_file=None,
            on_offer=on_offer,
            on_login_lost=self.lost.append,
        )
        self.clients.append(made)
        return made

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for _, close in self.running.values():
            close()


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Restarts]:
    monkeypatch.setattr("kkp2p_compat.cloud.track.MOVING_SHARE", 0.05)
    made = Restarts({**ACCOUNTS, **{f"peer{n}": "s" for n in range(PEERS)}})
    yield made
    made.close()


PEERS = 6
CALLERS = 4


def answer(link: Link, message: Message) -> None:
    if message["op"] == "offer":
        link.send(b'{"op":"answer","call":"%b","answer":"yes"}\n' % message["call"].encode())


def call_once(client: CloudClient, peer_id: str) -> str:
    """Why it failed, or nothing."""
    try:
        with gevent.Timeout(CALL_S, TimeoutError("no answer")):
            for link in client.links_to(peer_id):
                call = link.calls.make(peer_id, "{}", 5000)
                try:
                    assert call.answer.get() == "yes"
                finally:
                    link.calls.forget(call, cancel=True)
                return ""
    except (KKP2PError, TimeoutError) as error:
        return str(error)
    return "no link"


def call_for_ever(client: CloudClient, outcomes: Counter[str], dice: random.Random) -> None:
    while True:
        peer_id = f"peer{dice.randrange(PEERS)}"
        first = call_once(client, peer_id)
        if first:
            log.info("failed at first: %s", first)
            again = call_once(client, peer_id)
            outcomes["failed twice: " + again if again else "failed at first"] += 1
        else:
            outcomes["answered"] += 1
        gevent.sleep(0.005)


def test_no_call_fails_that_is_retried_once(restarts: Restarts) -> None:
    restarts.take_turns()
    callees = [restarts.client(answer) for _ in range(PEERS)]
    for number, callee in enumerate(callees):
        callee.login(f"peer{number}", "s").get(timeout=CALL_S)
    outcomes: Counter[str] = Counter()
    callers: list[Any] = []
    for number in range(CALLERS):
        client = restarts.client()
        if number % 2:
            client.login(["caller", "other"][number // 2], ["d", "o"][number // 2]).get()
        callers.append(gevent.spawn(call_for_ever, client, outcomes, random.Random(number)))
    try:
        for host in HOSTS:
            before = outcomes["answered"]
            restarts.restart(host)
            assert all(callee.online for callee in callees)  # they were so all the time
            until(lambda: outcomes["answered"] > before + 20)  # noqa: B023
    finally:
        gevent.killall(callers)
    assert not restarts.lost
    assert not [why for why in outcomes if why.startswith("failed twice")], outcomes
    log.info("%s", outcomes)


def test_a_node_that_drains_keeps_its_lease_and_takes_no_logins(restarts: Restarts) -> None:
    restarts.take_turns()
    cloud, _ = restarts.running[HOSTS[0]]
    address = cloud.address
    with Client(address) as busy, Client(address) as late:
        assert busy.login("peer0", "s", moves=True)["op"] == "welcome"
        stopping = gevent.spawn(cloud.stop, DRAIN_S)
        assert late.receive() == busy.receive() == {"op": "move"}
        assert late.login("peer1", "s") == {"op": "bye", "reason": "shutdown"}
        assert cloud.nodes is not None
        restarts.shared.leases.clear()
        cloud.nodes.take_turn()
        assert restarts.shared.alive()[cloud.nodes.id].draining
    stopping.join()


def test_the_last_node_sends_its_peers_away(restarts: Restarts) -> None:
    """There is nowhere to go: they are told at once, as by a cloud of one process."""
    for host in HOSTS[1:]:
        restarts.running[host][1]()
    restarts.take_turns()
    restarts.take_turns()
    client = restarts.client()
    client.login("peer0", "s").get(timeout=CALL_S)
    cloud, _ = restarts.running[HOSTS[0]]
    assert cloud.track is not None
    cloud.stop(DRAIN_S)
    assert not cloud.track.is_draining
    until(lambda: not client.online)
