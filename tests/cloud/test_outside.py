"""Where the cloud sees a peer: what the other side may do there, and what strangers hear of us."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import kkp2p_compat as kkp2p
from helpers.cloud_client import SEEN, Client, Scene, running_scene
from helpers.direct_support import LONG, MakeEngine, accept, check_carries
from helpers.line_server import LineServer, Visitor, wait_for
from helpers.support import SECRET, CloudProcess
from kkp2p_compat import _base64url
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.cloud.certificate import load_identity
from kkp2p_compat.cloud.outside import (
    TICKET_S,
    make_ticket,
    plain_ip,
    same_network,
    seen_by_stun_untrusted,
)
from kkp2p_compat.cloud.stun import respond
from kkp2p_compat.engine.calls.incoming import IncomingCalls
from kkp2p_compat.engine.paths import own_addresses
from kkp2p_compat.engine.paths.own_addresses import OwnAddresses
from kkp2p_compat.engine.signalling.offer import vouched_untrusted
from kkp2p_compat.engine.signalling.own_side import OwnSide
from kkp2p_compat.traversal.candidates import Candidate, host_candidates
from kkp2p_compat.traversal.checks import Checks
from kkp2p_compat.traversal.credentials import Credentials
from kkp2p_compat.traversal.guesses import Guesses, Wave
from kkp2p_compat.traversal.nat import NatBehaviour
from kkp2p_compat.traversal.plan import Plan
from kkp2p_compat.traversal.punch import Punch, Turn
from kkp2p_compat.traversal.stun import Kind, Message
from kkp2p_compat.traversal.stun import parse_untrusted as parse_message_untrusted

VICTIM = "203.0.113.66"
ONCE: list[Wave] = [(0.0, None)]


# The track.


@pytest.fixture
def scene() -> Iterator[Scene]:
    with running_scene() as made:
        yield made


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::0:1", "2001:db8::1"),
    ],
)
def test_an_address_as_peers_write_it(host: str, plain: str) -> None:
    assert plain_ip(host) == plain


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (["192.0.2.1"], ["192.0.2.1"], True),
        (["192.0.2.1"], ["192.0.2.2"], False),
        (["2001:db8::1"], ["2001:db8::2"], True),  # of one /64
        (["2001:db8::1"], ["2001:db8:0:1::1"], False),
        (["2001:db8::1", "192.0.2.1"], ["192.0.2.1"], True),
        (["10.0.0.1"], ["192.168.1.1"], True),  # both in networks that the cloud is in
        (["127.0.0.1"], ["10.0.0.1"], True),
        (["10.0.0.1"], ["192.0.2.1"], False),  # a port of the cloud's is forwarded
    ],
)
def test_the_same_network(one: list[str], other: list[str], same: bool) -> None:
    assert same_network(one, other) is same
    assert same_network(other, one) is same


def test_the_track_tells_each_side_where_the_other_is(scene: Scene) -> None:
    with Client(scene.cloud.address, source="127.0.0.2") as caller:
        caller.send("nat", nat={"mapping": "x"})
        calling = caller.call("callee", 1)
        offer = scene.callee.receive()
        assert (offer["seen"], offer["nat"]) == (["127.0.0.2"], {"mapping": "x"})
        assert offer["same_network"] is True  # both are on this host
        scene.callee.send("nat", nat={"mapping": "y"})
        scene.callee.send("answer", call=offer["call"], answer="a")
        answer = caller.receive()
        assert (answer["seen"], answer["nat"]) == (SEEN, {"mapping": "y"})
        # What the callee is behind, and where, is for those whose call it takes.
        assert not {"seen", "nat"} & set(calling)


# Guesses.


def guesses(vouched: frozenset[str] | None) -> Guesses:
    listed = Candidate("srflx", 1, VICTIM, 4000)
    return Guesses({(VICTIM, 4000): listed}, lambda *_, **__: None, vouched)


@pytest.mark.parametrize(("vouched", "count"), [(None, 3), (frozenset({VICTIM}), 3)])
def test_guesses_where_the_cloud_sees_the_peer(vouched: frozenset[str] | None, count: int) -> None:
    assert guesses(vouched).predict(VICTIM, [2000, 2001, 2002], ONCE, 0.0) == count
    assert guesses(vouched).sweep(VICTIM, [2000, 2001, 2002], 0.0) == count
    assert guesses(vouched).spread((VICTIM, 4000), [7, 8, 9], ONCE, 0.0) == count


def test_no_guesses_at_a_third_party() -> None:
    assert guesses(frozenset({"198.51.100.1"})).predict(VICTIM, [2000], ONCE, 0.0) == 0
    assert guesses(frozenset({"198.51.100.1"})).sweep(VICTIM, [2000], 0.0) == 0
    assert guesses(frozenset({"198.51.100.1"})).spread((VICTIM, 4000), [7], ONCE, 0.0) == 0


@pytest.mark.parametrize(("vouched", "takes_turns"), [(None, True), (frozenset({"::1"}), False)])
@pytest.mark.parametrize("parts", [("sweep", "spread"), ("spread", "sweep")])
def test_no_birthday_waits_for_one_with_a_third_party(
    vouched: frozenset[str] | None, takes_turns: bool, parts: tuple[str, str]
) -> None:
    """An engine has one at a time: nobody may hold the turn for nothing, nor open the sockets."""
    dice = Random(1)
    checks = Checks(
        controlling=True,
        local=Credentials.make(dice),
        remote=Credentials.make(dice),
        local_candidates=[Candidate("host", 9, "192.0.2.1", 4000)],
        candidates=[Candidate("srflx", 5, VICTIM, 4000)],
        now=0.0,
        random=dice,
        vouched=vouched,
    )
    punch = Punch(checks, Plan("birthday", "", *parts), True, NatBehaviour(), dice, 0.0)
    if parts[0] == "sweep":
        punch.handle_fields_untrusted({"spread": 256}, 0.0)
    turns = [isinstance(punch.poll_action(), Turn)]
    assert turns == [takes_turns]


@pytest.mark.parametrize(
    ("seen", "vouched"),
    [
        (["192.0.2.1"], {"192.0.2.1"}),
        (["2001:db8::1", "192.0.2.1"], {"2001:db8::1", "192.0.2.1"}),
        (None, None),  # an older track
        (["10.0.0.1", "192.0.2.1"], None),  # a cloud in the peer's own network
        (["127.0.0.1"], None),
        ([], None),
        ("192.0.2.1", None),
        ([5], None),
        (["x"], None),
        (["192.0.2.1"] * 9, None),
    ],
)
def test_what_a_track_vouches_for(seen: object, vouched: set[str] | None) -> None:
    assert vouched_untrusted(seen) == vouched


# What strangers hear of our addresses.

HOST = ["2001:db8::7", "2001:db8::8", "10.0.0.5", "192.0.2.7", "198.51.100.9"]
PORTS = {2: 4000, 10: 4000}


def told(monkeypatch: pytest.MonkeyPatch, mapped: dict[int, tuple[str, str]]) -> list[str]:
    """To a stranger.  ``mapped``: by family, the NAT's mapping and the address that STUN saw."""
    listed = host_candidates(PORTS, HOST)
    monkeypatch.setattr(own_addresses, "host_candidates", lambda ports: listed)
    endpoint: Any = SimpleNamespace(ports=lambda: PORTS)
    own = OwnAddresses(endpoint, [], None, None, None)  # type: ignore[arg-type]
    for family, (mapping, ip) in mapped.items():
        found: Any = SimpleNamespace(mapped=[(ip, 4000)], behaviour=NatBehaviour(mapping))
        own.found[family] = found
    everything = {candidate.address for candidate in own.candidates()}
    assert everything >= set(HOST)
    return [candidate.address for candidate in own.candidates(to_stranger=True)]


