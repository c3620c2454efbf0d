"""A directory that several clouds of one process share: as Redis is, with a switch for faults."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
from gevent.event import Event

from helpers.cloud_client import Client, running_cloud, until
from kkp2p_compat.cloud.directory import LEASE_S, DirectoryAway, Node, Presence, Refused
from kkp2p_compat.cloud.directory_local import LocalDirectory
from kkp2p_compat.cloud.server import Cloud

__all__ = [
    "ACCOUNTS",
    "KEY",
    "Fleet",
    "Shared",
    "SharedDirectory",
    "running_fleet",
    "running_node",
    "running_nodes",
]

KEY = b"k" * 32  # of the relays


class Shared:
    """What all of them see.  ``away``: nobody is answered; ``lose``: how many lines get lost."""

    def __init__(self) -> None:
        self.leases: dict[str, tuple[Node, float]] = {}
        self.presences: dict[str, Presence] = {}
        self.listeners: dict[str, SharedDirectory] = {}
        self.away = False
        self.lose = 0
        self.lines: list[tuple[str, dict[str, Any]]] = []  # to whom, and what

    def alive(self) -> dict[str, Node]:
        now = time.monotonic()
        return {name: node for name, (node, until) in self.leases.items() if until > now}

    def name_relay(self, host: str, port: int) -> None:
        """A node that has a lease, and is not what it says, or not there."""
        node = Node(f"{len(self.leases):016x}", "relay", relay_host=host, relay_port=port)
        self.leases[node.id] = node, math.inf

    def flush(self) -> None:
        self.leases.clear()
        self.presences.clear()

    def come_back(self) -> None:
        self.away = False
        for directory in list(self.listeners.values()):
            directory.on_back()


class SharedDirectory(LocalDirectory):
    is_local = False

    def __init__(self, shared: Shared, accounts: Mapping[str, str]) -> None:
        super().__init__(None, accounts)
        self._shared = shared
        self._id = ""
        self._was_leased = False
        self.completes = Event()  # a login waits for it, of which the other nodes know already
        self.completes.set()

    def _wait(self) -> Shared:
        gevent.sleep(0)
        if self._shared.away:
            raise DirectoryAway("the test has switched it off")
        return self._shared

    @property
    def away_since(self) -> float | None:
        return time.monotonic() if self._shared.away else None

    def start(self, node_id: str | None = None) -> None:
        self._id = str(node_id)
        self._shared.listeners[self._id] = self

    def secret_key(self) -> bytes:
        return KEY

    def came(
        self, presence: Presence, *, again: bool = False, restored: bool = False
    ) -> Presence | Refused | None:
        shared = self._wait()
        old = shared.presences.get(presence.peer_id)
        if old is not None and old.node not in shared.alive():
            old = None
        is_same = old is not None and _place(old) == _place(presence)
        if old is not None and not is_same:
            if again and old.session != presence.session:
                return Refused(old)
            if restored and old.since_us > presence.since_us:
                return Refused(old)
        shared.presences[presence.peer_id] = presence
        if not restored:
            self.completes.wait()
        return None if is_same else old

    def restore(
        self, node_id: str, peer_ids: Iterable[str], presence_of: Callable[[str], Presence | None]
    ) -> list[tuple[Presence, Presence | Refused]]:
        there = [found for peer_id in peer_ids if (found := presence_of(peer_id)) is not None]
        outcomes = [(each, self.came(each, restored=True)) for each in there]
        for presence in list(self._shared.presences.values()):
            if presence.node == node_id and presence_of(presence.peer_id) is None:
                self.left(presence)
        return [(each, found) for each, found in outcomes if found is not None]

    def left(self, presence: Presence) -> None:
        if not self._shared.away and self._shared.presences.get(presence.peer_id) == presence:
            del self._shared.presences[presence.peer_id]

    def where(self, peer_id: str) -> Presence | None:
        shared = self._wait()
        found = shared.presences.get(peer_id)
        return found if found is not None and found.node in shared.alive() else None

    def lease(self, node: Node) -> None:
        shared = self._wait()
        was_lost = self._was_leased and node.id not in shared.alive()
        self._was_leased = True
        shared.leases[node.id] = node, time.monotonic() + LEASE_S
        if was_lost:
            self.on_back()

    def release(self, node_id: str) -> None:
        shared = self._wait()
        shared.leases.pop(node_id, None)
        for presence in list(shared.presences.values()):
            if presence.node == node_id:
                del shared.presences[presence.peer_id]

    def nodes(self) -> list[Node]:
        return list(self._wait().alive().values())

    def send(self, node_id: str, line: bytes) -> None:
        shared = self._shared
        shared.lines.append((node_id, json.loads(line)))
        if shared.lose:
            shared.lose -= 1
        elif not shared.away and node_id in shared.listeners:
            gevent.spawn(shared.listeners[node_id].on_line, line)


def _place(presence: Presence) -> tuple[str, int]:
    return presence.node, presence.connection


@contextmanager
def running_node(
    role: str,
    shared: Shared | None = None,
    accounts: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[Cloud]:
    """``shared``: with the cloud's other nodes; None: there is no other."""
    directory = SharedDirectory(shared or Shared(), accounts or {})
    with running_cloud(directory=directory, role=role, **settings) as cloud:
        yield cloud


