"""What strangers can take up of a peer, and of its address at the relay: counts, by a cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kkp2p_compat as kkp2p
from helpers.cloud_client import Client, Scene, open_relay, running_scene, until
from helpers.direct_support import LONG, MakeEngine, accept, check_carries
from helpers.support import SECRET, CloudProcess
from kkp2p_compat.transport import relay_wire
from kkp2p_compat.transport.relay import receive_receipt

MINUTE = 60_000


def offers(scene: Scene) -> list[dict[str, Any]]:
    """What the callee has been handed so far."""
    scene.callee.send("beat")
    found = []
    while (message := scene.callee.receive())["op"] != "beat":
        found.append(message)
    return found


def call(client: Client, number: int, **fields: Any) -> dict[str, Any]:
    asked = {"call": number, "to": "callee", "ms": MINUTE, "offer": "{}", "shows": True}
    return client.ask("call", **asked | fields)


def show(scene: Scene, client: Client, calling: dict[str, Any], receipt: str = "") -> Any:
    """Go to the relay as a caller that must show itself; the connection."""
    host, port, token = calling["relay"]
    sock = open_relay([host, port, token], scene.cloud.address, wants_receipt=True)
    text = receipt or relay_wire.receipt_to_text(receive_receipt(sock))
    client.send("here", call=calling["call"], receipt=text)
    return sock


def test_strangers_beyond_a_few_are_offered_when_they_were_at_the_relay() -> None:
    with running_scene(unshown_to_a_peer=2) as scene:
        answers = [call(scene.caller, number) for number in range(5)]
        assert [answer.get("show") for answer in answers] == [None, None, True, True, True]
        first = offers(scene)
        assert len(first) == 2
        assert all("shown" not in offer for offer in first)
        sock = show(scene, scene.caller, answers[3])
        (shown,) = until_offers(scene, 1)
        assert shown["shown"] is True
        assert 0 < shown["ms"] <= MINUTE
        # The very connection that has shown it is paired.
        callees = open_relay(shown["relay"], scene.cloud.address)
        assert (sock.recv(1), callees.recv(1)) == (bytes([relay_wire.PAIRED]),) * 2
        sock.close()
        callees.close()


def until_offers(scene: Scene, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < count:
        found += offers(scene)
    return found


def test_an_answer_does_not_make_a_stranger_trusted_but_its_end_makes_room() -> None:
    with running_scene(unshown_to_a_peer=1) as scene:
        for number in (1, 2):
            call(scene.caller, number)
        (first,) = offers(scene)
        scene.callee.send("answer", call=first["call"], answer="{}")
        assert scene.caller.receive()["op"] == "answer"
        assert offers(scene) == []
        scene.caller.send("over", call=1)
        until_offers(scene, 1)


def test_a_held_call_that_is_cancelled_was_never_there() -> None:
    with running_scene(unshown_to_a_peer=0) as scene:
        assert call(scene.caller, 1)["show"] is True
        scene.caller.send("trickle", call=1, text="early")
        scene.caller.send("cancel", call=1)
        until(lambda: scene.track.calls == 0)
        assert offers(scene) == []


def test_the_callee_leaves_while_calls_are_held() -> None:
    with running_scene(unshown_to_a_peer=0) as scene:
        call(scene.caller, 1)
        scene.callee.close()
        assert scene.caller.receive() == {"op": "declined", "call": 1, "reason": "left"}


def test_a_receipt_of_another_call_or_of_nobody() -> None:
    with running_scene(unshown_to_a_peer=0) as scene:
        first, second = call(scene.caller, 1), call(scene.caller, 2)
        sock = show(scene, scene.caller, first)
        until_offers(scene, 1)
        others = relay_wire.receipt_to_text(relay_wire.make_receipt(b"another key", bytes(16)))
        for receipt in (others, "A" * 22, "", "x", None, 5):
            answer = scene.caller.ask("here", call=second["call"], receipt=receipt)
            assert (answer["op"], answer["re"]) == ("error", "here")
        assert offers(scene) == []
        sock.close()


def test_callers_that_cannot_show_anything_wait_for_their_turn() -> None:
    """Older ones: they do not say ``shows``, and are not asked to."""
    with running_scene(unshown_to_a_peer=1) as scene:
        for number in (1, 2):
            assert "show" not in call(scene.caller, number, shows=None)
        assert len(offers(scene)) == 1
        scene.caller.send("cancel", call=1)
        assert [message["op"] for message in until_offers(scene, 2)] == ["cancel", "offer"]


def test_accounts_are_not_in_the_way_of_strangers_nor_behind_them() -> None:
    with running_scene(unshown_to_a_peer=0, strangers_to_a_peer=1) as scene:
        assert call(scene.caller, 1)["op"] == "calling"
        assert call(scene.caller, 2)["reason"] == "limit"
        with Client(scene.cloud.address) as account:
            assert account.login("caller", "d")["op"] == "welcome"
            assert "show" not in call(account, 1)
            (offer,) = offers(scene)
            assert offer["from"] == "caller"


def test_one_address_cannot_have_all_of_a_peer() -> None:
    """When strangers have no room, the address that has the most of it loses its newest call."""
    with (
        running_scene(strangers_to_a_peer=10, unshown_to_a_peer=4) as scene,
        Client(scene.cloud.address, source="127.0.0.2") as other,
    ):
        for number in range(10):
            assert call(scene.caller, number)["op"] == "calling"
        put_off = {"op": "declined", "reason": "limit", "again": True}
        assert call(scene.caller, 10) == {"call": 10, **put_off}
        for number in range(5):
            assert call(other, number)["op"] == "calling"
            assert scene.caller.receive() == {"call": 9 - number, **put_off}
        assert call(other, 5)["reason"] == "limit"  # both have as many


def test_calls_of_one_address_wait_for_each_other() -> None:
    with running_scene(calls_to_a_peer=2) as scene:
        for number in range(5):
            assert call(scene.caller, number)["op"] == "calling"
        handed = offers(scene)
        assert len(handed) == 2
        with Client(scene.cloud.address, source="127.0.0.2") as other:
            call(other, 1)
            assert len(offers(scene)) == 1
        for offer in handed:
            scene.callee.send("decline", call=offer["call"], reason="busy")
        until_offers(scene, 2)


def test_an_offer_that_is_too_long_is_not_held() -> None:
    with running_scene(unshown_to_a_peer=0) as scene:
        assert call(scene.caller, 1, offer="x" * 9000)["reason"] == "limit"
        assert scene.track.calls == 0


def test_strangers_may_call_less_often_than_accounts() -> None:
    with running_scene(stranger_calls_per_s=0.001, burst_s=3000.0) as scene:
        fields = {"to": "nobody"}
        reasons = [call(scene.caller, number, **fields)["reason"] for number in range(4)]
        assert reasons == ["offline"] * 3 + ["limit"]
        with Client(scene.cloud.address) as other:
            assert call(other, 1, **fields)["reason"] == "limit"  # from the same address
            assert other.login("caller", "d")["op"] == "welcome"
            assert call(other, 2, **fields)["reason"] == "offline"


# The callee's address at the relay.


def test_who_is_called_does_not_find_its_own_address_full() -> None:
    """The callee goes to the relay for each call of somebody who never comes there."""
    with running_scene(
        connections_per_address=6, relay_sessions_per_address=4, unshown_to_a_peer=4
    ) as scene:
        waiting = []
        with Client(scene.cloud.address, source="127.0.0.2") as stranger:
            for number in range(4):
                call(stranger, number)
            for offer in offers(scene):
                waiting.append(open_relay(offer["relay"], scene.cloud.address))
            until(lambda: scene.cloud.relay is not None and scene.cloud.relay.waiting == 4)
            # Two connections of the scene count for that address, and none of the four.
            mine = [Client(scene.cloud.address) for _ in range(4)]
            tokens = [call(client, 9)["relay"][2] for client in mine]
            for client in mine:
                client.close()
            until(lambda: scene.cloud.gate.connections == 7)
            for text in tokens:
                sock = open_relay([None, None, text], scene.cloud.address, wants_receipt=True)
                waiting.append(sock)
                receive_receipt(sock)
        for sock in waiting:
            sock.close()
        until(lambda: not scene.cloud.gate.relay_sessions and not scene.cloud.gate.relay_callees)


# Engines.


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_engines_show_that_they_are_there(
    on_loopback: None, tmp_path: Path, make_engine: MakeEngine, mode: int
) -> None:
    """A cloud that trusts no stranger: every call goes over the relay's receipt."""
    cloud = CloudProcess(tmp_path, "--account", f"peer:{SECRET}", "--unshown-to-a-peer", "0")
    try:
        caller, callee = make_engine(login_port=cloud.port), make_engine(login_port=cloud.port)
        assert kkp2p.join_net(callee, "peer", SECRET) == 0
        mine = kkp2p.channel_t()
        ctx = kkp2p.connect_ctx_t("peer", connect_mode=mode, timeout=LONG)
        assert kkp2p.connect(caller, ctx, mine) == 0
        assert mine.transmit_mode == (2 if mode == 2 else 1)
        check_carries(mine, accept(callee))
    finally:
        for engine in (caller, callee):
            kkp2p.engine_destroy(engine)
        assert cloud.end() == 0


@pytest.mark.usefixtures("out_of_reach")
def test_a_caller_that_has_shown_itself_takes_the_relay_by_the_same_connection(
    tmp_path: Path, make_engine: MakeEngine
) -> None:
    cloud = CloudProcess(tmp_path, "--account", f"peer:{SECRET}", "--unshown-to-a-peer", "0")
    try:
        caller, callee = make_engine(login_port=cloud.port), make_engine(login_port=cloud.port)
        assert kkp2p.join_net(callee, "peer", SECRET) == 0
        mine = kkp2p.channel_t()
        ctx = kkp2p.connect_ctx_t("peer", connect_mode=0, timeout=LONG)
        assert kkp2p.connect(caller, ctx, mine) == 0
        assert mine.transmit_mode == 2
        check_carries(mine, accept(callee))
    finally:
        for engine in (caller, callee):
            kkp2p.engine_destroy(engine)
        assert cloud.end() == 0