def test_a_stranger_hears_what_the_world_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    behind = {2: ("endpoint-independent", "203.0.113.5"), 10: ("none", "2001:db8::8")}
    assert told(monkeypatch, behind) == ["2001:db8::8", "203.0.113.5"]


def test_a_stranger_hears_a_public_address_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, {2: ("none", "192.0.2.7")}) == ["2001:db8::7", "192.0.2.7"]


def test_without_stun_a_stranger_hears_what_must_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, {}) == ["2001:db8::7", "192.0.2.7", "198.51.100.9"]


@pytest.fixture
def answer_to(
    on_loopback: None, make_engine: MakeEngine
) -> Iterator[Callable[[dict[str, Any]], list[str]]]:
    """The addresses that an engine on loopback tells who calls it with these fields."""
    servers: list[LineServer] = []

    def ask(fields: dict[str, Any]) -> list[str]:
        answers: list[Any] = []

        def script(visitor: Visitor) -> None:
            if visitor.receive()["op"] == "route":  # of the engine's start
                visitor.send("track", tracks=[])
            visitor.log_in()
            text = OwnSide([]).offer(kkp2p.connect_ctx_t("peer"), 1)
            visitor.send("offer", call="c", ms=1000, offer=text, **fields)
            while (message := visitor.receive())["op"] != "answer":
                pass
            answers.append(json.loads(message["answer"]))
            visitor.wait_until_gone()

        servers.append(LineServer(load_identity(None, None, None), script))
        engine = make_engine(login_port=servers[0].address[1])
        assert kkp2p.join_net(engine, "peer", SECRET) == 0
        wait_for(lambda: answers)
        return [text.split()[2] for text in answers[0]["direct"]["candidates"]]

    yield ask
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("fields", "addresses"),
    [
        ({"seen": ["203.0.113.9"]}, []),
        ({"seen": ["203.0.113.9"], "same_network": "yes"}, []),
        ({"seen": ["203.0.113.9"], "same_network": True}, SEEN),
        ({"seen": ["203.0.113.9"], "from": "alice"}, SEEN),
        ({}, SEEN),  # an older track
    ],
)
def test_who_hears_of_addresses_inside(
    answer_to: Callable[[dict[str, Any]], list[str]], fields: dict[str, Any], addresses: list[str]
) -> None:
    assert answer_to(fields) == addresses