@contextmanager
def running_nodes(
    count: int, accounts: Mapping[str, str], **settings: Any
) -> Iterator[tuple[Shared, list[Cloud]]]:
    """Clouds that are one, and know each other."""
    shared = Shared()
    with ExitStack() as stack:
        clouds = [
            stack.enter_context(running_node("all", shared, accounts, **settings))
            for _ in range(count)
        ]
        for cloud in clouds:
            assert cloud.nodes is not None
            cloud.nodes.take_turn()
        yield shared, clouds


ACCOUNTS = {"callee": "c", "caller": "d", "other": "o"}


class Fleet:
    """Two nodes, a callee at the second one and a caller without login at the first."""

    def __init__(self, shared: Shared, clouds: list[Cloud]) -> None:
        self.shared = shared
        self.clouds = clouds
        self.clients: list[Client] = []
        self.caller = self.client(0)
        self.callee = self.client(1, "callee")

    def client(self, node: int, peer_id: str = "", **more: Any) -> Client:
        client = Client(self.clouds[node].address)
        self.clients.append(client)
        if peer_id:
            answer = client.login(peer_id, ACCOUNTS[peer_id], **more)
            assert answer["op"] == "welcome", answer
        return client

    def begin_login(
        self, node: int, peer_id: str
    ) -> tuple[gevent.Greenlet[..., Client], SharedDirectory]:
        """One that is complete when ``completes`` of the directory is set."""
        directory = self.clouds[node].directory
        assert isinstance(directory, SharedDirectory)
        directory.completes.clear()
        login = gevent.spawn(self.client, node, peer_id)
        until(lambda: peer_id in self.shared.presences)
        return login, directory

    def end(self) -> None:
        """Nothing is left of any call."""
        for client in self.clients:
            client.close()
        until(self.is_clean)

    def received(self, count: int) -> list[dict[str, Any]]:
        """So many messages of the callee, which has no more."""
        found = [self.callee.receive() for _ in range(count)]
        assert self.callee.ask("beat") == {"op": "beat"}
        return found

    def id(self, node: int) -> str:
        nodes = self.clouds[node].nodes
        assert nodes is not None
        return nodes.id

    def sent(self, op: str) -> list[dict[str, Any]]:
        return [line for _, line in self.shared.lines if line["op"] == op]

    @property
    def calls(self) -> list[int]:
        """Of each node: with those that another one carries for its callers."""
        return [0 if cloud.track is None else len(cloud.track._calls) for cloud in self.clouds]

    def is_clean(self) -> bool:
        """Nothing is left of any call."""
        gates = [cloud.gate for cloud in self.clouds]
        return self.calls == [0] * len(self.clouds) and not any(
            gate.open_calls or gate.kept_calls for gate in gates
        )


@contextmanager
def running_fleet() -> Iterator[Fleet]:
    """At its end nothing is left of any call."""
    with running_nodes(2, ACCOUNTS) as (shared, clouds):
        made = Fleet(shared, clouds)
        yield made
        made.end()
