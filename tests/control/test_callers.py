"""Only who may: who may call a peer, checked by its track and by its engine, and who it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kkp2p_compat as kkp2p
from helpers.cloud_client import Client, Scene, running_scene
from helpers.direct_support import LONG, MakeEngine, accept, close, log_of
from helpers.line_server import LineServer, Visitor
from helpers.support import SECRET
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.cloud.certificate import load_identity
from kkp2p_compat.control.callers import MAX_CHARS, MAX_TOLD_CHARS, Callers, told

MakePair = Callable[..., tuple[kkp2p.channel_t, kkp2p.channel_t]]


@pytest.mark.parametrize(
    ("text", "allowed", "refused"),
    [
        (None, [None, "", "alice"], []),
        ("anybody", [None, "", "alice"], []),
        ("accounts", ["alice", "accounts"], [None, ""]),
        ("alice", ["alice"], [None, "", "alic", "alice2", "bob"]),
        ("alice,bob,!", ["alice", "bob", "!"], [None, "alice,bob", ","]),
    ],
)
def test_who_may(text: str | None, allowed: list[str | None], refused: list[str | None]) -> None:
    callers = Callers.parse_untrusted(text)
    assert all(map(callers.allow, allowed))
    assert not any(map(callers.allow, refused))


BAD = ["", ",", "alice,", "alice, bob", "x" * 33, "é", "anybody,", "a\n", "a," * MAX_CHARS + "a"]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_list_of_callers(text: str) -> None:
    with pytest.raises(BadPacket):
        Callers.parse_untrusted(text)
    conf = kkp2p.engine_conf_t(callers=text)
    assert kkp2p.engine_init(conf, 0) is None
    assert kkp2p.error_no() == -106


def test_a_list_that_is_too_long_for_a_login_is_judged_by_the_engine_alone() -> None:
    assert told(None) is None
    assert told("x" * MAX_TOLD_CHARS) == "x" * MAX_TOLD_CHARS
    assert told("x" * (MAX_TOLD_CHARS + 1)) == "accounts"


# The track.


@pytest.fixture
def scene() -> Iterator[Scene]:
    with running_scene() as made:
        yield made


def callee_that_takes(scene: Scene, callers: object) -> Client:
    client = Client(scene.cloud.address)
    assert client.login("callee", "c", callers=callers)["op"] == "welcome"
    assert scene.callee.receive()["reason"] == "duplicate"
    return client


@pytest.mark.parametrize("callers", ["accounts", "nobody,caller"])
def test_the_track_hands_over_no_call_that_is_not_allowed(scene: Scene, callers: str) -> None:
    with callee_that_takes(scene, callers) as callee:
        declined = {"op": "declined", "call": 1, "reason": "not-allowed"}
        assert scene.caller.call("callee") == declined
        assert scene.caller.login("caller", "d")["op"] == "welcome"
        assert scene.caller.call("callee")["op"] == "calling"
        assert callee.receive()["from"] == "caller"  # and no offer before it


def test_the_track_refuses_an_account_that_is_not_listed(scene: Scene) -> None:
    assert scene.caller.login("caller", "d")["op"] == "welcome"
    with callee_that_takes(scene, "somebody"):
        assert scene.caller.call("callee")["reason"] == "not-allowed"


@pytest.mark.parametrize("callers", ["", "a b", 5, [], "x" * (MAX_TOLD_CHARS + 1)])
def test_a_login_with_a_bad_list_of_callers(scene: Scene, callers: object) -> None:
    with Client(scene.cloud.address) as client:
        answer = client.login("callee", "c", callers=callers)
        assert answer == {"op": "refused", "reason": "bad-message"}


# The engine.


def test_strangers_are_refused_and_accounts_get_in(
    on_loopback: None, make_engine: MakeEngine, tmp_path: Path
) -> None:
    callee, account, engine = make_engine(callers="accounts"), make_engine(), make_engine()
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    for mode in (0, 1, 2):
        ctx = kkp2p.connect_ctx_t("peer", connect_mode=mode, timeout=LONG)
        assert kkp2p.connect(engine, ctx, kkp2p.channel_t()) == -108
    assert "the peer does not take calls from us" in log_of(tmp_path, 2)
    assert kkp2p.join_net(account, "other", SECRET) == 0
    for mode in (1, 2):
        mine = kkp2p.channel_t(caller_id="?")
        ctx = kkp2p.connect_ctx_t("peer", connect_mode=mode, timeout=LONG)
        for _ in range(2):  # p2p: the second one on the live connection
            assert kkp2p.connect(account, ctx, mine) == 0
            theirs = accept(callee)
            assert (mine.caller_id, theirs.caller_id) == ("", "other")
            stats = kkp2p.channel_stats(callee, theirs.channel_id)
            assert stats is not None
            assert stats.caller_id == "other"
            close(mine, theirs)


def test_a_stranger_has_no_id(make_pair: MakePair) -> None:
    for mode in (1, 2):
        _, theirs = make_pair(mode=mode)
        assert theirs.caller_id == ""


@pytest.mark.parametrize("sender", [None, "mallory", 5, "", "x" * 33])
def test_the_engine_refuses_what_an_old_track_lets_through(
    make_engine: MakeEngine, sender: object
) -> None:
    declined = []

    def script(visitor: Visitor) -> None:
        if visitor.receive()["op"] == "route":  # of the engine's start
            visitor.send("track", tracks=[])
        visitor.log_in()
        offer = '{"type":0,"mode":2,"encrypt":0,"desc":0}'
        named = {} if sender is None else {"from": sender}
        visitor.send("offer", call="c", ms=1000, offer=offer, relay=["127.0.0.1", 1, "x"], **named)
        declined.append(visitor.receive("decline"))
        visitor.wait_until_gone()

    server = LineServer(load_identity(None, None, None), script)
    try:
        engine = make_engine(login_port=server.address[1], callers="alice,bob")
        assert kkp2p.join_net(engine, "peer", SECRET) == 0
        while not declined:
            kkp2p.accept(engine, 10, kkp2p.channel_t())
    finally:
        server.close()
    assert declined == [{"op": "decline", "call": "c", "reason": "not-allowed"}]


def test_callers_on_the_lan_are_strangers(
    on_loopback: None, lan_port: int, make_engine: MakeEngine, tmp_path: Path
) -> None:
    caller, callee = (
        make_engine(login_domain=None, lan_search_port=lan_port),
        make_engine(login_domain=None, lan_search_port=lan_port, callers="accounts"),
    )
    assert kkp2p.join_lan(callee, "lan-peer") == 0
    ctx = kkp2p.connect_ctx_t("lan-peer", connect_mode=1, timeout=1)
    while "callers on the LAN have no account" not in log_of(tmp_path, 1):
        assert kkp2p.lan_search(caller, ctx, kkp2p.channel_t()) == -109