# The cloud's word of where STUN saw a peer.

KEY = b"k" * 32


def pair(ip: str, key: bytes = KEY, now: float = 1000.0, of: str = "") -> list[str]:
    return [ip, _base64url.encode(make_ticket(key, of or ip, now))]


def test_tickets_are_of_one_address_one_key_and_half_an_hour() -> None:
    good = pair("192.0.2.1")
    assert seen_by_stun_untrusted(KEY, [good, pair("192.0.2.2")], 1000.0 + TICKET_S) == [
        "192.0.2.1",
        "192.0.2.2",
    ]
    assert seen_by_stun_untrusted(KEY, [good], 1001.0 + TICKET_S) == []
    assert seen_by_stun_untrusted(b"another key", [good], 1000.0) == []
    assert seen_by_stun_untrusted(KEY, [pair(VICTIM, of="192.0.2.1")], 1000.0) == []


@pytest.mark.parametrize(
    "pairs",
    [
        None,
        5,
        "x",
        [5],
        [["192.0.2.1"]],
        [[5, "x"]],
        [["192.0.2.1", "x"]],
        [["192.0.2.1", None]],
        [["::1", "A" * 22]],
        [["nobody", "A" * 22]],
        [["192.0.2.1\0", "A" * 22]],
        [["192.0.2.1", "A" * 22]] * 4,
        [["\ud800", "A" * 22]],
    ],
)
def test_what_are_no_tickets(pairs: object) -> None:
    with pytest.raises(BadPacket):
        seen_by_stun_untrusted(KEY, pairs, 1000.0)


def test_a_track_vouches_for_what_its_stun_saw(scene: Scene) -> None:
    """A peer whose control connection leaves by another address than its UDP does."""
    key = scene.cloud._key
    scene.caller.send("nat", nat={}, seen=[pair("192.0.2.1", key, time.time())])
    scene.callee.send("nat", nat={}, seen=[pair(VICTIM, b"another key", time.time())])
    for client in (scene.caller, scene.callee):
        assert client.ask("beat")["op"] == "beat"
    scene.caller.call("callee")
    offer = scene.callee.receive()
    assert offer["seen"] == [*SEEN, "192.0.2.1"]
    scene.callee.send("answer", call=offer["call"], answer="a")
    assert scene.caller.receive()["seen"] == SEEN
    answer = scene.caller.ask("nat", nat={}, seen="x")
    assert (answer["op"], answer["re"]) == ("error", "nat")


def test_an_engine_hands_its_tickets_on(
    cloud: CloudProcess, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All the way: STUN's answer, the engine, the track, and what the callee hears."""
    caller, callee = make_engine(), make_engine()
    assert kkp2p.join_net(callee, "peer", SECRET) == 0

    def known() -> object:
        return caller.network.underlay().own.tickets.get("127.0.0.1")

    wait_for(lambda: caller.thread.call(known))
    heard: list[Any] = []
    meet = IncomingCalls._meet

    def note(calls: IncomingCalls, link: Any, message: dict[str, Any], *more: Any) -> None:
        heard.append(message["seen"])
        meet(calls, link, message, *more)

    monkeypatch.setattr(IncomingCalls, "_meet", note)
    mine = kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=1, timeout=LONG)
    assert kkp2p.connect(caller, ctx, mine) == 0
    check_carries(mine, accept(callee))
    assert heard == [["127.0.0.1", "127.0.0.1"]]  # of the control connection, and by STUN


def test_a_ticket_makes_no_answer_longer_than_its_request() -> None:
    ticket = make_ticket(KEY, "192.0.2.9", 1000.0)
    places = ("192.0.2.9", 4000), ("203.0.113.1", 3080), ("203.0.113.2", 3081)

    def answer(request_bytes: int) -> Message:
        request = Message(Kind.REQUEST, bytes(12))
        reply = respond(request, request_bytes, *places, ticket)
        assert len(reply.data) <= request_bytes
        return parse_message_untrusted(reply.data)

    assert (answer(100).ticket, answer(100).other) == (ticket, places[2])
    assert (answer(70).ticket, answer(70).other) == (None, places[2])
