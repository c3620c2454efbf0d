"""Dialling several addresses: the first that answers wins, and nothing of the others is left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from helpers.cloud_fixtures import BlackHole
from helpers.line_server import RawServer, Serve, Visitor, wait_for
from helpers.support import PATIENCE_S
from kkp2p_compat._errors import EngineClosed, LinkLost, TimedOut
from kkp2p_compat._io import time_limit
from kkp2p_compat.control import link as link_module
from kkp2p_compat.control import links as links_module
from kkp2p_compat.control.client import CloudClient
from kkp2p_compat.transport import dial


@pytest.mark.parametrize(
    ("addresses", "turns"),
    [
        ([], []),
        (["10.0.0.1"], ["10.0.0.1"]),
        (["10.0.0.2", "10.0.0.1", "::2", "::1"], ["10.0.0.2", "::2", "10.0.0.1", "::1"]),
        (["::2", "10.0.0.1", "::1", "::3"], ["::2", "10.0.0.1", "::1", "::3"]),
    ],
)
def test_families_take_turns(addresses: list[str], turns: list[str]) -> None:
    assert dial.interleave(addresses) == turns


def test_the_next_attempt_begins_when_one_fails_and_not_before() -> None:
    began: list[int] = []

    def fail(number: int) -> str:
        began.append(number)
        raise LinkLost(str(number))

    def win() -> str:
        assert began == [1, 2]
        return "won"

    attempts = [lambda: fail(1), lambda: fail(2), win, lambda: fail(4)]
    assert dial.race(attempts, print) == "won"
    with pytest.raises(LinkLost, match="4"):
        dial.race([lambda: fail(4), lambda: fail(5)], print)
    assert began == [1, 2, 4, 5]


def test_whoever_hangs_is_overtaken_and_ended() -> None:
    ended: list[int] = []

    def hang(number: int) -> str:
        try:
            gevent.sleep(PATIENCE_S * 10)
        finally:
            ended.append(number)
        return "late"

    assert dial.race([lambda: hang(1), lambda: hang(2), lambda: "won"], print) == "won"
    wait_for(lambda: ended == [1, 2])


def test_who_has_got_somewhere_has_time_before_the_next_one_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dial, "NEXT_S", 0.001)
    asked: list[str] = []
    at_begin: list[int] = []

    def is_held() -> bool:
        asked.append("")
        return True

    def win() -> str:
        at_begin.append(len(asked))
        return "won"

    never = gevent.event.Event()
    assert dial.race([never.wait, win], print, is_held) == "won"
    assert at_begin == [dial.MOST_HOLDS]


def test_who_fails_holds_nobody() -> None:
    def fail() -> str:
        raise LinkLost("at once")

    def is_held() -> bool:
        raise AssertionError("nobody waits")

    assert dial.race([fail, lambda: "won"], print, is_held) == "won"


def test_what_comes_too_late_is_dropped() -> None:
    dropped: list[str] = []
    together = gevent.event.Event()

    def attempt(name: str) -> str:
        if name == "b":
            together.set()
        together.wait()
        return name

    won = dial.race([lambda: attempt("a"), lambda: attempt("b")], dropped.append)
    gevent.sleep(0)
    assert (won, dropped) in (("a", ["b"]), ("b", ["a"]), ("a", []), ("b", []))


def test_the_caller_s_time_ends_all(black_hole: BlackHole, lan_port: int) -> None:
    """The leak check finds a socket that is left."""
    port = lan_port
    for host in ("127.0.0.2", "127.0.0.3"):
        black_hole(host, port)
    with pytest.raises(TimedOut), time_limit(1.5 * dial.NEXT_S, TimedOut()):
        dial.connect(["127.0.0.2", "127.0.0.3"], port)


def test_a_connection_by_the_address_that_answers(black_hole: BlackHole) -> None:
    server = RawServer(lambda sock: sock.recv(1))
    port = server.address[1]
    black_hole("127.0.0.2", port)
    sock, address = dial.connect(["127.0.0.2", "127.0.0.3", "127.0.0.1"], port)
    assert address == "127.0.0.1"
    assert sock.getpeername()[0] == "127.0.0.1"
    sock.close()
    server.close()


def test_a_lost_syn_is_not_waited_for() -> None:
    """The kernel repeats it after a second, whatever the round trip is."""
    asked: list[str] = []

    def connect(host: str, port: int) -> str:
        asked.append(host)
        if len(asked) == 1:
            gevent.sleep(PATIENCE_S * 10)
        return f"connection {len(asked)}"

    assert dial.connect(["10.0.0.1"], 1, connect) == ("connection 2", "10.0.0.1")
    assert asked == ["10.0.0.1"] * 2


# The login addresses.


@pytest.fixture
def make_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CloudClient]]:
    """Clients that try 127.0.0.2 first, and would wait for one address as good as for ever."""
    monkeypatch.setattr(link_module, "OPEN_TIMEOUT_S", PATIENCE_S * 10)
    clients: list[CloudClient] = []

    def make(port: int, domain: str = "127.0.0.2|127.0.0.1") -> CloudClient:
        log = logging.getLogger("test")
        client = CloudClient(
            domain, port, domain.split("|"), log, ca_file=None, on_offer=print, on_login_lost=print
        )
        monkeypatch.setattr(client._links._rng, "shuffle", lambda addresses: None)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def stay(visitor: Visitor) -> None:
    while visitor.receive()["op"] == "route":
        visitor.send("track", tracks=[])


def test_a_login_address_that_swallows_packets(
    make_client: Callable[..., CloudClient], black_hole: BlackHole, serve: Serve
) -> None:
    port = serve(stay).address[1]
    black_hole("127.0.0.2", port)
    client = make_client(port)
    assert next(client.links_to("bob")).address == ("127.0.0.1", port)
    client.close()
    again = make_client(port)  # each fresh one, for none knows what another has found
    assert next(again.links_to("bob")).address == ("127.0.0.1", port)


def test_a_login_address_that_takes_connections_and_says_nothing(
    make_client: Callable[..., CloudClient], serve: Serve
) -> None:
    """As a middlebox does that answers for a server that is gone."""
    port = serve(stay).address[1]
    with socket.socket() as middlebox:
        middlebox.bind(("127.0.0.2", port))
        middlebox.listen()
        client = make_client(port)
        assert next(client.links_to("bob")).address == ("127.0.0.1", port)
        client.close()


def test_a_caller_whose_time_is_up_ends_nobody_else_s_attempt(
    make_client: Callable[..., CloudClient], serve: Serve
) -> None:
    answers = gevent.event.Event()
    server = serve(lambda visitor: (answers.wait(), stay(visitor)))
    client = make_client(server.address[1], "127.0.0.1")
    with pytest.raises(TimedOut), time_limit(0.05, TimedOut()):
        next(client.links_to("bob"))
    waiting = [gevent.spawn(lambda: next(client.links_to("bob"))) for _ in range(5)]
    wait_for(lambda: server.visits == 1)
    answers.set()
    links = {greenlet.get() for greenlet in waiting}
    assert len(links) == server.visits == 1


def test_the_end_of_the_client_is_the_end_of_all_attempts(
    make_client: Callable[..., CloudClient], black_hole: BlackHole, serve: Serve
) -> None:
    port = serve(stay).address[1]
    for host in ("127.0.0.2", "127.0.0.3"):
        black_hole(host, port)
    client = make_client(port, "127.0.0.2|127.0.0.3")
    waiting = gevent.spawn(_closed_while_opening, client)
    wait_for(lambda: len(client._links._being_opened) == 2)
    client.close()
    waiting.get()
    _closed_while_opening(client)


def _closed_while_opening(client: CloudClient) -> None:
    with pytest.raises(EngineClosed):
        next(client.links_to("bob"))


@pytest.mark.parametrize("domain", ["a.example", "a.example|b.example", "10.0.0.1|b.example"])
def test_every_name_is_looked_up_again(
    make_client: Callable[..., CloudClient],
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    domain: str,
) -> None:
    """The cloud has moved: only the name tells where to."""
    port = serve(stay).address[1]
    asked: list[Any] = []

    def resolve(name: str, timeout_s: float, is_left: object) -> dict[str, str]:
        asked.append(name)
        return {"127.0.0.1": name}

    monkeypatch.setattr(links_module, "resolve", resolve)
    client = make_client(port, domain)
    client._links.addresses = ["127.0.0.2"]  # where it was
    client._links._resolved_at -= links_module.RESOLVE_AGAIN_S + 1
    assert next(client.links_to("bob")).address == ("127.0.0.1", port)
    assert asked == [domain]
