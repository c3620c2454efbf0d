"""Several relays, and several addresses of one: both sides of a call come to the same one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.cloud_client import SEEN, Client, running_cloud, until
from helpers.cloud_fixtures import BlackHole
from helpers.direct_support import accept, check_carries, close, connect, log_of
from helpers.line_server import RawServer
from helpers.shared_directory import KEY, Shared, running_node
from helpers.support import PATIENCE_S, SECRET, write_all
from helpers.usage_support import new_session
from kkp2p_compat._address import text_of
from kkp2p_compat._errors import BadPacket, KKP2PError, LinkLost
from kkp2p_compat.cloud import usage as usage_module
from kkp2p_compat.cloud.directory import AccountLimits
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.cloud.usage import USED_UP, tag_of
from kkp2p_compat.control.wire import MAX_ROUND_TRIP_MS
from kkp2p_compat.engine.calls import cloud_call as calls
from kkp2p_compat.transport import relay as relay_module
from kkp2p_compat.transport import relay_wire
from kkp2p_compat.transport.relay import MAX_SPOTS, Visit, parse_places_untrusted, sort_spots

Spot = tuple[str, int]
Side = Callable[..., Any]


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
def relays(shared: Shared) -> Iterator[list[Cloud]]:
    """Two nodes of a cloud, at all addresses of this host."""
    settings = {"host": "0.0.0.0", "advertise": ("127.0.0.1", 0)}
    with ExitStack() as running:
        yield [running.enter_context(running_node("relay", shared, **settings)) for _ in range(2)]


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    """What makes the visits of a caller and of a callee; each is closed in the end."""
    session, expiry, made = new_session(KEY), int(time.time()) + 60, []

    def side(number: int) -> Side:
        token = relay_wire.make_token(KEY, session, number, expiry)

        def make(*spots: Spot) -> Visit:
            made.append(Visit(spots, token, number == relay_wire.CALLER))
            return made[-1]

        return make

    yield side(relay_wire.CALLER), side(relay_wire.CALLEE)
    for visit in made:
        visit.close()
    gevent.sleep(0)


def at(relay: Cloud, host: str = "127.0.0.1") -> Spot:
    return host, relay.address[1]


def nobody() -> Spot:
    with gevent.socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[:2]


def go(visit: Visit) -> Any:
    visit.begin()
    visit.pair()
    return visit.take()


def meet(caller: Visit, callee: Visit) -> None:
    """Both are paired, and with each other."""
    waiting = gevent.spawn(go, callee)
    ours, theirs = go(caller), waiting.get()
    ours.sendall(b"hello")
    assert theirs.recv(5) == b"hello"
    ours.close()
    theirs.close()


def test_both_reach_all(relays: list[Cloud], sides: tuple[Side, Side]) -> None:
    first, second = map(at, relays)
    meet(sides[0](first, second), sides[1](first, second))
    until(lambda: all(cloud.relay is not None and cloud.relay.waiting == 0 for cloud in relays))


@pytest.mark.parametrize("who", ["the caller", "the callee", "both"])
@pytest.mark.parametrize("how", ["refuses", "swallows", "says nothing"])
def test_the_first_relay_is_dead(
    relays: list[Cloud],
    sides: tuple[Side, Side],
    black_hole: BlackHole,
    lan_port: int,
    monkeypatch: pytest.MonkeyPatch,
    who: str,
    how: str,
) -> None:
    """For one side, or for both; the other one waits there, or goes there, for nothing."""
    pairs_at_once = how == "swallows" and who != "the callee"
    monkeypatch.setattr(relay_module, "PAIR_S", PATIENCE_S if pairs_at_once else 0.3)
    server = RawServer(lambda sock: gevent.sleep(PATIENCE_S * 10))
    if how == "swallows":
        black_hole("127.0.0.2", lan_port)
    dead = {"refuses": nobody(), "swallows": ("127.0.0.2", lan_port)}.get(how, server.address)
    first, second = map(at, relays)
    spots = [
        (first if who not in (side, "both") else dead, second)
        for side in ("the caller", "the callee")
    ]
    meet(sides[0](*spots[0]), sides[1](*spots[1]))
    server.close()


def test_two_addresses_of_one_relay(
    relays: list[Cloud], sides: tuple[Side, Side], caplog: pytest.LogCaptureFixture
) -> None:
    """The second place of the same side is refused there, which ends nothing."""
    spots = at(relays[0]), at(relays[0], "127.0.0.2")
    callee = sides[1](*spots)
    callee.begin()
    until(lambda: "the token was used before" in caplog.text)
    waiting = gevent.spawn(callee.pair)
    caller = sides[0](*reversed(spots))
    go(caller).close()
    waiting.get()
    callee.take().close()


def test_nobody_is_there(sides: tuple[Side, Side]) -> None:
    for make in sides:
        with pytest.raises(LinkLost, match="refused"):
            make(nobody(), nobody()).begin()


def test_closed_at_any_time(relays: list[Cloud], sides: tuple[Side, Side]) -> None:
    """The leak check looks at what is left."""
    spots = tuple(map(at, relays))
    for make in sides:
        visit = make(*spots)
        visit.close()
    callee = sides[1](*spots)
    callee.begin()
    waiting = gevent.spawn(callee.pair)
    gevent.sleep(0)
    callee.close()
    with pytest.raises(KKP2PError):
        waiting.get()


def test_paired_and_closed_before_anybody_looks(
    relays: list[Cloud], sides: tuple[Side, Side]
) -> None:
    """What the caller has written by then is lost: it must not read an end in order."""
    spots = tuple(map(at, relays))
    callee = sides[1](*spots)
    callee.begin()
    ours = go(sides[0](*spots))
    until(callee._paired.ready)
    ours.sendall(b"lost")
    callee.close()
    with pytest.raises(ConnectionResetError):
        ours.recv(1)
    ours.close()


TOKEN = relay_wire.make_token(KEY, bytes(16), relay_wire.CALLEE, 1)


def test_places() -> None:
    text = relay_wire.token_to_text(TOKEN)
    default = "192.0.2.1", 3080
    assert parse_places_untrusted([None, None, text], None, default) == ([default], TOKEN)
    many = [["relay.example", number] for number in range(1, 100)]
    places, _ = parse_places_untrusted(["192.0.2.2", 1, text], many, default)
    assert (
        places
        == [("192.0.2.2", 1), ("relay.example", 1), ("relay.example", 2), ("relay.example", 3)][
            :MAX_SPOTS
        ]
    )
    assert parse_places_untrusted(["r", 1, text], "unknown", default) == ([("r", 1)], TOKEN)
    for others in ([1], [["r"]], [["r", 0]], [["a b", 1]], [[None, None]], [["r", 1, text]]):
        with pytest.raises(BadPacket):
            parse_places_untrusted(["192.0.2.2", 1, text], others, default)


def test_all_sides_of_a_call_sort_a_name_s_addresses_alike() -> None:
    addresses = [f"192.0.2.{i}" for i in range(4)] + [f"2001:db8::{i}" for i in range(4)]
    firsts = set()
    for number in range(50):
        session = number.to_bytes(16, "big")
        caller, callee = (
            sort_spots(order, relay_wire.make_token(KEY, session, side, 1))
            for side, order in enumerate((addresses, addresses[::-1]))
        )
        assert caller == callee
        assert sorted(caller) == sorted(addresses)
        assert [":" in ip for ip in caller] == [True, False] * 4
        firsts.add(caller[0])
    assert len(firsts) == 4  # each machine has its share


# The track.


def relays_of(client: Client, callee: Client) -> list[Spot]:
    calling, offer = client.call("callee"), callee.receive()
    client.send("cancel", call=1)
    assert callee.receive()["op"] == "cancel"
    named = [[*message["relay"][:2]] for message in (calling, offer)]
    assert named[0] == named[1]
    assert calling.get("relays") == offer.get("relays")
    return [tuple(place) for place in (named[0], *calling.get("relays", []))]


def look_again(track: Cloud) -> None:
    """It learns what its next turns would tell it: who is missed twice is gone."""
    assert track.nodes is not None
    for _ in range(2):
        track.nodes.take_turn()


def test_a_track_names_relays_that_live(
    relays: list[Cloud], shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    places = [at(relay) for relay in relays]
    with (
        running_node("track", shared, {"callee": "c"}) as track,
        Client(track.address) as callee,
        Client(track.address) as caller,
    ):
        callee.login("callee", "c")
        assert sorted(relays_of(caller, callee)) == sorted(places)
        assert {relays_of(caller, callee)[0] for _ in range(30)} == set(places)
        relays[1].stop()
        look_again(track)
        assert relays_of(caller, callee) == [places[0]]
        relays[0].stop()
        look_again(track)
        for told in (caller.call("callee"), callee.receive()):
            assert told["no_relay"] == "none"
            assert not {"relay", "relays"} & told.keys()
        shared.name_relay(*places[0])
        look_again(track)
        caller.send("cancel", call=1)
        assert callee.receive()["op"] == "cancel"
        assert relays_of(caller, callee) == [places[0]]
    assert "relays of a call of a stranger to callee: none lives" in caplog.text


def test_the_relay_that_is_near_to_both_is_named_first(relays: list[Cloud], shared: Shared) -> None:
    first, second = map(at, relays)
    with (
        running_node("track", shared, {"callee": "c"}) as track,
        Client(track.address) as callee,
        Client(track.address) as caller,
    ):
        callee.login("callee", "c")
        for near, far in ((first, second), (second, first)):
            for side in (caller, callee):
                rtt = {f"{near[0]}:{near[1]}": 10, f"{far[0]}:{far[1]}": 80}
                side.send("nat", nat={}, rtt=rtt)
            callee.send("beat")
            assert callee.receive()["op"] == "beat"
            assert all(relays_of(caller, callee) == [near, far] for _ in range(20))
        caller.send("nat", nat={}, rtt={"x": 1})
        assert caller.receive()["op"] == "error"


# Whole calls.


@pytest.fixture
def track(shared: Shared) -> Iterator[Callable[..., Cloud]]:
    """Starts one; ``dead``: nodes whose relays nobody knows yet to be gone."""
    with ExitStack() as running:

        def start(*dead: Spot) -> Cloud:
            for place in dead:
                shared.name_relay(*place)
            return running.enter_context(running_node("track", shared, {"peer": SECRET}))

        yield start


@pytest.mark.parametrize("encrypt", [0, 1])
@pytest.mark.parametrize("how", ["refuses", "swallows"])
def test_calls_while_nobody_knows_yet_that_a_relay_is_dead(
    relays: list[Cloud],
    track: Callable[..., Cloud],
    make_engine: Callable[..., kkp2p.engine_t],
    black_hole: BlackHole,
    lan_port: int,
    how: str,
    encrypt: int,
) -> None:
    if how == "swallows":
        black_hole("127.0.0.2", lan_port)
    relays[1].stop()
    port = track(("127.0.0.2", lan_port)).address[1]
    engine, peer = (make_engine(login_port=port) for _ in range(2))
    assert kkp2p.join_net(peer, "peer", SECRET) == 0
    for _ in range(8):
        ctx = kkp2p.connect_ctx_t("peer", 0, 2, encrypt, PATIENCE_S * 1000)
        mine = kkp2p.channel_t()
        assert kkp2p.connect(engine, ctx, mine) == 0
        check_carries(mine, accept(peer))


@pytest.mark.usefixtures("out_of_reach")
def test_a_relay_that_is_dead_when_no_path_is_found(
    relays: list[Cloud], track: Callable[..., Cloud], make_engine: Callable[..., kkp2p.engine_t]
) -> None:
    """Auto mode: the relay is prepared, and the caller says that it is taken."""
    relays[1].stop()
    port = track(nobody(), nobody()).address[1]
    engine, peer = (make_engine(login_port=port) for _ in range(2))
    assert kkp2p.join_net(peer, "peer", SECRET) == 0
    for _ in range(4):
        mine = connect(engine, mode=0)
        assert mine.transmit_mode == 2
        check_carries(mine, accept(peer))


def test_two_relays_behind_one_name(
    shared: Shared,
    track: Callable[..., Cloud],
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The two sides' resolvers list them in different orders."""
    with ExitStack() as running:
        named = {"advertise": ("relay.test", 0)}
        first = running.enter_context(running_node("relay", shared, **named))
        port = first.address[1]
        second = running.enter_context(running_node("relay", host="127.0.0.2", port=port))
        orders = iter([["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]] * 100)
        real = calls.addresses_of
        monkeypatch.setattr(
            calls,
            "addresses_of",
            lambda host, timeout_s: next(orders) if "relay" in host else real(host, timeout_s),
        )
        port = track().address[1]
        engine, peer = (make_engine(login_port=port) for _ in range(2))
        assert kkp2p.join_net(peer, "peer", SECRET) == 0
        used = set()
        for _ in range(12):
            mine = connect(engine, mode=2)
            used.add(kkp2p.channel_stats(engine, mine.channel_id).address)
            check_carries(mine, accept(peer))
        assert len(used) == len((first, second))


def test_engines_measure_the_relays_that_they_are_told_of(
    shared: Shared, track: Callable[..., Cloud], make_engine: Callable[..., kkp2p.engine_t]
) -> None:
    hosts = "127.0.0.1", "127.0.0.2"
    with ExitStack() as running:
        names = [
            text_of(running.enter_context(running_node("relay", shared, host=host)).address)
            for host in hosts
        ]
        cloud = track(("127.0.0.3", 1))
        peer = make_engine(login_port=cloud.address[1])
        assert kkp2p.join_net(peer, "peer", SECRET) == 0
        assert cloud.track is not None
        member = cloud.track._online["peer"]
        until(lambda: member.round_trips)
        told = dict(member.round_trips)
        assert told.pop("127.0.0.3:1") == MAX_ROUND_TRIP_MS
        assert sorted(told) == sorted(names)
        assert max(told.values()) < MAX_ROUND_TRIP_MS


# Who has used up the relay bytes of the day.


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Cloud]:
    """A cloud with the accounts "peer" and "payer", which may relay 10,000 bytes a day."""
    with running_cloud({"peer": SECRET}, audit=str(tmp_path / "audit")) as cloud:
        assert cloud.directory is not None
        cloud.directory.add("payer", SECRET)
        cloud.directory.update("payer", limits=AccountLimits(relay_bytes_per_day=10_000))
        yield cloud


@pytest.mark.parametrize("encrypt", [0, 1])
def test_an_account_has_its_relay_bytes_a_day(
    limited: Cloud,
    on_loopback: None,
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    encrypt: int,
) -> None:
    """By TCP and by the lane; a direct path is no matter of the relay's."""
    monkeypatch.setattr(usage_module, "TELL_EVERY_S", 0.0)
    engine, peer = (make_engine(login_port=limited.address[1]) for _ in range(2))
    for each, name in ((engine, "payer"), (peer, "peer")):
        assert kkp2p.join_net(each, name, SECRET) == 0
    ctx = kkp2p.connect_ctx_t("peer", 0, 2, encrypt, PATIENCE_S * 1000)
    mine = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx, mine) == 0
    theirs, buff, got = accept(peer), bytearray(20_000), 0
    write_all(mine.fd, bytes(buff))
    while got < len(buff):
        count = kkp2p.read(theirs.fd, buff, len(buff) - got, PATIENCE_S * 1000)
        assert count > 0
        got += count
    assert limited.relay is not None
    assert limited.lane is not None
    for _ in range(10):  # each looks at some sessions
        limited._on_sweep()
    until(lambda: not limited.relay.sessions and not limited.lane.table.paired)
    assert f"is ended: {USED_UP}" in caplog.text or f"a lane is ended: {USED_UP}" in caplog.text
    hit = limited.gate.counts.limits["relay_bytes_per_day"]
    assert hit >= 1
    assert limited.directory is not None
    assert limited.directory.usage("payer") == {"calls": 1, "logins": 1}
    assert limited.directory.usage("peer") == {"logins": 1}
    assert limited.directory.usage(tag_of("payer"))["relay_bytes"] >= 10_000
    assert "relay_bytes" not in limited.directory.usage(tag_of("peer"))
    close(mine, theirs)
    assert kkp2p.connect(engine, ctx, kkp2p.channel_t()) < 0
    assert USED_UP in log_of(tmp_path, 0)
    assert limited.gate.counts.limits["relay_bytes_per_day"] > hit
    refused = {"what": "relay-refused", "account": "payer", "address": SEEN[0], "reason": USED_UP}
    lines = map(json.loads, (tmp_path / "audit").read_text().splitlines())
    assert any(refused.items() <= line.items() for line in lines)
    assert any(USED_UP in trouble.reason for trouble in limited.gate.counts.troubles)
    direct = connect(engine, mode=1)
    check_carries(direct, accept(peer))
    stranger = make_engine(login_port=limited.address[1])
    paid_by_the_callee = kkp2p.channel_t()
    assert kkp2p.connect(stranger, ctx, paid_by_the_callee) == 0
    check_carries(paid_by_the_callee, accept(peer))
